"""Labelled images, read: prepared ones by memory-mapping, or the embedded shapes, whose posteriors are known.

Shape suffixes: N images, B of a batch, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

import difflib
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep import shapes
from nmt_ls.experiment.array_store import ArrayStore, array_checksum
from nmt_ls.experiment.command_line import UserError

KIND, PREPARE_WITH = "labelled images", "python -m data_prep.images"
EMBEDDED = "embedded shapes"
SHAPES_SEED = 0
RESIDENT_BYTES = 2 << 30  # splits up to this size are read into memory, onto the device, and checked; others are mapped


@dataclass(frozen=True, kw_only=True)
class EmbeddedSizes:
    """How many of the embedded shapes there are."""

    train: int = 2_000
    """images to train on: few enough to be learnt by heart, which is what makes hard targets over-confident"""
    validation: int = 2_000
    """images to select on"""
    test: int = 20_000
    """images to test on"""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} must be positive, not {value}")


@dataclass(frozen=True)
class ImageSplit:
    """Images of one split, uint8 NCHW, their labels, int64 N, and p(k | image), float64 NK, where it is known."""

    images_NCHW: Tensor
    labels_N: Tensor
    posteriors_NK: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels_N)

    def select(self, rows_B: Tensor) -> ImageSplit:
        """These rows of it."""
        rows_B = rows_B.to(self.labels_N.device, non_blocking=True)
        posteriors_BK = None if self.posteriors_NK is None else self.posteriors_NK[rows_B]
        return ImageSplit(self.images_NCHW[rows_B.to(self.images_NCHW.device)], self.labels_N[rows_B], posteriors_BK)

    def on(self, device: torch.device) -> ImageSplit:
        """On the device, where it is small enough to stay there; else as it is, to be moved a batch at a time."""
        if self.images_NCHW.nbytes > RESIDENT_BYTES:
            return self
        posteriors_NK = None if self.posteriors_NK is None else self.posteriors_NK.to(device)
        return ImageSplit(self.images_NCHW.to(device), self.labels_N.to(device), posteriors_NK)


class ImageData:
    """A data set: classes, the shape (C, H, W) of its images, a checksum, and splits train, validation and test.

    place: its directory, or EMBEDDED. mean, std: of the training pixels, from 0 to 1, a number a channel.
    remarks: what there is to know about its images (a note, copies, greyscale ones), as sentences.
    note: what was said when they were prepared, to stand beside every figure of them.
    """

    def __init__(
        self,
        *,
        place: str,
        source: str,
        classes: Sequence[str],
        image_shape: tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
        checksum: str,
        remarks: Sequence[str],
        read: Callable[[str], ImageSplit],
        note: str = "",
    ) -> None:
        self.place, self.source, self.checksum = place, source, checksum
        self.classes, self.image_shape = tuple(classes), image_shape
        self.mean, self.std = tuple(mean), tuple(std)
        self.remarks, self.note = tuple(remarks), note
        self._read = read
        self._splits: dict[str, ImageSplit] = {}

    def split(self, name: str) -> ImageSplit:
        """A split, read once. Raises UserError where there is none of that name, or it is not what was prepared."""
        if name not in self._splits:
            self._splits[name] = self._read(name)
        return self._splits[name]

    def print_remarks(self) -> None:
        """Say on standard error what there is to know about these images."""
        for remark in self.remarks:
            print(f"{self.place}: {remark}", file=sys.stderr)

    @property
    def embedded(self) -> bool:
        """Whether these are the embedded shapes."""
        return self.place == EMBEDDED

    def class_index(self, named: str) -> int:
        """The class of a name, or of a number given as text. Raises UserError with the nearest names."""
        if named in self.classes:
            return self.classes.index(named)
        if named.isdecimal() and int(named) < len(self.classes):
            return int(named)
        lowered = {name.lower(): name for name in self.classes}
        # bus: school_bus; tench: "tench, Tinca tinca"
        holding = [name for low, name in lowered.items() if named.lower() in low]
        alike = [lowered[name] for name in difflib.get_close_matches(named.lower(), lowered, n=5, cutoff=0.5)]
        near = list(dict.fromkeys((*holding, *alike)))[:8]
        some = ", ".join(near or self.classes[:10])
        raise UserError(
            f"class {named!r} is none of the {len(self.classes)} of {self.place}; "
            f"{'near ones' if near else 'the first ones'} are {some}; numbers go from 0 to {len(self.classes) - 1}"
        )


def in_brackets(note: str) -> str:
    """A note as it follows what a heading names; empty where there is none."""
    return f" ({note})" if note else ""


def load_images(directory: str | Path) -> ImageData:
    """Prepared images (data_prep.images). Raises UserError where they are missing, damaged, or of another kind."""
    store = ArrayStore.load(directory, KIND, PREPARE_WITH)
    manifest = store.manifest
    classes: list[str] = manifest["about"]["classes"]
    channels, height, width = manifest["about"]["image_shape"]

    def read(name: str) -> ImageSplit:
        images, labels = store.column(name, "images"), np.array(store.column(name, "labels"))
        if images.nbytes <= RESIDENT_BYTES:
            store.verify(name)
            images = np.array(images)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if len(wrong):
            row = int(wrong[0])
            raise UserError(
                f"{store.directory / name}: image {row} has the label {labels[row]}, none of 0 to {len(classes) - 1}; "
                "prepare the data again"
            )
        return ImageSplit(torch.from_numpy(images), torch.from_numpy(labels))

    return ImageData(
        place=str(store.directory),
        source=str(manifest["source"]),
        classes=classes,
        image_shape=(channels, height, width),
        mean=manifest["train_pixels"]["mean"],
        std=manifest["train_pixels"]["std"],
        checksum=store.checksum,
        remarks=_remarks(manifest),
        read=read,
        note=manifest.get("note", ""),
    )


def _remarks(manifest: Mapping[str, Any]) -> list[str]:
    remarks = [manifest["note"]] if manifest.get("note") else []
    copies = manifest["duplicates"]
    if copies["groups"]:
        remarks.append(
            f"{copies['groups']} groups of identical images, {copies['groups_under_several_labels']} of them under "
            f"several labels; in train too are {copies['validation_images_in_train']} images of validation and "
            f"{copies['test_images_in_train']} of test"
        )
    converted = {name: split["greyscale_converted"] for name, split in manifest["splits"].items()}
    if any(converted.values()):
        each = ", ".join(f"{name} {count}" for name, count in converted.items())
        remarks.append(f"greyscale images that were given three channels: {each}")
    return remarks


def embedded_images(sizes: EmbeddedSizes) -> ImageData:
    """The embedded shapes of data_prep.shapes, drawn anew each time (seconds), the same for everyone."""
    samples = shapes.Shapes(SHAPES_SEED).splits(**asdict(sizes))
    train = samples["train"].images
    pixels = train.astype(np.float64) / 255
    checksum = hashlib.sha256(
        "\n".join(array_checksum(part) for name in sorted(samples) for part in samples[name]).encode()
    ).hexdigest()

    def read(name: str) -> ImageSplit:
        if name not in samples:
            raise UserError(f"the {EMBEDDED} have no split {name!r}: choose one of {', '.join(samples)}")
        return ImageSplit(*map(torch.from_numpy, samples[name]))

    return ImageData(
        place=EMBEDDED,
        source="data_prep.shapes",
        classes=shapes.CLASSES,
        image_shape=(3, shapes.SIZE, shapes.SIZE),
        mean=pixels.mean((0, 2, 3)).tolist(),
        std=pixels.std((0, 2, 3)).tolist(),
        checksum=checksum,
        remarks=[],
        read=read,
    )


def balanced_rows(labels_N: Tensor, size: int, classes: Sequence[str], seed: int) -> Tensor:
    """Rows, in order, of a subset with equally many images of each class (±1); smaller ones lie in larger ones.

    Raises UserError where a class has too few.
    """
    share, rest = divmod(size, len(classes))
    counts_K = torch.bincount(labels_N.cpu(), minlength=len(classes)).tolist()
    rows = []
    for k, count in enumerate(counts_K):
        wanted = share + (k < rest)
        if count < wanted:
            raise UserError(
                f"train_size: {size} balanced images need {wanted} of class {classes[k]!r}, which has {count}; "
                f"ask for {len(classes) * min(counts_K)} at most, or for all with 0"
            )
        own = np.flatnonzero(labels_N.numpy() == k)
        rows.append(np.random.default_rng((seed, k)).permutation(own)[:wanted])
    return torch.from_numpy(np.sort(np.concatenate(rows)))


def spread_rows(count: int, wanted: int) -> Tensor:
    """`wanted` rows of `count`, or all where there are fewer, evenly spread: images may lie there class by class."""
    wanted = min(wanted, count)
    return torch.arange(wanted) * count // max(wanted, 1)


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """Rows of each batch of an epoch: a pure function of (seed, epoch). All are full: what is left over sits out."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    whole = max(count // batch_size, 1) * batch_size
    return torch.split(torch.from_numpy(order[:whole]), batch_size)
