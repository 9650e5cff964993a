"""Processes that die at a chosen action on the file system, as under SIGKILL: no handler, no clean-up."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable

DIED = 99
_ACTIONS = ("open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir")


def fork(action: Callable[[], object]) -> int:
    """Run `action` in a forked process; its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        action()
        status = 0
    except BaseException:
        with contextlib.suppress(OSError):
            os.write(2, traceback.format_exc().encode())
    os._exit(status)


def status_of(child: int) -> int:
    """Exit status of a forked process, once it ends; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dies_at(number: int, action: Callable[[], object]) -> bool:
    """Run `action` in a process that dies just before its n-th opening, link, renaming or removal of a file or folder.

    False if the action came to its end first.
    """

    def doomed() -> None:
        left = number

        def count(event: str, _: tuple[object, ...]) -> None:
            nonlocal left
            if event in _ACTIONS:
                left -= 1
                if left == 0:
                    os._exit(DIED)

        sys.addaudithook(count)
        action()

    status = status_of(fork(doomed))
    assert status in (0, DIED), f"the action failed: status {status}"
    return status == DIED
