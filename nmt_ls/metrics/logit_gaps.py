"""Logit gaps z_y - z_k: how far the label's logit stands above the others.

Label smoothing asks for one and the same gap to every wrong class (Section 2 of Müller et al. 2019: activations close
to the template of the right class and equally far from those of the others). With the target 1 - α + α/K on the label
and α/K elsewhere, the loss is least where z_y - z_k = log(1 + K(1 - α)/α) for every k; hard targets want it infinite.

Shapes: N tokens or examples, K classes, H cells of a histogram. Gaps are in nats, at temperature 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.temperature import check_logits, logit_chunks

LOW, HIGH, CELLS = -30.0, 70.0, 2000


def ideal_logit_gap(classes: int, alpha: float, spread: Literal["all", "others"] = "all") -> float:
    """The gap at which a smoothed loss with a uniform prior is least: infinite at alpha 0.

    spread "all": log(1 + K(1 - α)/α); "others" (α shared by the wrong classes alone): log((K - 1)(1 - α)/α).
    """
    if classes < 2 or not 0 <= alpha < 1:
        raise ValueError(f"an ideal gap needs at least 2 classes and alpha in [0, 1), got {classes} and {alpha}")
    if alpha == 0:
        return math.inf
    odds = (1 - alpha) / alpha
    return math.log1p(classes * odds) if spread == "all" else math.log((classes - 1) * odds)


@dataclass(frozen=True, kw_only=True)
class LogitGaps:
    """Gaps of N tokens over K classes. Histograms have cells of equal width; what lies outside is in the end cells."""

    count: int  # N
    classes: int  # K
    mean: float  # over tokens, of a token's mean gap over k != y
    sd: float  # of those means over tokens
    within_sd: float  # mean over tokens of the sd of a token's gaps over k != y: 0 where all classes are equally far
    edges: FloatArray  # [H + 1]
    token_counts: FloatArray  # [H], of tokens by their mean gap
    gap_counts: FloatArray  # [H], of all N(K - 1) gaps

    def quantile(self, share: float) -> float:
        """Of the tokens' mean gaps, to within the width of a cell."""
        if not 0 <= share <= 1:
            raise ValueError(f"share must lie in [0, 1], got {share}")
        below = np.concatenate([[0.0], np.cumsum(self.token_counts)])
        full = np.concatenate([[True], np.diff(below) > 0])  # interpolate between edges where something is counted
        if share == 0:
            return float(self.edges[int(np.flatnonzero(self.token_counts)[0])])
        cell = int(np.flatnonzero(full & (below >= share * below[-1]))[0])
        left = below[cell - 1]
        part = (share * below[-1] - left) / (below[cell] - left)
        return float(self.edges[cell - 1] + part * (self.edges[cell] - self.edges[cell - 1]))

    def figures(self) -> dict[str, float]:
        """By the names under which they are recorded."""
        quantiles = {
            f"logit_gap_{name}": self.quantile(q) for name, q in (("q05", 0.05), ("median", 0.5), ("q95", 0.95))
        }
        return {
            "logit_gap_mean": self.mean,
            "logit_gap_sd": self.sd,
            "logit_gap_within_sd": self.within_sd,
            **quantiles,
        }

    def figures_of_loss(self, alpha: float, spread: Literal["all", "others"], prior: str) -> dict[str, float]:
        """The same, and the gap at which the loss of a run was least, where it is one number."""
        ideal = {"logit_gap_ideal": ideal_logit_gap(self.classes, alpha, spread)}
        return {**self.figures(), **(ideal if prior == "uniform" else {})}


