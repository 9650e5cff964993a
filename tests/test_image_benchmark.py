"""The benchmark of image training runs, on sizes too small to say anything about speed; nothing here is timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import common, image_training
from nmt_ls.experiment.records import read_records


def test_image_training_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "GEMM_SHAPES", ((4, 4, 4),))
    out, recipe = tmp_path / "speed.jsonl", tmp_path / "recipe.yaml"
    recipe.write_text("model: {name: small_cnn}\naugment: {pad: 1, flip: true}\n")
    config = image_training.BenchmarkConfig(
        recipes=(str(recipe),), side=8, contestants=("fp32", "fp32-contiguous"), batch_size=4, steps=1, repeats=1,
        threads=1, clock="cpu", out=str(out),
    )  # fmt: skip
    image_training.main(config)
    rates = [record for record in read_records(out) if record.name == "image_training/images/s"]
    assert [record.signature["contestant"] for record in rates] == ["fp32", "fp32-contiguous"]
    assert all(record.value > 0 for record in rates)
    assert {"gemm_gflops_fp32", "gemm_error_bf16", "medium_is_fp32", "steps", "repeats"} <= set(rates[0].signature)
    ratios = [record.value for record in read_records(out) if record.name == "image_training/to fp32-contiguous"]
    assert ratios[1] == 1.0


def test_refusals() -> None:
    with pytest.raises(ValueError, match="contestants must be among"):
        image_training.BenchmarkConfig(contestants=("fp8",))
    with pytest.raises(ValueError, match="must be positive"):
        image_training.BenchmarkConfig(steps=0)
