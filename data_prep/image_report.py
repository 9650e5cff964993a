"""What is worth knowing of prepared images: copies, copies under two labels, the mean and deviation of the pixels.

Shapes: N images, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class PixelMoments:
    """Mean and standard deviation of each channel, of pixels from 0 to 1."""

    def __init__(self) -> None:
        self._pixels = 0
        self._sums: NDArray[np.float64] | None = None  # of values, and of squares: [2, C]

    def add(self, images_NCHW: NDArray[np.uint8]) -> None:
        """Take in images."""
        values = images_NCHW.astype(np.float64)
        sums = np.stack([values.sum((0, 2, 3)), (values**2).sum((0, 2, 3))])
        self._sums = sums if self._sums is None else self._sums + sums
        self._pixels += images_NCHW.size // images_NCHW.shape[1]

    def figures(self) -> dict[str, list[float]]:
        """mean and std, a number a channel. A channel without any variation has the std 1."""
        assert self._sums is not None
        assert self._pixels
        mean, square = self._sums / self._pixels
        deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
        return {"mean": (mean / 255).tolist(), "std": np.where(deviation > 0, deviation / 255, 1.0).tolist()}


class DuplicateCount:
    """Images that are equal pixel by pixel, within and between splits."""

    def __init__(self) -> None:
        self._seen: dict[bytes, list[tuple[str, int]]] = {}  # by hash: split and label of each image

    def add(self, split: str, images_NCHW: NDArray[np.uint8], labels_N: NDArray[np.int64]) -> None:
        """Take in images of a split."""
        for image, label in zip(images_NCHW, labels_N.tolist(), strict=True):
            key = blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
            self._seen.setdefault(key, []).append((split, label))

    def figures(self) -> dict[str, int]:
        """Groups of identical images, those under several labels, and held-out images that are in train as well."""
        groups = [group for group in self._seen.values() if len(group) > 1]
        found = {
            "groups": len(groups),
            "groups_under_several_labels": sum(len({label for _, label in group}) > 1 for group in groups),
        }
        for held_out in ("validation", "test"):
            found[f"{held_out}_images_in_train"] = sum(
                sum(split == held_out for split, _ in group)
                for group in groups
                if any(split == "train" for split, _ in group)
            )
        return found


def describe(directory: Path, manifest: Mapping[str, Any]) -> str:
    """A few lines for people: counts, classes, copies, checksum."""
    about, duplicates = manifest["about"], manifest["duplicates"]
    channels, height, width = about["image_shape"]
    kind = "greyscale" if channels == 1 else "colour"
    lines = [f"{directory}: {width} x {height} {kind} images of {len(about['classes'])} classes, "
             f"licence: {manifest['licence']}"]  # fmt: skip
    if manifest.get("note"):
        lines.append(f"  note       {manifest['note']}")
    for name, split in manifest["splits"].items():
        converted = split["greyscale_converted"]
        also = f", {converted:,} greyscale ones converted" if converted else ""
        least, most = min(split["by_class"]), max(split["by_class"])
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        lines.append(f"  {name:<11}{split['images']:>9,} images, {each} a class, from {split['from']!r}{also}")
    if duplicates["groups"]:
        lines.append(
            f"  copies     {duplicates['groups']:,} groups of identical images, "
            f"{duplicates['groups_under_several_labels']:,} of them under several labels; "
            f"{duplicates['validation_images_in_train']:,} of validation and "
            f"{duplicates['test_images_in_train']:,} of test are in train too"
        )
    return "\n".join([*lines, f"  checksum   {manifest['checksum']}"])
