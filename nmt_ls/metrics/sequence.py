"""Calibration of whole translations: do probable translations have better quality, and how probable is none at all?

Shapes: S sentences, H hypotheses of one n-best list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nmt_ls.metrics.calibration import Calibration, CalibrationAccumulator
from nmt_ls.metrics.inputs import FloatArray, as_array, as_mask, check_finite, same_shape


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Between a model's score of a translation and the translation's quality; NaN where one of them is constant."""

    pearson: float
    spearman: float
    count: int


def correlation(scores_S: Any, quality_S: Any) -> Correlation:
    """Linear and rank correlation, as of log-probabilities (a token, or whole) with sentence BLEU or chrF.

    Equal values share their mean rank. Raises ValueError for NaN or infinite values and for lengths that differ.
    """
    x, y = _finite(scores_S, "scores"), _finite(quality_S, "quality")
    same_shape(x, "scores", y, "quality")
    if x.size < 2:
        raise ValueError(f"a correlation needs at least two sentences, got {x.size}")
    return Correlation(pearson=_pearson(x, y), spearman=_pearson(_ranks(x), _ranks(y)), count=x.size)


def _finite(values: Any, name: str) -> FloatArray:
    array = as_array(values, name).astype(np.float64).ravel()
    check_finite(array, name)
    return array


def _pearson(x: FloatArray, y: FloatArray) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / scale if scale > 0 else float("nan")


def _ranks(values: FloatArray) -> FloatArray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse.ravel()])


def nbest_calibration(log_probs_SH: Any, quality_SH: Any, mask_SH: Any = None, bins: int = 15) -> Calibration:
    """Does a model's share of probability within its n-best list tell which hypothesis is the best?

    The confidence of a hypothesis is its probability renormalised over the list; it is correct if its quality (against
    the reference) is the highest of the list, ties sharing the one success. Every hypothesis is counted, as in
    class-wise calibration with the list as the classes. Where lists differ in length the mask is True for what is one.
    """
    log_p, quality = as_array(log_probs_SH, "log_probs"), as_array(quality_SH, "quality")
    same_shape(log_p, "log_probs", quality, "quality")
    if log_p.ndim != 2 or log_p.size == 0:
        raise ValueError(f"log_probs must be [sentences, hypotheses], got {log_p.shape}")
    mask = np.ones(log_p.shape, bool) if mask_SH is None else as_mask(mask_SH, log_p, "log_probs")
    if not mask.any(1).all():
        raise ValueError("mask must leave at least one hypothesis for every sentence")
    check_finite(log_p[mask], "log_probs")
    check_finite(quality[mask], "quality")
    log_p = np.where(mask, log_p.astype(np.float64), -np.inf)
    quality = np.where(mask, quality.astype(np.float64), -np.inf)
    share = np.exp(log_p - log_p.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    best = quality == quality.max(1, keepdims=True)
    return CalibrationAccumulator(bins).update(share, best / best.sum(1, keepdims=True), mask).compute()


@dataclass(frozen=True, kw_only=True)
class EmptyTranslation:
    """How much a model likes to say nothing (Stahlberg & Byrne 2019)."""

    mean_probability: float
    median_probability: float
    preferred: float  # share of sentences whose empty translation is more probable than the one found
    count: int


def empty_translation(empty_log_probs_S: Any, found_log_probs_S: Any) -> EmptyTranslation:
    """From log p(end of sentence | source) at the first step, and the log-probability of the translation found."""
    empty, found = _log_probs(empty_log_probs_S, "empty_log_probs"), _log_probs(found_log_probs_S, "found_log_probs")
    same_shape(empty, "empty_log_probs", found, "found_log_probs")
    if empty.size == 0:
        raise ValueError("there are no sentences")
    return EmptyTranslation(
        mean_probability=float(np.exp(empty).mean()),
        median_probability=float(np.exp(np.median(empty))),
        preferred=float((empty > found).mean()),
        count=empty.size,
    )


def _log_probs(values: Any, name: str) -> FloatArray:
    array = as_array(values, name).astype(np.float64).ravel()
    if np.isnan(array).any() or (array > 0).any():
        raise ValueError(f"{name} must be at most 0 and not NaN")
    return array
