"""Checkpoints that are whole or absent: weights in safetensors, the rest in a file that torch reads weights_only.

A checkpoint is a directory: weights.safetensors, state.pt, checksums.json (SHA-256 of the two). It is written under a
temporary name, fsynced, and swapped in with two renames. Between the two the old one lies under a name that loading
knows too, so there is no moment at which a kill leaves nothing to load. One process writes a checkpoint at a time;
others may read it meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nmt_ls.experiment.atomic import fsync
from nmt_ls.experiment.command_line import NO_ROOM, UserError, disk_full

WEIGHTS, STATE, CHECKSUMS = "weights.safetensors", "state.pt", "checksums.json"
CheckpointName = Literal["last", "best", "averaged"]
"""Those of a run, by which its weights are asked for."""
_TIED = "tied"  # metadata of weights.safetensors: JSON, {name: the name under which the same tensor is stored}
T = TypeVar("T")


def save_checkpoint(directory: str | Path, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a checkpoint in place of whatever `directory` holds, atomically.

    `weights` is a model's state_dict: tensors that are one (tied) are stored once and come back under all their
    names. `state` holds only what torch.load(weights_only=True) can read: tensors, numbers, strings, dicts, lists.

    Raises UserError where the disk is full; then what `directory` holds is as it was.
    """
    stored, tied = _without_ties(weights)
    with _replacing(Path(directory)) as new:
        save_file(stored, new / WEIGHTS, metadata={_TIED: json.dumps(tied)})
        _add_state(new, state, _sha256(new / WEIGHTS))


