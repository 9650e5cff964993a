"""What classification gives the engine: the configuration of a run, its batches, loss, validation and final summary."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmt_ls.experiment.checkpoint import load_weights
from nmt_ls.experiment.command_line import UserError, config_to_dict, flatten
from nmt_ls.experiment.distributed import Team
from nmt_ls.experiment.engine import EngineConfig, StepLoss
from nmt_ls.experiment.precision import Precision
from nmt_ls.experiment.processor import choose_device
from nmt_ls.experiment.records import Signature, provenance
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.experiment.schedule import OptimizerConfig, ScheduleConfig
from nmt_ls.experiment.training_run import Outcome, fit_and_summarise, follow, keep_freed_memory, settle, train_in
from nmt_ls.losses import LossConfig, smoothed_cross_entropy
from vision_ls.augment import Augmentation, AugmentConfig
from vision_ls.data import (
    EmbeddedSizes,
    ImageData,
    ImageSplit,
    balanced_rows,
    embedded_images,
    epoch_batches,
    load_images,
    spread_rows,
)
from vision_ls.models import ImageModel, ModelConfig, build_model
from vision_ls.penalty import L2Config, SumOfSquares, penalised_weights
from vision_ls.scoring import BINS, exact_figures, predict, score_logits, training_accuracy

CheckpointName = Literal["last", "best", "averaged"]
SUBSET_SEED = 0  # one subset of a size, for every run
FITTED_TO_TRAINING = 0.95
"""Training accuracy from which on a hard-target network counts as over-confident; that of configs/claims.yaml."""
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
    out: the run's directory; left out, runs/DATA-MODEL-lsALPHA-sSEED. {seed} stands for the seed.
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
        of a training line in metrics.jsonl is that sum, its `smoothed` what validation lines call `loss`.
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
        return replace(self, seed=seed, seeds=(), out=out)


class ClassificationTask:
    """Images, model and settings of a run, as the engine wants to see them."""

    def __init__(
        self, config: TrainConfig, data: ImageData, model: ImageModel, precision: Precision, device: torch.device
    ) -> None:
        self.config, self.data, self.model, self.precision, self.device = config, data, model, precision, device
        self.augmentation = augmentation_of(config, data)
        self.training = training_images(config, data).on(device)
        self.validation = data.split("validation").on(device)
        self.validated_rows_N = spread_rows(len(self.validation), config.validation_images or len(self.validation))
        self.prior = label_prior(config.loss, self.training, len(data.classes)).to(device)
        self._penalised = penalised_weights(model, config.l2)
        self._compiled = compiled(model) if config.compile else None

    def batches(self, epoch: int) -> Sequence[Tensor]:
        """Rows of each batch of an epoch: a pure function of seed and epoch."""
        return epoch_batches(len(self.training), self.config.batch_size, self.config.seed, epoch)

    def loss(self, model: nn.Module, rows_B: Tensor) -> StepLoss:
        """The smoothed loss of a batch, weighted, with the penalty; beside it the hard-label NLL and what was right."""
        config, batch = self.config, self.training.select(rows_B)
        labels_B = batch.labels_N.to(self.device)
        forward = model if self._compiled is None else self._compiled
        logits_BK: Tensor = forward(self.augmentation.train(batch.images_NCHW.to(self.device)))
        smoothing = config.loss
        smoothed = smoothed_cross_entropy(
            logits_BK, labels_B, smoothing.alpha, self.prior, smoothing.spread, reduction="sum"
        )
        total = config.loss_weight * smoothed
        if self._penalised:
            squares: Tensor = SumOfSquares.apply(*self._penalised)  # type: ignore[no-untyped-call]
            total = total + len(rows_B) * config.l2.weight / 2 * squares
        with torch.no_grad():
            extras = {
                "smoothed": smoothed.detach(),
                "nll": F.cross_entropy(logits_BK, labels_B, reduction="sum"),
                "accuracy": (logits_BK.argmax(1) == labels_B).sum(),
            }
        return StepLoss(total, len(rows_B), extras)

    def validate(self, _: nn.Module) -> dict[str, float]:
        """Smoothed loss, NLL, accuracy and ECE on validation images, in the arithmetic of training."""
        rows_N, autocast = self.validated_rows_N, partial(self.precision.autocast, self.device.type)
        logits_NK = predict(self.model, self.augmentation, self.validation, rows_N=rows_N, autocast=autocast)
        labels_N = self.validation.labels_N.cpu()[rows_N]
        scores = score_logits(logits_NK, labels_N, loss=self.config.loss, prior=self.prior.cpu())
        figures = scores.figures()
        return {name: figures[name] for name in VALIDATED}


def train_all(config: TrainConfig) -> list[Outcome]:
    """A run for each of `config.seeds`, or the one of `config.seed`; a signal ends the one it meets, and the list.

    Where torchrun started several processes they share the batches of every update; in all but the first, which leads,
    the list is empty.

    Raises UserError as `train`.
    """
    keep_freed_memory()
    device = choose_device(config.device)
    outcomes: list[Outcome] = []
    with Team.join(device) as team:
        data = open_images(config, quiet=not team.leads)
        if not team.leads:
            follow(team, lambda seed, manifest: new_task(config.with_seed(seed), data, manifest, device))
            return []
        for seed in config.seeds or (config.seed,):
            outcomes.append(train(config.with_seed(seed), data, team))
            if outcomes[-1].summary is None:
                break
    return outcomes


def train(config: TrainConfig, data: ImageData | None = None, team: Team | None = None) -> Outcome:
    """Train, or go on with, the run of one seed that `config` describes, and score it on the test split.

    data: the images, where they are open already. team: the processes that share its updates; left out, this one is
    alone.

    Raises UserError for whatever of the configuration, the images or the run's directory does not fit.
    """
    device, team = choose_device(config.device), team or Team()
    data = open_images(config) if data is None else data
    named = "shapes" if data.embedded else f"{Path(data.place).name}-{config.model.name}"
    path = Path(config.out or f"runs/{named}-ls{config.loss.alpha:g}-s{config.seed}")
    _, precision = settle(path, threads=config.threads, precision=config.precision, device=device)
    manifest = {
        **provenance(device),
        "processes": team.size,
        "precision": precision.to_dict(),
        "corpus": data.place if data.embedded else str(Path(data.place).resolve()),
        "corpus_checksum": data.checksum,
        "corpus_source": data.source,
        "classes": list(data.classes),
    }

    def work(run: RunDirectory) -> Outcome:
        task = new_task(config, data, manifest, device)
        print(f"{run.path}: {len(task.training):,} images of {data.place}; {precision.reason}", file=sys.stderr)
        return fit_and_summarise(
            task, run, lambda: {**summarise(run, task), **steps_to_reach(run)}, unit="images", team=team
        )

    return train_in(path, config_to_dict(config), manifest, work)


def new_task(
    config: TrainConfig, data: ImageData, manifest: Mapping[str, Any], device: torch.device
) -> ClassificationTask:
    """A run's task with freshly drawn weights; the precision is its manifest's."""
    torch.manual_seed(config.seed)
    model = new_model(config, data).to(device)
    return ClassificationTask(config, data, model, Precision.from_manifest(manifest["precision"]), device)


def open_images(config: TrainConfig, *, quiet: bool = False) -> ImageData:
    """The images that were named, or the embedded ones; unless quiet, standard error gets what there is to know."""
    if config.data is None:
        if not quiet:
            print(f"no --data: the embedded shapes, {config.embedded.train:,} to train on", file=sys.stderr)
        return embedded_images(config.embedded)
    data = load_images(config.data)
    if not quiet:
        data.print_remarks()
    return data


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


def compiled(model: ImageModel) -> Callable[[Tensor], Tensor]:
    """The model's forward pass, to be compiled when it is first called. Raises UserError without a C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which((compiler.split() or [""])[-1]) is None:  # CXX may be "ccache g++"
        raise UserError(f"compile: needs a C++ compiler, and there is no {compiler} here; install it, or leave it out")
    return torch.compile(model, dynamic=False)


