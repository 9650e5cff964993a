import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from nmt_ls.metrics import expected_calibration_error, fit_temperature
from nmt_ls.metrics.calibrators import IsotonicCalibration, TemperatureScaling, VectorScaling, pool_adjacent_violators


def sample(count, seed, classes=6):
    """Logits that are twice too sharp and tilted by class, and labels from the true distribution."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(count, classes, generator=generator) * 1.5
    targets = torch.multinomial(true.softmax(-1), 1, generator=generator).squeeze(1)
    return true * 2 + torch.linspace(-1, 1, classes), targets


def nll(log_p, targets):
    return -log_p.gather(1, targets[:, None]).mean().item()


def top(log_p, targets):
    confidences, predicted = log_p.exp().max(-1)
    return confidences, predicted == targets


def test_temperature_scaling_applies_what_was_fitted_elsewhere():
    logits, targets = sample(2000, 0)
    calibrator = TemperatureScaling.fit(logits, targets, split="validation")
    assert calibrator.temperature == fit_temperature(logits, targets)
    test_logits, test_targets = sample(2000, 1)
    before = nll(torch.log_softmax(test_logits, -1), test_targets)
    assert nll(calibrator.apply(test_logits, split="test"), test_targets) < before - 0.05


def test_temperature_scaling_takes_arrays():
    logits, targets = sample(500, 0)
    expected = TemperatureScaling.fit(logits, targets, split="validation")
    found = TemperatureScaling.fit(logits.numpy(), targets.numpy(), split="validation")
    assert found.temperature == expected.temperature
    assert torch.equal(found.apply(logits.numpy(), split="test"), expected.apply(logits, split="test"))


def test_vector_scaling_takes_arrays():
    logits, targets = sample(500, 0)
    expected = VectorScaling.fit(logits, targets, split="validation")
    found = VectorScaling.fit(logits.numpy(), targets.numpy(), split="validation")
    assert torch.equal(found.scale_K, expected.scale_K)
    assert torch.equal(found.apply(logits.numpy(), split="test"), expected.apply(logits, split="test"))


def test_vector_scaling_undoes_scale_and_tilt():
    logits, targets = sample(4000, 2)
    calibrator = VectorScaling.fit(logits, targets, split="validation", penalty=0.0)
    assert calibrator.scale_K.tolist() == pytest.approx([0.5] * 6, abs=0.1)
    shift = calibrator.shift_K - calibrator.shift_K.mean()
    assert shift.tolist() == pytest.approx((-0.5 * torch.linspace(-1, 1, 6)).tolist(), abs=0.2)
    test_logits, test_targets = sample(2000, 3)
    warm = TemperatureScaling.fit(logits, targets, split="validation").apply(test_logits, split="test")
    assert nll(calibrator.apply(test_logits, split="test"), test_targets) < nll(warm, test_targets) - 0.02


def test_vector_scaling_is_at_the_optimum_and_the_penalty_bounds_unseen_classes():
    logits, targets = sample(500, 4)
    logits, targets = torch.cat([logits, torch.zeros(500, 1)], 1), targets.clone()
    targets[::10] = -100
    calibrator = VectorScaling.fit(logits, targets, split="validation", penalty=1e-3)
    parameters = torch.stack([calibrator.scale_K, calibrator.shift_K]).requires_grad_()
    keep = targets >= 0
    log_p = torch.log_softmax(parameters[0] * logits[keep].double() + parameters[1], -1)
    loss = -log_p.gather(1, targets[keep, None]).mean() + 1e-3 * (
        (parameters[0] - 1).square().sum() + parameters[1].square().sum()
    )
    (gradient,) = torch.autograd.grad(loss, parameters)
    assert gradient.abs().max() < 1e-5
    assert -6 < calibrator.shift_K[-1] < -1


def test_vector_scaling_leaves_a_masked_class_masked_and_the_others_as_without_it():
    logits, targets = sample(500, 7)
    expected = VectorScaling.fit(logits, targets, split="validation")
    masked = torch.cat([logits, torch.full((500, 1), -math.inf)], 1)
    found = VectorScaling.fit(masked, targets, split="validation")
    torch.testing.assert_close(found.scale_K[:6], expected.scale_K, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.shift_K[:6], expected.shift_K, rtol=1e-3, atol=1e-3)
    assert [found.scale_K[6].item(), found.shift_K[6].item()] == pytest.approx([1, 0], abs=1e-3)  # by the penalty alone
    log_p = found.apply(masked, split="test")
    assert (log_p[:, 6] == -math.inf).all()
    torch.testing.assert_close(log_p[:, :6], expected.apply(logits, split="test"), rtol=1e-3, atol=1e-3)


def test_vector_scaling_of_a_class_masked_in_some_rows():
    logits, targets = sample(600, 8)
    some = (torch.arange(600) % 3 == 0) & (targets != 2)
    logits[some, 2] = -math.inf
    calibrator = VectorScaling.fit(logits, targets, split="validation")
    assert calibrator.scale_K.isfinite().all()
    assert calibrator.shift_K.isfinite().all()
    # whatever the scale, the class stays out of the rows that mask it
    for scale in (calibrator.scale_K, -calibrator.scale_K, 0 * calibrator.scale_K):
        p = replace(calibrator, scale_K=scale).apply(logits, split="test").exp()
        assert (p[some, 2] == 0).all()
        assert p.isfinite().all()
    assert (calibrator.apply(logits, split="test").exp()[~some, 2] > 0).all()
    targets[some.nonzero()[4]] = 2
    with pytest.raises(ValueError, match=f"a masked class .* that of row {int(some.nonzero()[4])} is"):
        VectorScaling.fit(logits, targets, split="validation")


def test_vector_scaling_goes_on_to_the_optimum_of_wide_logits():
    """By torch's own tolerance L-BFGS stops 8e-5 nats above this minimum."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(1000, 10, generator=generator) * 50
    targets = torch.multinomial(true.softmax(-1), 1, generator=generator).squeeze(1)
    logits = true * 5 + torch.linspace(-30, 30, 10)
    calibrator = VectorScaling.fit(logits, targets, split="validation")
    loss = nll(torch.log_softmax(calibrator.scale_K * logits.double() + calibrator.shift_K, -1), targets)
    loss += 1e-4 * ((calibrator.scale_K - 1).square().sum() + calibrator.shift_K.square().sum()).item()
    assert loss == pytest.approx(0.0545696, abs=1e-6)


