"""Distillation: the smoothness index, what teacher and student see, whole runs, and teachers that do not fit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_classifiers import small_training
from torch import Tensor

from nmt_ls.experiment.checkpoint import load_checkpoint, load_weights, save_checkpoint
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.distillation import OF_TEACHER, DistillationConfig
from nmt_ls.experiment.engine import EngineConfig
from nmt_ls.experiment.penalty import L2Config
from nmt_ls.experiment.precision import Precision
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.experiment.schedule import ScheduleConfig
from nmt_ls.losses import LossConfig, distillation_loss, smoothness_index
from vision_ls.augment import AugmentConfig
from vision_ls.data import EmbeddedSizes, embedded_images
from vision_ls.distill import DistillConfig
from vision_ls.distill import main as distill_command
from vision_ls.distillation import Teacher
from vision_ls.evaluation import EvaluateConfig, evaluate
from vision_ls.models import ModelConfig
from vision_ls.train_config import TrainConfig
from vision_ls.training import ClassificationTask, new_task, open_teacher, train

STUDENT = ModelConfig(widths=(4, 4, 4))


def student_training(
    out: Path, teacher: Path | str, *, taught: dict[str, Any] | None = None, **changes: object
) -> TrainConfig:
    """Settings of a student that takes a second."""
    distillation = DistillationConfig(teacher=str(teacher), checkpoint="last", **(taught or {}))
    return small_training(
        out, **{"loss": LossConfig(alpha=0.0), "model": STUDENT, "distillation": distillation, **changes}
    )


def task_of(config: TrainConfig) -> ClassificationTask:
    data = embedded_images(config.embedded)
    manifest = {"precision": Precision().to_dict(), "teacher": open_teacher(config, data).facts}
    return new_task(config, data, manifest, torch.device("cpu"))


@pytest.mark.parametrize(
    "more", [{}, {"student_temperature": 1.5}, {"squared_temperature_factor": True}], ids=lambda more: " ".join(more)
)
def test_a_teacher_is_shown_its_students_views_in_eval_mode(
    small_classifier: RunDirectory, tmp_path: Path, more: dict[str, Any]
) -> None:
    config = student_training(
        tmp_path / "run",
        small_classifier.path,
        taught={"temperature": 3.0, "beta": 0.8, **more},
        loss_weight=2.0,
        l2=L2Config(weight=0.04, layers=("last",)),
    )
    task = task_of(config)
    assert task.teacher is not None
    rows = torch.tensor([3, 0, 50, 7, 20])
    torch.manual_seed(5)
    found = task.loss(task.model.train(), rows)
    torch.manual_seed(5)
    views = task.augmentation.train(task.training.images_NCHW[rows])
    teacher = task.teacher.model.eval()(views)
    labels = task.training.labels_N[rows]
    mean = distillation_loss(task.model(views), teacher, labels, beta=0.8, teacher_temperature=3.0, **more)
    penalty = 0.04 / 2 * task.model.last.weight.square().sum()
    torch.testing.assert_close(found.total, 2 * 5 * mean + 5 * penalty)
    torch.testing.assert_close(found.extras["distillation"], (5 * mean).detach())
    assert "smoothed" not in found.extras
    found.total.backward()
    assert all(weight.grad is None for weight in task.teacher.model.parameters())
    assert all(weight.grad is not None for weight in task.model.parameters())


def test_what_is_always_shown_alike_is_asked_once(small_classifier: RunDirectory, tmp_path: Path) -> None:
    fixed = task_of(student_training(tmp_path / "run", small_classifier.path, augment=AugmentConfig()))
    moving = task_of(student_training(tmp_path / "run", small_classifier.path))
    rows = torch.tensor([9, 4])
    views = fixed.augmentation.evaluate(fixed.training.images_NCHW[rows])
    shown = fixed.training.images_NCHW.new_zeros(views.shape).float()
    for task, of_the_views in ((fixed, False), (moving, True)):
        assert task.teacher is not None
        expected = task.teacher.model(views if not of_the_views else shown).detach()
        torch.testing.assert_close(task.teacher.logits(shown, rows), expected)


def test_smoothness_index_is_of_the_students_views(small_classifier: RunDirectory, tmp_path: Path) -> None:
    task = task_of(student_training(tmp_path / "run", small_classifier.path, taught={"temperature": 2.0}))
    assert task.teacher is not None
    state = torch.get_rng_state()
    gamma = task.teacher.smoothness_index(task.training, task.augmentation)
    assert torch.equal(torch.get_rng_state(), state)
    assert gamma == task.teacher.smoothness_index(task.training, task.augmentation)
    labels = task.training.labels_N
    of_each = [
        smoothness_index(task.teacher.model(task.augmentation.train(task.training.images_NCHW)), labels, 2.0)
        for _ in range(20)
    ]
    spread = max(of_each) - min(of_each)
    assert spread > 0
    assert min(of_each) - spread < gamma < max(of_each) + spread
    plain = smoothness_index(task.teacher.model(task.augmentation.evaluate(task.training.images_NCHW)), labels, 2.0)
    assert gamma != plain


def test_without_the_teachers_part_a_student_learns_from_the_labels(
    small_classifier: RunDirectory, tmp_path: Path
) -> None:
    taught = train(student_training(tmp_path / "taught", small_classifier.path, taught={"beta": 0.0}))
    alone = train(small_training(tmp_path / "alone", loss=LossConfig(alpha=0.0), model=STUDENT))
    weights = [load_weights(outcome.run.checkpoints / "last") for outcome in (taught, alone)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-3, atol=1e-4)


def agreement(run: RunDirectory, teacher: Teacher, task: ClassificationTask) -> float:
    """Mean cross-entropy of a student's outputs with its teacher's on the training images."""
    model = task.model
    model.load_state_dict(load_weights(run.checkpoints / "last"))
    images = task.augmentation.evaluate(task.training.images_NCHW)
    with torch.no_grad():
        theirs: Tensor = teacher.model(images).softmax(1)
        return float(-(theirs * model.eval()(images).log_softmax(1)).sum(1).mean())


def test_a_whole_run(small_classifier: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher_path = tmp_path / "teacher"
    shutil.copytree(small_classifier.path, teacher_path)
    settings = student_training(tmp_path / "student-s{seed}", teacher_path)
    config = DistillConfig(**{**vars(settings), "seeds": (1, 2)})
    assert distill_command(config) == 0
    printed = capsys.readouterr().out
    run = RunDirectory(tmp_path / "student-s1")
    summary, manifest = run.read_summary(), run.read_manifest()
    signature = summary["signature"]
    how = "taught by teacher, last checkpoint (α = 0.1), at T = 1, β = 1"
    assert f"{how}; smoothness γ of its targets {summary['gamma']:.4f}" in printed
    assert 0 < summary["gamma"] < 1
    of_teacher = RunDirectory(small_classifier.path).read_summary()["checkpoints"]["last"]
    assert summary["teacher_train_accuracy"] == of_teacher["train_accuracy"]
    assert summary["teacher_accuracy"] == of_teacher["accuracy"]
    assert summary["teacher_steps_to_99"] == RunDirectory(small_classifier.path).read_summary()["steps_to_99"]
    assert (signature["teacher_alpha"], signature["alpha"]) == (0.1, 0.0)
    assert (signature["teacher_temperature"], signature["student_temperature"], signature["beta"]) == (1.0, 1.0, 1.0)
    assert signature["teacher_weights"] == manifest["teacher"]["weights"]
    assert all("distillation" in line for line in run.read_metrics() if line["split"] == "train")
    # with its teacher gone a finished student is left alone, and evaluated
    shutil.rmtree(teacher_path)
    assert train(settings.with_seed(1)).already_finished
    evaluated = evaluate(EvaluateConfig(run=str(run.path), checkpoint="last"))
    for figure in ("gamma", "teacher_accuracy", "teacher_steps_to_98", "teacher_steps_to_99"):
        assert evaluated.plain.values[figure] == summary[figure]
    assert evaluated.plain.recipe["teacher_weights"] == signature["teacher_weights"]
    # its teacher's figures are of the test split, at a given temperature, and say whose they are
    of_it = {record.name for record in evaluated.plain.records() if record.signature.get("of") == OF_TEACHER["of"]}
    assert of_it == {"gamma", *(key for key in summary if key.startswith("teacher_"))}
    validated = evaluate(EvaluateConfig(run=str(run.path), checkpoint="last", split="validation"))
    names = {record.name for each in (*validated.everything, *evaluated.everything[1:]) for record in each.records()}
    assert not of_it & names
    assert "steps_to_98" in names


def test_students_come_nearer_to_their_teacher_than_labels_bring_them(
    small_classifier: RunDirectory, tmp_path: Path
) -> None:
    """A teacher that calls every class by the next one's name: nothing but its outputs can teach that."""
    teacher_path = tmp_path / "teacher"
    shutil.copytree(small_classifier.path, teacher_path)
    for name in ("last", "best"):
        weights, state = load_checkpoint(teacher_path / "checkpoints" / name)
        weights = {key: 3 * value.roll(1, 0) if key.startswith("last.") else value for key, value in weights.items()}
        save_checkpoint(teacher_path / "checkpoints" / name, weights, state)
    engine = EngineConfig(max_updates=60, validate_every=30, log_every=30, monitor="accuracy", average_last=0)
    config = student_training(tmp_path / "student", teacher_path, engine=engine)
    task = task_of(config)
    assert task.teacher is not None
    taught = train(config).run
    alone = train(small_training(tmp_path / "alone", loss=LossConfig(alpha=0.0), model=STUDENT, engine=engine)).run
    assert agreement(taught, task.teacher, task) < agreement(alone, task.teacher, task) - 0.1


