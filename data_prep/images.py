"""python -m data_prep.images: prepare labelled images from the Hub, a local copy of its files, or a folder of images.

Every image is decoded once, to unsigned bytes that training reads by memory-mapping. Three splits come out: train,
validation and test. What the source holds out is the test; validation is cut from train, class by class, by a fixed
seed, unless the source has a split for each. In a plain folder of images the subfolders are the classes (below
train/ and test/, where there are such), and a test is cut from train too where there is none.

Shapes: N images, C channels, H and W pixels.
"""

from __future__ import annotations

import bisect
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.image_files import Decoder, Picture
from data_prep.image_report import DuplicateCount, PixelMoments, describe
from data_prep.parallel import local_folder, without_log
from data_prep.reporting import file_checksum
from nmt_ls.experiment.array_store import existing_store, new_array, write_store
from nmt_ls.experiment.command_line import UserError, run_command
from nmt_ls.experiment.progress import without_bars
from nmt_ls.experiment.staging import terminate_as_exit
from nmt_ls.vocabulary import first_line

KIND = "labelled images"
PREPARE_WITH = "python -m data_prep.images"
SPLITS = ("train", "validation", "test")
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "fine_label", "labels")
HELD_OUT = ("test", "validation", "valid", "val", "dev")
BLOCK = 256  # images decoded at a time
TEST_SHARE, MOST_VALIDATION = 1 / 6, 1 / 5


@dataclass(frozen=True, kw_only=True)
class SplitNames:
    """What the source calls its splits; left empty, what there is decides (see the top of data_prep/images.py)."""

    train: str = "train"
    validation: str = ""
    test: str = ""


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Labelled images to prepare."""

    source: str
    """a Hub id, a local folder of the same files (Parquet), or a folder of images with a subfolder a class"""
    out: str
    """directory of the prepared data"""
    name: str = ""
    """the data set's configuration on the Hub"""
    revision: str = ""
    """branch, tag or commit on the Hub"""
    splits: SplitNames = field(default_factory=SplitNames)
    image: str = ""
    """column of the images; left out, image or img"""
    label: str = ""
    """column of the labels; left out, label or fine_label"""
    validation: int = 0
    """images to cut from train for validation where the source has none; 0: as many as the test has, a fifth of train
    at most"""
    test: int = 0
    """images to cut from train for the test where the source has none; 0: a sixth"""
    seed: int = 0
    """of what is cut from train"""
    size: int = 0
    """side in pixels to bring all images to: the shorter side is scaled to `resize`, the middle cut out; 0: as is"""
    resize: int = 0
    """see size; 0: size"""
    channels: Literal["auto", "1", "3"] = "auto"
    """auto: 1 where the first training images are all greyscale"""
    licence: str = ""
    """terms of the data, for the manifest"""
    note: str = ""
    """what to say beside every figure of these images, such as "own split": at load, in titles and in signatures"""
    workers: int = 4
    """threads that decode; the result does not depend on it"""

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("source has to be given: a Hub id or a local folder")
        for key in ("validation", "test", "seed", "size", "resize"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, not {getattr(self, key)}")
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}")
        if self.resize and not self.size:
            raise ValueError("resize goes with size, the side of what is cut out")
        if 0 < self.resize < self.size:
            raise ValueError(f"resize ({self.resize}) must not be less than size ({self.size})")

    def recipe(self) -> dict[str, Any]:
        """All that decides what the prepared data hold; where files are local, the source may move."""
        settings = {key: value for key, value in asdict(self).items() if key not in ("out", "licence", "workers")}
        if not self.note:
            del settings["note"]
        folder = local_folder(self.source)
        if folder is not None:
            files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
            settings["source"] = {str(path.relative_to(folder)): file_checksum(path) for path in files}
        return settings


