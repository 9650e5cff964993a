"""Records: measured figures, each with the recipe it belongs to (its signature) and the command that made it."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from nmt_ls.experiment.command_line import NO_ROOM, UserError, disk_full
from nmt_ls.experiment.processor import device_name, this_processor, threads_here

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
if sys.platform != "win32":
    import fcntl

FITTED_ON = "validation"
"""The split on which temperatures are fitted."""
PACKAGES = ("torch", "numpy", "sacrebleu", "sentencepiece")


def provenance(device: str | torch.device = "cpu", *, threads: int | None = None) -> dict[str, Any]:
    """Where a figure comes from: commit, versions, machine, command and time, as JSON can hold them.

    threads: those of what is recorded; None: PyTorch's in this process. Who says them, on a CPU, need not load PyTorch.

    `commit` and `dirty` are as this process first found them, None outside a git checkout of this project; `dirty` is
    about tracked files other than those below results/, which every measurement changes.
    """
    commit, dirty = own_commit()
    processor = this_processor()
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": {"python": platform.python_version(), **_versions()},
        "device": f"{device} ({device_name(device)})",
        "processor": processor.name,
        "instruction_sets": list(processor.instruction_sets),
        "threads": threads or threads_here(),
        "command": command(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@functools.cache
def own_commit() -> tuple[str | None, bool | None]:
    """`commit_of` this package, looked up once in a process: what runs is what was loaded."""
    return commit_of()


def command() -> str:
    """This process's command line, as it can be typed again: `python -m package.module args`."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None:
        return shlex.join(["python", *sys.argv])
    return shlex.join(["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]])


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit_of(package: Path = Path(__file__).parent) -> tuple[str | None, bool | None]:
    """The commit of the checkout that `package` belongs to; (None, None) where git does not track this file in it."""

    def git(*arguments: str) -> str:
        quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # a status must not stand in another process's way
        run = ["git", "-C", str(package), *arguments]
        return subprocess.run(run, capture_output=True, text=True, check=True, timeout=30, env=quiet).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # or: installed inside some other project's checkout
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":/!results")
        return git("rev-parse", "HEAD"), bool(changed)
    except (OSError, subprocess.SubprocessError):
        return None, None


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The recipe of a figure: what does not apply stays None and is left out; what has no field goes into `extras`."""

    alpha: float | None = None
    spread: str | None = None
    prior: str | None = None
    temperature: float | str | None = None
    beam: int | None = None
    length_penalty: float | str | None = None
    bins: int | None = None
    split: str | None = None
    checkpoint: str | None = None
    seed: int | None = None
    precision: str | None = None
    commit: str | None = None
    corpus: str | None = None  # its checksum
    device: str | None = None
    threads: int | None = None
    versions: Mapping[str, str] | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if taken := sorted(set(self.extras) & {entry.name for entry in fields(self)}):
            raise ValueError(f"extras may not hold {', '.join(taken)}: the signature has a field of that name")

    @classmethod
    def of(cls, origin: Mapping[str, Any], **recipe: Any) -> Self:
        """A signature whose commit, versions, device and threads come from `provenance()`; a dirty tree is marked."""
        commit = f"{origin['commit']}-dirty" if origin["dirty"] else origin["commit"]
        machine = {name: origin[name] for name in ("versions", "device", "threads")}
        return cls(**{"commit": commit, **machine, **recipe})

    def to_dict(self) -> dict[str, Any]:
        """What applies, extras among it."""
        named = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "extras"}
        return {name: value for name, value in {**named, **self.extras}.items() if value is not None}

    def __str__(self) -> str:
        """One line to print beside a figure: `alpha:0.1|temperature:1.0|…`."""
        return one_line(self.to_dict())


def one_line(signature: Mapping[str, Any]) -> str:
    """A signature to print beside a figure: `alpha:0.1|temperature:1.0|…`, versions last."""
    shown = {name: value for name, value in signature.items() if name != "versions"}
    return "|".join(f"{name}:{value}" for name, value in {**shown, **signature.get("versions", {})}.items())


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured figure."""

    name: str
    value: float
    signature: Mapping[str, Any]
    command: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError("a record needs a name")
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not math.isfinite(self.value):
            raise ValueError(f"record {self.name}: {self.value!r} is not a finite number")
        if not isinstance(self.signature, Mapping) or not isinstance(self.command, str):
            raise ValueError(f"record {self.name}: its signature must be a mapping, and its command text")


def prepare_results(results: Path) -> None:
    """Have the directory. Raises UserError where there can be none, or nothing can be written there."""
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"results: {results} cannot be made ({error.strerror}); name another directory") from None
    if not os.access(results, os.W_OK):
        raise UserError(f"results: {results} cannot be written to; name another directory")


