"""All calibration figures of a set of predictions at once, by the names under which they are recorded.

Shapes: N predictions, K classes.
"""

from __future__ import annotations

from typing import Any

from nmt_ls.metrics.adaptive import (
    ClasswiseAccumulator,
    adaptive_calibration_error,
    equal_mass_ece,
    smooth_ece,
    sweep_ece,
)
from nmt_ls.metrics.calibration import CalibrationAccumulator, checked_probabilities
from nmt_ls.metrics.null import calibration_test
from nmt_ls.metrics.selective import risk_coverage


def calibration_figures(
    confidences_N: Any, correct_N: Any, probabilities_NK: Any = None, targets_N: Any = None, *, bins: int = 15
) -> dict[str, float]:
    """What the library says of confidences in [0, 1] and their correctness (boolean, or 0 and 1), numpy or torch.

    accuracy, confidence: means. ece with ece_floor (95% of the ECEs of a calibrated model lie below), ece_null_mean
    (their mean) and ece_p_value; debiased_ece, equal_mass_ece, sweep_ece (of sweep_bins bins), smooth_ece, mce;
    squared_l2: the unbiased squared L2 error (Kumar et al. 2019), and its p-value. brier: the top-label Brier score,
    mean (confidence - correct)^2 = reliability - resolution + uncertainty + within_bin. over_confidence and
    under_confidence: the parts of ECE; signed_gap: accuracy minus confidence. aurc, excess_aurc: areas over the
    risk-coverage curve.

    With the probabilities of all classes and the right ones also classwise_ece (the mean over classes),
    worst_class_ece, adaptive_calibration_error, and multiclass_brier: the Brier score over all classes, mean over
    rows of sum_k (p_k - [k is right])^2, from 0 to 2 (Brier 1950). Raises ValueError for what the figures refuse.
    Of a probability of being right in the place of correctness take single figures: it has no floor and no p-value.
    """
    binned = CalibrationAccumulator(bins).update(confidences_N, correct_N).compute().figures()
    test = calibration_test(confidences_N, correct_N, bins)
    swept, sweep_bins = sweep_ece(confidences_N, correct_N)
    curve = risk_coverage(confidences_N, correct_N)
    return {
        "accuracy": binned["accuracy"],
        "confidence": binned["confidence"],
        "ece": binned["ece"],
        "ece_floor": test.floor,
        "ece_p_value": test.p_value,
        "debiased_ece": binned["debiased_ece"],
        "equal_mass_ece": equal_mass_ece(confidences_N, correct_N, bins),
        "sweep_ece": swept,
        "smooth_ece": smooth_ece(confidences_N, correct_N),
        "sweep_bins": sweep_bins,
        "ece_null_mean": test.null_mean,
        "squared_l2": binned["squared_l2"],
        "squared_l2_p_value": test.squared_l2_p_value,
        **binned,  # what is above keeps its place
        "aurc": curve.aurc,
        "excess_aurc": curve.excess_aurc,
        **({} if probabilities_NK is None else _class_figures(probabilities_NK, targets_N, bins)),
    }


def _class_figures(probabilities_NK: Any, targets_N: Any, bins: int) -> dict[str, float]:
    """Of every class's own probability."""
    if targets_N is None:
        raise ValueError("figures of all classes need the right ones: give targets with the probabilities")
    classes = checked_probabilities(probabilities_NK, targets_N)[0].shape[1]
    # given on as they came: how far from 1 a row may sum depends on their type
    classwise = ClasswiseAccumulator(classes, bins).update(probabilities_NK, targets_N).compute()
    return {
        "classwise_ece": classwise.static,
        "worst_class_ece": float(classwise.by_class.max()),
        "adaptive_calibration_error": adaptive_calibration_error(probabilities_NK, targets_N, bins),
        "multiclass_brier": classwise.multiclass_brier,
    }
