"""What is claimed of students and of mutual information is found in what commands leave, and shown in a report."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from small_classifiers import small_training

from nmt_ls.claims import TAUGHT, Claim, Claims, Side, Test, read_claims
from nmt_ls.distillation_report import CURVES, accuracy_grid, curves, recipes, student_rows, students_figures
from nmt_ls.experiment.distillation import DistillationConfig
from nmt_ls.experiment.engine import EngineConfig
from nmt_ls.experiment.records import read_records
from nmt_ls.findings import compared_runs, runs_of
from nmt_ls.information_report import information_figures, information_rows
from nmt_ls.losses import LossConfig
from nmt_ls.report_content import Report
from nmt_ls.report_page import write_page
from nmt_ls.report_tables import setting_tables
from nmt_ls.study_results import NotMeasuredError, SettingResults, read_results
from nmt_ls.verdicts import hard_runs, judge, regime_value
from vision_ls.evaluate import main as evaluate_command
from vision_ls.evaluation import EvaluateConfig
from vision_ls.information import MeasureConfig
from vision_ls.information import main as information_command
from vision_ls.models import ModelConfig
from vision_ls.mutual_information import InformationConfig
from vision_ls.training import train

CLAIMS = read_claims(Path(__file__).parents[2] / "configs" / "claims.yaml")
OF_STUDENTS = [claim for claim in CLAIMS.claims if claim.name.startswith("distillation-") and not claim.not_run]
OF_INFORMATION = [claim for claim in CLAIMS.claims if claim.name.startswith("mutual-")]
SIDES = [side for claim in OF_STUDENTS for test in claim.tests.values() for side in test.sides]
TAUGHT_BY = sorted(
    {
        (taught["teacher_alpha"], taught.get("teacher_dropout", 0.0), taught["teacher_temperature"])
        for taught in (side.taught for side in SIDES)
        if taught
    }
)
DIRECT = sorted({0.0} | {side.alpha for side in SIDES if not side.taught})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one seed of all that claims ask for, as its cells would leave it."""
    place = tmp_path_factory.mktemp("study")
    results = str(place / "results" / "study")
    engine = EngineConfig(max_updates=8, validate_every=4, log_every=4, monitor="accuracy", average_last=0)

    def evaluated(run: Path, **changes: object) -> None:
        train(small_training(run, engine=engine, checkpoints=("last",), **changes))
        evaluate_command(EvaluateConfig(run=str(run), checkpoint="last", results=results, figure=False))

    for alpha, dropout in sorted({(alpha, dropout) for alpha, dropout, _ in TAUGHT_BY}):
        model = ModelConfig(widths=(8, 8, 8), dropout=dropout)
        evaluated(place / f"teacher-d{dropout}-ls{alpha}-s1", loss=LossConfig(alpha=alpha), model=model)
    narrow = ModelConfig(widths=(4, 4, 4))
    for alpha in DIRECT:
        evaluated(place / f"student-ls{alpha}-s1", loss=LossConfig(alpha=alpha), model=narrow)
    for alpha, dropout, temperature in TAUGHT_BY:
        teacher = str(place / f"teacher-d{dropout}-ls{alpha}-s1")
        taught = DistillationConfig(
            teacher=teacher, checkpoint="last", temperature=temperature, squared_temperature_factor=True
        )
        name = f"student-from-d{dropout}-ls{alpha}-T{temperature:g}-s1"
        evaluated(place / name, loss=LossConfig(alpha=0.0), model=narrow, distillation=taught)
    asked = InformationConfig(classes=("0", "1"), images=8, views=6)
    for alpha in (0.0, 0.1):
        run = place / f"information-ls{alpha}-s1"
        train(
            small_training(run, engine=engine, checkpoints=("last",), loss=LossConfig(alpha=alpha), information=asked)
        )
        evaluate_command(EvaluateConfig(run=str(run), checkpoint="last", split="train", results=results, figure=False))
        information_command(MeasureConfig(runs=(str(run),), checkpoint="last", results=results, figure=False))
    return place / "results"


def results_of(root: Path, setting_name: str, runs: str) -> SettingResults:
    return read_results(dataclasses.replace(CLAIMS.settings[setting_name], results="study", runs=runs), root)