class LogitGapAccumulator:
    """Logit gaps of a stream: one pass, constant memory, mergeable.

    >>> total = LogitGapAccumulator()
    >>> total.update(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([0])).compute().mean
    1.5
    """

    def __init__(self, low: float = LOW, high: float = HIGH, cells: int = CELLS) -> None:
        if not low < high or cells < 1:
            raise ValueError(f"a histogram from {low} to {high} of {cells} cells cannot be")
        self.low, self.high, self.cells = low, high, cells
        self.classes = 0
        self.count = 0
        self.mean_sum = self.square_sum = self.within_sum = 0.0
        self.token_counts, self.gap_counts = np.zeros(cells), np.zeros(cells)

    def update(self, logits_NK: Any, targets_N: Any, ignore_index: int = -100) -> Self:
        """Add rows of logits (K at least 2) and their labels, numpy or torch; where the label is `ignore_index` not.

        Raises ValueError for shapes and labels that do not fit, and for logits that are not finite.
        """
        logits_NK, targets_N = check_logits(logits_NK, targets_N, ignore_index)
        classes = logits_NK.shape[1]
        if classes < 2 or self.classes not in (0, classes):
            raise ValueError(f"logits have {classes} classes, but {self.classes or 'at least 2'} are wanted")
        for z_NK, y_N in logit_chunks(logits_NK, targets_N):
            kept_N = y_N != ignore_index
            y_N1 = y_N[kept_N, None]
            if y_N1.numel():
                z_NK = z_NK[kept_N].to(torch.float64 if z_NK.dtype == torch.float64 else torch.float32)
                self._add(z_NK.gather(1, y_N1) - z_NK, y_N1)
        self.classes = classes
        return self

    def _add(self, gap_NK: Tensor, y_N1: Tensor) -> None:
        """Gaps whose own class has 0 at its place."""
        others = gap_NK.shape[1] - 1
        mean_N = gap_NK.sum(1).double() / others
        if not bool(mean_N.isfinite().all()):
            raise ValueError("logits must be finite: a gap to a class of logit -inf, or to NaN, says nothing")
        off_NK = (gap_NK - mean_N[:, None].to(gap_NK.dtype)).scatter_(1, y_N1, 0.0)
        within_N = (off_NK.square_().sum(1).double() / others).sqrt()
        self.count += len(mean_N)
        self.mean_sum += float(mean_N.sum())
        self.square_sum += float(mean_N.square().sum())
        self.within_sum += float(within_N.sum())
        self.token_counts += self._histogram(mean_N)
        # the label's own place is put below all others, and taken out of the first cell again
        counts = self._histogram(gap_NK.scatter_(1, y_N1, self.low))
        counts[0] -= len(mean_N)
        self.gap_counts += counts

    def _histogram(self, values: Tensor) -> FloatArray:
        inside = values.float().cpu().clamp_(self.low, self.high)
        return np.asarray(torch.histc(inside, self.cells, self.low, self.high).double().numpy())

    def merge(self, other: LogitGapAccumulator) -> Self:
        """Add what another accumulator of the same histogram and as many classes has seen."""
        if (other.low, other.high, other.cells) != (self.low, self.high, self.cells):
            raise ValueError("cannot merge gaps of different histograms")
        if self.classes and other.classes and self.classes != other.classes:
            raise ValueError(f"cannot merge gaps of {other.classes} classes into those of {self.classes}")
        self.classes = self.classes or other.classes
        self.count += other.count
        self.mean_sum += other.mean_sum
        self.square_sum += other.square_sum
        self.within_sum += other.within_sum
        self.token_counts = self.token_counts + other.token_counts
        self.gap_counts = self.gap_counts + other.gap_counts
        return self

    def compute(self) -> LogitGaps:
        """The figures. Raises ValueError if nothing was added."""
        if self.count == 0:
            raise ValueError("logit gaps of nothing: no rows were given (or all were ignored)")
        mean = self.mean_sum / self.count
        return LogitGaps(
            count=self.count,
            classes=self.classes,
            mean=mean,
            sd=math.sqrt(max(self.square_sum / self.count - mean * mean, 0.0)),
            within_sd=self.within_sum / self.count,
            edges=np.linspace(self.low, self.high, self.cells + 1),
            token_counts=self.token_counts.copy(),
            gap_counts=self.gap_counts.copy(),
        )