def append_records(path: str | Path, records: Iterable[Record]) -> None:
    """Append to a JSON-lines file, one writer after the other, each in one piece; they reach the disk.

    Raises:
        ValueError: a signature holds what JSON cannot (NaN included); then nothing is written.
        UserError: the disk is full; then nothing is written.
    """
    content = "".join(_line(record) + "\n" for record in records).encode()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # a file system without locks: go on without
                fcntl.flock(handle, fcntl.LOCK_EX)
        if content:
            _append(handle, content)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise disk_full(path, error.strerror) from None
        raise
    finally:
        os.close(handle)


def _append(handle: int, content: bytes) -> None:
    """After the last whole line: what a writer that was killed left of another was never a record."""
    size = os.fstat(handle).st_size
    tail = _unended_line(handle, size)
    if tail and not _is_record(tail):
        size -= len(tail)
        os.ftruncate(handle, size)
    elif tail:
        content = b"\n" + content
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(handle, left) :]  # in one go, unless the disk is full
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, size)
        raise


def _unended_line(handle: int, size: int) -> bytes:
    """What follows the last newline."""
    end = b""
    while len(end) < size and b"\n" not in end:
        begin = max(0, size - len(end) - (1 << 16))
        end = os.pread(handle, size - len(end) - begin, begin) + end
    return end.rpartition(b"\n")[2]


def append_new_records(path: str | Path, records: Sequence[Record]) -> int:
    """Append those that the file does not hold with the same name, value and signature; how many that were.

    Raises what `read_records` and `append_records` do.
    """
    there = {identity(record) for record in read_records(path)} if Path(path).exists() else set()
    new = [record for record in records if identity(record) not in there]
    append_records(path, new)
    return len(new)


def temperature_recipe(temperature: float | Literal["fitted"]) -> dict[str, str]:
    """How a figure's temperature was chosen, and on what split."""
    return (
        {"temperature_is": "fitted", "fitted_on": FITTED_ON} if temperature == "fitted" else {"temperature_is": "given"}
    )


def warn_of_flattery(split: str) -> None:
    """Say on standard error that a temperature is fitted on the split on which it is reported, if it is."""
    if split == FITTED_ON:
        print(
            f"warning: the temperature is fitted on the {FITTED_ON} split and reported on it, which flatters it; "
            "name another --split",
            file=sys.stderr,
        )


def records_of(
    values: Mapping[str, float], signature: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Record]:
    """One a figure, made by this process's command; none for a value that is not finite (a mean of nothing, say).

    own: what besides belongs to the signature of one figure, by its name.
    """
    return [
        Record(name=name, value=value, signature={**signature, **(own or {}).get(name, {})}, command=command())
        for name, value in values.items()
        if math.isfinite(value)
    ]


def store_records(results: Path, records: Sequence[Record], diagrams: Mapping[str, Figure]) -> None:
    """Append to records.jsonl what is not there yet, then write the diagrams into figures/ by their names; say so on
    standard error.

    A figure measured again with the same recipe (commit and versions are of it) and value is not recorded twice; one
    of another commit is a record of its own, and the later.
    """
    added = append_new_records(results / "records.jsonl", records)
    before = f" ({len(records) - added} were there)" if added < len(records) else ""
    print(f"added {added} records to {results / 'records.jsonl'}{before}", file=sys.stderr)
    save_diagrams(results, diagrams)


def save_diagrams(results: Path, diagrams: Mapping[str, Figure]) -> None:
    """Write them into figures/ by their names; say so on standard error."""
    for name, figure in diagrams.items():
        from nmt_ls.metrics.plots import save_figure  # loads matplotlib: only where something is drawn

        for path in save_figure(figure, results / "figures" / name):
            print(f"wrote {path}", file=sys.stderr)


def identity(record: Record) -> str:
    """What tells a figure from others: name, value and signature, whatever command measured it."""
    return json.dumps([record.name, record.value, record.signature], sort_keys=True)


def _line(record: Record) -> str:
    entry = {
        "name": record.name,
        "value": record.value,
        "signature": dict(record.signature),
        "command": record.command,
    }
    try:
        return json.dumps(entry, allow_nan=False, ensure_ascii=False)
    except (ValueError, TypeError) as error:
        raise ValueError(f"record {record.name}: {error}") from None


def read_records(path: str | Path) -> list[Record]:
    """The records of a file, in its order; a last line that a kill cut short is left out.

    Raises:
        UserError: a line that is no record, by file and line.
        OSError: the file cannot be read.
    """
    *lines, unended = Path(path).read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(_parsed(line))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}, line {number}: not a record: {error}; remove the line") from None
    return [*records, _parsed(unended)] if _is_record(unended) else records


def _parsed(line: bytes) -> Record:
    return Record(**json.loads(line, parse_constant=_refuse_constant))


def _is_record(line: bytes) -> bool:
    try:
        _parsed(line)
    except (ValueError, TypeError):
        return False
    return True


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