@pytest.mark.parametrize("claim", OF_STUDENTS, ids=lambda claim: claim.name)
def test_every_student_is_found(root: Path, claim: Claim) -> None:
    for setting_name in claim.settings:
        results = results_of(root, setting_name, "teacher-d0.0-*" if "teacher" in setting_name else "student-*")
        for regime in claim.regimes:
            assert 0 < regime_value(regime, results) <= 1
            assert {run.taught for run in hard_runs(regime, results)} == {regime.of_teachers}
        for name, test in claim.tests.items():
            if "teacher_dropout" not in {key for side in test.sides for key in side.taught}:
                test = dataclasses.replace(  # both kinds of teacher are in this one study
                    test, **{
                        which: dataclasses.replace(side, taught={**side.taught, "teacher_dropout": 0.0})
                        for which, side in (("baseline", test.baseline), ("treated", test.treated))
                        if side is not None and side.taught
                    }
                )  # fmt: skip
            outcome = judge(name, test, results)
            assert outcome.finding is not None, outcome.why
            assert outcome.finding.seeds == (1, 1)
            assert "without" not in outcome.why
            (before,), (after,) = compared_runs(test, results)
            values = [run.scored[False][test.figure or "accuracy"] for run in (before, after)]
            assert outcome.finding.difference == pytest.approx(values[1] - values[0], abs=1e-9)
            assert before.taught == bool(test.sides[0].taught)
            for key, value in test.treated.taught.items():
                assert after.signature[key] == value


@pytest.mark.parametrize("claim", OF_INFORMATION, ids=lambda claim: claim.name)
def test_information_is_recorded(root: Path, claim: Claim) -> None:
    results = results_of(root, "mnist-information-training", "information-*")
    for name, test in claim.tests.items():
        outcome = judge(name, test, results)
        assert outcome.finding is not None, outcome.why
        figures = [results.runs(side.alpha)[0].scored[False] for side in test.sides]
        other = figures[0][test.target] if test.target else figures[0][test.figure]
        assert outcome.finding.difference == pytest.approx(figures[-1][test.figure] - other)


def test_students_stand_apart_from_runs_that_learnt_from_labels(root: Path) -> None:
    results = results_of(root, "shapes-student", "student-*")
    assert [run.alpha for run in results.runs()] == DIRECT
    assert not any(run.taught for run in results.runs())
    assert len(results.runs(taught=True)) == len(TAUGHT_BY)
    tables = {table.title: table for table in setting_tables(results)}
    assert [row["alpha"] for row in tables["As Table 2 of the paper: accuracy"].rows] == DIRECT
    (of_students,) = (table for title, table in tables.items() if title.startswith("Section 4"))
    assert len(of_students.rows) == len(TAUGHT_BY)


def test_the_table_of_students(root: Path) -> None:
    results = results_of(root, "shapes-student", "student-*")
    hard = results.runs(0.0)[0].scored[False]["accuracy"]
    rows = list(student_rows(results))
    found = sorted((row["teacher_alpha"], row["teacher_dropout"], row["teacher_temperature"]) for row in rows)
    assert found == TAUGHT_BY
    for row in rows:
        assert row["student_temperature"] == row["teacher_temperature"]
        assert 0 < row["gamma"] < 1
        assert row["accuracy difference"].difference == pytest.approx(row["accuracy"] - hard)


def test_curves_and_grid(root: Path) -> None:
    results = results_of(root, "shapes-student", "student-*")
    teachers = results_of(root, "shapes-teacher", "teacher-d0.0-*")
    found = curves(results, teachers)
    assert list(found) == list(CURVES)
    assert list(found["student, label smoothing"]) == DIRECT
    undropped = [(alpha, temperature) for alpha, dropout, temperature in TAUGHT_BY if dropout == 0]
    hard = found["student of the hard-target teacher, by T"]
    assert len(hard) == len([temperature for alpha, temperature in undropped if alpha == 0])
    assert list(hard) == sorted(hard)  # by γ, which rises with the temperature
    by_recipe = recipes(results)
    for gamma, accuracies in hard.items():
        (runs,) = (runs for runs in by_recipe.values() if [run.scored[False]["gamma"] for run in runs] == [gamma])
        assert accuracies == [run.scored[False]["accuracy"] for run in runs]
    assert len(found["student of smoothed teachers, T = 1"]) == len([a for a, t in undropped if a > 0 and t == 1])
    alphas, temperatures, values = accuracy_grid(results)
    assert alphas == sorted({alpha for alpha, _ in undropped})
    assert temperatures == sorted({temperature for _, temperature in undropped})
    assert np.isfinite(values).sum() == len(undropped)
    drawn = {name: figure for name, _, figure in students_figures(results, teachers)}
    lines = [line.get_label() for line in drawn["distillation"].axes[0].lines]
    assert lines == list(found)
    numbers = [text.get_text() for text in drawn["distillation-grid"].axes[0].texts]
    assert sorted(numbers) == sorted(f"{100 * value:.2f}" for value in values[np.isfinite(values)])


def test_a_setting_may_show_students_alone(root: Path) -> None:
    shown = [dataclasses.replace(CLAIMS.settings["mnist-taught"], results="study", runs=runs) for runs in (
        "student-*", "student-ls*"
    )]  # fmt: skip
    claims = Claims(settings=dict(zip(("taught", "direct"), shown, strict=True)), claims=())
    (part,) = Report.read(claims, root).parts
    assert (part.name, len(part.tables)) == ("taught", 1)
    assert [picture.name for picture in part.pictures] == [
        "report-taught-distillation", "report-taught-distillation-grid"
    ]  # fmt: skip


