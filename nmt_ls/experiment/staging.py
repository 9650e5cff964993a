"""Directories that appear whole or not at all: built under a hidden name beside their place, then renamed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from nmt_ls.experiment.atomic import fsync

LOCK = ".building"
# a sibling whose lock is free is an orphan, unless it was made this moment and its builder has yet to take the lock
ORPHAN_SECONDS = 60.0
DEFAULT_HANDLERS = (signal.SIG_DFL, signal.default_int_handler)


class StagingDirectory:
    """A directory under construction.

    Attributes:
        path: where to build.
    """

    def __init__(self, path: Path, final: Path) -> None:
        self.path = path
        self._final = final

    def publish(self) -> bool:
        """Rename to the final place, once what was written is on disk; False where someone else already has it."""
        for path in [*self.path.rglob("*"), self.path]:
            fsync(path)
        (self.path / LOCK).unlink()  # last: without it this is taken for an orphan, if not at once
        try:
            self.path.rename(self._final)  # succeeds over an empty directory, never over one with content
        except OSError:
            if self._final.is_dir():
                return False
            raise
        return True


@contextlib.contextmanager
def staging_directory(final: Path) -> Iterator[StagingDirectory]:
    """A hidden directory beside `final`, removed on the way out unless published, on SIGTERM and SIGHUP too.

    What a killed builder of the same directory left behind is removed first.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{final.name}.building-"
    _remove_orphans(final.parent, prefix)
    path = final.parent / f"{prefix}{uuid.uuid4().hex[:12]}"
    path.mkdir()
    try:
        with terminate_as_exit(), (path / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield StagingDirectory(path, final)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _remove_orphans(parent: Path, prefix: str) -> None:
    for path in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if _is_young(path):
                continue
            try:
                lock = (path / LOCK).open("r+")
            except FileNotFoundError:
                # killed as it began or was published; a builder that has removed its lock just now has made it young
                if not _is_young(path):
                    shutil.rmtree(path, ignore_errors=True)
                continue
            with lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)


def _is_young(path: Path) -> bool:
    return time.time() - path.stat().st_mtime < ORPHAN_SECONDS


@contextlib.contextmanager
def terminate_as_exit() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as SIGINT does, so that `finally` is reached.

    Forked workers do not unwind theirs: they leave SIGINT, which a terminal sends to all, to their parent, and go
    silently when it ends them. An exception that a signal raises inside a finaliser or a weak reference's callback,
    where Python drops it, is raised again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def leave(number: int, _frame: FrameType | None) -> None:
        if os.getpid() == owner:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        if number != signal.SIGINT:
            os._exit(128 + number)

    def dropped(what: sys.UnraisableHookArgs) -> None:
        if isinstance(what.exc_value, KeyboardInterrupt | SystemExit) and os.getpid() == owner:
            code = what.exc_value.code if isinstance(what.exc_value, SystemExit) else None
            number = code - 128 if isinstance(code, int) and code > 128 else signal.SIGINT
            threading.Timer(0.05, os.kill, (owner, number)).start()
        else:
            hook_before(what)

    # one that is ignored (SIGHUP under nohup) stays so, and a command's own way with SIGINT is left to it
    wanted = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    before = {number: handler for number, handler in wanted.items() if handler in DEFAULT_HANDLERS}
    hook_before = sys.unraisablehook
    sys.unraisablehook = dropped
    for number in before:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook_before
