"""One run, one directory: what it was asked (config.yaml), where and how it ran (manifest.json), what it measured
(metrics.jsonl), what it came to (summary.json, which marks it finished), and its checkpoints."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import yaml

from nmt_ls.experiment.atomic import atomic_write, fsync
from nmt_ls.experiment.checkpoint import checkpoint_exists
from nmt_ls.experiment.command_line import UserError, flatten
from nmt_ls.experiment.schedule import SCHEDULES_WITH_AN_END

if sys.platform != "win32":
    import fcntl

__all__ = ["RunDirectory", "RunState", "atomic_write", "begun_manifest", "find_run", "newest_finished_run"]

RunState = Literal["new", "resume", "finished"]
_ABSENT = object()


class RunDirectory:
    """The files of a run. `RunDirectory(path)` reads any run; only `open` takes the lock and lets a run write."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.config_file = self.path / "config.yaml"
        self.manifest_file = self.path / "manifest.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.summary_file = self.path / "summary.json"
        self.tensorboard = self.path / "tensorboard"
        self.changes: dict[str, tuple[Any, Any]] = {}  # entries of the manifest that are others on resume: (was, is)
        self._release: Callable[[], object] = lambda: None

    @classmethod
    def open(
        cls,
        path: str | Path,
        config: dict[str, Any],
        manifest: dict[str, Any],
        may_differ: Sequence[str] = (),
        may_grow: Sequence[str] | None = None,
        must_match: Sequence[str] = ("corpus_checksum",),
        defaults: Mapping[str, Any] | None = None,
    ) -> tuple[Self, RunState]:
        """Begin a run at `path`, or go on with the one that is there; holds its lock until `close` or garbage.

        A run that is there must have been asked the same: another value of any key is refused by name (UserError),
        but for the dotted keys in `may_differ` and for numbers that became larger in `may_grow` (None stands for
        engine.max_updates, where schedule.kind does not decay towards it). Keys of the manifest in `must_match` must
        not differ either. What the run's config.yaml does not have yet was added since it was begun and counts as what
        `defaults`, a whole configuration, says of it. A run with a summary is "finished" and nothing in it is touched,
        unless a key of `may_grow` has grown: then it is taken up again and the summary is removed.
        """
        if may_grow is None:
            may_grow = () if _decays_to_the_end(config) else ("engine.max_updates",)
        run = cls(path)
        config, manifest = _plain(config), _plain(manifest)
        run._take_lock()
        try:
            for left in run.path.glob(".*.new"):  # by a process that was killed while writing
                left.unlink()
            if not run.config_file.exists():
                run._begin(config, manifest)
                return run, "new"
            grown = run._compare(config, manifest, may_differ, may_grow, must_match, defaults or {})
            if run.summary_file.exists() and not grown:
                run.close()
                return run, "finished"
            run._go_on(config, manifest)
            return run, "resume"
        except BaseException:
            run.close()
            raise

    def close(self) -> None:
        """Give the lock back."""
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl; NaN and infinities, which JSON does not have, become null."""
        text = json.dumps(_plain(line, finite=True), ensure_ascii=False)
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that a kill cut short is left out."""
        if not self.metrics_file.exists():
            return []
        text = self.metrics_file.read_text(encoding="utf-8", errors="replace")
        lines = []
        for number, line in enumerate(text.split("\n")[:-1], start=1):
            try:
                lines.append(json.loads(line))
            except ValueError:
                raise UserError(f"{self.metrics_file}:{number}: not a line of JSON; remove it") from None
        return lines

    def cut_metrics(self, step: int, validated: int) -> None:
        """Drop what a resumed run will write again: lines with a step after `step`, one cut short, and validations
        after `validated`, which is before `step` where a signal threw one away."""
        if self.metrics_file.exists():
            kept = [
                json.dumps(line, ensure_ascii=False)
                for line in self.read_metrics()
                if line["step"] <= (validated if line.get("split") == "validation" else step)
            ]
            atomic_write(self.metrics_file, "".join(line + "\n" for line in kept))

    def sync_metrics(self) -> None:
        """Have the lines so far on the disk itself (before a checkpoint that will count on them)."""
        if self.metrics_file.exists():
            fsync(self.metrics_file)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json: from here on the run is finished."""
        text = json.dumps(_plain(summary, finite=True), indent=2, ensure_ascii=False)
        atomic_write(self.summary_file, text + "\n")

    def read_config(self) -> dict[str, Any]:
        """config.yaml."""
        return _read(self.config_file, yaml.safe_load)

    def read_manifest(self) -> dict[str, Any]:
        """manifest.json."""
        return _read(self.manifest_file, json.loads)

    def read_summary(self) -> dict[str, Any]:
        """summary.json."""
        return _read(self.summary_file, json.loads)

    def forget(self) -> None:
        """Undo `open` of a new run that failed before it saved anything: its settings may then be corrected."""
        if checkpoint_exists(self.checkpoints / "last"):
            return
        self.config_file.unlink(missing_ok=True)  # first: without it the rest is no run
        for entry in self.path.iterdir():
            if entry.is_file() and not entry.name.startswith("."):
                entry.unlink()
        shutil.rmtree(self.tensorboard, ignore_errors=True)

    def _take_lock(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: a file, where the directory of a run should be; choose another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        if sys.platform == "win32":
            return
        lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 200).decode("utf-8", "replace").strip()
            os.close(lock)
            message = f"{self.path}: in use by {holder or 'another process'}; wait for it or choose another --out"
            raise UserError(message) from None
        except OSError:  # a file system without locks: go on without
            pass
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._release = weakref.finalize(self, os.close, lock)

    def _begin(self, config: dict[str, Any], manifest: dict[str, Any]) -> None:
        strangers = [entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")]
        # a run killed while it began has a manifest and no config: config.yaml, written last, makes a run of it
        if not set(strangers) <= {self.manifest_file.name, self.checkpoints.name}:
            raise UserError(f"{self.path}: not a run (no config.yaml) and not empty; choose another --out")
        self.checkpoints.mkdir(exist_ok=True)
        self._write_manifest(manifest)
        self._write_config(config)

    def _go_on(self, config: dict[str, Any], manifest: dict[str, Any]) -> None:
        self.checkpoints.mkdir(exist_ok=True)
        # before the config: killed in between, the same command still finds that it asks for more
        self.summary_file.unlink(missing_ok=True)
        if self.read_config() != config:
            self._write_config(config)
        kept = self.read_manifest()
        was, now = flatten(kept), flatten(manifest)
        self.changes = {key: (was.get(key), now[key]) for key in now if key != "time" and was.get(key) != now[key]}
        resumed = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **{key: now[key] for key in self.changes}}
        self._write_manifest({**kept, "resumed": [*kept.get("resumed", []), resumed]})

    def _write_config(self, config: dict[str, Any]) -> None:
        atomic_write(self.config_file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        atomic_write(self.manifest_file, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")

    def _compare(
        self,
        config: dict[str, Any],
        manifest: dict[str, Any],
        may_differ: Sequence[str],
        may_grow: Sequence[str],
        must_match: Sequence[str],
        defaults: Mapping[str, Any],
    ) -> bool:
        """Refuse what may not differ; whether a key of may_grow has grown."""
        was, now = {**flatten(_plain(defaults)), **flatten(self.read_config())}, flatten(config)
        refused, grown = [], False
        for key in dict.fromkeys([*was, *now]):
            old, new = was.get(key, _ABSENT), now.get(key, _ABSENT)
            if old == new or key in may_differ:
                continue
            if key in may_grow and isinstance(old, int | float) and isinstance(new, int | float):
                if new > old:
                    grown = True
                    continue
                refused.append(f"{key} was {old} and may only grow, not become {new}")
            else:
                refused.append(f"{key} was {_show(old)}, now {_show(new)}")
        kept = self.read_manifest()
        matched, given = (flatten({key: each[key] for key in must_match if key in each}) for each in (kept, manifest))
        for key in matched:
            if key in given and matched[key] != given[key]:
                refused.append(f"{key} was {_show(matched[key])}, now {_show(given[key])}")
        if refused:
            rest = f" (and {len(refused) - 4} more)" if len(refused) > 4 else ""
            what = "; ".join(refused[:4]) + rest
            raise UserError(f"{self.path}: begun with other settings: {what}; repeat them or choose another --out")
        return grown


def newest_finished_run(root: str | Path = "runs", accept: Callable[[RunDirectory], bool] | None = None) -> Path | None:
    """The run under `root` (one or two levels down) whose summary was written last; None if there is none."""
    root = Path(root)
    found = [path for pattern in ("*/summary.json", "*/*/summary.json") for path in root.glob(pattern)]
    for summary in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        run = RunDirectory(summary.parent)
        if run.config_file.exists() and (accept is None or accept(run)):
            return run.path
    return None


def find_run(run: str | None, *, kind: str, key: str, trainer: str, option: str = "run") -> Path:
    """The run that was named, or the newest finished one of its kind, which is then announced on standard error.

    kind, key, trainer: what its model is, what of config.yaml tells it, and the command that makes such runs.
    option: the key with which the user names it, for messages.

    Raises UserError where there is none, or where the one named is of another kind.
    """
    if run is None:
        newest = newest_finished_run(accept=lambda found: key in found.read_config())
        if newest is None:
            raise UserError(
                f"{option}: there is no finished run of a {kind} under runs/; "
                f"train one (python -m {trainer}) or name one"
            )
        print(f"{option}: {newest} (the newest finished one)", file=sys.stderr)
        return newest
    if not RunDirectory(run).config_file.exists():
        raise UserError(f"{option}: {run} is not a run (it has no config.yaml); name a directory that {trainer} wrote")
    if key not in RunDirectory(run).read_config():
        raise UserError(f"{option}: {run} is no {kind}'s (its config.yaml has no {key}); name one of {trainer}")
    return Path(run)


def check_names(runs: Sequence[Path]) -> None:
    """Raises UserError where two runs have one name: records go by it."""
    names = [run.name for run in runs]
    if doubles := [name for name in names if names.count(name) > 1]:
        raise UserError(f"runs: two of them are called {doubles[0]}; rename one directory")


def begun_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run that is there, whose machine-dependent choices a resume keeps; empty for a new one."""
    run = RunDirectory(path)
    return run.read_manifest() if run.config_file.exists() else {}


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such file; name the directory of a run, one that has come so far"
        ) from None
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); restore it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: does not hold keys and values; restore it")
    return content


def _decays_to_the_end(config: Mapping[str, Any]) -> bool:
    """Whether the learning rate before an update depends on max_updates (see ScheduleConfig.total_updates)."""
    schedule = config.get("schedule")
    if not isinstance(schedule, Mapping):
        return False
    return schedule.get("kind") in SCHEDULES_WITH_AN_END and not schedule.get("total_updates")


def _plain(value: Any, finite: bool = False) -> Any:
    """`value` as YAML and JSON give it back: tuples as lists, paths and keys as strings; if `finite`, NaN as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, finite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, finite) for item in value]
    if finite and isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=False, default=str)
