"""The benchmark of the smoothed loss runs, on shapes too small to say anything about speed."""

from pathlib import Path

import pytest
import torch

from benchmarks import smoothed_loss
from nmt_ls.experiment.records import read_records


def test_it_measures_every_arithmetic_and_writes_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "records.jsonl"
    config = smoothed_loss.BenchmarkConfig(vocabularies=(50, 120), rows=20, width=8, repeats=1, out=str(out))
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


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="arithmetic must be among fp32, medium, bf16, autocast, not fp16"):
        smoothed_loss.BenchmarkConfig(arithmetic=("fp16",))
    with pytest.raises(ValueError, match="must be positive"):
        smoothed_loss.BenchmarkConfig(vocabularies=(0,))
