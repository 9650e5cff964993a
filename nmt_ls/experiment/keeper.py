"""Stands between a study and one of its commands, so that no death of the study leaves the command behind.

    python keeper.py GRACE COMMAND…

runs the command in a process group of its own. The study holds the other end of the keeper's standard input: when the
study dies, however it dies, that end closes, and the keeper passes SIGTERM on, as it does when it is sent SIGTERM or
SIGINT itself. What has not left GRACE seconds later is killed; so is whatever the command leaves running. Where the
system allows it (Linux), the command also gets SIGTERM should the keeper itself be killed.

The keeper exits with the command's status, 128 + n for one that signal n ended. It is started by its path and imports
the standard library only: a few milliseconds and megabytes a command.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

_PR_SET_PDEATHSIG = 1
_LOOK_EVERY = 0.05  # seconds


class Keeper:
    """One command and its process group."""

    def __init__(self, command: Sequence[str], grace: float) -> None:
        self.grace = grace
        self.kill_at: float | None = None
        # before the command begins, so that no signal finds the keeper without a handler and the command running
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            close_fds=False,  # the study's lock on the cell is handed on, and held until the last of us is gone
            preexec_fn=_dies_with_parent(),
        )

    def _ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 (Python's signature)
        self.asked = True

    def watch(self) -> int:
        """Until the command has left; its status."""
        study_lives = True
        while self.child.poll() is None:
            if study_lives:
                readable, _, _ = select.select([0], [], [], _LOOK_EVERY)
                study_lives = not readable  # nothing is ever written: what can be read is the end
            else:
                time.sleep(_LOOK_EVERY)
            if self.kill_at is None and (self.asked or not study_lives):
                # once: many a command takes a second SIGTERM for a wish to leave without saving
                self._signal(signal.SIGTERM)
                self.kill_at = time.monotonic() + self.grace
            elif self.kill_at is not None and time.monotonic() > self.kill_at:
                self._signal(signal.SIGKILL)
        self._signal(signal.SIGKILL)
        status = self.child.returncode
        return 128 - status if status < 0 else status

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, number)


def _dies_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork
    keeper = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != keeper:  # it died between fork and prctl
            os.kill(os.getpid(), signal.SIGTERM)

    return ask


def main(arguments: Sequence[str]) -> int:
    grace, *command = arguments
    try:
        return Keeper(command, float(grace)).watch()
    except OSError as error:
        print(f"error: {command[0]}: {error.strerror or error}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
