"""What is claimed of images is found in what evaluation and projection leave: every figure, under its name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from made_images import telling_folder
from small_classifiers import small_training

from data_prep.images import ImagesConfig
from data_prep.images import main as prepare
from nmt_ls.claims import OF_RECORDS, Claim, read_claims
from nmt_ls.experiment.engine import EngineConfig
from nmt_ls.losses import LossConfig
from nmt_ls.study_results import SettingResults, read_results
from nmt_ls.verdicts import judge
from vision_ls.evaluate import main as evaluate_command
from vision_ls.evaluation import EvaluateConfig
from vision_ls.project import main as project_command
from vision_ls.projecting import ProjectConfig
from vision_ls.training import FITTED_TO_TRAINING, train

CLAIMS = read_claims(Path(__file__).parents[2] / "configs" / "claims.yaml")
VISION = [claim for claim in CLAIMS.claims if claim.name.startswith("vision-") and not claim.not_run]
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
            assert test.statistic in OF_RECORDS
            outcome = judge(name, test, results)
            assert outcome.finding is not None, outcome.why
            assert outcome.finding.seeds == (1, 1)


def test_projection_and_claims_mean_one_regime() -> None:
    (fitted,) = {regime for claim in VISION for regime in claim.regimes if regime.figure == "train_accuracy"}
    assert fitted.at_least == FITTED_TO_TRAINING