def test_a_killed_student_goes_on_exactly(small_classifier: RunDirectory, tmp_path: Path) -> None:
    def steps(updates: int) -> dict[str, Any]:
        engine = EngineConfig(max_updates=updates, validate_every=4, log_every=2, monitor="accuracy", average_last=0)
        return {"engine": engine, "schedule": ScheduleConfig(kind="steps", milestones=(8,))}

    whole = train(student_training(tmp_path / "whole", small_classifier.path, **steps(12))).run
    train(student_training(tmp_path / "parts", small_classifier.path, **steps(7)))
    parts = train(student_training(tmp_path / "parts", small_classifier.path, **steps(12))).run
    weights = [load_weights(run.checkpoints / "last") for run in (whole, parts)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_a_student_that_grows_wants_its_teacher(small_classifier: RunDirectory, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(small_classifier.path, teacher)
    config = student_training(tmp_path / "student", teacher)
    run = train(config).run
    before = (run.summary_file.read_bytes(), run.config_file.read_bytes())
    shutil.rmtree(teacher)
    longer = replace(config, engine=replace(config.engine, max_updates=16))
    with pytest.raises(UserError, match=r"distillation.teacher: .* is not a run"):
        train(longer)
    train(small_training(teacher, seed=7))
    with pytest.raises(UserError, match=r"teacher\.weights was"):
        train(longer)
    assert (run.summary_file.read_bytes(), run.config_file.read_bytes()) == before
    assert train(config).already_finished


def test_a_run_that_learnt_from_labels_is_no_student(small_classifier: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(small_classifier.path, tmp_path / "run")
    with pytest.raises(UserError, match=r"distillation.teacher was .*choose another --out"):
        train(student_training(tmp_path / "run", small_classifier.path))


def test_a_run_from_before_there_were_teachers_is_known(small_classifier: RunDirectory, tmp_path: Path) -> None:
    config = small_training(tmp_path / "run")
    run = RunDirectory(shutil.copytree(small_classifier.path, tmp_path / "run"))
    old = {key: value for key, value in run.read_config().items() if key not in ("distillation", "information")}
    old["out"] = config.out
    run.config_file.write_text(yaml.safe_dump(old), encoding="utf-8")
    assert train(config).already_finished


def test_a_run_does_not_go_on_with_another_teacher(small_classifier: RunDirectory, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(small_classifier.path, teacher)
    config = student_training(tmp_path / "student", teacher)
    run = train(config).run
    run.summary_file.unlink()
    shutil.rmtree(teacher)
    train(small_training(teacher, seed=7))
    with pytest.raises(UserError, match=r"teacher\.weights was .*, now .*choose another --out"):
        train(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": AugmentConfig(crop=8)}, r"distillation.teacher: .* another kind \(shape \(3, 24, 24\)\)"),
        ({"augment": AugmentConfig(normalise="none")}, r"another kind \(normalise data\) than .* \(normalise none\)"),
        (
            {"embedded": EmbeddedSizes(train=90, validation=40, test=60)},
            "was trained on other images .*sizes",
        ),
    ],
)
def test_teachers_that_do_not_fit(
    small_classifier: RunDirectory, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(student_training(tmp_path / "run", small_classifier.path, **changes))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_teacher_that_is_not_finished(small_classifier: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(small_classifier.path, tmp_path / "teacher")
    (tmp_path / "teacher" / "summary.json").unlink()
    with pytest.raises(UserError, match="has not been trained to its end"):
        train(student_training(tmp_path / "run", tmp_path / "teacher"))


def test_a_teacher_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"distillation.teacher: .*nowhere is not a run"):
        train(student_training(tmp_path / "run", tmp_path / "nowhere"))


def test_settings_that_contradict_each_other() -> None:
    taught = DistillationConfig(teacher="runs/X")
    with pytest.raises(ValueError, match="a student's own labels are not smoothed"):
        TrainConfig(distillation=taught)
    with pytest.raises(ValueError, match="name a teacher"):
        TrainConfig(distillation=DistillationConfig(temperature=2.0))
    with pytest.raises(ValueError, match="with --teacher"):
        DistillConfig()
    for wrong in ({"temperature": 0.0}, {"student_temperature": -1.0}, {"temperature": float("inf")}):
        with pytest.raises(ValueError, match="must be positive"):
            DistillationConfig(teacher="runs/X", **wrong)
    with pytest.raises(ValueError, match=r"beta must lie in \[0, 1\]"):
        DistillationConfig(teacher="runs/X", beta=1.5)


def test_a_seed_stands_in_the_teachers_name_too() -> None:
    config = DistillConfig(distillation=DistillationConfig(teacher="runs/T-s{seed}"), out="runs/S-s{seed}")
    assert config.with_seed(3).distillation.teacher == "runs/T-s3"
    assert config.with_seed(3).out == "runs/S-s3"