class ImageSource:
    """The splits of a data set, read with `datasets`; images stay encoded until they are asked for."""

    def __init__(self, config: ImagesConfig, scratch: Path) -> None:
        self.config = config
        folder = local_folder(config.source)
        self._where = config.source if folder is None else str(folder)
        self._parts: dict[str, tuple[list[int], list[Path]]] = {}
        with without_log(), contextlib.nullcontext() if sys.stderr.isatty() else without_bars():
            self._splits = self._load(None if folder is None else scratch)
        there = self._check_names()
        features = self._splits[config.splits.train].features
        self._image = _column(config, features, "image", config.image, IMAGE_COLUMNS)
        self._label = _column(config, features, "label", config.label, LABEL_COLUMNS)
        self.names = {"train": config.splits.train}
        self.names |= self._held_out([name for name in there if name in HELD_OUT])
        self.classes = self._classes(features[self._label])

    def _load(self, scratch: Path | None) -> Any:
        import datasets

        config = self.config
        try:
            builder = datasets.load_dataset_builder(
                self._where,
                config.name or None,
                revision=config.revision or None if scratch is None else None,
                cache_dir=None if scratch is None else str(scratch),
            )
            builder.download_and_prepare()
            self._files: Mapping[str, list[str]] = builder.config.data_files or {}
            return builder.as_dataset()
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reason = first_line(error.__cause__ or error)
            hint = "not a local folder, and the Hub does not give it" if scratch is None else "cannot be read as images"
            raise UserError(
                f"{config.source}: {hint} ({reason}); name a Hub id, or a folder with Parquet files a split or with "
                "images in a subfolder a class"
            ) from None

    def _check_names(self) -> list[str]:
        """The source's splits that are not empty. Raises UserError where one that is asked for is not among them."""
        asked = self.config.splits
        there = [name for name in self._splits if len(self._splits[name])]
        for name in (asked.train, asked.validation, asked.test):
            if name and name not in there:
                raise UserError(
                    f"{self.config.source} has no split {name!r}, only {', '.join(there)}; name others with "
                    "--splits.train, .validation and .test"
                )
        return there

    def _held_out(self, there: list[str]) -> dict[str, str]:
        """The source's split for our test, and for our validation, where it is not to be cut from train.

        A split without labels (all of them -1, as in ImageNet's test) is passed over unless it is asked for.
        """
        asked = self.config.splits
        known = [name for name in HELD_OUT if name in there and name != asked.train and self._column(name).max() >= 0]
        test = asked.test or next((name for name in known if name != asked.validation), "")
        other = next((name for name in known if name != test), "")
        chosen = {"test": test, "validation": asked.validation or other}
        return {ours: theirs for ours, theirs in chosen.items() if theirs}

    def _classes(self, feature: Any) -> list[str]:
        names = getattr(feature, "names", None)
        if names is not None:
            return [str(name) for name in names]
        if not str(getattr(feature, "dtype", "")).startswith(("int", "uint")):
            raise UserError(
                f"{self.config.source}: column {self._label!r} holds no class numbers; choose another with --label"
            )
        return [str(number) for number in range(int(self.labels("train").max()) + 1)]

    def labels(self, split: str) -> NDArray[np.int64]:
        """The labels of one of our splits, as the source has them. Raises UserError for one that is missing."""
        return self._column(self.names[split])

    def _column(self, theirs: str) -> NDArray[np.int64]:
        column = self._splits[theirs].select_columns([self._label]).with_format("arrow")[:][self._label]
        if column.null_count:
            row = column.is_null().index(True).as_py()
            raise UserError(f"{self._row(theirs, row)}: the label is missing; mend the row")
        return np.asarray(column.to_numpy(), dtype=np.int64)

    def check_labels(self, split: str) -> None:
        """Raises UserError naming the row of a label outside the classes."""
        labels = self.labels(split)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.classes)))
        if len(wrong):
            row, count = int(wrong[0]), len(self.classes)
            unlabelled = f"; a split without labels? Name another with --splits.{split}" if labels.max() < 0 else ""
            where = self._row(self.names[split], row)
            raise UserError(f"{where}: label {labels[row]} is none of 0 to {count - 1}{unlabelled}")

    def pictures(self, split: str) -> Iterator[Picture]:
        """Encoded images in the source's order, each with what it is called in a message."""
        import datasets

        theirs = self.names[split]
        data = self._splits[theirs].select_columns([self._image])
        data = data.cast_column(self._image, datasets.Image(decode=False))
        row = 0
        for block in data.iter(batch_size=BLOCK):
            for cell in block[self._image]:
                yield Picture(self._row(theirs, row, cell), cell)
                row += 1

    def _row(self, theirs: str, row: int, cell: Mapping[str, Any] | None = None) -> str:
        """The file of an image, or else its split and row, counted from 1, with which row that is of which of several
        Parquet files, and what the image was called, where this is known."""
        path = (cell or {}).get("path")
        if path and Path(path).exists():
            return str(path)
        first_rows, files = self._parquet(theirs)
        part = bisect.bisect(first_rows, row) - 1
        known = [f"row {row + 1 - first_rows[part]} of {files[part].name}"] if files else []
        known += [Path(path).name] if path else []
        where = f"{self.config.source}, split {theirs!r}, row {row + 1}"
        return f"{where} ({', '.join(known)})" if known else where

    def _parquet(self, theirs: str) -> tuple[list[int], list[Path]]:
        """With which row each Parquet file of a split begins, and the files; none of a single one, or of the Hub's."""
        if theirs not in self._parts:
            files = [Path(file) for file in self._files.get(theirs, [])]
            local = len(files) > 1 and all(file.suffix == ".parquet" and file.is_file() for file in files)
            rows = [pq.read_metadata(file).num_rows for file in files] if local else []
            first_rows = [sum(rows[:part]) for part in range(len(rows))]
            self._parts[theirs] = (first_rows, files) if sum(rows) == len(self._splits[theirs]) else ([], [])
        return self._parts[theirs]


