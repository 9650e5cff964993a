import math

import numpy as np
import pytest
import torch

from nmt_ls.metrics import fit_temperature, log_probs
from nmt_ls.metrics.calibration import expected_calibration_error
from nmt_ls.metrics.likelihood import token_statistics
from nmt_ls.metrics.temperature import fit_temperature_to_chunks
from nmt_ls.metrics.temperature_grid import (
    TemperatureGrid,
    inverse_temperature_grid,
    temperature_grid_statistics,
)


def sample(count=2000, classes=20, true_temperature=1.0, seed=0, scale=2.0):
    """Logits, and labels drawn from them at a temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator) * scale
    probabilities = (logits / true_temperature).softmax(-1)
    return logits, torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


def nll(logits, targets, temperature):
    log_p = torch.log_softmax(logits.double() / temperature, -1)
    return -log_p.gather(1, targets[:, None]).mean().item()


def test_temperature_one_is_the_identity():
    logits, _ = sample(50)
    assert torch.equal(log_probs(logits, 1.0), torch.log_softmax(logits, -1))


def test_logits_are_divided_by_the_temperature():
    result = log_probs(torch.tensor([0.0, 2.0 * math.log(3)], dtype=torch.float64), 2.0)
    assert result.exp().tolist() == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize(("given", "computed"), [("bfloat16", "float32"), ("float16", "float32"), ("float64",) * 2])
def test_half_precision_is_computed_in_fp32(given, computed):
    logits = sample(10)[0].to(getattr(torch, given))
    result = log_probs(logits, 1.3)
    assert result.dtype == getattr(torch, computed)
    torch.testing.assert_close(result, torch.log_softmax(logits.to(result.dtype) / 1.3, -1))


def test_log_probs_of_arrays_and_lists():
    logits, _ = sample(10)
    expected = log_probs(logits, 1.3)
    for given in (logits.numpy(), np.flip(np.flip(logits.numpy(), 1).copy(), 1), logits.tolist()):
        torch.testing.assert_close(log_probs(given, 1.3).float(), expected)
    assert log_probs([0, 0]).exp().tolist() == pytest.approx([0.5, 0.5])  # whole numbers too


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_impossible_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
        log_probs(torch.zeros(3), temperature)


@pytest.mark.parametrize("temperature", [1.0, 1.3])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_without_a_softmax_are_refused(temperature, bad):
    logits = sample(24, classes=5)[0].reshape(4, 6, 5)
    logits[2, 1, 3] = bad
    for given in (logits, logits.bfloat16(), logits.numpy()):
        with pytest.raises(ValueError, match=r"logits must not hold NaN or .*row 13 does"):
            log_probs(given, temperature)
    with pytest.raises(ValueError, match="nor a row only -inf: row 1 does"):
        log_probs([[0.0, 1.0], [-math.inf, -math.inf]])
    assert log_probs([[0.0, -math.inf], [1.0, 1.0]], temperature)[0].tolist() == [0, -math.inf]  # a masked class
    assert log_probs(torch.zeros(0, 3)).shape == (0, 3)


def test_a_temperature_at_which_logits_overflow_leaves_nan():
    assert log_probs(torch.tensor([[1.0, 2.0]]), 1e-40).isnan().all()


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.5])
def test_fitted_temperature_minimises_the_nll(true_temperature):
    logits, targets = sample(true_temperature=true_temperature)
    fitted = fit_temperature(logits, targets)
    assert fitted == pytest.approx(true_temperature, rel=0.15)
    best = nll(logits, targets, fitted)
    assert all(best <= nll(logits, targets, fitted * factor) for factor in (0.9, 0.999, 1.001, 1.1))


def test_fitted_temperature_of_two_classes_in_closed_form():
    # one logit gap of 2, right three times of four: sigmoid(2 / T) = 3/4
    logits = torch.tensor([[2.0, 0.0]]).repeat(4, 1)
    fitted = fit_temperature(logits, torch.tensor([0, 0, 0, 1]))
    assert fitted == pytest.approx(2 / math.log(3), rel=1e-6)


def test_ignored_rows_and_masked_classes_do_not_matter():
    logits, targets = sample(500)
    expected = fit_temperature(logits, targets)
    padded = torch.cat([torch.randn(100, 20) * 9, logits])
    labels = torch.cat([torch.full((100,), -100), targets])
    assert fit_temperature(padded, labels) == pytest.approx(expected, rel=1e-6)
    masked = torch.cat([logits, torch.full((500, 1), -math.inf)], 1)
    assert fit_temperature(masked, targets) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("by", ["nll", "ece"])
def test_a_temperature_is_fitted_to_arrays(by):
    logits, targets = sample(500, true_temperature=1.5)
    expected = fit_temperature(logits, targets, by)
    assert fit_temperature(logits.numpy(), targets.numpy().astype(np.int32), by) == pytest.approx(expected)
    chunks = lambda: [(logits.numpy()[i : i + 77], targets.numpy()[i : i + 77]) for i in range(0, 500, 77)]  # noqa: E731
    assert fit_temperature_to_chunks(chunks, by) == pytest.approx(expected, rel=1e-6)


def test_chunks_give_the_same_temperature():
    logits, targets = sample(500)
    chunks = lambda: ((logits[i : i + 77], targets[i : i + 77]) for i in range(0, 500, 77))  # noqa: E731
    assert fit_temperature_to_chunks(chunks) == pytest.approx(fit_temperature(logits, targets), rel=1e-6)


def test_temperature_fitted_by_ece_is_no_worse_than_a_fine_grid():
    logits, targets = sample(3000, true_temperature=1.7, seed=4)
    fitted = fit_temperature(logits, targets, by="ece")

    def ece(temperature):
        tokens = token_statistics(logits, targets, temperature)
        return expected_calibration_error(tokens.confidences, tokens.correct)

    assert ece(fitted) <= min(ece(1 / (0.3 + 0.02 * step)) for step in range(60)) + 5e-4
    assert fitted == pytest.approx(1.7, rel=0.15)


@pytest.mark.parametrize("labels", ["random", "best", "worst"])
def test_an_ece_that_is_least_at_the_edge_of_the_grid_is_no_optimum(labels):
    logits, targets = sample(400, classes=50, scale=4.0)
    given = {
        "random": torch.randint(0, 50, (400,), generator=torch.Generator().manual_seed(1)),
        "best": logits.argmax(-1),
        "worst": logits.argmin(-1),
    }
    with pytest.raises(ValueError, match=r"no temperature from 0.24 to 8 minimises the ECE: .* may lie beyond"):
        fit_temperature(logits, given[labels], by="ece")
    assert 0.3 < fit_temperature(logits, targets, by="ece") < 3


def test_data_without_a_best_temperature_are_refused():
    logits, _ = sample(200)
    with pytest.raises(ValueError, match="already the most probable"):
        fit_temperature(logits, logits.argmax(-1))
    with pytest.raises(ValueError, match="uniform guess"):
        fit_temperature(logits, logits.argmin(-1))
    for by in ("nll", "ece"):
        with pytest.raises(ValueError, match="NaN"):
            fit_temperature(torch.full((2, 3), math.nan), torch.tensor([0, 1]), by)
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 19\]"):
        fit_temperature(logits, torch.full((200,), 20))
    with pytest.raises(ValueError, match="'nll' or 'ece'"):
        fit_temperature(logits, logits.argmin(-1), by="bleu")
    with pytest.raises(ValueError, match="no rows"):
        fit_temperature(logits, torch.full((200,), -100))


@pytest.mark.parametrize("grid", [inverse_temperature_grid(0.6, 1.6, 21), [0.5, 1.0, 1.1, 3.0], [1.0]])
def test_grid_equals_direct_computation(grid):
    logits, targets = sample(300, classes=500, seed=1, scale=4.0)
    targets[::7] = -100
    found = temperature_grid_statistics(logits, targets, grid)
    assert torch.equal(found.kept, targets != -100)
    for j, inverse in enumerate(grid):
        expected = token_statistics(logits.double(), targets, 1 / inverse)
        relative = (found.confidences[j].double() / expected.confidences - 1).abs().max()
        assert relative < 3e-6
        torch.testing.assert_close(found.log_probs[j].double(), expected.log_probs, rtol=1e-6, atol=3e-6)
        assert torch.equal(found.correct, expected.correct)


def test_grid_stream_equals_one_pass_and_merges():
    logits, targets = sample(400, seed=2)
    inverses = inverse_temperature_grid(0.5, 1.5, 5)
    whole = TemperatureGrid(inverses).update(logits, targets).compute()
    first = TemperatureGrid(inverses).update(logits[:100], targets[:100])
    second = TemperatureGrid(inverses).update(logits[100:], targets[100:])
    merged = first.merge(second).compute()
    for one, two, inverse in zip(whole, merged, inverses, strict=True):
        assert one.temperature == 1 / inverse
        assert one.nll == pytest.approx(nll(logits, targets, 1 / inverse), rel=1e-6)
        assert two.nll == pytest.approx(one.nll)
        tokens = token_statistics(logits.double(), targets, 1 / inverse)
        expected = expected_calibration_error(tokens.confidences, tokens.correct)
        assert two.calibration.ece == pytest.approx(one.calibration.ece) == pytest.approx(expected, abs=2e-4)


def test_grid_of_bf16_logits_is_computed_in_fp32():
    logits, targets = sample(50)
    half = logits.bfloat16()
    found = temperature_grid_statistics(half, targets, [0.5, 1.0, 1.5])
    assert found.confidences.dtype == torch.float32
    torch.testing.assert_close(found.confidences[1], half.float().softmax(-1).amax(-1))


def test_a_grid_of_arrays():
    logits, targets = sample(50)
    expected = temperature_grid_statistics(logits, targets, [0.5, 1.0])
    found = temperature_grid_statistics(logits.numpy(), targets.numpy(), [0.5, 1.0])
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert TemperatureGrid([1.0]).update(logits.numpy(), targets.numpy()).tokens == 50


def test_grid_refuses_what_it_cannot_compute():
    logits, targets = sample(10)
    with pytest.raises(ValueError, match="temperature must be"):
        temperature_grid_statistics(logits, targets, [0.5, -1.0])
    with pytest.raises(ValueError, match="at least one"):
        temperature_grid_statistics(logits, targets, [])
    with pytest.raises(ValueError, match="targets must lie"):
        temperature_grid_statistics(logits, targets + 20, [1.0])
    spoiled = logits.clone()
    spoiled[3, 5] = math.nan
    with pytest.raises(ValueError, match=r"logits must not hold NaN .* row 3 does"):
        temperature_grid_statistics(spoiled, targets, [1.0])
    targets[3] = -100
    assert not temperature_grid_statistics(spoiled, targets, [1.0]).confidences.isnan().any()
    with pytest.raises(ValueError, match="nothing"):
        TemperatureGrid([1.0]).compute()
    with pytest.raises(ValueError, match="different inverse temperatures"):
        TemperatureGrid([1.0]).merge(TemperatureGrid([2.0]))
    with pytest.raises(ValueError, match="at least 2 points"):
        inverse_temperature_grid(0.5, 1.0, 1)
