"""Trained classifiers, found and opened: which run is meant, its images, its weights, the recipe of its figures; and
what is said and drawn of several.

`Classifier.open` is what evaluate and project call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from nmt_ls.experiment import run_directory
from nmt_ls.experiment.array_store import MANIFEST
from nmt_ls.experiment.checkpoint import CheckpointName, load_state, load_weights, weights_id
from nmt_ls.experiment.command_line import UserError, load_config
from nmt_ls.experiment.precision import Precision, choose_precision
from nmt_ls.experiment.processor import choose_device
from nmt_ls.experiment.run_directory import RunDirectory
from vision_ls.augment import Augmentation
from vision_ls.data import EMBEDDED, ImageData, ImageSplit, embedded_images, load_images
from vision_ls.models import ImageModel
from vision_ls.scoring import predict, training_accuracy
from vision_ls.train_config import (
    FITTED_TO_TRAINING,
    TrainConfig,
    augmentation_of,
    new_model,
    run_signature,
    training_images,
)

LONGEST_NAME = 240  # bytes, of a picture's name without its end: file systems allow 255


def find_run(run: str | None, *, option: str = "run") -> Path:
    """The run that was named, or the newest finished classifier's; see experiment.run_directory.find_run."""
    return run_directory.find_run(run, kind="classifier", key="augment", trainer="vision_ls.train", option=option)


def find_runs(runs: Sequence[str]) -> list[Path]:
    """The runs that were named. Raises UserError as `find_run`, and where two have one name, which records go by."""
    paths = [find_run(run, option="runs") for run in runs]
    run_directory.check_names(paths)
    return paths


def picture_stem(kind: str, runs: Sequence[str], *rest: str) -> str:
    """What a picture of these runs is called, without an end: KIND-RUN-…-RUN-REST, the empty ones of `rest` left out.

    Where that is too long for a file's name, their number, what their names begin with in common and 8 characters of
    the names' SHA-256 stand for the runs.
    """

    def joined(*names: str) -> str:
        return "-".join([kind, *names, *filter(None, rest)])

    stem = joined(*runs)
    if len(stem.encode()) <= LONGEST_NAME:
        return stem
    count, digest = f"{len(runs)}-runs", hashlib.sha256("\n".join(runs).encode()).hexdigest()[:8]
    room = max(LONGEST_NAME - len(joined(count, "", digest).encode()), 0)
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*runs, strict=False))
    common = "".join(letters[0] for letters in alike).encode()[:room].decode(errors="ignore").rstrip("-_.")
    return joined(count, *filter(None, [common]), digest)


