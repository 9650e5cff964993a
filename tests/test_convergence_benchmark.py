"""The comparison of a bf16 run with its fp32 twin, on metrics written by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are run from the root of a checkout, not installed

from benchmarks.convergence import BenchmarkConfig, compare
from nmt_ls.experiment.command_line import UserError


def write_run(folder: Path, precision: str, nlls: list[float], **config: Any) -> str:
    folder.mkdir()
    recipe = {"seed": 1, "loss": {"alpha": 0.1}, "precision": precision, "out": str(folder), **config}
    (folder / "config.yaml").write_text(json.dumps(recipe))
    manifest = {"commit": "c", "corpus_checksum": "s", "precision": {"kind": precision}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    lines = [{"step": 10, "split": "train", "loss": 9.0}]
    lines += [{"step": 100 * i, "split": "validation", "nll": x, "bleu": 10 * x} for i, x in enumerate(nlls, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_the_mean_difference_of_common_validations(tmp_path: Path) -> None:
    fp32 = write_run(tmp_path / "a", "fp32", [9.0, 2.0, 3.0])
    bf16 = write_run(tmp_path / "b", "bf16", [1.0, 2.1, 3.3, 4.0])
    (nll, bleu), about = compare(BenchmarkConfig(fp32=fp32, bf16=bf16, after=100))
    assert (about["validations"], about["last"]) == (2, 300)
    assert nll["difference"] == pytest.approx(0.2)
    assert nll["standard error"] == pytest.approx(0.1)
    assert nll["difference at the last"] == pytest.approx(0.3)
    assert bleu["difference"] == pytest.approx(2.0)


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    fp32 = write_run(tmp_path / "a", "fp32", [1.0, 2.0])
    other = write_run(tmp_path / "b", "bf16", [1.0, 2.0], seed=2)
    with pytest.raises(UserError, match="differ in seed"):
        compare(BenchmarkConfig(fp32=fp32, bf16=other, after=0))
    twin = write_run(tmp_path / "c", "fp32", [1.0, 2.0])
    with pytest.raises(UserError, match=r"bf16: .* was trained in fp32"):
        compare(BenchmarkConfig(fp32=fp32, bf16=twin, after=0))
    short = write_run(tmp_path / "d", "bf16", [1.0, 2.0])
    with pytest.raises(UserError, match="fewer than two"):
        compare(BenchmarkConfig(fp32=fp32, bf16=short, after=100))
    with pytest.raises(UserError, match="no such file"):
        compare(BenchmarkConfig(fp32=fp32, bf16=str(tmp_path / "none"), after=0))
