"""The comparison of a bf16 run with its fp32 twin, on metrics written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.convergence import BenchmarkConfig, compare, judge, main
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import read_records
from nmt_ls.metrics.statistics import Estimate


def write_run(folder: Path, precision: str, nlls: list[float], corpus: str = "s", **config: Any) -> str:
    folder.mkdir()
    recipe = {"seed": 1, "loss": {"alpha": 0.1}, "precision": precision, "out": str(folder), **config}
    (folder / "config.yaml").write_text(json.dumps(recipe))
    manifest = {"commit": "c", "corpus_checksum": corpus, "precision": {"kind": precision}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    lines = [{"step": 10, "split": "train", "loss": 9.0}]
    lines += [{"step": 100 * i, "split": "validation", "nll": x, "bleu": 10 * x} for i, x in enumerate(nlls, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_the_mean_difference_of_common_validations(tmp_path: Path) -> None:
    fp32 = write_run(tmp_path / "a", "fp32", [9.0, 2.0, 3.0])
    bf16 = write_run(tmp_path / "b", "bf16", [1.0, 2.1, 3.3, 4.0])
    (nll, bleu), about = compare(BenchmarkConfig(fp32=(fp32,), bf16=(bf16,), after=100))
    assert (about["validations"], about["last"]) == ([2], 300)
    assert nll["difference"] == pytest.approx(0.2)
    assert nll["standard error"] == pytest.approx(0.1)
    assert nll["difference at the last"] == pytest.approx(0.3)
    assert bleu["difference"] == pytest.approx(2.0)
    assert (nll["best fp32"], nll["best bf16"], bleu["best bf16"]) == (2.0, 1.0, 40.0)


def test_of_several_pairs_the_pairs_are_the_sample(tmp_path: Path) -> None:
    """Differences of 0.1, 0.2 and 0.3 at both validations: mean 0.2, sd 0.1, and t of two degrees of freedom."""
    fp32 = [write_run(tmp_path / f"a{seed}", "fp32", [2.0, 3.0], seed=seed) for seed in (1, 2, 3)]
    bf16 = [write_run(tmp_path / f"b{seed}", "bf16", [2 + seed / 10, 3 + seed / 10], seed=seed) for seed in (3, 1, 2)]
    (nll, _), about = compare(BenchmarkConfig(fp32=tuple(fp32), bf16=tuple(bf16), after=0))
    assert about["seeds"] == [1, 2, 3]
    assert nll["difference"] == pytest.approx(0.2)
    assert nll["standard error"] == pytest.approx(0.1 / 3**0.5)
    assert nll["interval"] == "cannot be told"  # 0.2 +- 4.303 * 0.058 reaches below 0
    with pytest.raises(
        UserError, match=r"a2 has no partner: of the runs in bf16 the most like it, .*b3, differs in seed"
    ):
        compare(BenchmarkConfig(fp32=tuple(fp32[:2]), bf16=tuple(bf16[:2]), after=0))
    again = write_run(tmp_path / "again", "fp32", [2.0, 3.0], seed=1)
    twins = tuple(write_run(tmp_path / f"c{i}", "bf16", [2.0, 3.0], seed=1) for i in (1, 2))
    with pytest.raises(UserError, match="again is a second run of one recipe and seed"):
        compare(BenchmarkConfig(fp32=(fp32[0], again), bf16=twins, after=0))
    with pytest.raises(UserError, match="a run is named twice"):
        compare(BenchmarkConfig(fp32=(fp32[0], again), bf16=(twins[0], twins[0]), after=0))
    with pytest.raises(ValueError, match="as many runs, got 2 and 1"):
        BenchmarkConfig(fp32=tuple(fp32[:2]), bf16=tuple(bf16[:1]))


def test_pairs_may_be_of_several_recipes(tmp_path: Path) -> None:
    alphas = (0.0, 0.1)
    fp32 = [write_run(tmp_path / f"a{x}", "fp32", [2.0, 3.0], loss={"alpha": x}) for x in alphas]
    bf16 = [write_run(tmp_path / f"b{x}", "bf16", [2.0 + x, 3.0 + x], loss={"alpha": x}) for x in reversed(alphas)]
    (nll, _), about = compare(BenchmarkConfig(fp32=tuple(fp32), bf16=tuple(bf16), after=0))
    assert (about["alphas"], about["seeds"]) == ([0.0, 0.1], [1, 1])
    assert nll["difference"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("difference", "error", "says"),
    [
        (0.0, 0.01, "inside"),
        (-0.01, 0.005, "inside"),
        (0.05, 0.01, "outside"),
        (-0.05, 0.01, "outside"),
        (0.02, 0.01, "cannot be told"),
        (0.0, 0.02, "cannot be told"),
    ],
)
def test_an_interval_is_inside_the_limit_or_outside_or_neither(difference: float, error: float, says: str) -> None:
    assert judge(Estimate(value=difference, sd=error, resamples=0), 0.02) == says


def test_records_say_what_the_interval_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {name: (write_run(tmp_path / name, name, [2.0, 2.0, 2.0]),) for name in ("fp32", "bf16")}
    main(BenchmarkConfig(**runs, after=0, out=str(tmp_path / "records.jsonl")))
    assert "inside" in capsys.readouterr().out
    records = read_records(tmp_path / "records.jsonl")
    assert {(r.signature["figure"], r.signature["limit"], r.signature["interval"]) for r in records} == {
        ("nll", 0.02, "inside"),
        ("bleu", 0.3, "inside"),
    }


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    fp32 = write_run(tmp_path / "a", "fp32", [1.0, 2.0])
    other = write_run(tmp_path / "b", "bf16", [1.0, 2.0], seed=2)
    with pytest.raises(UserError, match="differs in seed"):
        compare(BenchmarkConfig(fp32=(fp32,), bf16=(other,), after=0))
    more = write_run(tmp_path / "e", "bf16", [1.0, 2.0], init_from="x")  # a key that the other has not
    with pytest.raises(UserError, match="differs in init_from"):
        compare(BenchmarkConfig(fp32=(fp32,), bf16=(more,), after=0))
    twin = write_run(tmp_path / "c", "fp32", [1.0, 2.0])
    with pytest.raises(UserError, match=r"bf16: .* was trained in fp32"):
        compare(BenchmarkConfig(fp32=(fp32,), bf16=(twin,), after=0))
    short = write_run(tmp_path / "d", "bf16", [1.0, 2.0])
    with pytest.raises(UserError, match="fewer than two"):
        compare(BenchmarkConfig(fp32=(fp32,), bf16=(short,), after=100))
    elsewhere = write_run(tmp_path / "f", "bf16", [1.0, 2.0], corpus="t")
    with pytest.raises(UserError, match="trained on different corpora"):
        compare(BenchmarkConfig(fp32=(fp32,), bf16=(elsewhere,), after=0))
    with pytest.raises(UserError, match="no such file"):
        compare(BenchmarkConfig(fp32=(fp32,), bf16=(str(tmp_path / "none"),), after=0))
