"""Calibration apart for each slice of the tokens: position, token frequency, end of sentence, sentence length; and
the sums of every sentence, which paired bootstraps resample.

A slice is a whole number from 0 for every confidence. Shapes: N confidences, G slices, B bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmt_ls.metrics.calibration import (
    MOMENTS,
    Calibration,
    bin_indices,
    calibration_from_sums,
    checked_pair,
    moment_sums,
)
from nmt_ls.metrics.inputs import FloatArray, as_array, check_bins, check_unit_interval, same_shape

_CHUNK = 1 << 16


def sliced_sums(confidences: Any, correct: Any, slices: Any, count: int, bins: int = 15) -> FloatArray:
    """The six sums of `calibration` for every slice and bin, [count, 6, bins]; additive over batches.

    With slices the index of each token's sentence these are the sentence sums that `statistics.crossed_bootstrap`
    takes. Raises ValueError for slices outside 0 to count - 1 besides what `CalibrationAccumulator.update` refuses.
    """
    c, y = checked_pair(confidences, correct)
    group = as_array(slices, "slices").ravel()
    same_shape(c, "confidences", group, "slices")
    if group.dtype.kind not in "iub" or (group.size and (group.min() < 0 or group.max() >= count)):
        raise ValueError(f"slices must be whole numbers from 0 to {count - 1}")
    bins = check_bins(bins)
    sums = np.zeros((MOMENTS, count * bins))
    for start in range(0, c.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        check_unit_interval(c[part], "confidences")
        check_unit_interval(y[part], "correct")
        key = group[part].astype(np.intp) * bins + bin_indices(c[part], bins)
        sums += moment_sums(key, c[part].astype(np.float64), y[part].astype(np.float64), count * bins)
    return np.ascontiguousarray(sums.reshape(MOMENTS, count, bins).transpose(1, 0, 2))


def calibration_by_slice(confidences: Any, correct: Any, slices: Any, bins: int = 15) -> dict[int, Calibration]:
    """The calibration of every slice that holds a confidence, by its number."""
    group = as_array(slices, "slices")
    count = int(group.max()) + 1 if group.size else 0
    sums = sliced_sums(confidences, correct, group, count, bins)
    return {index: calibration_from_sums(sums[index]) for index in range(count) if sums[index, 0].any()}


def bucket(values: Any, edges: Sequence[float]) -> tuple[NDArray[np.intp], list[str]]:
    """Slices of a quantity (position, length, frequency), and their names.

    `edges` rise; slice i holds edges[i-1] < value <= edges[i], with one slice more for what lies above the last.
    Of whole numbers the names count what a slice holds; of others they say where it begins: '> 1 to 4'.

    >>> bucket([1, 2, 3, 9], [1, 4])
    (array([0, 1, 1, 2]), ['<= 1', '2 to 4', '> 4'])
    """
    if len(edges) == 0 or any(later <= earlier for earlier, later in pairwise(edges)):
        raise ValueError(f"edges must be given and rise, got {list(edges)}")
    quantity = as_array(values, "values")
    indices = np.searchsorted(np.asarray(edges), quantity, side="left")
    if _whole(quantity) and _whole(np.asarray(edges)):
        whole = [int(edge) for edge in edges]
        names = [f"{low + 1} to {high}" if high > low + 1 else f"{high}" for low, high in pairwise(whole)]
        return indices, [f"<= {whole[0]}", *names, f"> {whole[-1]}"]
    names = [f"> {low:g} to {high:g}" for low, high in pairwise(edges)]
    return indices, [f"<= {edges[0]:g}", *names, f"> {edges[-1]:g}"]


def _whole(values: NDArray[Any]) -> bool:
    return values.dtype.kind != "f" or bool((values == np.rint(values)).all())
