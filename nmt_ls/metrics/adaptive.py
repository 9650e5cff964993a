"""Calibration errors whose bins follow the data: equal-mass, monotonic sweep, smooth; and those over all classes.

The equal-mass figures sort the confidences, so they need all of them at once. Equal confidences share their mean
correctness first: which of them falls on which side of a bin's edge then makes no difference.

Shapes: N confidences, K classes, B bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nmt_ls.metrics.calibration import bin_indices, checked_pair, checked_probabilities
from nmt_ls.metrics.inputs import FloatArray, check_bins, check_unit_interval, mean_of_ties


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
    # where correctness itself never falls, neither do the means of any bins: no need to try each number of them
    best = len(c) if (np.diff(y) >= 0).all() else 1
    for bins in range(best + 1, len(c) + 1):
        edges = _equal_mass_edges(len(c), bins)
        accuracy = _sums_between(y, edges) / np.diff(edges)
        if (np.diff(accuracy) < -1e-12).any():
            break
        best = bins
    edges = _equal_mass_edges(len(c), best)
    return float(np.abs(_sums_between(c - y, edges)).sum() / len(c)), best


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
    """Calibration of every class's own probability."""

    static: float  # mean over classes of the equal-width ECE (Nixon et al. 2019: SCE)
    by_class: FloatArray  # [K], the equal-width ECE of each class


class ClasswiseAccumulator:
    """Equal-width bins for each of K classes, over the probability of every class and not the largest only."""

    def __init__(self, classes: int, bins: int = 15) -> None:
        if int(classes) != classes or classes < 1:
            raise ValueError(f"classes must be a whole number of at least 1, got {classes!r}")
        self.classes, self.bins = int(classes), check_bins(bins)
        self.gap_sums = np.zeros((self.classes, self.bins))  # sum of (is this class) - (its probability)
        self.count = 0

    def update(self, probabilities_NK: Any, targets_N: Any) -> Self:
        """Add rows of class probabilities and their classes."""
        p_NK, y_N = checked_probabilities(probabilities_NK, targets_N)
        if p_NK.shape[1] != self.classes:
            raise ValueError(f"probabilities have {p_NK.shape[1]} classes, the accumulator {self.classes}")
        check_unit_interval(p_NK, "probabilities")
        if p_NK.dtype.kind != "f":
            p_NK = p_NK.astype(np.float64)
        size = self.classes * self.bins
        first_bin_K = np.arange(self.classes) * self.bins
        rows = max(1, (1 << 16) // self.classes)
        for start in range(0, len(y_N), rows):
            p, y = p_NK[start : start + rows], y_N[start : start + rows]
            key = bin_indices(p, self.bins) + first_bin_K
            gaps = np.bincount(key[np.arange(len(y)), y], minlength=size) - np.bincount(key.ravel(), p.ravel(), size)
            self.gap_sums += gaps.reshape(self.classes, self.bins)
        self.count += len(y_N)
        return self

    def merge(self, other: ClasswiseAccumulator) -> Self:
        """Add what another accumulator of the same classes and bins has seen."""
        if (other.classes, other.bins) != (self.classes, self.bins):
            raise ValueError("cannot merge accumulators of different classes or bins")
        self.gap_sums += other.gap_sums
        self.count += other.count
        return self

    def compute(self) -> ClasswiseCalibration:
        """The figures. Raises ValueError if nothing was added."""
        if self.count == 0:
            raise ValueError("calibration of nothing: no probabilities were given")
        by_class = np.abs(self.gap_sums).sum(1) / self.count
        return ClasswiseCalibration(static=float(by_class.mean()), by_class=by_class)


def adaptive_calibration_error(probabilities_NK: Any, targets_N: Any, bins: int = 15, threshold: float = 0.0) -> float:
    """ACE (Nixon et al. 2019): for each class, equal-mass bins over all rows; gaps averaged over classes and bins.

    With a threshold above 0 probabilities not above it are left out first (TACE); classes left empty count as 0.
    """
    p_NK, y_N = checked_probabilities(probabilities_NK, targets_N)
    check_unit_interval(p_NK, "probabilities")
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