def test_vector_scaling_that_does_not_converge_is_refused(monkeypatch):
    logits, targets = sample(500, 9)
    VectorScaling.fit(logits, targets, split="validation")
    monkeypatch.setattr("nmt_ls.metrics.calibrators._STEPS", 2)
    with pytest.raises(ValueError, match=r"did not converge: after 2 steps .* nats above the minimum; take a penalty"):
        VectorScaling.fit(logits, targets, split="validation")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_without_a_softmax_are_not_calibrated(bad):
    logits, targets = sample(50, 10)
    calibrators = [
        TemperatureScaling.fit(logits, targets, split="validation"),
        VectorScaling.fit(logits, targets, split="validation", penalty=0.1),
    ]
    logits[3, 1] = bad
    for calibrator in calibrators:
        with pytest.raises(ValueError, match=r"logits must not hold NaN or .*row 3 does"):
            calibrator.apply(logits, split="test")
        with pytest.raises(ValueError, match="NaN or infinite"):
            type(calibrator).fit(logits, targets, split="validation")


def test_isotonic_by_hand():
    # correctness by rising confidence 0, 1, 0, 1: the middle pair violates, and pools to 1/2
    calibrator = IsotonicCalibration.fit([0.2, 0.4, 0.6, 0.8], [0, 1, 0, 1], split="validation")
    result = calibrator.apply([0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0], split="test")
    assert result.tolist() == pytest.approx([0, 0, 0.25, 0.5, 0.5, 0.5, 0.75, 1, 1])


@pytest.mark.parametrize("seed", range(4))
def test_pooling_equals_the_min_max_formula(seed):
    rng = np.random.default_rng(seed)
    values, weights = rng.integers(0, 5, 12) / 4, rng.integers(1, 4, 12).astype(float)
    mean = lambda i, j: np.average(values[i : j + 1], weights=weights[i : j + 1])  # noqa: E731
    expected = [max(min(mean(i, j) for j in range(k, 12)) for i in range(k + 1)) for k in range(12)]
    np.testing.assert_allclose(pool_adjacent_violators(values, weights), expected, atol=1e-12)


def test_isotonic_calibrates_another_split():
    rng = np.random.default_rng(5)

    def split():
        confidences = rng.random(20_000)
        return confidences, rng.random(20_000) < confidences**2

    calibrator = IsotonicCalibration.fit(*split(), split="validation")
    confidences, correct = split()
    assert expected_calibration_error(confidences, correct) > 0.1
    assert expected_calibration_error(calibrator.apply(torch.tensor(confidences), split="test"), correct) < 0.02


def test_applying_to_the_fitted_split_is_refused_unless_it_is_meant():
    logits, targets = sample(300, 6)
    confidences, correct = top(torch.log_softmax(logits, -1), targets)
    calibrators = [
        (TemperatureScaling.fit(logits, targets, split="test"), logits),
        (VectorScaling.fit(logits, targets, split="test"), logits),
        (IsotonicCalibration.fit(confidences, correct, split="test"), confidences),
    ]
    for calibrator, inputs in calibrators:
        with pytest.raises(ValueError, match="was fitted on the test split"):
            calibrator.apply(inputs, split="test")
        assert calibrator.apply(inputs, split="test", same_split=True).shape == inputs.shape


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="no confidences"):
        IsotonicCalibration.fit([], [], split="validation")
    with pytest.raises(ValueError, match="penalty"):
        VectorScaling.fit(*sample(10, 0), split="validation", penalty=-1.0)
