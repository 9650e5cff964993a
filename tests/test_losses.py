"""The smoothed cross-entropy: the definition by hand and against PyTorch's, the fused form against the definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nmt_ls.losses import LossConfig, fused_loss_and_nll, fused_smoothed_cross_entropy, smoothed_cross_entropy

IGNORED = -100


def make_case(
    rows: int, classes: int, width: int, seed: int, dtype: torch.dtype = torch.float64, ignored: float = 0.3
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, targets (some ignored) and a prior."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(classes, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(0, classes, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < ignored] = IGNORED
    prior = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.01
    return hidden, weight, targets, prior / prior.sum()


def by_target_distributions(
    logits: Tensor, targets: Tensor, alpha: float, prior: Tensor, spread: str, reduction: str
) -> Tensor:
    """The definition with nothing simplified: row by row, against a written-out target distribution."""
    losses = []
    for row, label in zip(logits, targets.tolist(), strict=True):
        if label == IGNORED:
            continue
        target = alpha * prior.clone()
        if spread == "others":
            target[label] = 0
            target *= alpha / target.sum() if alpha else 0
        target[label] += 1 - alpha
        assert target.sum().item() == pytest.approx(1)
        losses.append(-(target * row.log_softmax(0)).sum())
    total = torch.stack(losses).sum() if losses else logits.sum() * 0
    return total / max(len(losses), 1) if reduction == "mean" else total


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 150),
    classes=st.integers(2, 40),
    width=st.integers(1, 9),
    alpha=st.sampled_from([0.0, 0.1, 0.5, 0.99]),
    uniform=st.booleans(),
    spread=st.sampled_from(["all", "others"]),
    reduction=st.sampled_from(["mean", "sum"]),
    seed=st.integers(0, 10_000),
)
def test_both_forms_equal_the_written_out_definition(
    rows: int, classes: int, width: int, alpha: float, uniform: bool, spread: str, reduction: str, seed: int
) -> None:
    hidden, weight, targets, prior = make_case(rows, classes, width, seed)
    if uniform:
        prior = torch.full_like(prior, 1 / classes)
    expected = by_target_distributions(hidden @ weight.T, targets, alpha, prior, spread, reduction)
    expected_gradients = torch.autograd.grad(expected * 1.7, (hidden, weight))
    given_prior = "uniform" if uniform else prior
    options = {"alpha": alpha, "prior": given_prior, "spread": spread, "reduction": reduction}
    plain = smoothed_cross_entropy(hidden @ weight.T, targets, **options)
    fused, nll = fused_loss_and_nll(hidden, weight, targets, **options)
    for loss in (plain, fused):
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
        gradients = torch.autograd.grad(loss * 1.7, (hidden, weight))
        torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-10)
    hard = by_target_distributions(hidden @ weight.T, targets, 0.0, prior, "all", reduction)
    torch.testing.assert_close(nll, hard.detach(), rtol=1e-10, atol=1e-10)
    assert not nll.requires_grad


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.6])
def test_uniform_spread_over_all_equals_pytorch(alpha: float) -> None:
    hidden, weight, targets, _ = make_case(200, 37, 8, seed=1)
    logits = hidden @ weight.T
    expected = F.cross_entropy(logits, targets, label_smoothing=alpha)
    torch.testing.assert_close(smoothed_cross_entropy(logits, targets, alpha), expected)
    torch.testing.assert_close(fused_smoothed_cross_entropy(hidden, weight, targets, alpha), expected)


def test_an_example_by_hand() -> None:
    """Logits ln(8), ln(1), ln(1): p = (0.8, 0.1, 0.1)."""
    logits = torch.tensor([[math.log(8.0), 0.0, 0.0]], dtype=torch.float64)
    label = torch.tensor([0])
    spread_over_all = -(0.7 + 0.1) * math.log(0.8) - 0.2 * math.log(0.1)
    spread_over_others = -0.7 * math.log(0.8) - 0.3 * math.log(0.1)
    prior = torch.tensor([0.5, 0.2, 0.3])
    by_prior = -(0.7 + 0.15) * math.log(0.8) - 0.15 * math.log(0.1)
    assert smoothed_cross_entropy(logits, label, 0.3).item() == pytest.approx(spread_over_all)
    assert smoothed_cross_entropy(logits, label, 0.3, spread="others").item() == pytest.approx(spread_over_others)
    assert smoothed_cross_entropy(logits, label, 0.3, prior=prior).item() == pytest.approx(by_prior)


def test_options_of_the_config() -> None:
    config = LossConfig(alpha=0.2, prior="unigram", spread="others")
    assert (config.alpha, config.prior, config.spread) == (0.2, "unigram", "others")
    with pytest.raises(ValueError, match="alpha must be"):
        LossConfig(alpha=1.0)
    with pytest.raises(ValueError, match="spread must be"):
        LossConfig(spread="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prior must be"):
        LossConfig(prior="bigram")  # type: ignore[arg-type]