def test_without_students_nothing_is_shown(root: Path) -> None:
    teachers = results_of(root, "shapes-teacher", "teacher-d0.0-*")
    assert list(students_figures(teachers, None)) == []
    assert list(student_rows(teachers)) == []
    direct = results_of(root, "shapes-student", "student-ls*")
    assert list(students_figures(direct, teachers)) == []


def test_students_alone_are_shown_too(root: Path, tmp_path: Path) -> None:
    """As a study leaves it that has not come to the students on labels alone."""
    settings = {
        name: dataclasses.replace(CLAIMS.settings[name], results="study", runs=runs)
        for name, runs in (("shapes-student", "student-from-d0.0-*"), ("shapes-teacher", "teacher-d0.0-*"))
    }
    claims = [claim for claim in CLAIMS.claims if set(claim.settings) <= set(settings) and claim.settings]
    report = Report.read(Claims(settings=settings, claims=tuple(claims)), root)
    part = next(part for part in report.parts if part.name == "shapes-student")
    assert part.signature()["teacher_temperature"]
    assert part.commands()
    (table,) = part.tables
    assert len(table.rows) == len([dropout for _, dropout, _ in TAUGHT_BY if dropout == 0])
    assert all("accuracy difference" not in row for row in table.rows)
    verdicts = {verdict.claim.name: verdict for verdict in report.verdicts}
    for outcome in verdicts["distillation-hard-teacher"].outcomes:
        assert (outcome.word, outcome.why) == ("not run here", "no run with α = 0.1")
    assert all(outcome.finding for outcome in verdicts["distillation-same-temperature"].outcomes)
    page = write_page(report, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "as Figure 5 of the paper" in page


def test_students_of_other_recipes_stand_apart(root: Path) -> None:
    """A student with a temperature of its own, and one without the factor T²: neither is meant by a claim."""
    results = results_of(root, "shapes-student", "student-*")
    (usual,) = (run for run in results.runs(taught=True) if run.name == "student-from-d0.0-ls0.0-T4-s1")
    records = read_records(results.folder / "records.jsonl")
    for name, change in (("own", {"student_temperature": 1.0}), ("plain", {"squared_temperature_factor": False})):
        for record in [record for record in records if record.signature["run"] == usual.name]:
            signature = {**record.signature, "run": f"student-{name}-s1", **change}
            records.append(dataclasses.replace(record, signature=signature))
    more = SettingResults(results.setting, results.folder, records)
    assert len(more.runs(taught=True)) == len(TAUGHT_BY) + 2
    assert len(recipes(more)) == len(recipes(results)) + 2
    assert curves(more, None) == curves(results, None)
    side = Side(alpha=0.0, taught={"teacher_alpha": 0.0, "teacher_dropout": 0.0, "teacher_temperature": 4.0})
    assert [run.name for run in runs_of(more, side)] == [usual.name]
    own = Side(alpha=0.0, taught={**side.taught, "student_temperature": 1.0})
    assert [run.name for run in runs_of(more, own)] == ["student-own-s1"]


def test_information_is_shown(root: Path) -> None:
    results = results_of(root, "mnist-information-training", "information-*")
    rows = list(information_rows(results))
    assert [row["alpha"] for row in rows] == [0.0, 0.1]
    for row, run in zip(rows, results.runs(), strict=True):
        assert row["mutual_information"] == run.scored[False]["mutual_information"]
        assert row["log N"] == pytest.approx(np.log(8))
        assert list(run.course["mutual_information_course"]) == [0, 4, 8]
    ((name, caption, figure),) = information_figures(results)
    assert name == "information"
    assert "8 training images" in caption
    assert [line.get_label() for line in figure.axes[0].lines[:2]] == ["α = 0", "α = 0.1"]


def test_a_side_of_students_that_there_are_not(root: Path) -> None:
    results = results_of(root, "shapes-student", "student-*")
    hot = Side(alpha=0.0, taught={"teacher_alpha": 0.0, "teacher_temperature": 99.0})
    test = Test(statistic="accuracy", expect="lower", effect=0.01, baseline=Side(alpha=0.0), treated=hot)
    assert not test.within_runs
    with pytest.raises(NotMeasuredError, match=r"no run with student \(teacher's α = 0, T = 99\)"):
        compared_runs(test, results)
    both = Side(alpha=0.0, taught={"teacher_alpha": 0.0, "teacher_temperature": 4.0})  # of either dropout
    with pytest.raises(NotMeasuredError, match="and one seed"):
        compared_runs(dataclasses.replace(test, treated=both), results)
    with pytest.raises(ValueError, match=f"taught: temperature is none of {', '.join(TAUGHT)}"):
        Side(alpha=0.0, taught={"temperature": 1.0})
