"""What is claimed of images is found in what evaluation and projection leave: every figure, under its name."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from made_images import telling_folder
from small_classifiers import small_training

from data_prep.images import ImagesConfig
from data_prep.images import main as prepare
from nmt_ls.accuracy_tables import accuracy_rows
from nmt_ls.claim_statistics import evaluate
from nmt_ls.claims import OF_RECORDS, Claim, Side, Test, read_claims
from nmt_ls.experiment.engine import EngineConfig
from nmt_ls.experiment.records import read_records
from nmt_ls.losses import LossConfig
from nmt_ls.study_results import NotMeasuredError, SettingResults, read_results
from nmt_ls.verdicts import judge
from vision_ls.evaluate import main as evaluate_command
from vision_ls.evaluation import EvaluateConfig
from vision_ls.project import main as project_command
from vision_ls.projecting import ProjectConfig
from vision_ls.train_config import FITTED_TO_TRAINING
from vision_ls.training import train

CLAIMS = read_claims(Path(__file__).parents[2] / "configs" / "claims.yaml")
VISION = [claim for claim in CLAIMS.claims if claim.name.startswith("vision-") and not claim.not_run]
OF_EXAMPLES = ("accuracy", "squared_l2")
NEEDED = {side.alpha for claim in VISION for test in claim.tests.values() for side in test.sides}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one seed of every α, as its cells would leave it."""
    place = tmp_path_factory.mktemp("study")
    results = str(place / "results" / "study")
    prepare(ImagesConfig(source=str(telling_folder(place / "made")), out=str(place / "images")))
    for alpha in sorted(NEEDED):
        run = str(place / f"run-ls{alpha}-s1")
        engine = EngineConfig(max_updates=60, validate_every=30, log_every=30, monitor="accuracy", average_last=0)
        images = str(place / "images")
        train(small_training(Path(run), loss=LossConfig(alpha=alpha), engine=engine, data=images))
        for split in ("train", "validation", "test"):
            evaluate_command(EvaluateConfig(run=run, checkpoint="last", split=split, results=results, figure=False))  # type: ignore[arg-type]
        for name in ("", "near"):
            project_command(ProjectConfig(runs=(run,), checkpoint="last", results=results, figure=False, name=name))
    return place / "results"


def results_of(root: Path, setting_name: str) -> SettingResults:
    setting = dataclasses.replace(CLAIMS.settings[setting_name], results="study", runs="run-*")
    return read_results(setting, root)


@pytest.mark.parametrize("claim", VISION, ids=lambda claim: claim.name)
def test_every_figure_is_recorded(root: Path, claim: Claim) -> None:
    for setting_name in claim.settings:
        results = results_of(root, setting_name)
        (hard,) = results.runs(0.0)
        assert {regime.figure for regime in claim.regimes} <= set(hard.scored[False])
        for name, test in claim.tests.items():
            assert test.statistic in (*OF_RECORDS, *OF_EXAMPLES)
            outcome = judge(name, test, results)
            assert outcome.finding is not None, outcome.why
            assert outcome.finding.seeds == ((1,) if test.within_runs else (1, 1))
            if test.statistic in OF_EXAMPLES:  # what is computed of examples is what was recorded
                recorded = [results.runs(side.alpha)[0].scored[side.temperature == "nll"] for side in test.sides]
                values = [figures[test.statistic] for figures in recorded]
                assert outcome.finding.difference == pytest.approx(values[1] - values[0], abs=1e-9)


def every_run_twice(root: Path, place: Path) -> SettingResults:
    """Each run, and once more as if another seed had led to the same; smoothed ones with every fifth image wrong."""
    folder = place / "study"
    (folder / "examples.parquet").mkdir(parents=True)
    records = read_records(root / "study" / "records.jsonl")
    for record in list(records):
        again = {**record.signature, "run": f"{record.signature['run']}-again", "seed": 2}
        records.append(dataclasses.replace(record, signature=again))
    for file in (root / "study" / "examples.parquet").iterdir():
        table = pq.read_table(file)
        right = pc.or_(pc.equal(table["alpha"], 0.0), pa.array([row % 5 > 0 for row in table["image"].to_pylist()]))
        table = table.set_column(table.schema.get_field_index("correct"), "correct", right)
        names = pa.array([f"{name}-again" for name in table["run"].to_pylist()])
        pq.write_table(table, folder / "examples.parquet" / file.name)
        again_table = table.set_column(table.schema.get_field_index("run"), "run", names)
        run = table["run"][0].as_py()
        pq.write_table(again_table, folder / "examples.parquet" / file.name.replace(run, f"{run}-again", 1))
    setting = dataclasses.replace(CLAIMS.settings["mnist"], results="study", runs="run-*")
    return SettingResults(setting, folder, records)


def test_intervals_are_of_other_images_too(root: Path, tmp_path: Path) -> None:
    """Where seeds vary by nothing the interval is that of a paired comparison over images."""
    results = every_run_twice(root, tmp_path)
    test = Test(
        statistic="accuracy", expect="higher", effect=0.01, baseline=Side(alpha=0.0), treated=Side(alpha=0.1)
    )  # fmt: skip
    found = evaluate(test, results)
    hard_N, smooth_N = (results.images(results.runs(a)[0], fitted=False)["correct"].astype(float) for a in (0.0, 0.1))
    change_N = smooth_N - hard_N
    assert found.seeds == (2, 2)
    assert found.seed_sd == 0
    assert found.difference == pytest.approx(change_N.mean())
    assert change_N.std() > 0
    assert found.high - found.low == pytest.approx(2 * 1.96 * change_N.std() / math.sqrt(len(change_N)), rel=0.15)


def test_images_have_two_temperatures(root: Path) -> None:
    hard, warm = Side(alpha=0.0), Side(alpha=0.1, temperature=1.5)
    test = Test(statistic="squared_l2", expect="lower", effect=0.01, baseline=hard, treated=warm)
    with pytest.raises(NotMeasuredError, match="one fitted to each run by NLL"):
        evaluate(test, results_of(root, "mnist"))


def test_projection_and_claims_mean_one_regime() -> None:
    (fitted,) = {regime for claim in VISION for regime in claim.regimes if regime.figure == "train_accuracy"}
    assert fitted.at_least == FITTED_TO_TRAINING


def test_the_table_of_accuracies(root: Path) -> None:
    first, *others = accuracy_rows(results_of(root, "cifar10-resnet56"))
    assert (first["alpha"], first["seeds"]) == (0.0, 1)
    assert "difference" not in first
    assert [row["alpha"] for row in others] == sorted(NEEDED - {0.0})
    for row in others:  # one seed decides nothing
        assert row["similar"] == "unresolved"
        difference, none = row["difference"].split(", ")
        assert none == "no interval from one seed"
        assert float(difference.replace("−", "-")) == pytest.approx(row["accuracy"] - first["accuracy"], abs=1e-4)
    assert list(accuracy_rows(results_of(root, "cifar10-resnet56-training"))) == []
