"""What classification gives the engine: batches, loss, validation and the final summary of a run."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmt_ls.experiment.checkpoint import load_weights
from nmt_ls.experiment.command_line import UserError, config_to_dict
from nmt_ls.experiment.distillation import check_weights, finished_teacher, own_teacher, settle_teacher
from nmt_ls.experiment.distributed import Team
from nmt_ls.experiment.engine import StepLoss
from nmt_ls.experiment.penalty import SumOfSquares, penalised_weights
from nmt_ls.experiment.precision import Precision
from nmt_ls.experiment.processor import choose_device
from nmt_ls.experiment.records import provenance
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.experiment.training_run import Outcome, fit_and_summarise, follow, keep_freed_memory, settle, train_in
from nmt_ls.losses import smoothed_cross_entropy
from vision_ls.data import ImageData, embedded_images, epoch_batches, load_images, spread_rows
from vision_ls.distillation import Teacher
from vision_ls.models import ImageModel
from vision_ls.mutual_information import Pair
from vision_ls.runs import Classifier, find_run
from vision_ls.scoring import exact_figures, predict, score_logits, training_accuracy
from vision_ls.train_config import (
    STEPS_TO_REACH,
    VALIDATED,
    TrainConfig,
    augmentation_of,
    label_prior,
    new_model,
    run_signature,
    training_images,
)


class ClassificationTask:
    """Images, model and settings of a run, as the engine wants to see them."""

    def __init__(
        self,
        config: TrainConfig,
        data: ImageData,
        model: ImageModel,
        precision: Precision,
        device: torch.device,
        teacher: Teacher | None = None,
    ) -> None:
        self.config, self.data, self.model, self.precision, self.device = config, data, model, precision, device
        self.augmentation = augmentation_of(config, data)
        self.training = training_images(config, data).on(device)
        self.validation = data.split("validation").on(device)
        self.validated_rows_N = spread_rows(len(self.validation), config.validation_images or len(self.validation))
        self.prior = label_prior(config.loss, self.training, len(data.classes)).to(device)
        self._penalised = penalised_weights(model, config.l2)
        self._compiled = compiled(model) if config.compile else None
        asked = config.information
        self.pair = Pair(asked, data, self.training, self.augmentation) if asked.classes else None
        self.teacher = teacher
        if teacher is not None:
            teacher.learn_by_heart(self.training, self.augmentation)

    @property
    def checksum(self) -> str:
        """Of the images."""
        return self.data.checksum

    def batches(self, epoch: int) -> Sequence[Tensor]:
        """Rows of each batch of an epoch: a pure function of seed and epoch."""
        return epoch_batches(len(self.training), self.config.batch_size, self.config.seed, epoch)

    def loss(self, model: nn.Module, rows_B: Tensor) -> StepLoss:
        """The loss of a batch against smoothed labels, or a teacher's targets, weighted, with the penalty; beside it
        that loss alone, the hard-label NLL and what was right."""
        config, batch = self.config, self.training.select(rows_B)
        labels_B = batch.labels_N.to(self.device)
        forward = model if self._compiled is None else self._compiled
        views_BCHW = self.augmentation.train(batch.images_NCHW.to(self.device))
        logits_BK: Tensor = forward(views_BCHW)
        if self.teacher is not None:
            name, learnt = "distillation", self.teacher.loss(logits_BK, views_BCHW, labels_B, rows_B)
        else:
            name, smoothing = "smoothed", config.loss
            learnt = smoothed_cross_entropy(
                logits_BK, labels_B, smoothing.alpha, self.prior, smoothing.spread, reduction="sum"
            )
        total = config.loss_weight * learnt
        if self._penalised:
            squares: Tensor = SumOfSquares.apply(*self._penalised)  # type: ignore[no-untyped-call]
            total = total + len(rows_B) * config.l2.weight / 2 * squares
        with torch.no_grad():
            extras = {
                name: learnt.detach(),
                "nll": F.cross_entropy(logits_BK, labels_B, reduction="sum"),
                "accuracy": (logits_BK.argmax(1) == labels_B).sum(),
            }
        return StepLoss(total, len(rows_B), extras)

    def validate(self, _: nn.Module) -> dict[str, float]:
        """Smoothed loss, NLL, accuracy and ECE on validation images, in the arithmetic of training; where two classes
        are named for it, also what their logits say of training images (in fp32)."""
        rows_N, autocast = self.validated_rows_N, partial(self.precision.autocast, self.device.type)
        logits_NK = predict(self.model, self.augmentation, self.validation, rows_N=rows_N, autocast=autocast)
        labels_N = self.validation.labels_N.cpu()[rows_N]
        scores = score_logits(logits_NK, labels_N, loss=self.config.loss, prior=self.prior.cpu())
        figures = scores.figures()
        found = {name: figures[name] for name in VALIDATED}
        return found if self.pair is None else {**found, **self.pair.information(self.model).figures()}


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
    path = Path(config.out or default_out(config, data))
    begun, precision = settle(path, threads=config.threads, precision=config.precision, device=device)
    manifest = {
        **provenance(device),
        "processes": team.size,
        "precision": precision.to_dict(),
        "corpus": data.place if data.embedded else str(Path(data.place).resolve()),
        "corpus_checksum": data.checksum,
        "corpus_source": data.source,
        "classes": list(data.classes),
    }
    teacher, known = settle_teacher(
        config.distillation, path, begun, config.engine.max_updates, lambda: open_teacher(config, data)
    )
    manifest |= known

    def work(run: RunDirectory) -> Outcome:
        task = new_task(config, data, manifest, device, teacher)
        data.split("test")  # if it is damaged, now and not when everything has been learnt
        print(f"{run.path}: {len(task.training):,} images of {data.place}; {precision.reason}", file=sys.stderr)
        return fit_and_summarise(
            task, run, lambda: {**summarise(run, task), **steps_to_reach(run)}, unit="images", team=team
        )

    return train_in(
        path,
        config_to_dict(config),
        manifest,
        work,
        defaults=config_to_dict(TrainConfig()),
        must_match=("corpus_checksum", "teacher"),
    )


def default_out(config: TrainConfig, data: ImageData) -> str:
    """The directory of a run that was given none."""
    named = "shapes" if data.embedded else f"{Path(data.place).name}-{config.model.name}"
    return f"runs/{named}-{config.distillation.short_name(config.loss.alpha)}-s{config.seed}"


def new_task(
    config: TrainConfig,
    data: ImageData,
    manifest: Mapping[str, Any],
    device: torch.device,
    teacher: Teacher | None = None,
) -> ClassificationTask:
    """A run's task with freshly drawn weights; the precision is its manifest's, and the teacher, where it is not given.

    Raises UserError where the teacher is another than the manifest's.
    """
    torch.manual_seed(config.seed)
    model = new_model(config, data).to(device)
    if teacher is None and config.distillation.teacher is not None:
        teacher = open_teacher(config, data)
    if teacher is not None:
        check_weights(config.distillation.teacher, teacher.facts, manifest["teacher"])
    return ClassificationTask(config, data, model, Precision.from_manifest(manifest["precision"]), device, teacher)


def open_teacher(config: TrainConfig, data: ImageData) -> Teacher:
    """The teacher of a student on these images.

    Raises UserError where it is no classifier's run, or was trained on other images, or sees them in another shape or
    normalised otherwise than its student.
    """
    asked = config.distillation
    path = find_run(str(asked.teacher), option="distillation.teacher")
    run = finished_teacher(path)
    theirs_on = run.read_manifest()
    if theirs_on["corpus_checksum"] != data.checksum:
        sizes = "; give the embedded shapes' sizes as its training did" if data.embedded else ""
        raise UserError(f"distillation.teacher: {path} was trained on other images ({theirs_on['corpus']}){sizes}")
    place = None if data.embedded else data.place
    found = Classifier.open(path, asked.checkpoint, data=place, device=config.device, known=[data])
    ours, theirs = augmentation_of(config, data), found.augmentation
    for what, mine, its in (
        ("shape", ours.output_shape, theirs.output_shape),
        ("normalise", ours.config.normalise, theirs.config.normalise),
    ):
        if mine != its:
            raise UserError(
                f"distillation.teacher: {path} has learnt from images of another kind ({what} {its}) than its student "
                f"is to see ({what} {mine}); set augment alike"
            )
    summary = run.read_summary()
    return Teacher(
        found.model,
        asked,
        teacher_facts(found),
        figures={
            "teacher_train_accuracy": found.training_accuracy(),
            "teacher_accuracy": summary["checkpoints"].get(asked.checkpoint, {}).get("accuracy"),
            **{f"teacher_{key}": summary.get(key) for key in STEPS_TO_REACH},
        },
        forward=compiled(found.model) if config.compile else None,
    )


def teacher_facts(teacher: Classifier) -> dict[str, Any]:
    """What manifests and signatures of students say of their teacher."""
    recipe = teacher.recipe("train")
    kept = ("run", "checkpoint", "weights", "model", "alpha", "spread", "prior", "dropout", "seed", "updates")
    facts = {key: recipe[key] for key in (*kept, "train_size", "settings")}
    return {**own_teacher(teacher.manifest), **facts}


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


def compiled(model: ImageModel) -> Callable[[Tensor], Tensor]:
    """The model's forward pass, to be compiled when it is first called. Raises UserError without a C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which((compiler.split() or [""])[-1]) is None:  # CXX may be "ccache g++"
        raise UserError(f"compile: needs a C++ compiler, and there is no {compiler} here; install it, or leave it out")
    return torch.compile(model, dynamic=False)


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
        **({} if task.teacher is None else task.teacher.figures(task.training, task.augmentation)),
        "checkpoint": first,
        "split": "test",
        "checkpoints": figures,
        "signature": run_signature(
            config,
            data.checksum,
            replace(task.precision, kind="fp32"),
            split="test",
            device=task.device,
            teacher=None if task.teacher is None else task.teacher.facts,
        ).to_dict()
        | ({"note": data.note} if data.note else {}),
    }


def steps_to_reach(run: RunDirectory) -> dict[str, int]:
    """The first validation at which accuracy had 98% and 99% of what the last one shows."""
    seen = [line for line in run.read_metrics() if line["split"] == "validation"]
    final = seen[-1]["accuracy"]
    return {
        name: next(line["step"] for line in seen if line["accuracy"] >= share * final)
        for name, share in STEPS_TO_REACH.items()
    }
