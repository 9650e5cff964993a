"""Binned calibration: streaming sums per bin, and every figure that can be read from them.

A bin holds six sums over its confidences c and correctness y (0/1, or a probability of being correct where the truth
is known): n, sum c, sum y, sum c^2, sum c*y, sum y^2. They are additive over batches, processes, seeds and sentences,
so each figure below is a function of one array `sums[..., 6, bins]`, and the bootstrap of a figure is that function
applied to a weighted total (see `statistics.py`).

Binning rule: `bins` equal-width bins (0, 1], the right edge closed, 0 in the first bin and 1.0 in the last. A
confidence less than 2^-23 (one rounding of fp32 at 1) above an edge counts as lying on it, so that 0.2 falls in the
same bin whether it comes as fp32 or float64, computed as 1/5 or as 1 - 0.8.

Shapes: N confidences, B bins.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nmt_ls.metrics.inputs import (
    FloatArray,
    as_array,
    as_mask,
    check_bins,
    check_row_sums,
    check_unit_interval,
    row_sum_tolerance,
    same_shape,
)

EDGE_TOLERANCE = 2.0**-23
MOMENTS = 6
COUNT, CONFIDENCE, CORRECT, CONFIDENCE_SQUARED, PRODUCT, CORRECT_SQUARED = range(MOMENTS)
_CHUNK = 1 << 15  # confidences binned at a time: temporaries stay in the second-level cache


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Made once: starting them costs as much as a small batch. numpy lets go of the interpreter in each pass."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="calibration")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # threads do not survive a fork


def bin_indices(confidences: NDArray[Any], bins: int) -> NDArray[np.intp]:
    """The equal-width bin, 0 to bins - 1, of confidences in [0, 1] (see the binning rule above)."""
    # the cast truncates towards zero, which puts 0 (and all below the tolerance) in bin 0
    scaled = confidences * confidences.dtype.type(bins)
    scaled -= confidences.dtype.type(bins * EDGE_TOLERANCE)
    return np.asarray(scaled.astype(np.intp))


def binned_sums(confidences: NDArray[Any], correct: NDArray[Any], bins: int) -> FloatArray:
    """The six sums of every bin, [6, bins], of checked inputs of one dimension."""
    sums = np.zeros((MOMENTS, bins))
    for start in range(0, confidences.size, _CHUNK):
        c = confidences[start : start + _CHUNK]
        y = correct[start : start + _CHUNK]
        check_unit_interval(c, "confidences")
        check_unit_interval(y, "correct")
        index = bin_indices(c, bins)
        if y.dtype == np.bool_:
            _add_boolean(sums, index, c.astype(np.float64), y, bins)
        else:
            sums += moment_sums(index, c.astype(np.float64), y.astype(np.float64), bins)
    return sums


def _add_boolean(sums: FloatArray, index: NDArray[np.intp], c: FloatArray, y: NDArray[np.bool_], bins: int) -> None:
    # the key tells right from wrong as well as the bin, so that three passes give all six sums
    key = (index << 1) + y
    counts, once, twice = (np.bincount(key, weights, 2 * bins).reshape(bins, 2) for weights in (None, c, c * c))
    sums[COUNT] += counts.sum(1)
    sums[CONFIDENCE] += once.sum(1)
    sums[CONFIDENCE_SQUARED] += twice.sum(1)
    sums[CORRECT] += counts[:, 1]
    sums[CORRECT_SQUARED] += counts[:, 1]
    sums[PRODUCT] += once[:, 1]


def moment_sums(index: NDArray[np.intp], c: FloatArray, y: FloatArray, cells: int) -> FloatArray:
    """The six sums of every cell, [6, cells], where `index` says which cell each confidence falls into."""
    return np.stack([np.bincount(index, weights, cells) for weights in (None, c, y, c * c, c * y, y * y)])


def expected_calibration_error(confidences: Any, correct: Any, bins: int = 15) -> float:
    """Top-label ECE (Guo et al. 2017, equation 3): sum over bins of n_b/N * |mean correct - mean confidence|.

    `confidences` in [0, 1] and `correct` (boolean, 0/1, or a probability) are numpy or torch, of one shape. Raises
    ValueError for NaN, for values outside [0, 1], for shapes that differ and for empty input.
    """
    return CalibrationAccumulator(bins).update(confidences, correct).compute().ece


class CalibrationAccumulator:
    """Binned sums of a stream of confidences: one pass, constant memory, mergeable.

    >>> total = CalibrationAccumulator(bins=15)
    >>> total.update([0.9, 0.6], [True, False]).compute().ece
    0.35
    """

    def __init__(self, bins: int = 15) -> None:
        self.bins = check_bins(bins)
        self.sums = np.zeros((MOMENTS, self.bins))

    def update(self, confidences: Any, correct: Any, mask: Any = None) -> Self:
        """Add confidences and their correctness, of one shape; only positions where the boolean `mask` is True."""
        c, y = checked_pair(confidences, correct, mask)
        self.sums += binned_sums(c, y, self.bins)
        return self

    def update_probabilities(self, probabilities_NK: Any, targets_N: Any, mask_N: Any = None) -> Self:
        """Add rows of class probabilities: confidence is the largest of a row, correct where its class is the target.

        Of equal probabilities the first is predicted. Raises ValueError where a value is NaN or outside [0, 1], and
        where a row does not sum to 1 (`row_sum_tolerance`; of many rows every 16th is summed, see `check_row_sums`).
        """
        p_NK, y_N = checked_probabilities(probabilities_NK, targets_N)
        tolerance = row_sum_tolerance(probabilities_NK)
        keep_N = None if mask_N is None else as_mask(mask_N, y_N, "targets")
        rows = max(1, (_CHUNK * 8) // p_NK.shape[1])

        def sums_from(start: int) -> FloatArray:
            part = slice(start, start + rows)
            return _top_label_sums(
                p_NK[part], y_N[part], None if keep_N is None else keep_N[part], self.bins, tolerance
            )

        starts = range(0, len(y_N), rows)
        if len(starts) == 1:
            self.sums += sums_from(0)
            return self
        sums = sum(_threads().map(sums_from, starts), np.zeros_like(self.sums))
        self.sums += sums  # at the end, so that refused input leaves the accumulator as it was
        return self

    def merge(self, other: CalibrationAccumulator) -> Self:
        """Add what another accumulator of as many bins has seen."""
        if other.bins != self.bins:
            raise ValueError(f"cannot merge {other.bins} bins into {self.bins}")
        self.sums += other.sums
        return self

    def compute(self) -> Calibration:
        """All binned figures. Raises ValueError if nothing was added."""
        return calibration_from_sums(self.sums)


def checked_pair(confidences: Any, correct: Any, mask: Any = None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Flat floating-point confidences and flat correctness; ranges are checked where they are binned."""
    c, y = as_array(confidences, "confidences"), as_array(correct, "correct")
    same_shape(c, "confidences", y, "correct")
    if mask is not None:
        keep = as_mask(mask, c, "confidences")
        c, y = c[keep], y[keep]
    if c.dtype.kind != "f":
        c = c.astype(np.float64)
    return c.ravel(), y.ravel()


