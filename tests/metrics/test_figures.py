import numpy as np
import pytest
import torch

from nmt_ls.metrics import calibration_figures, expected_calibration_error
from nmt_ls.metrics.adaptive import (
    ClasswiseAccumulator,
    adaptive_calibration_error,
    equal_mass_ece,
    smooth_ece,
    sweep_ece,
)
from nmt_ls.metrics.calibration import CalibrationAccumulator
from nmt_ls.metrics.null import calibration_test
from nmt_ls.metrics.selective import risk_coverage


def drawn(count, classes=4):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(classes, 0.5), count)
    targets = rng.integers(0, classes, count)
    return probabilities.max(1), probabilities.argmax(1) == targets, probabilities, targets


def test_every_figure_is_that_of_its_own_function():
    c, y, _, _ = drawn(500)
    found = calibration_figures(c, y, bins=10)
    binned, test = CalibrationAccumulator(10).update(c, y).compute(), calibration_test(c, y, 10)
    assert found["ece"] == expected_calibration_error(c, y, 10) == test.ece
    assert (found["ece_floor"], found["ece_p_value"]) == (test.floor, test.p_value)
    assert found["ece_null_mean"] == test.null_mean
    assert (found["squared_l2"], found["squared_l2_p_value"]) == (test.unbiased_squared_l2, test.squared_l2_p_value)
    assert (found["sweep_ece"], found["sweep_bins"]) == sweep_ece(c, y)
    assert (found["equal_mass_ece"], found["smooth_ece"]) == (equal_mass_ece(c, y, 10), smooth_ece(c, y))
    assert (found["debiased_ece"], found["mce"]) == (binned.debiased_l1, binned.mce)
    assert found["signed_gap"] == pytest.approx(found["accuracy"] - found["confidence"])
    assert found["over_confidence"] + found["under_confidence"] == pytest.approx(found["ece"])
    split = found["reliability"] - found["resolution"] + found["uncertainty"] + found["within_bin"]
    assert split == pytest.approx(found["brier"]) == pytest.approx(np.mean((c - y) ** 2))
    assert (found["aurc"], found["excess_aurc"]) == (risk_coverage(c, y).aurc, risk_coverage(c, y).excess_aurc)
    assert "classwise_ece" not in found


def test_figures_of_all_classes_come_with_their_probabilities():
    c, y, probabilities, targets = drawn(500)
    found = calibration_figures(*map(torch.tensor, (c, y, probabilities, targets)), bins=10)
    classwise = ClasswiseAccumulator(4, 10).update(probabilities, targets).compute()
    assert (found["classwise_ece"], found["worst_class_ece"]) == (classwise.static, classwise.by_class.max())
    assert found["multiclass_brier"] == classwise.multiclass_brier
    assert found["multiclass_brier"] == pytest.approx(((probabilities - np.eye(4)[targets]) ** 2).sum(1).mean())
    assert found["adaptive_calibration_error"] == adaptive_calibration_error(probabilities, targets, 10)
    assert {name: found[name] for name in calibration_figures(c, y)} == calibration_figures(c, y, bins=10)
    with pytest.raises(ValueError, match="give targets with the probabilities"):
        calibration_figures(c, y, probabilities)
    with pytest.raises(ValueError, match="correct must be boolean, or 0 and 1"):
        calibration_figures(c, c)