def _column(config: ImagesConfig, features: Mapping[str, Any], what: str, asked: str, known: tuple[str, ...]) -> str:
    found = asked or next((name for name in known if name in features), "")
    if found not in features:
        raise UserError(
            f"{config.source}: no column {found or ' or '.join(known)}; there are {', '.join(features)}. "
            f"Choose with --{what}"
        )
    if what == "image" and type(features[found]).__name__ != "Image":
        raise UserError(f"{config.source}: column {found!r} holds no images; choose another with --image")
    return found


def stratified(labels_N: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Rows, in order, of a sample of `count` in which classes keep their shares (largest remainders)."""
    classes, of_class = np.unique(labels_N, return_counts=True)
    exact = of_class * count / max(len(labels_N), 1)
    quota = np.floor(exact).astype(np.int64)
    quota[np.argsort(quota - exact, kind="stable")[: count - quota.sum()]] += 1
    rows = [
        np.random.default_rng((seed, int(k))).permutation(np.flatnonzero(labels_N == k))[:n]
        for k, n in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate([np.empty(0, np.int64), *rows]))


def assignment(source: ImageSource) -> dict[str, NDArray[np.int64]]:
    """Rows of the source's train split that go to each of our splits that the source itself does not have."""
    config, labels_N = source.config, source.labels("train")
    left_N = np.arange(len(labels_N))
    taken: dict[str, NDArray[np.int64]] = {}
    for name in ("test", "validation"):
        if name in source.names and getattr(config, name):
            raise UserError(f"{name}: {config.source} has such a split already; leave --{name} out")
    test = len(source.labels("test")) if "test" in source.names else config.test or round(len(left_N) * TEST_SHARE)
    wanted = {"test": test, "validation": config.validation or min(test, int(len(left_N) * MOST_VALIDATION))}
    for number, (name, count) in enumerate(wanted.items()):
        if name in source.names:
            continue
        if not 0 < count < len(left_N):
            raise UserError(f"{name}: {count} images cannot be cut from the {len(left_N)} of train; set --{name}")
        chosen = stratified(labels_N[left_N], count, config.seed + number)
        taken[name] = left_N[chosen]
        left_N = np.delete(left_N, chosen)
    return {"train": left_N, **taken}


class StoreBuilder:
    """Decodes a source into the arrays of a store."""

    def __init__(self, source: ImageSource, folder: Path) -> None:
        self.source, self.folder, self.config = source, folder, source.config
        self.decoder = Decoder(self.config.size, self.config.resize, self.config.channels)
        self.moments, self.duplicates = PixelMoments(), DuplicateCount()
        self.splits: dict[str, dict[str, Any]] = {}

    def build(self) -> dict[str, Any]:
        """Write all splits; what the manifest is to say."""
        source, config = self.source, self.config
        for name in source.names:  # all of them before the first image, as decoding may take hours
            source.check_labels(name)
        self._write("train", assignment(source))
        for name in ("validation", "test"):
            if name in source.names:
                self._write(name, {name: np.arange(len(source.labels(name)))})
        assert self.decoder.shape is not None
        return {
            "about": {"classes": source.classes, "image_shape": list(self.decoder.shape)},
            "source": config.source,
            "licence": config.licence or "not stated",
            "note": config.note,
            "splits": {name: self.splits[name] for name in SPLITS},
            "duplicates": self.duplicates.figures(),
            "train_pixels": self.moments.figures(),
        }

    def _write(self, split: str, rows: Mapping[str, NDArray[np.int64]]) -> None:
        """Decode one split of the source into the splits of ours whose rows of it are given."""
        labels_N = self.source.labels(split)
        owner_N, place_N = np.zeros(len(labels_N), np.int64), np.zeros(len(labels_N), np.int64)
        names = list(rows)
        for number, name in enumerate(names):
            owner_N[rows[name]], place_N[rows[name]] = number, np.arange(len(rows[name]))
        grey = np.zeros(len(labels_N), bool)
        arrays: dict[str, NDArray[np.uint8]] = {}
        with tqdm(total=len(labels_N), unit=" images", desc=split, leave=False, disable=None) as bar:
            for start, images_NCHW, grey_N in self._decoded(split):
                if not arrays:
                    for name in names:
                        shape = (len(rows[name]), *images_NCHW.shape[1:])
                        arrays[name] = new_array(self.folder / name / "images.npy", shape, np.uint8)
                part = slice(start, start + len(images_NCHW))
                grey[part] = grey_N
                for number, name in enumerate(names):
                    mine_N = owner_N[part] == number
                    arrays[name][place_N[part][mine_N]] = images_NCHW[mine_N]
                    self.duplicates.add(name, images_NCHW[mine_N], labels_N[part][mine_N])
                    if name == "train":
                        self.moments.add(images_NCHW[mine_N])
                bar.update(len(images_NCHW))
        converted = grey if self.decoder.channels == 3 else np.zeros_like(grey)
        for number, name in enumerate(names):
            new_array(self.folder / name / "labels.npy", (len(rows[name]),), np.int64)[:] = labels_N[rows[name]]
            self.splits[name] = {
                "images": len(rows[name]),
                "from": self.source.names[split],
                "by_class": np.bincount(labels_N[rows[name]], minlength=len(self.source.classes)).tolist(),
                "greyscale_converted": int(converted[owner_N == number].sum()),
            }

    def _decoded(self, split: str) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.bool_]]]:
        """Blocks of decoded images, the row that each begins with, and which of them were greyscale."""
        start, block = 0, list[Picture]()
        with ThreadPoolExecutor(self.config.workers) as pool:
            for picture in self.source.pictures(split):
                block.append(picture)
                if len(block) == BLOCK:
                    yield start, *self._block(block, pool)
                    start, block = start + len(block), []
            if block:
                yield start, *self._block(block, pool)

    def _block(self, block: list[Picture], pool: ThreadPoolExecutor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        self.decoder.settle(block)
        decoded = pool.map(self.decoder.decode, block)
        images, grey = zip(*decoded, strict=True)
        return np.stack(images), np.asarray(grey)


def main(config: ImagesConfig) -> None:
    """Prepare the images that a configuration describes."""
    out, recipe = Path(config.out), config.recipe()
    out.parent.mkdir(parents=True, exist_ok=True)
    store = existing_store(out, KIND, recipe, PREPARE_WITH)
    if store is not None:
        print(f"{out} is there already, made by the same recipe: nothing to do")
    else:
        with (
            terminate_as_exit(),
            tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.reading-") as scratch,
        ):
            source = ImageSource(config, Path(scratch))
            packages = ("numpy", "datasets", "pillow")
            store = write_store(
                out, KIND, recipe, lambda folder: StoreBuilder(source, folder).build(), PREPARE_WITH, packages
            )
    print(describe(store.directory, store.manifest))


if __name__ == "__main__":
    run_command(
        main,
        ImagesConfig,
        program=PREPARE_WITH,
        description="Prepare labelled images from the Hugging Face Hub, a local copy, or a folder of images.",
    )