def link_checkpoint(source: str | Path, directory: str | Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint with the weights of another one, without a second copy of them where the disk allows it.

    Weights files are replaced but never written into, so two checkpoints can share one.

    Raises UserError as `save_checkpoint`.
    """
    source = Path(source)
    with _replacing(Path(directory)) as new:
        try:
            os.link(source / WEIGHTS, new / WEIGHTS)
        except OSError:  # a file system without hard links
            shutil.copyfile(source / WEIGHTS, new / WEIGHTS)
        _add_state(new, state, _read_checksums(source)[WEIGHTS])


def load_checkpoint(directory: str | Path, verify: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights (on the CPU, all names of tied ones) and state. A damaged or absent checkpoint: UserError naming it."""

    def read(found: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return _read_weights(found, verify), _read_state(found, verify)

    return _steadily(Path(directory), read)


def load_weights(directory: str | Path, verify: bool = True) -> dict[str, Tensor]:
    """The weights of a checkpoint, as `load_checkpoint` gives them, with the state left unread."""
    return _steadily(Path(directory), lambda found: _read_weights(found, verify))


def load_state(directory: str | Path, verify: bool = True) -> dict[str, Any]:
    """The state of a checkpoint, as `load_checkpoint` gives it, with the weights left unread."""
    return _steadily(Path(directory), lambda found: _read_state(found, verify))


def weights_id(directory: str | Path) -> str:
    """16 characters that tell its weights from others: of their SHA-256. Raises UserError where there is none."""
    directory = Path(directory)
    try:
        checksums = json.loads((directory / CHECKSUMS).read_text(encoding="utf-8"))
        return str(checksums[WEIGHTS])[:16]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{directory}: the run has no such checkpoint, or it is damaged; name another") from None


def checkpoint_exists(directory: str | Path) -> bool:
    """Whether there is a checkpoint to load, be it one that a kill left in the midst of the swap."""
    return _find(Path(directory)) is not None


def tidy_checkpoint(directory: str | Path) -> None:
    """Clear up after a writer that was killed."""
    directory = Path(directory)
    new, old = _new_name(directory), _old_name(directory)
    if old.exists():
        if directory.exists():  # killed after the swap, before the old one was removed
            shutil.rmtree(old)
        else:  # killed between the two renames: the old one is the only one known to be whole
            old.rename(directory)
    if new.exists():  # killed while writing
        shutil.rmtree(new)


def remove_checkpoint(directory: str | Path) -> None:
    """Remove a checkpoint and what an interrupted writer may have left beside it."""
    directory = Path(directory)
    for path in (_new_name(directory), _old_name(directory), directory):
        if path.exists():
            shutil.rmtree(path)


def average_weights(directories: Sequence[str | Path]) -> dict[str, Tensor]:
    """The mean of the weights of several checkpoints, accumulated in float64 and returned in their own dtype.

    Integer tensors (counters) are taken from the last. Running statistics of batch normalisation are averaged like
    weights: close to, but not the same as, statistics measured again with the averaged weights.
    """
    if not directories:
        raise ValueError("average_weights needs at least one checkpoint")
    last = load_weights(directories[-1])
    sums = {name: tensor.to(torch.float64) for name, tensor in last.items() if tensor.is_floating_point()}
    for directory in directories[:-1]:
        weights = load_weights(directory)
        if {name: t.shape for name, t in weights.items()} != {name: t.shape for name, t in last.items()}:
            raise UserError(f"{directory}: its weights are not those of the model of {directories[-1]}")
        for name, total in sums.items():
            total += weights[name]
    mean = {name: (total / len(directories)).to(last[name].dtype) for name, total in sums.items()}
    ties = {name: first for names in _tied_names(last) for first in names[:1] for name in names}
    return {name: mean[ties.get(name, name)] if name in mean else tensor for name, tensor in last.items()}


def _tied_names(weights: Mapping[str, Tensor]) -> list[list[str]]:
    """Names in groups of one tensor: same memory, same shape, same strides."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in weights.items():
        if tensor.numel():
            key = (tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride())
            groups.setdefault(key, []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _without_ties(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors to store, {tied name: the name it is stored under}). What is stored shares no memory."""
    tied = {name: names[0] for names in _tied_names(weights) for name in names[1:]}
    stored = {}
    for name, tensor in weights.items():
        if name in tied:
            continue
        tensor = tensor.detach()
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        stored[name] = tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
    return stored, tied


def _new_name(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.new")


def _old_name(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.old")


def _find(directory: Path) -> Path | None:
    return next((path for path in (directory, _old_name(directory)) if path.is_dir()), None)


@contextmanager
def _replacing(directory: Path) -> Iterator[Path]:
    """An empty directory to write a checkpoint into, which then takes the place of `directory`."""
    tidy_checkpoint(directory)
    new, old = _new_name(directory), _old_name(directory)
    new.mkdir(parents=True)
    try:
        yield new
        for path in (*new.iterdir(), new):
            fsync(path)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if why := _no_room(error):
            raise disk_full(directory, why) from None
        raise
    if directory.exists():
        directory.rename(old)
    new.rename(directory)
    fsync(directory.parent)
    if old.exists():
        shutil.rmtree(old)


def _no_room(error: BaseException) -> str | None:
    """What the system said, where the disk is full: safetensors says it in words only, torch something else on top."""
    if isinstance(error, SafetensorError):
        return next((os.strerror(number) for number in NO_ROOM if f"(os error {number})" in str(error)), None)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return error.strerror
    return None if error.__context__ is None else _no_room(error.__context__)


def _add_state(new: Path, state: Mapping[str, Any], weights_sha256: str) -> None:
    with (new / STATE).open("wb") as file:
        torch.save(dict(state), file)
    sums = {WEIGHTS: weights_sha256, STATE: _sha256(new / STATE)}
    (new / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _steadily(directory: Path, read: Callable[[Path], T]) -> T:
    """Read a checkpoint that a training run may be swapping for the next one: read again if it changed meanwhile."""
    for _ in range(20):
        found = _find(directory)
        if found is None:
            raise UserError(f"{directory}: there is no checkpoint here")
        before = _identity(found)
        try:
            result = read(found)
        except (UserError, OSError):
            # an old one may look unchanged while it is being removed, but then there is a new one
            if before == _identity(found) and found == _find(directory):
                raise
        else:
            if before == _identity(found):
                return result
    raise UserError(f"{directory}: it was replaced again and again while being read; try once more")


def _identity(directory: Path) -> tuple[int, int] | None:
    """What tells a directory from another one that takes its name."""
    try:
        status = directory.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path}: damaged ({why}); take another checkpoint, or train the run again in another --out")


def _read_checksums(directory: Path) -> dict[str, str]:
    path = directory / CHECKSUMS
    try:
        sums = json.loads(path.read_text(encoding="utf-8"))
        return {WEIGHTS: str(sums[WEIGHTS]), STATE: str(sums[STATE])}
    except FileNotFoundError:
        raise _damaged(path, "the file is missing") from None
    except (ValueError, KeyError, TypeError):
        raise _damaged(path, "it is not a list of checksums") from None


def _check(path: Path, verify: bool) -> None:
    if not path.is_file():
        raise _damaged(path, "the file is missing")
    if verify and _sha256(path) != _read_checksums(path.parent)[path.name]:
        raise _damaged(path, f"its SHA-256 is not the one in {CHECKSUMS}")


def _read_weights(directory: Path, verify: bool) -> dict[str, Tensor]:
    path = directory / WEIGHTS
    _check(path, verify)
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise _damaged(path, str(error)) from None
    return weights | {name: weights[to] for name, to in json.loads(metadata.get(_TIED, "{}")).items()}


def _read_state(directory: Path, verify: bool) -> dict[str, Any]:
    path = directory / STATE
    _check(path, verify)
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its reader of zip files or its unpickler happened to raise
        raise _damaged(path, str(error).split("\n")[0]) from None
    return state
