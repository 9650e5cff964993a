"""A prepared data set of arrays: a folder a split, a .npy file a column, read by memory-mapping, and manifest.json.

    NAME/manifest.json
    NAME/train/images.npy   NAME/train/labels.npy   …

What the columns mean is not this file's business. A store is built in a hidden folder beside its place and renamed.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import command
from nmt_ls.experiment.staging import staging_directory

__all__ = ["MANIFEST", "ArrayStore", "array_checksum", "existing_store", "new_array", "write_store"]

MANIFEST = "manifest.json"
FORMAT = 1
_READ_AT_ONCE = 1 << 24  # bytes


class ArrayStore:
    """A store that lies in `directory`; `manifest` is what manifest.json says.

    `manifest["splits"][NAME]["columns"][COLUMN]` has the shape, dtype and SHA-256 of each array.
    """

    def __init__(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        self.directory, self.manifest = directory, manifest

    @classmethod
    def load(cls, directory: str | Path, kind: str, prepare_with: str) -> ArrayStore:
        """Open a store of this kind. Raises UserError where there is none, or one of another format.

        prepare_with: the command that makes one, for the message.
        """
        directory = Path(directory)
        try:
            manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{directory} is not prepared data (no {MANIFEST}); {prepare_with} prepares it") from None
        except ValueError:
            raise UserError(f"{directory / MANIFEST} is damaged; prepare the data again") from None
        if not isinstance(manifest, dict) or manifest.get("kind") != kind:
            raise UserError(f"{directory} holds no {kind}; name a directory that {prepare_with} made")
        if manifest.get("format") != FORMAT:
            raise UserError(f"{directory} was prepared in another format than {FORMAT}; prepare the data again")
        return cls(directory, manifest)

    @property
    def checksum(self) -> str:
        """Of the content and of what gives it its meaning; it depends on neither paths nor times."""
        return str(self.manifest["checksum"])

    @property
    def splits(self) -> list[str]:
        """The splits that there are."""
        return list(self.manifest["splits"])

    def column(self, split: str, name: str) -> NDArray[Any]:
        """An array, memory-mapped (writing to it changes a private copy). Raises UserError where it cannot be read."""
        if split not in self.manifest["splits"]:
            raise UserError(f"{self.directory} has no split {split!r}: choose one of {', '.join(self.splits)}")
        path = self.directory / split / f"{name}.npy"
        stored = self.manifest["splits"][split]["columns"].get(name)
        try:
            found: NDArray[Any] = np.load(path, mmap_mode="c")
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: missing or damaged ({error}); prepare the data again") from None
        if stored is None or list(found.shape) != stored["shape"] or str(found.dtype) != stored["dtype"]:
            raise UserError(f"{path}: not the array that {MANIFEST} describes; prepare the data again")
        return found

    def verify(self, split: str) -> None:
        """Read a split and hold it against its checksums. Raises UserError that names the file that differs."""
        for name, stored in self.manifest["splits"][split]["columns"].items():
            if array_checksum(self.column(split, name)) != stored["sha256"]:
                path = self.directory / split / f"{name}.npy"
                raise UserError(f"{path}: changed since it was prepared; prepare the data again")


def existing_store(directory: Path, kind: str, recipe: Mapping[str, Any], prepare_with: str) -> ArrayStore | None:
    """The store that the same recipe has already made here, or None where nothing is.

    Raises UserError where something else lies there; the message names the first key of the recipe that differs.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    if not (directory / MANIFEST).is_file():
        raise UserError(f"{directory} exists and is not prepared data: choose another place, or remove it")
    store = ArrayStore.load(directory, kind, prepare_with)
    here, asked = store.manifest["recipe"], json.loads(json.dumps(recipe))
    for key in sorted(here.keys() | asked.keys()):
        if here.get(key) != asked.get(key):
            raise UserError(
                f"{directory} was prepared otherwise ({key} is {here.get(key)!r} there, not {asked.get(key)!r}): "
                "choose another place, or remove it"
            )
    return store


def new_array(path: Path, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """A .npy file to fill, larger than memory if need be; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def write_store(
    directory: str | Path,
    kind: str,
    recipe: Mapping[str, Any],
    build: Callable[[Path], Mapping[str, Any]],
    prepare_with: str,
    packages: tuple[str, ...] = ("numpy",),
) -> ArrayStore:
    """Build a store; where the same recipe has made it already, only open it.

    build: fills a folder with SPLIT/COLUMN.npy files and returns what else the manifest is to say: "about" (whatever
        gives the arrays their meaning, and counts in the checksum), "splits" (by name, what is known of each, to which
        its columns are added), and whatever else.

    Raises UserError as `existing_store`, and what `build` raises; then nothing is left behind, nor when interrupted.
    """
    directory = Path(directory)
    store = existing_store(directory, kind, recipe, prepare_with)
    if store is not None:
        return store
    with staging_directory(directory) as staging:
        said = dict(build(staging.path))
        splits = {name: {**known, "columns": _columns(staging.path / name)} for name, known in said["splits"].items()}
        manifest = {
            "format": FORMAT,
            "kind": kind,
            "checksum": _checksum(said["about"], splits),
            **{key: value for key, value in said.items() if key != "splits"},
            "splits": splits,
            "recipe": dict(recipe),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
            "command": command(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        (staging.path / MANIFEST).write_text(text, encoding="utf-8")
        # where someone else was quicker, theirs will do if it is the same
        if not staging.publish() and existing_store(directory, kind, recipe, prepare_with) is None:
            raise UserError(f"{directory} changed while it was prepared; try again")
    return ArrayStore.load(directory, kind, prepare_with)


def array_checksum(array: NDArray[Any]) -> str:
    """SHA-256 of dtype, shape and content."""
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    flat = array.reshape(-1)
    step = max(1, _READ_AT_ONCE // max(array.itemsize, 1))
    for start in range(0, len(flat), step):
        digest.update(np.ascontiguousarray(flat[start : start + step]).data)
    return digest.hexdigest()


def _columns(folder: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(folder.glob("*.npy")):
        array = np.load(path, mmap_mode="r")
        found[path.stem] = {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": array_checksum(array)}
    return found


def _checksum(about: Mapping[str, Any], splits: Mapping[str, Any]) -> str:
    columns = {
        f"{split}/{name}": column["sha256"]
        for split, known in splits.items()
        for name, column in known["columns"].items()
    }
    return hashlib.sha256(json.dumps([about, columns], sort_keys=True).encode()).hexdigest()
