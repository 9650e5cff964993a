"""The Triton kernel of the fused loss, in Triton's interpreter on the CPU; skipped where Triton is not installed."""

import importlib.util
import os
import re
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from nmt_ls import losses_fused
from nmt_ls.losses import fused_loss_and_nll, smoothed_cross_entropy

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (it comes with PyTorch's CUDA builds)"
)


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
def test_in_the_interpreter() -> None:
    """The tests below, in a process where Triton is told so before anything can import it."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"14 passed, 1 skipped", result.stdout), result.stdout


@pytest.fixture
def losses_triton() -> ModuleType:
    if not INTERPRETED:
        pytest.skip("test_in_the_interpreter runs it")
    from nmt_ls import losses_triton

    return losses_triton


TOLERANCES = {torch.float32: {"rtol": 1e-6, "atol": 1e-6}, torch.bfloat16: {"rtol": 8e-3, "atol": 1e-3}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 31, 64, 200])
def test_kernel_equals_softmax(
    losses_triton: ModuleType, monkeypatch: pytest.MonkeyPatch, classes: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(losses_triton, "_LARGEST_BLOCK", 64)
    torch.manual_seed(classes)
    logits = (torch.randn(5, classes) * 4).to(dtype)
    labels, mass = torch.randint(classes, (5,)), torch.rand(5)
    room = torch.full((9, classes), torch.nan, dtype=dtype)
    room[2:7] = logits
    given = room[2:7]
    lse, label_logits = losses_triton.softmax_gradient_in_place(given, labels, mass, False)
    assert torch.equal(given, logits)
    again = losses_triton.softmax_gradient_in_place(given, labels, mass)
    assert torch.equal(torch.stack(again), torch.stack((lse, label_logits)))
    torch.testing.assert_close(lse, logits.float().logsumexp(1), rtol=1e-6, atol=1e-6)
    assert torch.equal(label_logits, logits.float()[torch.arange(5), labels])
    expected = logits.float().softmax(1)
    expected[torch.arange(5), labels] -= mass
    torch.testing.assert_close(given.float(), expected, **TOLERANCES[dtype])
    assert room[:2].isnan().all()
    assert room[7:].isnan().all()


@pytest.mark.parametrize("spread", ["all", "others"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "autocast"])
def test_loss_by_way_of_the_kernel(
    losses_triton: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str, spread: str
) -> None:
    """The way that tensors on a GPU go, taken on the CPU."""
    monkeypatch.setattr(losses_fused, "_kernel", lambda *_: losses_triton.softmax_gradient_in_place)
    monkeypatch.setattr(losses_fused, "_SMALLEST_CHUNK", 1)
    monkeypatch.setattr(losses_fused, "_FEWEST_ROWS", 16)
    torch.manual_seed(1)
    hidden, weight = torch.randn(40, 8).bfloat16(), torch.randn(90, 8).bfloat16()
    targets, prior = torch.randint(90, (40,)), torch.rand(90, dtype=torch.float64)
    targets[::6] = -100
    prior /= prior.sum()

    def solved(dtype: torch.dtype, fused: bool) -> tuple[Tensor, Tensor, Tensor]:
        h, w = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
        if fused:
            loss, nll = fused_loss_and_nll(h, w, targets, 0.1, prior, spread)
            torch.testing.assert_close(nll, fused_loss_and_nll(h.detach(), w.detach(), targets, 0.1, prior, spread)[1])
        else:
            loss = smoothed_cross_entropy(h @ w.T, targets, 0.1, prior, spread)
        loss.backward()
        return loss.detach(), h.grad, w.grad

    expected = solved(torch.float64, False)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        found = solved(torch.bfloat16 if kind == "bfloat16" else torch.float32, True)
    tolerance = 1e-6 if kind == "float32" else 2**-7  # a logit less its shift is rounded to 8 bits
    for name, a, b in zip(("loss", "hidden", "weight"), found, expected, strict=True):
        error = ((a.double() - b).norm() / b.norm()).item()
        assert error < (min(tolerance, 1e-3) if name == "loss" else tolerance), name