def regime_missed(run: str, training_accuracy: float) -> str:
    """Of a run with hard targets that has not learnt its training images well enough to be over-confident: that it has
    not, as a clause. Empty for others."""
    if training_accuracy >= FITTED_TO_TRAINING:
        return ""
    return f"regime not reached: {run} has a training accuracy of {training_accuracy:.3f}, below {FITTED_TO_TRAINING}"


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A run's checkpoint with its images. updates: at which it was written; weights: 16 characters of their SHA-256."""

    path: Path
    config: TrainConfig
    manifest: Mapping[str, Any]
    checkpoint: CheckpointName
    updates: int
    weights: str
    data: ImageData
    model: ImageModel
    augmentation: Augmentation
    precision: Precision
    device: torch.device

    @classmethod
    def open(
        cls,
        run: str | Path | None,
        checkpoint: CheckpointName = "best",
        *,
        data: str | None = None,
        precision: Literal["auto", "fp32", "bf16"] = "fp32",
        device: Literal["auto", "cpu", "cuda"] = "auto",
        known: Iterable[ImageData] = (),
    ) -> Classifier:
        """The model in eval mode on its device.

        run: its directory; None is the newest finished one of a classifier under runs/.
        data: where its images lie, if no longer where they were when it was trained.
        known: images that are open already: if they are the run's, they are not read once more.

        Raises UserError where it is no run of a classifier, has no such checkpoint, or the images are others.
        """
        path = find_run(None if run is None else str(run))
        directory = RunDirectory(path)
        asked = directory.read_config()
        config = load_config(TrainConfig, asked, where=f"{path}/config.yaml")
        manifest = directory.read_manifest()
        folder = directory.checkpoints / checkpoint
        weights = weights_id(folder)
        images = run_images(path, config, manifest, data, known)
        on = choose_device(device)
        model = new_model(config, images)
        model.load_state_dict(load_weights(folder))
        return cls(
            path=path,
            config=config,
            manifest=manifest,
            checkpoint=checkpoint,
            updates=int(load_state(folder)["step"]),
            weights=weights,
            data=images,
            model=model.to(on).eval(),
            augmentation=augmentation_of(config, images),
            precision=choose_precision(precision, on),
            device=on,
        )

    @property
    def taught(self) -> bool:
        """Whether it is a student, which learnt from a teacher."""
        return "teacher" in self.manifest

    @property
    def hard_targets(self) -> bool:
        """Whether it learnt from labels alone, and they were not smoothed."""
        return self.config.loss.alpha == 0 and not self.taught

    @property
    def learnt_from(self) -> str:
        """What its targets were: smoothed labels, or a teacher."""
        if not self.taught:
            return f"α = {self.config.loss.alpha:g}"
        teacher, temperature = self.manifest["teacher"], self.config.distillation.temperature
        return f"student of α = {teacher['alpha']:g}, T = {temperature:g}"

    def images(self, split: str) -> ImageSplit:
        """The images of a split; of train, what the run was trained on."""
        return training_images(self.config, self.data) if split == "train" else self.data.split(split)

    def outputs(
        self,
        images: ImageSplit,
        title: str,
        *,
        rows_N: Tensor | None = None,
        forward: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """What `scoring.predict` gives of these images, in this classifier's arithmetic, with a bar on a terminal."""
        self.precision.apply()
        with tqdm(
            total=len(images if rows_N is None else rows_N), unit=" images", desc=title, leave=False, disable=None
        ) as bar:
            return predict(
                self.model,
                self.augmentation,
                images,
                rows_N=rows_N,
                forward=forward,
                autocast=lambda: self.precision.autocast(self.device.type),
                on_progress=bar.update,
            )

    def training_accuracy(self) -> float:
        """On what it was trained on: as the run's summary has it of this checkpoint (in fp32), else measured."""
        directory = RunDirectory(self.path)
        figures = directory.read_summary()["checkpoints"] if directory.summary_file.exists() else {}
        if self.checkpoint in figures:
            return float(figures[self.checkpoint]["train_accuracy"])
        training = self.images("train")
        return training_accuracy(training, lambda rows_N: self.outputs(training, "train", rows_N=rows_N))

    def recipe(self, split: str, temperature: float = 1.0) -> dict[str, Any]:
        """The signature of a figure of this run: how it was trained, which weights, on what."""
        checksum = self.manifest["corpus_checksum"]
        signature = run_signature(
            self.config,
            checksum,
            self.precision,
            split=split,
            temperature=temperature,
            device=self.device,
            teacher=self.manifest.get("teacher"),
        )
        return {
            **signature.to_dict(),
            "run": self.path.name,
            "checkpoint": self.checkpoint,
            "weights": self.weights,
            "dropout": self.config.model.dropout_probability,
            "updates": self.updates,
            **({"note": self.data.note} if self.data.note else {}),
            "training_commit": self.manifest["commit"],
            "training_precision": self.manifest["precision"]["kind"],
        }


def run_images(
    path: Path,
    config: TrainConfig,
    manifest: Mapping[str, Any],
    data: str | None = None,
    known: Iterable[ImageData] = (),
) -> ImageData:
    """The images that a run was trained on: what of `known` is the same, or just opened; then standard error gets what
    there is to know about them.

    Raises UserError where they have gone, have changed, or are others.
    """
    known = tuple(known)
    for other in known:  # drawing the embedded shapes takes seconds
        if other.embedded and data is None and other.checksum == manifest["corpus_checksum"]:
            return other
    images = _find_images(path, config, manifest, data)
    for other in known:
        if (other.place, other.checksum, other.note) == (images.place, images.checksum, images.note):
            return other
    images.print_remarks()
    return images


def _find_images(path: Path, config: TrainConfig, manifest: Mapping[str, Any], data: str | None) -> ImageData:
    if manifest["corpus"] == EMBEDDED:
        if data is not None:
            raise UserError(f"data: {path} was trained on the embedded shapes; leave data out")
        images = embedded_images(config.embedded)
        if images.checksum != manifest["corpus_checksum"]:
            raise UserError(f"{path}: the embedded shapes are drawn otherwise today; train the run again")
        return images
    found = [load_images(data)] if data is not None else [load_images(place) for place in _places(path, manifest)]
    for images in found:
        if images.checksum == manifest["corpus_checksum"]:
            return images
    if data is not None:
        raise UserError(f"data: {data} is not what {path} was trained on (its checksum is another)")
    if found:
        raise UserError(
            f"{found[0].place}: no longer what {path} was trained on; prepare that again, or name its place with --data"
        )
    raise UserError(
        f"{manifest['corpus']}: what {path} was trained on is neither there nor above the run; "
        "name its place with --data"
    )


def _places(run: Path, manifest: Mapping[str, Any]) -> Iterator[Path]:
    """Where the images were, taken as it is, then from the directories above the run."""
    stored = Path(manifest["corpus"])
    for above in (Path(), *run.resolve().parents):
        for place in (above / stored, above / "data" / stored.name):
            if (place / MANIFEST).is_file():
                yield place
