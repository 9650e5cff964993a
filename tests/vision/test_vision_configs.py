"""The shipped configurations and studies of images: they are read, they fit the models, and tiers keep proportions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_images import CLASSES, made_folder

from data_prep.images import ImagesConfig, SplitNames
from data_prep.images import main as prepare
from nmt_ls.experiment.command_line import parse
from nmt_ls.experiment.engine import EngineConfig
from nmt_ls.experiment.penalty import penalised_weights
from nmt_ls.experiment.schedule import ScheduleConfig
from nmt_ls.experiment.study import load_study
from vision_ls.augment import AugmentConfig
from vision_ls.distill import OF_STUDENTS, DistillConfig
from vision_ls.evaluation import EvaluateConfig, evaluate
from vision_ls.information import MeasureConfig
from vision_ls.models import build_model
from vision_ls.projecting import ProjectConfig, project_runs
from vision_ls.train import SHORT_NAMES
from vision_ls.train_config import TrainConfig
from vision_ls.training import train

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "vision").glob("*.yaml"))
STUDIES = sorted(
    path for kind in ("vision", "distillation") for path in (ROOT / "configs" / "studies").glob(f"{kind}-*.yaml")
)
COMMANDS: dict[str, Any] = {
    "train": TrainConfig,
    "distill": DistillConfig,
    "evaluate": EvaluateConfig,
    "project": ProjectConfig,
    "information": MeasureConfig,
}
NAMES = {"train": SHORT_NAMES, "distill": {**SHORT_NAMES, **OF_STUDENTS}}
SIDES = {"mnist": 28, "cifar10": 32, "cifar100": 32, "tiny_imagenet_20": 64, "imagenet": 331}


def read(*names: str) -> TrainConfig:
    files = [str(ROOT / "configs" / "vision" / name) for name in names]
    return parse(TrainConfig, ["--config", *files], program="", description="", short_names=SHORT_NAMES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_fit_their_models(path: Path) -> None:
    config = read(path.name)
    data = Path(str(config.data)).name
    side = config.augment.crop or SIDES[data]
    model = build_model(config.model, 10, (1 if data == "mnist" else 3, side, side))
    penalised = penalised_weights(model, config.l2)
    if config.l2.layers == ("all",):
        assert [p.shape for p in penalised] == [p.shape for p in model.parameters() if p.ndim > 1]
    else:
        assert len(penalised) == len(config.l2.layers)
    assert side <= SIDES[data] + 2 * config.augment.pad


def test_nothing_of_the_embedded_shapes_recipe_is_left_in_the_papers() -> None:
    alexnet, resnet = read("cifar10-alexnet.yaml"), read("cifar100-resnet56.yaml")
    assert (alexnet.optimizer.momentum, alexnet.optimizer.nesterov, alexnet.optimizer.weight_decay) == (0, False, 0)
    assert (resnet.optimizer.momentum, resnet.optimizer.nesterov, resnet.optimizer.weight_decay) == (0.9, True, 0)
    assert (alexnet.schedule.warmup_updates, resnet.schedule.warmup_updates) == (0, 0)
    assert (alexnet.engine.clip_norm, resnet.engine.clip_norm) == (0, 1)


def test_the_papers_hyper_parameters() -> None:
    """As they were set down when these studies were planned."""
    alexnet = read("cifar10-alexnet.yaml")
    assert (alexnet.optimizer.kind, alexnet.optimizer.learning_rate, alexnet.batch_size) == ("sgd", 0.1, 128)
    assert (alexnet.schedule.milestones, alexnet.schedule.gamma) == ((130_000, 260_000), 0.1)
    assert (alexnet.engine.max_updates, alexnet.loss_weight) == (390_000, 3)
    assert (alexnet.l2.weight, alexnet.l2.layers) == (0.04, ("dense3", "dense4"))
    for name in ("cifar10-resnet20", "cifar10-resnet56", "cifar100-resnet56"):
        resnet = read(f"{name}.yaml")
        assert (resnet.optimizer.kind, resnet.optimizer.learning_rate, resnet.batch_size) == ("sgd", 0.1, 128)
        assert (resnet.optimizer.momentum, resnet.optimizer.nesterov) == (0.9, True)
        assert (resnet.engine.clip_norm, resnet.loss_weight) == (1, 3)
        assert (resnet.l2.weight, resnet.l2.layers) == (1e-4, ("all",))  # in the loss, so that it is clipped too
        assert (resnet.schedule.milestones, resnet.schedule.gamma) == ((32_000, 48_000), 0.1)
        assert resnet.engine.max_updates == 64_000


@pytest.mark.parametrize(
    ("recipe", "tier", "images", "epochs"),
    [
        ("cifar10-alexnet.yaml", "tiers/alexnet-medium.yaml", 40_000, 60),
        ("cifar10-alexnet.yaml", "tiers/alexnet-small.yaml", 10_000, 200),  # results/vision-cifar10/pilots.md
        ("cifar100-resnet56.yaml", "tiers/resnet-medium.yaml", 40_000, 60),
        ("cifar10-resnet56.yaml", "tiers/resnet-small.yaml", 10_000, 60),
        ("cifar100-resnet56.yaml", "tiers/resnet-small-100.yaml", 5_000, 120),  # results/vision-cifar100/pilots.md
    ],
)
def test_tiers_are_so_many_epochs_in_the_same_proportions(recipe: str, tier: str, images: int, epochs: int) -> None:
    paper, scaled = read(recipe), read(recipe, tier)
    assert scaled.engine.max_updates == epochs * (images // scaled.batch_size)
    assert scaled.train_size == (0 if images == 40_000 else images)
    for ours, theirs in zip(scaled.schedule.milestones, paper.schedule.milestones, strict=True):
        assert ours / scaled.engine.max_updates == pytest.approx(theirs / paper.engine.max_updates, abs=1e-4)
    assert replace(scaled.schedule, milestones=paper.schedule.milestones) == paper.schedule
    assert (scaled.optimizer, scaled.augment, scaled.l2, scaled.model) == (
        paper.optimizer, paper.augment, paper.l2, paper.model
    )  # fmt: skip


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_command_of_a_study_is_understood(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = load_study(path.relative_to(ROOT))
    trained = {word for cell in study.cells for step in cell.steps for word in step.argv if word.startswith("runs/")}
    first = {cell.block: cell.values.get("seed") for cell in reversed(study.cells)}
    for cell in study.cells:
        if cell.values.get("seed") != first[cell.block]:
            continue  # parsing takes long, and a seed is but a number
        for step in cell.steps:
            interpreter, flag, module, *arguments = step.argv
            assert (interpreter, flag) == ("python", "-m")
            package, command = module.split(".")
            assert package == "vision_ls"
            names = NAMES.get(command, {})
            config = parse(COMMANDS[command], arguments, program="", description="", short_names=names)
            if isinstance(config, TrainConfig):
                # of a teacher's cell, which trains several: the cell is called after the recipe of the first
                assert config.out == f"runs/{cell.name}" or "taught" in cell.block
                assert config.checkpoints == ("last",)
                teacher = config.distillation
                assert teacher.teacher is None or (teacher.teacher in trained and teacher.checkpoint == "last")
            else:  # `best` stands beside it on the test split, and is in no claim
                assert config.checkpoint == "last" or (isinstance(config, EvaluateConfig) and config.split == "test")
                assert config.results == str(step.scratch)
                named = [config.run] if isinstance(config, EvaluateConfig) and config.run else config.runs
                assert named
                assert set(named) <= trained
            if isinstance(config, ProjectConfig):
                assert len(config.classes) == 3


def test_the_imagenet_recipe_runs_on_small_images_of_its_schema(tmp_path: Path) -> None:
    made = made_folder(tmp_path / "made")
    (made / "test.parquet").rename(made / "validation.parquet")  # ImageNet's own test has no labels
    splits = SplitNames(test="validation")
    prepare(ImagesConfig(source=str(made), out=str(tmp_path / "data"), splits=splits, size=76, resize=80))
    recipe = read("imagenet-inception_v4.yaml")
    assert recipe.augment.crop == 299
    config = replace(
        recipe,
        data=str(tmp_path / "data"),
        out=str(tmp_path / "run"),
        precision="fp32",
        batch_size=3,
        checkpoints=("last",),
        augment=AugmentConfig(crop=75, flip=True),
        schedule=ScheduleConfig(kind="constant"),
        optimizer=replace(recipe.optimizer, learning_rate=0.01),
        # gradients of the freshly drawn network are huge where the last map is one pixel
        engine=EngineConfig(
            max_updates=1, accumulation=2, clip_norm=1.0, validate_every=1, log_every=1, average_last=0
        ),
    )
    summary = train(config).summary
    assert summary is not None
    assert summary["parameters"] == 42_679_816 - 997 * 1537
    assert summary["checkpoints"]["last"]["images"] == 6
    run = str(config.out)
    evaluated = evaluate(EvaluateConfig(run=run, checkpoint="last"))
    assert evaluated.plain.values["nll"] == pytest.approx(summary["nll"], rel=1e-5)
    assert evaluated.plain.values["top5_accuracy"] == 1  # of three classes
    asked = ProjectConfig(runs=(run,), checkpoint="last", splits=("test",), classes=("cat", "dog", "2"), name="near")
    (projected,), classes = project_runs(asked)
    assert classes == CLASSES
    assert "arc_ratio_near" in {record.name for record in projected.records(classes, asked.name)}
