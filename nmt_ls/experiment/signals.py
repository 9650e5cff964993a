"""SIGINT and SIGTERM, turned into a wish to stop at the next good moment; a second SIGINT leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """Raised by the signal itself inside `StopSignals.interruptible()`."""


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is noted in `received` and announced on standard error.

    SIGINT is then the system's own again, so that a second Ctrl-C ends the process at once, even if Python is busy
    inside a long call. SIGTERM is ignored from then on (SIGKILL remains): Slurm, systemd and torchrun send it to all
    processes of a group and pass it on besides, so that a second one is no wish to lose work.

    Outside the main thread, where Python allows no handlers, nothing is caught; a signal that was being ignored (as
    under nohup) stays ignored.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._may_raise = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Work that may be thrown away: here a signal raises Interrupted, and one that came before does so now."""
        self._may_raise = True
        try:
            if self.received is not None:
                raise Interrupted
            yield
        finally:
            self._may_raise = False

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 (Python's signature)
        self.received = signal.Signals(number)
        for other in self._previous:
            signal.signal(other, signal.SIG_DFL if other == signal.SIGINT else signal.SIG_IGN)
        # not print: the signal may have come in the midst of one, and a stream's buffer cannot be entered twice
        with contextlib.suppress(OSError):
            os.write(2, f"\n{self.received.name}: saving, then leaving (Ctrl-C to leave at once)\n".encode())
        if self._may_raise:
            self._may_raise = False
            raise Interrupted
