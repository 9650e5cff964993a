"""The benchmarks of the smoothed loss run, on shapes too small to say anything about speed."""

from pathlib import Path

import pytest
import torch

from benchmarks import fused_losses, smoothed_loss
from benchmarks.common import Products, arithmetic_here
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import read_records


@pytest.mark.usefixtures("tiny_products")
def test_it_measures_every_arithmetic_and_writes_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "records.jsonl"
    shapes = {"vocabularies": (50, 120), "rows": 20, "width": 8, "repeats": 1}
    config = smoothed_loss.BenchmarkConfig(**shapes, arithmetic=smoothed_loss.ARITHMETIC, out=str(out))  # type: ignore[arg-type]
    smoothed_loss.main(config)
    assert "autocast: 20 rows of width 8" in capsys.readouterr().out
    records = read_records(out)
    cells = {(record.signature["precision"], record.signature["vocabulary"]) for record in records}
    assert cells == {(arithmetic, size) for arithmetic in smoothed_loss.ARITHMETIC for size in (50, 120)}
    assert {record.signature["alpha"] for record in records} == {0.1}
    ratios = [record.value for record in records if record.name == "smoothed_loss/ours/products"]
    assert len(ratios) == 8
    assert min(ratios) > 0


@pytest.mark.parametrize("arithmetic", ["fp32", "bf16"])
def test_a_wrong_loss_is_not_timed(arithmetic: str) -> None:
    config = smoothed_loss.BenchmarkConfig(vocabularies=(50,), rows=20, width=8)
    contest = smoothed_loss.Contest(config, 50, arithmetic)
    limit = smoothed_loss.AGREE if arithmetic == "fp32" else smoothed_loss.AGREE_IN_BF16
    contest.check_agreement(limit)
    right = contest.pytorch

    def wrong() -> torch.Tensor:
        loss = right()
        contest.weight.grad *= 1.1  # type: ignore[operator]
        return loss

    contest.pytorch = wrong  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="weight's gradient"):
        contest.check_agreement(limit)


def test_allocated_memory_is_the_peak_and_not_the_sum() -> None:
    def step() -> None:
        for _ in range(5):
            torch.empty(1_000_000, dtype=torch.uint8).add_(1)

    step()
    assert 1_000_000 <= smoothed_loss.allocated(step) < 2_500_000


@pytest.mark.usefixtures("tiny_products")
@pytest.mark.parametrize(("alpha", "contestants"), [(0.1, {"ours", "pytorch"}), (0.0, {"ours", "pytorch", "chunked"})])
def test_fused_losses_of_others(
    alpha: float, contestants: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that compile, or need a GPU, are left to the benchmark itself."""
    if alpha == 0 and not hasattr(torch.nn.functional, "linear_cross_entropy"):
        pytest.skip("PyTorch before 2.13 has no linear_cross_entropy")
    out = tmp_path / "records.jsonl"
    shapes = {"vocabularies": (120,), "rows": 20, "width": 8, "repeats": 1, "arithmetic": ("fp32", "bf16", "autocast")}
    names = ("chunked", "liger", "cce")
    fused_losses.main(fused_losses.BenchmarkConfig(**shapes, alpha=alpha, contestants=names, out=str(out)))
    said = capsys.readouterr().out
    assert "without liger: on a GPU only" in said
    assert ("without chunked: it has no smoothing (--alpha 0)" in said) == (alpha > 0)
    found = {(record.signature["precision"], record.signature["contestant"]) for record in read_records(out)}
    assert found == {(arithmetic, name) for arithmetic in ("fp32", "bf16", "autocast") for name in contestants}


def test_emulated_arithmetic_is_measured_where_it_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    everything = smoothed_loss.ARITHMETIC
    for gflops, here in ((900.0, everything), (1.0, ("fp32", "medium"))):
        products = {"bf16": Products(gflops, 3e-3)}
        assert arithmetic_here((), everything, products) == here
        assert arithmetic_here(("bf16",), everything, products) == ("bf16",)
    contestants = ("ours-fp32", "bf16-compiled", "ours-bf16-2x1", "medium")
    assert arithmetic_here((), contestants, products) == ("ours-fp32", "medium")
    assert capsys.readouterr().out.startswith("without bf16, autocast: ")


def test_a_wrong_fused_loss_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(alpha: float) -> smoothed_loss.Loss:
        right = fused_losses.CONTESTANTS["pytorch"](alpha)
        return lambda hidden, weight, targets: right(hidden, 1.1 * weight, targets)

    config = fused_losses.BenchmarkConfig(vocabularies=(50,), rows=20, width=8, contestants=("compiled",))
    monkeypatch.setitem(fused_losses.CONTESTANTS, "compiled", wrong)
    contest = fused_losses.Contest(config, 50, "fp32")
    contest.check_agreement(smoothed_loss.AGREE)
    assert list(contest.losses) == ["ours", "pytorch"]
    assert "from PyTorch's" in contest.left_out["compiled"]

    def failing(_: float) -> smoothed_loss.Loss:
        def loss(*_: torch.Tensor) -> torch.Tensor:
            raise KeyError("no compiler")

        return loss

    monkeypatch.setitem(fused_losses.CONTESTANTS, "compiled", failing)
    contest = fused_losses.Contest(config, 50, "fp32")
    contest.check_agreement(smoothed_loss.AGREE)
    assert contest.left_out == {"compiled": "it fails: KeyError: 'no compiler'"}
    monkeypatch.setitem(fused_losses.CONTESTANTS, "ours", wrong)
    with pytest.raises(AssertionError, match=r"ours: its .* is .* from PyTorch's"):
        fused_losses.Contest(config, 50, "fp32").check_agreement(smoothed_loss.AGREE)


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"contestants must be among ours, .*, not apex"):
        fused_losses.BenchmarkConfig(contestants=("apex",))
    with pytest.raises(ValueError, match="clock cpu does not see what a GPU does"):
        fused_losses.BenchmarkConfig(device="cuda", clock="cpu", threads=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="PyTorch sees no CUDA device here"):
        fused_losses.main(fused_losses.BenchmarkConfig(device="cuda"))
    with pytest.raises(ValueError, match="arithmetic must be among fp32, medium, bf16, autocast, not fp16"):
        smoothed_loss.BenchmarkConfig(arithmetic=("fp16",))
    with pytest.raises(ValueError, match="must be positive"):
        smoothed_loss.BenchmarkConfig(vocabularies=(0,))
