"""Selective prediction: what risk is left when only the surest predictions are kept.

Shapes: N predictions, ranked from the highest confidence down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nmt_ls.metrics.calibration import checked_pair
from nmt_ls.metrics.inputs import FloatArray, check_unit_interval, mean_of_ties


@dataclass(frozen=True, kw_only=True)
class RiskCoverage:
    """The curve and its areas. Risk is the mean of 1 - correct over what is kept."""

    coverage: FloatArray  # [N], i/N for i = 1 to N
    risk: FloatArray  # [N], of the i surest
    aurc: float  # mean risk over all coverages (Geifman & El-Yaniv 2017)
    excess_aurc: float  # above the best ranking of the same predictions (Geifman et al. 2019)

    def coverage_at(self, risk: float) -> float:
        """The largest coverage whose risk is at most this; 0 if there is none."""
        within = np.flatnonzero(self.risk <= risk)
        return float(self.coverage[within[-1]]) if within.size else 0.0


def risk_coverage(confidences: Any, correct: Any) -> RiskCoverage:
    """Rank by confidence; `correct` is 0/1 or a quality in [0, 1], such as sentence BLEU / 100.

    Confidence need not be a probability: a log-probability ranks as well. Equal confidences count as if in every
    order at once, so that the curve does not depend on the order of the input.
    """
    score, y = checked_pair(confidences, correct)
    check_unit_interval(y, "correct")
    if score.size == 0:
        raise ValueError("risk and coverage of nothing: no confidences were given")
    if np.isnan(score).any():
        raise ValueError("confidences must not hold NaN")
    loss = 1.0 - y.astype(np.float64)
    _, mean_loss, counts = mean_of_ties(-score, loss)
    kept = np.arange(1, loss.size + 1)
    risk = np.cumsum(np.repeat(mean_loss, counts)) / kept
    best = np.cumsum(np.sort(loss)) / kept
    return RiskCoverage(
        coverage=kept / loss.size,
        risk=risk,
        aurc=float(risk.mean()),
        excess_aurc=float(risk.mean() - best.mean()),
    )