def label_prior(loss: LossConfig, training: ImageSplit, classes: int) -> Tensor:
    """The prior that `loss` names, as a vector: uniform, or the frequencies of the training labels."""
    if loss.prior == "uniform":
        return torch.full((classes,), 1 / classes)
    return torch.bincount(training.labels_N.cpu(), minlength=classes).float() / len(training)


def summarise(run: RunDirectory, task: ClassificationTask) -> dict[str, Any]:
    """Figures of each of `config.checkpoints` on the test split, in fp32; the first one's main ones at top level too.

    Among them the accuracy on training images, which says whether the run is in the over-confident regime; on the
    embedded shapes also what only a known truth can say.
    """
    config, model, data = task.config, task.model, task.data
    test = data.split("test")
    figures: dict[str, dict[str, float]] = {}
    for name in config.checkpoints:
        model.load_state_dict(load_weights(run.checkpoints / name))
        print(f"scoring the {name} checkpoint on {len(test):,} test images", file=sys.stderr)
        logits_NK = predict(model, task.augmentation, test)
        scores = score_logits(logits_NK, test.labels_N, loss=config.loss, prior=task.prior.cpu())
        learnt = training_accuracy(
            task.training, lambda rows_N: predict(model, task.augmentation, task.training, rows_N=rows_N)
        )
        figures[name] = {**scores.figures(), "train_accuracy": learnt}
        if test.posteriors_NK is not None:
            figures[name] |= exact_figures(scores, test.posteriors_NK)
    first = next(iter(figures))
    main = ("nll", "ece", "accuracy", "train_accuracy", "exact_ece", "entropy")
    return {
        **{key: figures[first][key] for key in main if key in figures[first]},
        "checkpoint": first,
        "split": "test",
        "checkpoints": figures,
        "signature": run_signature(
            config, data.checksum, replace(task.precision, kind="fp32"), split="test", device=task.device
        ).to_dict()
        | ({"note": data.note} if data.note else {}),
    }


def steps_to_reach(run: RunDirectory) -> dict[str, int]:
    """The first validation at which accuracy had 98% and 99% of what the last one shows."""
    seen = [line for line in run.read_metrics() if line["split"] == "validation"]
    final = seen[-1]["accuracy"]
    return {
        f"steps_to_{percent}": next(line["step"] for line in seen if line["accuracy"] >= percent / 100 * final)
        for percent in (98, 99)
    }


def run_signature(
    config: TrainConfig,
    checksum: str,
    precision: Precision,
    *,
    split: str,
    temperature: float = 1.0,
    device: str | torch.device = "cpu",
) -> Signature:
    """The recipe of a run's figures on a split."""
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
        extras={"model": config.model.name, "train_size": config.train_size, "settings": settings_of(config)},
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
