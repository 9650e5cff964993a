"""The benchmark of image training runs, on sizes too small to say anything about speed; nothing here is timed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are run from the root of a checkout, not installed

from benchmarks import common, image_training
from nmt_ls.experiment.records import read_records


def test_image_training_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "GEMM_SHAPES", ((4, 4, 4),))
    out = tmp_path / "speed.jsonl"
    config = image_training.BenchmarkConfig(
        models=("small_cnn",), side=8, contestants=("fp32", "bf16-contiguous"), batch_size=4, steps=1, repeats=1,
        threads=1, clock="cpu", out=str(out),
    )  # fmt: skip
    image_training.main(config)
    rates = [record for record in read_records(out) if record.name == "image_training/images_per_second"]
    assert [record.signature["contestant"] for record in rates] == ["fp32", "bf16-contiguous"]
    assert all(record.value > 0 for record in rates)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="contestants must be among"):
        image_training.BenchmarkConfig(contestants=("fp8",))
    with pytest.raises(ValueError, match="must be positive"):
        image_training.BenchmarkConfig(steps=0)
