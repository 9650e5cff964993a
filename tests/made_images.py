"""A few dozen small images, as files of the Hub's schema or as a folder of images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "horse")


def picture(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    channels = () if mode == "L" else (3,)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_parquet(
    folder: Path,
    split: str,
    images: Sequence[bytes],
    labels: Sequence[int],
    columns: tuple[str, str] = ("image", "label"),
) -> None:
    """One split in the schema of the Hub's image data sets; labels are stored as given."""
    folder.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({columns[0]: datasets.Image(), columns[1]: datasets.Value("int64")})
    rows = {columns[0]: [{"bytes": image, "path": None} for image in images], columns[1]: list(labels)}
    data = datasets.Dataset.from_dict(rows, features=features)
    # the names go in afterwards: a label outside them may be stored, as it may be in a file from elsewhere
    data.info.features[columns[1]] = datasets.ClassLabel(names=list(CLASSES))
    data.to_parquet(folder / f"{split}.parquet")


def made_folder(folder: Path, train: int = 30, test: int = 6) -> Path:
    """train and test splits of distinct colour images, classes in turn."""
    for offset, (split, count) in enumerate((("train", train), ("test", test))):
        images = [png(picture(1000 * offset + number)) for number in range(count)]
        write_parquet(folder, split, images, [number % 3 for number in range(count)])
    return folder


def telling_folder(folder: Path, train: int = 150, test: int = 60) -> Path:
    """Images whose colour tells the class, but for every fifth, whose label is another: soon learnt, never certain."""
    for offset, (split, count) in enumerate((("train", train), ("test", test))):
        random = np.random.default_rng(offset)
        labels = np.arange(count) % 3
        pixels = random.integers(0, 60, (count, 8, 8, 3))
        pixels[np.arange(count), :, :, labels] += random.integers(100, 180, (count, 1, 1))
        labels[::5] = (labels[::5] + 1) % 3
        images = [png(Image.fromarray(image)) for image in pixels.astype(np.uint8)]
        write_parquet(folder, split, images, labels.tolist())
    return folder
