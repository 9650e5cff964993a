"""The configuration of a classifier's training, and what follows from it alone: images, augmentation, model, prior, and
the recipe of the figures of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from nmt_ls.experiment.checkpoint import CheckpointName
from nmt_ls.experiment.command_line import UserError, config_to_dict, flatten
from nmt_ls.experiment.distillation import DistillationConfig
from nmt_ls.experiment.engine import EngineConfig
from nmt_ls.experiment.penalty import L2Config
from nmt_ls.experiment.precision import Precision
from nmt_ls.experiment.records import Signature, provenance
from nmt_ls.experiment.schedule import OptimizerConfig, ScheduleConfig
from nmt_ls.losses import LossConfig
from vision_ls.augment import Augmentation, AugmentConfig
from vision_ls.data import EmbeddedSizes, ImageData, ImageSplit, balanced_rows
from vision_ls.models import ImageModel, ModelConfig, build_model
from vision_ls.mutual_information import InformationConfig
from vision_ls.scoring import BINS

SUBSET_SEED = 0  # one subset of a size, for every run
FITTED_TO_TRAINING = 0.95
"""Training accuracy from which on a hard-target network counts as over-confident; that of configs/claims.yaml."""
STEPS_TO_REACH = {"steps_to_98": 0.98, "steps_to_99": 0.99}
"""In summaries: the updates at which validation accuracy first had such a share of its final value."""
VALIDATED = ("loss", "nll", "accuracy", "ece")
"""Figures of a validation while training, among which `engine.monitor` chooses."""
SETTINGS = (
    *("model", "augment", "l2", "optimizer", "schedule", "loss_weight", "batch_size", "validation_images"),
    *("engine.clip_norm", "engine.accumulation", "engine.validate_every"),
)
"""Parts of a configuration that make a recipe, besides what signatures have of their own; how often and at what one
looks decides when an accuracy is reached. `compile` is none: like another processor it only rounds otherwise."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. Without data it is the embedded shapes', whose sizes and settings are the defaults here.

    data: prepared images (data_prep.images); left out, the embedded shapes.
    out: the run's directory; left out, runs/DATA-MODEL-lsALPHA-sSEED, of a student …-from-TEACHER-T4-sSEED
        for T = 4. {seed} stands for the seed.
    seed: of the initial weights, the order of batches, dropout and augmentation.
    seeds: several runs one after the other, each with one of these; out then holds {seed}, or gets -sSEED at its end.
    train_size: train on a subset with equally many images of each class, the same for every seed; 0: on all.
    validation_images: on how many of the validation split to look while training, evenly spread; 0: on all.
    precision: fp32, bf16, or auto: what this processor does fastest, measured. Figures in the summary are of fp32.
    device: auto takes CUDA where there is a GPU.
    threads: CPU threads; 0 leaves PyTorch's choice.
    compile: TorchInductor writes kernels for the training step, which fuse what lies between the convolutions: the
        ResNets train 1.25 times as fast on two threads (benchmarks), the others no faster. In bf16 they round less
        often, so that a run is another one than without them. Needs a C++ compiler, and a minute.
    loss_weight: the smoothed loss is multiplied by it before the penalty is added and gradients are clipped. The `loss`
        of a training line in metrics.jsonl is that sum, its `smoothed` what validation lines call `loss`. Training
        lines of a student have `distillation` in its place, and the `loss` of its validation lines is NLL.
    checkpoints: which ones the summary scores on the test split; the first gives its top-level figures.
    """

    data: str | None = None
    out: str | None = None
    seed: int = 1
    seeds: tuple[int, ...] = ()
    train_size: int = 0
    batch_size: int = 128
    validation_images: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    compile: bool = False
    loss_weight: float = 1.0
    checkpoints: tuple[CheckpointName, ...] = ("last", "best")
    embedded: EmbeddedSizes = field(default_factory=EmbeddedSizes)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    information: InformationConfig = field(default_factory=InformationConfig)
    l2: L2Config = field(default_factory=L2Config)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(kind="sgd", learning_rate=0.1, momentum=0.9, nesterov=True)
    )
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(kind="cosine", warmup_updates=50))
    engine: EngineConfig = field(
        default_factory=lambda: EngineConfig(
            max_updates=1200, validate_every=100, log_every=50, monitor="accuracy", average_last=0
        )
    )

    def __post_init__(self) -> None:
        for key in ("seed", "threads", "train_size", "validation_images"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, got {getattr(self, key)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {self.batch_size}")
        if not self.loss_weight > 0:
            raise ValueError(f"loss_weight must be above 0, got {self.loss_weight}")
        if len(set(self.seeds)) < len(self.seeds) or any(seed < 0 for seed in self.seeds):
            raise ValueError(f"seeds must be different and not negative, got {' '.join(map(str, self.seeds))}")
        if self.seeds and self.seed != 1:
            raise ValueError("seed, seeds: give one seed, or several, not both")
        if self.data is not None and self.embedded != EmbeddedSizes():
            raise ValueError("embedded: these are sizes of the embedded shapes; leave them out, or data")
        self.distillation.check(self.loss.alpha)
        if self.engine.monitor not in VALIDATED:
            raise ValueError(f"engine.monitor: choose {', '.join(VALIDATED[1:])}, not {self.engine.monitor!r}")
        if not self.checkpoints:
            raise ValueError("checkpoints: name at least one of last, best, averaged")
        if "averaged" in self.checkpoints and self.engine.average_last == 0:
            raise ValueError("checkpoints: averaged needs engine.average_last above 0")
        if self.schedule.needs_total:
            self.schedule.resolved(self.engine.max_updates)

    def with_seed(self, seed: int) -> TrainConfig:
        """The run of one seed."""
        out = self.out
        if out is not None:
            several = f"{out}-s{seed}" if self.seeds and "{seed}" not in out else out
            out = several.replace("{seed}", str(seed))
        return replace(self, seed=seed, seeds=(), out=out, distillation=self.distillation.with_seed(seed))


def augmentation_of(config: TrainConfig, data: ImageData) -> Augmentation:
    """The augmentation of a run. Raises UserError where it does not fit the images."""
    try:
        return Augmentation(config.augment, data)
    except ValueError as error:
        raise UserError(str(error)) from None


def training_images(config: TrainConfig, data: ImageData) -> ImageSplit:
    """The training split, or the balanced subset that was asked for. Raises UserError for too large a one."""
    training = data.split("train")
    if not config.train_size:
        return training
    return training.select(balanced_rows(training.labels_N, config.train_size, data.classes, SUBSET_SEED))


def new_model(config: TrainConfig, data: ImageData) -> ImageModel:
    """The model of a run, freshly drawn, its convolutions channels last. Raises UserError where it does not fit."""
    try:
        model = build_model(config.model, len(data.classes), augmentation_of(config, data).output_shape)
    except ValueError as error:
        raise UserError(f"model: {error}") from None
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def label_prior(loss: LossConfig, training: ImageSplit, classes: int) -> Tensor:
    """The prior that `loss` names, as a vector: uniform, or the frequencies of the training labels."""
    if loss.prior == "uniform":
        return torch.full((classes,), 1 / classes)
    return torch.bincount(training.labels_N.cpu(), minlength=classes).float() / len(training)


def run_signature(
    config: TrainConfig,
    checksum: str,
    precision: Precision,
    *,
    split: str,
    temperature: float = 1.0,
    device: str | torch.device = "cpu",
    teacher: Mapping[str, Any] | None = None,
) -> Signature:
    """The recipe of a run's figures on a split; teacher: that of a student, as its manifest has it."""
    return Signature.of(
        provenance(device),
        alpha=config.loss.alpha,
        spread=config.loss.spread,
        prior=config.loss.prior,
        temperature=temperature,
        bins=BINS,
        split=split,
        seed=config.seed,
        precision=precision.label(),
        corpus=checksum,
        extras={
            **{"model": config.model.name, "train_size": config.train_size, "settings": settings_of(config)},
            **config.distillation.recipe(teacher),
        },
    )


def settings_of(config: TrainConfig) -> str:
    """A short name for what else a run was trained with: of two runs with different names more than the seed differs.

    8 characters of the SHA-256 of what is not as TrainConfig has it by default, so that it outlives new options.
    """
    ours, usual = (flatten(config_to_dict(each)) for each in (config, TrainConfig()))
    different = {
        key: value
        for key, value in ours.items()
        if any(f"{key}.".startswith(f"{part}.") for part in SETTINGS) and not (key in usual and usual[key] == value)
    }
    return hashlib.sha256(json.dumps(different, sort_keys=True, default=str).encode()).hexdigest()[:8]