def _top_label_sums(
    p_NK: NDArray[Any], y_N: NDArray[Any], keep_N: NDArray[np.bool_] | None, bins: int, tolerance: float
) -> FloatArray:
    """The binned sums of the most probable classes; rows are checked here, where they lie in the cache."""
    if keep_N is not None:
        p_NK, y_N = p_NK[keep_N], y_N[keep_N]
    predicted = p_NK.argmax(1)
    top = p_NK[np.arange(len(p_NK)), predicted]
    # argmax stops at a NaN, so what is largest shows both NaN and values above 1
    check_unit_interval(top, "probabilities")
    if p_NK.size and p_NK.min() < 0:
        check_unit_interval(p_NK, "probabilities")
    check_row_sums(p_NK, tolerance, "probabilities")
    return binned_sums(top, predicted == y_N, bins)


def checked_probabilities(probabilities_NK: Any, targets_N: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Floating-point [N, K] and [N], K at least 1; ValueError where shapes or target classes do not fit."""
    p_NK, y_N = as_array(probabilities_NK, "probabilities"), as_array(targets_N, "targets")
    if p_NK.ndim != 2 or y_N.shape != p_NK.shape[:1] or p_NK.shape[1] == 0:
        raise ValueError(f"probabilities must be [N, K] and targets [N], got {p_NK.shape} and {y_N.shape}")
    if y_N.size and (y_N.dtype.kind not in "iu" or y_N.min() < 0 or y_N.max() >= p_NK.shape[1]):
        raise ValueError(f"targets must be whole numbers from 0 to {p_NK.shape[1] - 1}")
    return p_NK if p_NK.dtype.kind == "f" else p_NK.astype(np.float64), y_N


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Figures read from the bins. Gaps are mean correct minus mean confidence; over-confidence makes them negative.

    brier is the top-label (binary) Brier score, the mean of (confidence - correct)^2, and is equal to reliability -
    resolution + uncertainty + within_bin (Murphy 1973; Stephenson et al. 2008). The score over all classes is
    `adaptive.ClasswiseAccumulator`'s multiclass_brier.
    """

    count: int
    bin_counts: FloatArray
    bin_confidence: FloatArray  # mean confidence of each bin, NaN where empty
    bin_accuracy: FloatArray  # mean correctness of each bin, NaN where empty
    confidence: float
    accuracy: float
    ece: float
    mce: float
    debiased_l1: float
    unbiased_squared_l2: float
    over_confidence: float
    under_confidence: float
    brier: float  # top-label
    reliability: float  # the squared L2 error with the bias of finite bins
    resolution: float
    uncertainty: float
    within_bin: float

    @property
    def signed_gap(self) -> float:
        """Accuracy minus confidence: below 0 for an over-confident model, above 0 for an under-confident one."""
        return self.accuracy - self.confidence

    def figures(self) -> dict[str, float]:
        """Every figure that is one number, by the names under which they are recorded; squared_l2 is the unbiased."""
        return {
            "accuracy": self.accuracy,
            "confidence": self.confidence,
            "ece": self.ece,
            "debiased_ece": self.debiased_l1,
            "squared_l2": self.unbiased_squared_l2,
            "mce": self.mce,
            "brier": self.brier,
            "reliability": self.reliability,
            "resolution": self.resolution,
            "uncertainty": self.uncertainty,
            "within_bin": self.within_bin,
            "over_confidence": self.over_confidence,
            "under_confidence": self.under_confidence,
            "signed_gap": self.signed_gap,
        }


def calibration_from_sums(sums: FloatArray) -> Calibration:
    """Every binned figure of sums [6, B]. Raises ValueError if the bins are empty."""
    count = float(sums[COUNT].sum())
    if count <= 0:
        raise ValueError("calibration of nothing: no confidences were given (or the mask left none)")
    n, gap = sums[COUNT], bin_gaps(sums)
    weight = n / count
    mean_y = float(sums[CORRECT].sum() / count)
    with np.errstate(invalid="ignore"):
        mean_c_B, mean_y_B = sums[CONFIDENCE] / n, sums[CORRECT] / n
    full = n > 0
    brier = float((sums[CONFIDENCE_SQUARED] - 2 * sums[PRODUCT] + sums[CORRECT_SQUARED]).sum() / count)
    reliability = float((weight * gap**2).sum())
    resolution = float((weight[full] * (mean_y_B[full] - mean_y) ** 2).sum())
    uncertainty = float(sums[CORRECT_SQUARED].sum() / count - mean_y**2)
    return Calibration(
        count=round(count),
        bin_counts=n.copy(),
        bin_confidence=mean_c_B,
        bin_accuracy=mean_y_B,
        confidence=float(sums[CONFIDENCE].sum() / count),
        accuracy=mean_y,
        ece=float(ece_from_sums(sums)),
        mce=float(np.abs(gap).max()),
        debiased_l1=float(debiased_l1_from_sums(sums)),
        unbiased_squared_l2=float(unbiased_squared_l2_from_sums(sums)),
        over_confidence=float((weight * np.maximum(-gap, 0)).sum()),
        under_confidence=float((weight * np.maximum(gap, 0)).sum()),
        brier=brier,
        reliability=reliability,
        resolution=resolution,
        uncertainty=uncertainty,
        within_bin=brier - (reliability - resolution + uncertainty),
    )


def bin_gaps(sums: FloatArray) -> FloatArray:
    """Mean correctness minus mean confidence of each bin, 0 where it is empty: [..., B] of sums [..., 6, B]."""
    n = sums[..., COUNT, :]
    difference = sums[..., CORRECT, :] - sums[..., CONFIDENCE, :]
    return np.divide(difference, n, out=np.zeros_like(difference), where=n > 0)


def gap_variances(sums: FloatArray) -> FloatArray:
    """Estimated variance of each bin's gap: the sample variance of y - c over n; 0 for a bin of fewer than two."""
    n = sums[..., COUNT, :]
    squares = sums[..., CONFIDENCE_SQUARED, :] - 2 * sums[..., PRODUCT, :] + sums[..., CORRECT_SQUARED, :]
    spread = np.maximum(squares - n * bin_gaps(sums) ** 2, 0.0)
    return np.divide(spread, n * (n - 1), out=np.zeros_like(spread), where=n > 1)


def ece_from_sums(sums: FloatArray) -> FloatArray:
    """Equal-width ECE of sums [..., 6, B], for any leading dimensions."""
    difference = np.abs(sums[..., CORRECT, :] - sums[..., CONFIDENCE, :]).sum(-1)
    return np.asarray(difference / sums[..., COUNT, :].sum(-1))


def unbiased_squared_l2_from_sums(sums: FloatArray) -> FloatArray:
    """Squared L2 calibration error without the bias of finite bins (Kumar et al. 2019); can be negative.

    Per bin gap^2 minus the estimated variance of the gap, weighted by count. Kumar et al. take y(1-y)/(n-1) for that
    variance, which holds where a bin has one confidence; ours is the sample variance of y - c, unbiased for any.
    A bin of one confidence tells nothing of its variance and is left out.
    """
    n = sums[..., COUNT, :]
    squared = np.where(n > 1, bin_gaps(sums) ** 2 - gap_variances(sums), 0.0)
    return np.asarray((n * squared).sum(-1) / n.sum(-1))


def debiased_l1_from_sums(sums: FloatArray) -> FloatArray:
    """ECE less the excess that noise alone would give (Gaussian debiasing as in Kumar et al. 2019).

    With s_b the standard error of gap g_b, E|N(g_b, s_b)| - |g_b| is subtracted from every bin. It is less biased
    than ECE but, as |g_b| itself is estimated, stays above 0 for a calibrated model: print it beside ECE, and test
    with the unbiased squared L2.
    """
    n = sums[..., COUNT, :]
    gap, error = np.abs(bin_gaps(sums)), np.sqrt(gap_variances(sums))
    excess = folded_normal_mean(gap, error) - gap
    return np.asarray((n * (gap - excess)).sum(-1) / n.sum(-1))


def folded_normal_mean(mean: FloatArray, deviation: FloatArray) -> FloatArray:
    """E|X| for X normal with this mean and standard deviation (which may be 0)."""
    ratio = np.divide(mean, deviation, out=np.zeros_like(mean), where=deviation > 0)
    folded = deviation * np.sqrt(2 / np.pi) * np.exp(-0.5 * ratio**2) + mean * normal_central_mass(ratio)
    return np.where(deviation > 0, folded, np.abs(mean))


def normal_central_mass(z: FloatArray) -> FloatArray:
    """P(|X| < z) signed like z, for X standard normal: erf(z / sqrt 2)."""
    from math import erf, sqrt

    flat = [erf(value / sqrt(2)) for value in np.ravel(z)]
    return np.asarray(flat).reshape(np.shape(z))
