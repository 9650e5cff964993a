"""What a calibrated model would show: ECE's floor and p-value.

ECE cannot be negative, so that noise alone makes it positive. Under the null hypothesis that a model's conditionals
are true, a prediction of confidence c is right with probability c. Redrawing all labels from the model's own
conditionals therefore shows the ECE of a calibrated model with just these confidences: its 95% quantile is the floor
below which an ECE says nothing (consistency resampling: Bröcker & Smith 2007, Vaicenavicius et al. 2019).

Shapes: N confidences, B bins, R draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nmt_ls.metrics.calibration import (
    CONFIDENCE,
    CONFIDENCE_SQUARED,
    CORRECT,
    CORRECT_SQUARED,
    COUNT,
    PRODUCT,
    bin_indices,
    binned_sums,
    checked_pair,
    ece_from_sums,
    unbiased_squared_l2_from_sums,
)
from nmt_ls.metrics.inputs import FloatArray, check_binary, check_bins, check_unit_interval

Figure = Callable[[FloatArray], FloatArray]
_BLOCK = 1 << 14  # confidences whose labels are redrawn at a time


@dataclass(frozen=True)
class NullDistribution:
    """Binned sums [R, 6, B] of R redraws of the labels; any figure that is a function of sums has its null here."""

    sums: FloatArray

    def values(self, figure: Figure = ece_from_sums) -> FloatArray:
        """The figure of every draw, [R]."""
        return figure(self.sums)

    def floor(self, figure: Figure = ece_from_sums, level: float = 0.95) -> float:
        """What a calibrated model exceeds with probability 1 - level."""
        return float(np.quantile(self.values(figure), level))

    def p_value(self, observed: float, figure: Figure = ece_from_sums) -> float:
        """Probability that a calibrated model shows as much or more (never 0: the data count as one draw)."""
        values = self.values(figure)
        return float((1 + np.count_nonzero(values >= observed)) / (1 + len(values)))

    def accuracy_band(self, level: float = 0.95) -> tuple[FloatArray, FloatArray]:
        """Between what the accuracy of each bin lies with probability `level`, [B] each; NaN where empty."""
        with np.errstate(invalid="ignore"):
            accuracy = self.sums[:, CORRECT] / self.sums[:, COUNT]
        tail = (1 - level) / 2
        low, high = np.quantile(accuracy, [tail, 1 - tail], axis=0)
        return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)


def null_distribution(confidences: Any, bins: int = 15, draws: int = 1000, seed: int = 0) -> NullDistribution:
    """Redraw the correctness of every confidence `draws` times: exact, and a few nanoseconds a label.

    Raises ValueError for confidences outside [0, 1] or none, and for fewer draws or bins than 1.
    """
    draws = _check_draws(draws, 1)
    c, _ = checked_pair(confidences, np.zeros(np.shape(confidences), bool))
    bins = check_bins(bins)
    observed = binned_sums(c, np.zeros(c.shape, bool), bins)
    if c.size == 0:
        raise ValueError("null distribution of nothing: no confidences were given")
    rng = np.random.default_rng(seed)
    sums = np.repeat(observed[None], draws, axis=0)
    rows = max(1, (1 << 22) // _BLOCK)
    for start in range(0, c.size, _BLOCK):
        block = c[start : start + _BLOCK]
        # one product of matrices sums the labels of every draw by bin, and their confidences beside them
        member = np.zeros((block.size, 2, bins), np.float32)
        index = bin_indices(block, bins)
        member[np.arange(block.size), 0, index] = 1.0
        member[np.arange(block.size), 1, index] = block
        chance = block.astype(np.float32)
        for first in range(0, draws, rows):
            last = min(first + rows, draws)
            right = (rng.random((last - first, block.size), np.float32) < chance).astype(np.float32)
            totals = (right @ member.reshape(block.size, -1)).reshape(-1, 2, bins)
            sums[first:last, CORRECT] += totals[:, 0]
            sums[first:last, PRODUCT] += totals[:, 1]
    sums[:, CORRECT_SQUARED] = sums[:, CORRECT]
    return NullDistribution(sums)


def _check_draws(draws: int, least: int) -> int:
    if int(draws) != draws or draws < least:
        raise ValueError(f"draws must be a whole number of at least {least}, got {draws!r}")
    return int(draws)


def null_distribution_from_sums(sums: FloatArray, draws: int = 1000, seed: int = 0) -> NullDistribution:
    """The null distribution of a stream of which only the binned sums [6, B] are left.

    The number right in a bin is drawn from the normal distribution of the same mean, sum c, and variance,
    sum c - sum c^2. From about 1,000 confidences its floor of ECE is within 5% of `null_distribution`'s; of fewer use
    that, where the confidences are at hand. Raises ValueError for fewer draws than 1.
    """
    draws = _check_draws(draws, 1)
    mean, variance = sums[CONFIDENCE], np.maximum(sums[CONFIDENCE] - sums[CONFIDENCE_SQUARED], 0.0)
    normal = np.random.default_rng(seed).standard_normal((draws, sums.shape[-1]))
    drawn = np.repeat(sums[None], draws, axis=0)
    right = mean + normal * np.sqrt(variance)  # not cut off at 0 and n, which would bias the sparsest bins
    drawn[:, CORRECT] = drawn[:, CORRECT_SQUARED] = right
    share = np.divide(sums[CONFIDENCE_SQUARED], mean, out=np.zeros_like(mean), where=mean > 0)
    drawn[:, PRODUCT] = right * share
    return NullDistribution(drawn)


@dataclass(frozen=True, kw_only=True)
class CalibrationTest:
    """Is an ECE more than noise? And the same question put to the unbiased squared L2 error."""

    ece: float
    null_mean: float
    null_deviation: float
    floor: float
    p_value: float
    unbiased_squared_l2: float
    squared_l2_p_value: float


def calibration_test(
    confidences: Any, correct: Any, bins: int = 15, draws: int = 1000, seed: int = 0, exact_up_to: int | None = None
) -> CalibrationTest:
    """Test H0: the model is calibrated. One-sided p-values.

    More confidences than `exact_up_to` are redrawn by bins (`null_distribution_from_sums`), which takes no longer for
    more of them; None: all are redrawn one by one.

    `correct` is boolean, or 0 and 1: what is redrawn is, and of a probability of being right, which varies less, it
    would say nothing. Raises ValueError for another value, for fewer draws than 2, and for what ECE refuses.
    """
    draws = _check_draws(draws, 2)
    c, y = checked_pair(confidences, correct)
    check_unit_interval(y, "correct")
    check_binary(y, "correct")
    sums = binned_sums(c, y, check_bins(bins))
    exact = exact_up_to is None or c.size <= exact_up_to
    null = null_distribution(c, bins, draws, seed) if exact else null_distribution_from_sums(sums, draws, seed)
    values = null.values()
    ece, squared = float(ece_from_sums(sums)), float(unbiased_squared_l2_from_sums(sums))
    return CalibrationTest(
        ece=ece,
        null_mean=float(values.mean()),
        null_deviation=float(values.std(ddof=1)),
        floor=null.floor(),
        p_value=null.p_value(ece),
        unbiased_squared_l2=squared,
        squared_l2_p_value=null.p_value(squared, unbiased_squared_l2_from_sums),
    )
