"""Calibration errors whose bins follow the data: equal-mass, monotonic sweep, smooth; and those over all classes.

The equal-mass figures sort the confidences, so they need all of them at once. Equal confidences share their mean
correctness first: which of them falls on which side of a bin's edge then makes no difference.

Shapes: N confidences, K classes, B bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nmt_ls.metrics.calibration import bin_indices, checked_pair, checked_probabilities
from nmt_ls.metrics.inputs import (
    FloatArray,
    check_bins,
    check_row_sums,
    check_unit_interval,
    mean_of_ties,
    row_sum_tolerance,
)

_PLAIN_BINS = 4096  # numbers of bins that the sweep tries without looking where means can fall
_EDGES_AT_ONCE = 1 << 18


def equal_mass_ece(confidences: Any, correct: Any, bins: int = 15) -> float:
    """ECE over bins of equal count (Nguyen & O'Connor 2015), sizes differing by at most one.

    Fewer confidences than bins leave a bin each.
    """
    c, y = _sorted_pair(confidences, correct)
    edges = _equal_mass_edges(len(c), min(check_bins(bins), len(c)))
    return float(np.abs(_sums_between(c - y, edges)).sum() / len(c))


def sweep_ece(confidences: Any, correct: Any) -> tuple[float, int]:
    """ECE_sweep (Roelofs et al. 2022) and its number of bins.

    Equal-mass bins, as many as keep the bins' accuracies monotonically increasing: the last number before the first
    that breaks it.
    """
    c, y = _sorted_pair(confidences, correct)
    best = most_monotone_bins(y)
    edges = _equal_mass_edges(len(c), best)
    return float(np.abs(_sums_between(c - y, edges)).sum() / len(c)), best


def most_monotone_bins(y: FloatArray) -> int:
    """The number of equal-mass bins of the sweep: the last before the first whose means fall from one bin to the next.

    y [N] in [0, 1]. Means that fall by less than 1e-12 count as equal. A number of bins costs time in proportion to
    it, and beyond the first thousands only to the edges at which means can fall at all (`_edges_within_pools`), of
    which a ranker that is nearly perfect leaves few: otherwise its many bins would take time quadratic in N. (So they
    still do of probabilities that are out of order everywhere, but by no more than neighbours differ.)
    """
    count = len(y)
    if (np.diff(y) >= 0).all():
        return count  # nor do the means of any bins fall
    # whole numbers add up exactly: equal means stay equal, however far into the sums they lie
    unit = 2.0 ** min(52, 62 - count.bit_length())
    sums = np.concatenate([[0], np.cumsum(np.rint(y * unit).astype(np.int64))])
    tolerance = max(1e-12 * unit, 1.0)
    for bins in range(2, min(count, _PLAIN_BINS) + 1):
        if _falls(sums, bins, tolerance):
            return bins - 1
    within = _edges_within_pools(sums)
    first = _PLAIN_BINS + 1
    while first <= count:
        if len(within) >= first:
            last, found = first, first if _falls(sums, first, tolerance) else None
        else:
            last = min(count, first + _EDGES_AT_ONCE // max(len(within), 1))
            found = _first_to_fall(sums, within, first, last, tolerance)
        if found is not None:
            return found - 1
        first = last + 1
    return count


def _falls(sums: NDArray[np.int64], bins: int, tolerance: float) -> bool:
    """Whether the means of so many equal-mass bins fall somewhere; sums [N + 1] are those before each position."""
    edges = _equal_mass_edges(len(sums) - 1, bins)
    return bool((np.diff(np.diff(sums[edges]) / np.diff(edges)) < -tolerance).any())


def _edges_within_pools(sums: NDArray[np.int64]) -> NDArray[np.int64]:
    """The edges at which the mean of a bin before can be above that of a bin after, whatever their sizes.

    Pooling adjacent violators draws the greatest convex curve below the sums. Where the sums touch it, between pools,
    no chord to the left is steeper than one to the right; what is left are the edges within pools, but for those of
    equal values only, which lie on a straight line.
    """
    values = np.diff(sums)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(values)) + 1, [len(values)]])
    pools: list[tuple[int, int, int, int]] = []  # first and last edge, sum of values, number of runs of equal ones
    for left, right in pairwise(starts.tolist()):
        total, runs = int(sums[right] - sums[left]), 1
        while pools and pools[-1][2] * (right - left) >= total * (left - pools[-1][0]):
            left, _, before, others = pools.pop()
            total, runs = total + before, runs + others
        pools.append((left, right, total, runs))
    parts = [np.arange(left + 1, right, dtype=np.int64) for left, right, _, runs in pools if runs > 1]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _first_to_fall(
    sums: NDArray[np.int64], within: NDArray[np.int64], first: int, last: int, tolerance: float
) -> int | None:
    """The least number of bins from first to last whose means fall at one of the edges `within`."""
    count = len(sums) - 1
    bins = np.arange(first, last + 1)[:, None]
    place = within * bins
    index = -(-place // count)  # of the first of so many bins to begin at that edge or after
    row, column = np.nonzero(index * count - place < bins)  # at it
    bins, index, edge = bins[row, 0], index[row, column], within[column]
    left, right = (index - 1) * count // bins, (index + 1) * count // bins
    before, after = (sums[edge] - sums[left]) / (edge - left), (sums[right] - sums[edge]) / (right - edge)
    falling = bins[after - before < -tolerance]
    return int(falling[0]) if falling.size else None


def _sorted_pair(confidences: Any, correct: Any) -> tuple[FloatArray, FloatArray]:
    """Confidences in rising order, and correctness averaged over equal confidences."""
    c, y = checked_pair(confidences, correct)
    check_unit_interval(c, "confidences")
    check_unit_interval(y, "correct")
    if c.size == 0:
        raise ValueError("calibration of nothing: no confidences were given")
    values, means, counts = mean_of_ties(c, y)
    return np.repeat(values, counts), np.repeat(means, counts)


def _equal_mass_edges(count: int, bins: int) -> NDArray[np.int64]:
    return (np.arange(bins + 1, dtype=np.int64) * count) // bins


def _sums_between(values: FloatArray, edges: NDArray[np.int64]) -> FloatArray:
    return np.asarray(np.add.reduceat(values, edges[:-1]))


class SmoothECE:
    """Smooth ECE (Błasiok & Nakkiran 2023) of a stream: constant memory, mergeable.

    The residuals y - c are smoothed with a Gaussian kernel reflected at 0 and 1, and smECE(s) is the integral of what
    is left in absolute value; it falls as the width s grows, and the smooth ECE is the s at which smECE(s) = s: the
    definition of the authors' `relplot`, which ends its search at widths of 0.001.

    Residuals are shared out between the two nearest of `points` + 1 places of an even grid. Reflected smoothing is
    then exact in the cosine basis, where the kernel multiplies the k-th coefficient by exp(-(pi k s)^2 / 2).
    """

    def __init__(self, points: int = 4096) -> None:
        if int(points) != points or points < 16:
            raise ValueError(f"points must be a whole number of at least 16, got {points!r}")
        self.points = int(points)
        self.residuals = np.zeros(self.points + 1)
        self.count = 0

    def update(self, confidences: Any, correct: Any, mask: Any = None) -> Self:
        """Add confidences and correctness, as `CalibrationAccumulator.update`."""
        c, y = checked_pair(confidences, correct, mask)
        check_unit_interval(c, "confidences")
        check_unit_interval(y, "correct")
        c = c.astype(np.float64)
        place = c * self.points
        below = np.minimum(place.astype(np.intp), self.points - 1)
        above_share = (place - below) * (y - c)
        size = self.points + 1
        self.residuals += np.bincount(below, (y - c) - above_share, size) + np.bincount(below + 1, above_share, size)
        self.count += c.size
        return self

    def merge(self, other: SmoothECE) -> Self:
        """Add what another accumulator of as many points has seen."""
        if other.points != self.points:
            raise ValueError(f"cannot merge a grid of {other.points} points into one of {self.points}")
        self.residuals += other.residuals
        self.count += other.count
        return self

    def at_width(self, width: float) -> float:
        """smECE at a fixed kernel width."""
        return self._at_width(self._coefficients(), width)

    def compute(self) -> float:
        """The smooth ECE. Raises ValueError if nothing was added."""
        if self.count == 0:
            raise ValueError("calibration of nothing: no confidences were given (or the mask left none)")
        if not self.residuals.any():
            return 0.0  # the search below would end at its own precision
        coefficients = self._coefficients()
        low, high = 0.0, 1.0
        while high - low > 1e-7:
            width = (low + high) / 2
            if self._at_width(coefficients, width) < width:
                high = width
            else:
                low = width
        return float(low + high) / 2

    def _coefficients(self) -> FloatArray:
        # an end of the even extension appears once in it, an inner place twice
        values = self.residuals / max(self.count, 1)
        values[0] *= 2
        values[-1] *= 2
        return np.asarray(np.fft.rfft(np.concatenate([values, values[-2:0:-1]])).real)

    def _at_width(self, coefficients: FloatArray, width: float) -> float:
        kernel = np.exp(-0.5 * (math.pi * np.arange(self.points + 1) * width) ** 2)
        smoothed = np.fft.irfft(coefficients * kernel)[: self.points + 1]
        # trapezoid weights: the ends stand for half a step
        return float(np.abs(smoothed).sum() - (abs(smoothed[0]) + abs(smoothed[-1])) / 2)


def smooth_ece(confidences: Any, correct: Any) -> float:
    """Smooth ECE of arrays: see `SmoothECE`."""
    return SmoothECE().update(confidences, correct).compute()


@dataclass(frozen=True, kw_only=True)
class ClasswiseCalibration:
    """Calibration of every class's own probability, and the score of all of them together."""

    static: float  # mean over classes of the equal-width ECE (Nixon et al. 2019: SCE)
    by_class: FloatArray  # [K], the equal-width ECE of each class
    multiclass_brier: float  # mean over rows of sum_k (p_k - [k is the class])^2, from 0 to 2 (Brier 1950)


class ClasswiseAccumulator:
    """Equal-width bins for each of K classes, over the probability of every class and not the largest only; and the
    Brier score of whole rows. Constant memory, mergeable.
    """

    def __init__(self, classes: int, bins: int = 15) -> None:
        if int(classes) != classes or classes < 1:
            raise ValueError(f"classes must be a whole number of at least 1, got {classes!r}")
        self.classes, self.bins = int(classes), check_bins(bins)
        self.gap_sums = np.zeros((self.classes, self.bins))  # sum of (is this class) - (its probability)
        self.brier_sum = 0.0
        self.count = 0

    def update(self, probabilities_NK: Any, targets_N: Any) -> Self:
        """Add rows of class probabilities and their classes. Refuses what `update_probabilities` of
        `CalibrationAccumulator` does, and another number of classes."""
        p_NK, y_N = checked_probabilities(probabilities_NK, targets_N)
        if p_NK.shape[1] != self.classes:
            raise ValueError(f"probabilities have {p_NK.shape[1]} classes, the accumulator {self.classes}")
        check_unit_interval(p_NK, "probabilities")
        check_row_sums(p_NK, row_sum_tolerance(probabilities_NK), "probabilities")
        y_N = y_N.astype(np.intp, copy=False)
        rows = max(1, (1 << 15) // self.classes)  # temporaries stay in the second-level cache
        row_starts, first_bin_K = np.arange(rows) * self.classes, np.arange(self.classes) * self.bins
        for start in range(0, len(y_N), rows):
            p, y = p_NK[start : start + rows], y_N[start : start + rows]
            key = bin_indices(p, self.bins)
            key += first_bin_K
            residual = p.astype(np.float64).ravel()  # a copy that bincount would make anyway
            residual[row_starts[: len(y)] + y] -= 1.0
            self.gap_sums -= np.bincount(key.ravel(), residual, self.gap_sums.size).reshape(self.gap_sums.shape)
            self.brier_sum += float(np.einsum("i,i->", residual, residual))
        self.count += len(y_N)
        return self

    def merge(self, other: ClasswiseAccumulator) -> Self:
        """Add what another accumulator of the same classes and bins has seen."""
        if (other.classes, other.bins) != (self.classes, self.bins):
            raise ValueError("cannot merge accumulators of different classes or bins")
        self.gap_sums += other.gap_sums
        self.brier_sum += other.brier_sum
        self.count += other.count
        return self

    def compute(self) -> ClasswiseCalibration:
        """The figures. Raises ValueError if nothing was added."""
        if self.count == 0:
            raise ValueError("calibration of nothing: no probabilities were given")
        by_class = np.abs(self.gap_sums).sum(1) / self.count
        return ClasswiseCalibration(
            static=float(by_class.mean()), by_class=by_class, multiclass_brier=self.brier_sum / self.count
        )


def adaptive_calibration_error(probabilities_NK: Any, targets_N: Any, bins: int = 15, threshold: float = 0.0) -> float:
    """ACE (Nixon et al. 2019): for each class, equal-mass bins over all rows; gaps averaged over classes and bins.

    With a threshold above 0 probabilities not above it are left out first (TACE); classes left empty count as 0.
    """
    p_NK, y_N = checked_probabilities(probabilities_NK, targets_N)
    check_unit_interval(p_NK, "probabilities")
    check_row_sums(p_NK, row_sum_tolerance(probabilities_NK), "probabilities")
    bins = check_bins(bins)
    if len(y_N) == 0:
        raise ValueError("calibration of nothing: no probabilities were given")
    total = 0.0
    for k in range(p_NK.shape[1]):
        column = p_NK[:, k]
        keep = column > threshold if threshold > 0 else slice(None)
        column, hit = column[keep], y_N[keep] == k
        if column.size:
            c, y = _sorted_pair(column, hit)
            edges = _equal_mass_edges(len(c), min(bins, len(c)))
            total += float(np.abs(_sums_between(c - y, edges) / np.diff(edges)).mean())
    return float(total / p_NK.shape[1])
