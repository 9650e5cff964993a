"""Evaluation: figures against those of the library, records and examples that agree, and what does not fit named."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from made_images import made_folder
from small_classifiers import small_training

from data_prep.images import ImagesConfig
from data_prep.images import main as prepare
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.penalty import L2Config
from nmt_ls.experiment.precision import Precision
from nmt_ls.experiment.records import read_records
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.losses import LossConfig
from nmt_ls.metrics import calibration_figures, expected_calibration_error, fit_temperature
from nmt_ls.metrics.plots import figure_svg
from nmt_ls.runs import find_run as find_translator
from vision_ls.evaluate import main as evaluate_command
from vision_ls.evaluation import EvaluateConfig, diagrams, evaluate, evaluate_runs, gap_diagrams, template_figures
from vision_ls.runs import Classifier, find_run
from vision_ls.scoring import exact_figures, over_runs, predict, score_logits, telling
from vision_ls.train_config import settings_of
from vision_ls.training import train


def evaluated(run: RunDirectory, **settings: object) -> EvaluateConfig:
    return EvaluateConfig(run=str(run.path), checkpoint="last", **settings)  # type: ignore[arg-type]


def test_chosen_rows_are_predicted_as_they_are_among_all(telling_classifier: RunDirectory) -> None:
    classifier = Classifier.open(telling_classifier.path, "last")
    test = classifier.data.split("test")
    rows_N = torch.tensor([3, 0, 5])
    all_NK = predict(classifier.model, classifier.augmentation, test)
    some_NK = predict(classifier.model, classifier.augmentation, test, rows_N=rows_N)
    torch.testing.assert_close(some_NK, all_NK[rows_N])


def test_a_note_is_in_signatures_and_titles(telling_classifier: RunDirectory) -> None:
    classifier = Classifier.open(telling_classifier.path, "last")
    assert "note" not in classifier.recipe("test")
    classifier.data.note = "own split"
    assert classifier.recipe("test")["note"] == "own split"
    found = replace(evaluate(evaluated(telling_classifier)), classifier=classifier)
    drawn = diagrams(found) | gap_diagrams([found.shown_gaps()])
    assert len(drawn) == 3
    assert all("own split" in str(figure_svg(figure)) for figure in drawn.values())


def test_a_note_and_remarks_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noted = ImagesConfig(source=str(made_folder(tmp_path / "made")), out=str(tmp_path / "noted"), note="own split")
    prepare(noted)
    run = train(small_training(tmp_path / "run", data=noted.out, batch_size=8)).run
    assert f"{noted.out}: own split\n" in capsys.readouterr().err
    evaluate_command(evaluated(run))
    said = capsys.readouterr()
    assert f"{run.path}, last checkpoint, test split, 6 images (own split)\n" in said.out
    assert said.err.count(f"{noted.out}: own split\n") == 1


def test_figures_are_those_of_the_library(telling_classifier: RunDirectory) -> None:
    found = evaluate(evaluated(telling_classifier))
    classifier = Classifier.open(telling_classifier.path, "last")
    test, validation = classifier.data.split("test"), classifier.data.split("validation")
    logits = predict(classifier.model, classifier.augmentation, test)
    top, predicted = logits.softmax(1).max(1)
    values = found.plain.values
    assert values["accuracy"] == pytest.approx(float((predicted == test.labels_N).double().mean()))
    assert values["nll"] == pytest.approx(float(F.cross_entropy(logits, test.labels_N)), rel=1e-5)
    assert values["ece"] == pytest.approx(expected_calibration_error(top, predicted == test.labels_N), rel=1e-5)
    assert values == {
        **values,
        **{
            key: telling_classifier.read_summary()["checkpoints"]["last"][key]
            for key in ("nll", "ece", "train_accuracy")
        },
    }
    temperature = fit_temperature(predict(classifier.model, classifier.augmentation, validation), validation.labels_N)
    assert values["fitted_temperature"] == pytest.approx(temperature, rel=1e-6)
    assert found.fitted is not None
    fitted = found.fitted.values
    assert fitted["nll"] == pytest.approx(float(F.cross_entropy(logits / temperature, test.labels_N)), rel=1e-5)
    assert fitted["accuracy"] == values["accuracy"] > 0.6
    assert values["logit_gap_ideal"] == pytest.approx(np.log(1 + 3 * 0.9 / 0.1))
    assert {"steps_to_98", "template_norm_spread", *calibration_figures([0.5], [1], [[0.5, 0.5]], [0])} <= set(values)
    assert "exact_ece" not in values


def test_records_examples_and_figures(telling_classifier: RunDirectory, tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert evaluate_command(evaluated(telling_classifier, results=str(results))) == 0
    records = read_records(results / "records.jsonl")
    plain = {record.name: record for record in records if record.signature["temperature_is"] == "given"}
    fitted = {record.name: record for record in records if record.signature["temperature_is"] == "fitted"}
    signature = plain["ece"].signature
    assert signature["run"] == "telling"
    assert (signature["alpha"], signature["split"], signature["checkpoint"], signature["model"]) == (
        0.1, "test", "last", "small_cnn"
    )  # fmt: skip
    assert (fitted["ece"].signature["fitted_on"], plain["ece"].signature.get("fitted_on")) == ("validation", None)
    assert fitted["ece"].signature["temperature"] == pytest.approx(plain["fitted_temperature"].value)
    table = pd.read_parquet(results / "examples.parquet")
    assert len(table) == 2 * 60
    given = table[table.temperature_is == "given"]
    assert given.correct.mean() == pytest.approx(plain["accuracy"].value)
    assert given.nll.mean() == pytest.approx(plain["nll"].value, rel=1e-6)
    assert expected_calibration_error(given.confidence, given.correct) == pytest.approx(plain["ece"].value, rel=1e-6)
    assert (given.correct == (given.predicted == given.label)).all()
    drawn = {path.name for path in (results / "figures").iterdir()}
    assert {f"{kind}-telling-last-test.png" for kind in ("reliability", "risk-coverage", "logit-gaps")} <= drawn
    evaluate_command(evaluated(telling_classifier, results=str(results), figure=False))
    assert len(read_records(results / "records.jsonl")) == len(records)
    kept = (results / "examples.parquet" / "telling-last-test.parquet").read_bytes()
    evaluate_command(evaluated(telling_classifier, results=str(results), figure=False, precision="bf16"))
    files = {path.name: path for path in (results / "examples.parquet").iterdir()}
    assert set(files) == {"telling-last-test.parquet", "telling-last-test-bf16.parquet"}
    assert files["telling-last-test.parquet"].read_bytes() == kept


def test_pictures_of_another_precision_are_beside_those_of_fp32(telling_classifier: RunDirectory) -> None:
    found = evaluate(evaluated(telling_classifier))
    other = replace(found, classifier=replace(found.classifier, precision=Precision(kind="bf16")))
    drawn = diagrams(other) | gap_diagrams([other.shown_gaps()])
    assert set(drawn) == {f"{kind}-telling-last-test-bf16" for kind in ("reliability", "risk-coverage", "logit-gaps")}
    assert other.title == "test, last checkpoint, bf16"


def test_every_figure_is_printed(telling_classifier: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_command(evaluated(telling_classifier))
    said = capsys.readouterr().out
    found = evaluate(evaluated(telling_classifier))
    head = next(line for line in said.splitlines() if line.startswith("figure"))
    temperature = found.plain.values["fitted_temperature"]
    assert head.split("  ")[-2:] == ["T = 1", f"T = {temperature:.3f}, fitted"]
    rows = {
        line.split()[0]: line.split()[1:]
        for line in said.splitlines()
        if line and line.split()[0] in found.plain.values
    }
    assert set(rows) == set(found.plain.values)
    assert rows["steps_to_99"] == [f"{found.plain.values['steps_to_99']:.0f}"]
    assert found.fitted is not None
    assert rows["mce"] == [f"{each.values['mce']:.4g}" for each in found.everything]
    assert "regime not reached" not in said  # its targets are smoothed


def test_figures_over_runs_by_hand() -> None:
    runs = [{"nll": 1.0, "steps_to_98": 10.0}, {"nll": 2.0}]
    assert over_runs(runs, ("nll", "steps_to_98", "aurc")) == [
        {"figure": "nll", "runs": 2, "mean": 1.5, "sd": pytest.approx(math.sqrt(0.5))},
        {"figure": "steps_to_98", "runs": 1, "mean": 10.0},
    ]
    assert telling(("nll", "top5_accuracy"), 5) == ["nll"]
    assert telling(("nll", "top5_accuracy"), 6) == ["nll", "top5_accuracy"]


def test_the_ideal_gap_and_both_temperatures_are_drawn(telling_classifier: RunDirectory) -> None:
    found = evaluate(evaluated(telling_classifier))
    drawn = diagrams(found)
    shown = found.shown_gaps()
    gaps, _ = gap_diagrams([shown])["logit-gaps-telling-last-test"].axes
    ideal = found.plain.values["logit_gap_ideal"]
    assert any(list(line.get_xdata()) == [ideal, ideal] for line in gaps.lines)
    hard = replace(shown, name="hard", ideal=math.inf)
    together = gap_diagrams([hard, shown])
    assert list(together) == ["logit-gaps-hard-telling-last-test"]
    assert len(together["logit-gaps-hard-telling-last-test"].axes[0].lines) == 1  # no line for hard targets
    many = [replace(shown, name=f"run{number}") for number in range(5)]
    assert list(gap_diagrams(many)) == [f"logit-gaps-run{number}-last-test" for number in range(5)]
    (long,) = gap_diagrams([replace(shown, name=letter * 130) for letter in "ab"])
    assert len(long) < 60
    (legend,) = drawn["reliability-telling-last-test"].legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert sum("T = " in label for label in labels) == 2


def test_a_temperature_reported_where_it_was_fitted_is_warned_of(
    telling_classifier: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    warning = "warning: the temperature is fitted on the validation split and reported on it"
    evaluate(evaluated(telling_classifier))
    assert warning not in capsys.readouterr().err
    evaluate(evaluated(telling_classifier, split="validation"))
    assert warning in capsys.readouterr().err


@pytest.mark.parametrize(
    ("loss", "end"),
    [
        (LossConfig(alpha=0.1), "between the classes of one; least loss at 4.41"),
        (LossConfig(alpha=0.1, prior="unigram"), "of one; no single ideal gap with a unigram prior"),
        (LossConfig(alpha=0.0, prior="unigram"), "between the classes of one"),
    ],
)
def test_the_ideal_gap_is_said_where_there_is_one(
    loss: LossConfig, end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(small_training(tmp_path / "run", loss=loss)).run
    evaluate_command(evaluated(run))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("logit gap")]
    assert line.endswith(end)


def test_several_runs_in_one_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        train(small_training(tmp_path / name, seed=seed, loss=LossConfig(alpha=alpha))).run
        for name, seed, alpha in (("hard", 1, 0.0), ("a", 1, 0.1), ("b", 2, 0.1))
    ]
    paths = tuple(str(run.path) for run in runs)
    capsys.readouterr()
    results = tmp_path / "results"
    assert evaluate_command(EvaluateConfig(runs=paths, checkpoint="last", results=str(results), figure=False)) == 0
    said = capsys.readouterr().out
    each, over = said.split("over runs, last checkpoint, test split:")
    assert all(f"{path}, last checkpoint, test split" in each for path in paths)
    accuracies = {
        record.signature["run"]: record.value
        for record in read_records(results / "records.jsonl")
        if record.name == "accuracy" and record.signature["temperature_is"] == "given"
    }
    (clause,) = [line for line in each.splitlines() if line.startswith("regime not reached")]
    assert clause.startswith("regime not reached: hard has a training accuracy of ")
    for figure in ("top5_accuracy", "aurc", "steps_to_98", "steps_to_99", "logit_gap_mean", "template_norm_spread"):
        assert figure in over
    rows = [line.split() for line in over.splitlines() if " accuracy " in line and " given " in line]
    both = [accuracies["a"], accuracies["b"]]
    assert rows == [
        ["0", "given", "accuracy", "1", f"{accuracies['hard']:.4g}"],
        ["0.1", "given", "accuracy", "2", f"{mean(both):.4g}", f"{stdev(both):.4g}"],
    ]


def test_runs_of_other_settings_are_not_pooled(tmp_path: Path) -> None:
    config = small_training(tmp_path / "a")
    assert settings_of(replace(config, seed=2, out="b", loss=LossConfig(alpha=0.1))) == settings_of(config)
    for other in ({"loss_weight": 3.0}, {"l2": L2Config(weight=0.1, layers=("last",))}, {"batch_size": 7}):
        assert settings_of(replace(config, **other)) != settings_of(config)


def test_a_run_or_several_are_named() -> None:
    with pytest.raises(ValueError, match="run, runs: name one run with the first or several with the second"):
        EvaluateConfig(run="a", runs=("b", "c"))
    with pytest.raises(ValueError, match="runs: name each only once"):
        EvaluateConfig(runs=("b", "b"))
    with pytest.raises(UserError, match=r"^runs: nowhere is not a run"):
        next(evaluate_runs(EvaluateConfig(runs=("nowhere",))))


def test_exact_figures_of_a_run(small_classifier: RunDirectory) -> None:
    values = evaluate(evaluated(small_classifier)).plain.values
    stored = small_classifier.read_summary()["checkpoints"]["last"]
    names = ("nll", "exact_ece", "kl_to_truth", "entropy", "best_accuracy")
    assert {name: values[name] for name in names} == pytest.approx({name: stored[name] for name in names}, rel=1e-6)


def test_exact_figures_by_hand() -> None:
    logits = torch.tensor([[0.8, 0.2], [0.4, 0.6]]).log()
    posteriors = torch.tensor([[0.7, 0.3], [0.4, 0.6]], dtype=torch.float64)
    found = exact_figures(score_logits(logits, torch.tensor([0, 0]), loss=LossConfig(alpha=0.0)), posteriors)
    assert found["exact_ece"] == pytest.approx(0.05, abs=1e-6)
    assert found["exact_signed_gap"] == pytest.approx(-0.05, abs=1e-6)
    assert found["kl_to_truth"] == pytest.approx((0.7 * np.log(0.7 / 0.8) + 0.3 * np.log(0.3 / 0.2)) / 2, abs=1e-6)
    assert found["tv_to_truth"] == pytest.approx(0.05, abs=1e-6)
    assert found["entropy"] == pytest.approx(-(np.log(0.7) + np.log(0.4)) / 2)
    assert found["best_accuracy"] == pytest.approx(0.65)


def test_scores_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0, -3.0]]).repeat(4, 1)
    scores = score_logits(logits, torch.tensor([0, 4, 5, 5]), loss=LossConfig(alpha=0.0))
    assert scores.figures()["top5_accuracy"] == 0.5
    assert scores.figures()["accuracy"] == 0.25
    assert scores.smoothed_loss == pytest.approx(scores.figures()["nll"])


def test_template_figures_by_hand() -> None:
    found = template_figures(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    assert found == {"template_norm": 3.0, "template_norm_sd": 2.0, "template_norm_spread": pytest.approx(2 / 3)}


def test_the_newest_classifier_is_found(
    small_classifier: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no finished run of a classifier under runs/"):
        find_run(None)
    shutil.copytree(small_classifier.path, tmp_path / "runs" / "mine")
    assert find_run(None) == Path("runs/mine")
    with pytest.raises(UserError, match="is not a run"):
        find_run("runs")


def test_images_move_with_the_run_and_others_are_refused(tmp_path: Path, small_classifier: RunDirectory) -> None:
    first, second = (tmp_path / "project" / "data" / name for name in ("first", "second"))
    for out, test in ((first, 6), (second, 9)):
        prepare(ImagesConfig(source=str(made_folder(tmp_path / f"made{test}", test=test)), out=str(out)))
    train(small_training(tmp_path / "project" / "runs" / "a", data=str(first), batch_size=8))
    run = RunDirectory(tmp_path / "project" / "runs" / "a")
    with pytest.raises(UserError, match=r"second is not what .* was trained on"):
        evaluate(evaluated(run, data=str(second)))
    with pytest.raises(UserError, match="trained on the embedded shapes; leave data out"):
        evaluate(evaluated(small_classifier, data=str(second)))
    (tmp_path / "project").rename(tmp_path / "moved")
    moved = RunDirectory(tmp_path / "moved" / "runs" / "a")
    assert evaluate(evaluated(moved)).plain.values["images"] == 6
    shutil.rmtree(tmp_path / "moved" / "data" / "first")
    with pytest.raises(UserError, match="is neither there nor above the run; name its place with --data"):
        evaluate(evaluated(moved))
    (tmp_path / "moved" / "data" / "second").rename(tmp_path / "moved" / "data" / "first")
    with pytest.raises(UserError, match="no longer what"):
        evaluate(evaluated(moved))


def test_runs_of_the_other_package_are_refused_in_one_line(
    small_classifier: RunDirectory, small_run: RunDirectory
) -> None:
    with pytest.raises(
        UserError, match=r"is no classifier's \(its config\.yaml has no augment\); name one of vision_ls"
    ):
        evaluate(evaluated(small_run))
    with pytest.raises(UserError, match=r"is no translator's \(its config\.yaml has no search\); name one of nmt_ls"):
        find_translator(str(small_classifier.path))


def test_missing_checkpoint(small_classifier: RunDirectory) -> None:
    with pytest.raises(UserError, match="no such checkpoint"):
        evaluate(EvaluateConfig(run=str(small_classifier.path), checkpoint="averaged"))


def test_training_images_leave_figures_alone(telling_classifier: RunDirectory, tmp_path: Path) -> None:
    evaluate_command(evaluated(telling_classifier, split="train", results=str(tmp_path), figure=False))
    names = {record.name for record in read_records(tmp_path / "records.jsonl")}
    assert {"logit_gap_mean", "logit_gap_ideal", "train_accuracy"} <= names
    assert not (tmp_path / "examples.parquet").exists()
