"""Trained classifiers, found and opened: which run is meant, its images, its weights, the recipe of its figures.

`Classifier.open` is what evaluate, project and distill call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nmt_ls.experiment import run_directory
from nmt_ls.experiment.array_store import MANIFEST
from nmt_ls.experiment.checkpoint import load_state, load_weights, weights_id
from nmt_ls.experiment.command_line import UserError, load_config
from nmt_ls.experiment.precision import Precision, choose_precision
from nmt_ls.experiment.processor import choose_device
from nmt_ls.experiment.run_directory import RunDirectory
from vision_ls.augment import Augmentation
from vision_ls.data import EMBEDDED, ImageData, embedded_images, load_images
from vision_ls.models import ImageModel
from vision_ls.training import CheckpointName, TrainConfig, augmentation_of, new_model, run_signature


def find_run(run: str | None) -> Path:
    """The run that was named, or the newest finished classifier's; see experiment.run_directory.find_run."""
    return run_directory.find_run(run, kind="classifier", key="augment", trainer="vision_ls.train")


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
        run: str | Path,
        checkpoint: CheckpointName = "best",
        *,
        data: str | None = None,
        precision: Literal["auto", "fp32", "bf16"] = "fp32",
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> Classifier:
        """The model in eval mode on its device.

        data: where its images lie, if no longer where they were when it was trained.

        Raises UserError where it is no run of a classifier, has no such checkpoint, or the images are others.
        """
        path = Path(run)
        directory = RunDirectory(path)
        asked = directory.read_config()
        if "augment" not in asked:
            raise UserError(
                f"run: {path} is no classifier's (its config.yaml has no augment); name one of vision_ls.train"
            )
        config = load_config(TrainConfig, asked, where=f"{path}/config.yaml")
        manifest = directory.read_manifest()
        folder = directory.checkpoints / checkpoint
        weights = weights_id(folder)
        images = run_images(path, config, manifest, data)
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

    def recipe(self, split: str, temperature: float = 1.0) -> dict[str, Any]:
        """The signature of a figure of this run: how it was trained, which weights, on what."""
        checksum = self.manifest["corpus_checksum"]
        signature = run_signature(
            self.config, checksum, self.precision, split=split, temperature=temperature, device=self.device
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


def run_images(path: Path, config: TrainConfig, manifest: Mapping[str, Any], data: str | None = None) -> ImageData:
    """The images that a run was trained on. Raises UserError where they have gone, have changed, or are others."""
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
