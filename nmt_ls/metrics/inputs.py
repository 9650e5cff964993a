"""What every metric does with its inputs first: numpy or torch, any shape, refused with a sentence where wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
_SUMMED_WHOLE = 1 << 14


def as_array(values: Any, name: str) -> NDArray[Any]:
    """A numpy view (or copy) of an array, list or torch tensor; bf16 and fp16 become fp32."""
    if hasattr(values, "detach"):  # a torch tensor, without importing torch here
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":
            values = values.float()
        values = values.numpy()
    array = np.asarray(values)
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold numbers, got an array of {array.dtype}")
    return array


def same_shape(first: NDArray[Any], first_name: str, second: NDArray[Any], second_name: str) -> None:
    """ValueError unless both have one shape."""
    if first.shape != second.shape:
        raise ValueError(
            f"{first_name} and {second_name} must have the same shape, got {first.shape} and {second.shape}"
        )


def check_unit_interval(array: NDArray[Any], name: str) -> None:
    """ValueError if a value is NaN or lies outside [0, 1]."""
    if array.size == 0 or array.dtype == np.bool_:
        return
    low, high = array.min(), array.max()
    if low >= 0.0 and high <= 1.0:  # false for NaN too, which min and max pass on
        return
    if np.isnan(low) or np.isnan(high):
        where = int(np.flatnonzero(np.isnan(array.ravel()))[0])
        raise ValueError(f"{name} must not hold NaN: the first is at index {where}")
    # numpy's scalars print as many digits as tell them from their neighbours: 1.0000001, not 1
    raise ValueError(f"{name} must lie in [0, 1], got values from {low!s} to {high!s}")


def check_binary(array: NDArray[Any], name: str) -> None:
    """ValueError unless every value is 0 or 1, or a boolean."""
    if array.dtype != np.bool_ and not ((array == 0) | (array == 1)).all():
        raise ValueError(f"{name} must be boolean, or 0 and 1")


def row_sum_tolerance(probabilities: Any) -> float:
    """How far from 1 the sum of a row of class probabilities of this type may be by rounding.

    1e-4 for fp32 and float64. In half precision a row may be off by a rounding of 1, 2^-8 in bf16, if all of it rounds
    the same way, and in fp16 thousands of tiny probabilities lose as much below its smallest number: 1e-2 for both.
    """
    kind = str(getattr(probabilities, "dtype", ""))  # of numpy or torch, without importing torch here
    return 1e-2 if kind.endswith("float16") else 1e-4


def check_row_sums(p_NK: NDArray[Any], tolerance: float, name: str) -> None:
    """ValueError if a row of class probabilities, [N, K], does not sum to 1 within the tolerance.

    Of more than 16,384 values every 16th row is read: who passes logits, or weights, does so in every row, and reading
    all of them again would take a good tenth of the time of a top-label ECE.
    """
    if p_NK.size == 0:
        return
    rows_NK = p_NK[:: 16 if p_NK.size > _SUMMED_WHOLE else 1]
    sums_N = np.einsum("nk->n", rows_NK)  # sum takes three times as long of short rows
    low, high = sums_N.min(), sums_N.max()
    if not (low >= 1 - tolerance and high <= 1 + tolerance):
        raise ValueError(
            f"{name} must sum to 1 in every row (within {tolerance:g}), got sums from {low!s} to {high!s}: "
            "divide each row by its sum, or take the softmax of logits"
        )


def check_finite(array: NDArray[Any], name: str) -> None:
    """ValueError if a value is NaN or infinite."""
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must not hold NaN or infinite values")


def as_mask(mask: Any, like: NDArray[Any], like_name: str) -> NDArray[np.bool_]:
    """A boolean array of the shape of `like`, which the caller knows as `like_name`; True: the position counts."""
    array = as_array(mask, "mask")
    same_shape(like, like_name, array, "mask")
    if array.dtype != np.bool_:
        raise ValueError(f"mask must be boolean (True where a position counts), got {array.dtype}")
    return array


def mean_of_ties(scores: NDArray[Any], values: NDArray[Any]) -> tuple[FloatArray, FloatArray, NDArray[np.intp]]:
    """The different scores, rising; the mean value of each; how many share it. Both of one dimension and length."""
    different, inverse, counts = np.unique(scores.astype(np.float64), return_inverse=True, return_counts=True)
    return different, np.bincount(inverse.ravel(), values.astype(np.float64)) / counts, counts


def check_bins(bins: int) -> int:
    """ValueError unless bins is a positive whole number."""
    if int(bins) != bins or bins < 1:
        raise ValueError(f"bins must be a whole number of at least 1, got {bins!r}")
    return int(bins)
