"""Decoding in several processes of one thread each, which share the lines of every portion.

One translator with all threads waits for itself at every small product; processes do not. They are spawned, not forked
(the parent has computed with threads), each loads the run, and they end with the parent, however that ends.
"""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from nmt_ls.experiment.checkpoint import CheckpointName
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.precision import Precision
from nmt_ls.search import SearchConfig
from nmt_ls.translator import Hypothesis, Translator


class Workers:
    """Translates as `Translator.translate` does, in `count` processes; a context manager, which ends them."""

    def __init__(
        self, count: int, run: str | Path, checkpoint: CheckpointName, device: str | torch.device, precision: Precision
    ) -> None:
        """precision: of a translator that was loaded before, so that all compute alike."""
        spawn = multiprocessing.get_context("spawn")
        pipes = [spawn.Pipe() for _ in range(count)]
        self._processes = [
            spawn.Process(target=_work, args=(theirs, str(run), checkpoint, str(device), precision), daemon=True)
            for _, theirs in pipes
        ]
        self._connections = [ours for ours, _ in pipes]
        for process, (_, theirs) in zip(self._processes, pipes, strict=True):
            process.start()
            theirs.close()  # so that a worker's end is seen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def translate(
        self,
        lines: Sequence[str],
        config: SearchConfig,
        *,
        max_tokens: int,
        prefixes: Sequence[str] | None = None,
        first_line: int = 0,
        on_truncated: Callable[[int], None],
        on_progress: Callable[[int], object],
    ) -> list[list[Hypothesis]]:
        """The n best translations of each line, as those of `Translator.translate`.

        Raises UserError as it does, and where a worker has come to an end.
        """
        starts = shard_starts([len(line) for line in lines], len(self._connections))
        shards = dict(zip(self._connections, itertools.pairwise([*starts, len(lines)]), strict=True))
        for connection, (start, end) in shards.items():
            settings: dict[str, Any] = {"max_tokens": max_tokens, "first_line": first_line + start}
            if prefixes is not None:
                settings["prefixes"] = list(prefixes[start:end])
            with suppress(OSError):  # that it has ended shows below
                connection.send((list(lines[start:end]), config, settings))
        found: dict[Connection, list[list[Hypothesis]]] = {}
        while waiting := [connection for connection in shards if connection not in found]:
            ready = set(wait(waiting))
            for connection in (each for each in waiting if each in ready):
                kind, value = self._next(connection)
                if kind == "found":
                    found[connection] = value
                elif kind == "truncated":
                    on_truncated(shards[connection][0] + value)
                elif kind == "progress":
                    on_progress(value)
                else:
                    raise UserError(value)
        return [hypotheses for connection in shards for hypotheses in found[connection]]

    def _next(self, connection: Connection) -> tuple[str, Any]:
        try:
            message: tuple[str, Any] = connection.recv()
        except (EOFError, OSError):
            process = self._processes[self._connections.index(connection)]
            process.join()
            raise UserError(
                f"workers: one of {len(self._processes)} came to an end (exit code {process.exitcode}; a message of "
                "its own may stand above; -9 is often a lack of memory); take fewer workers"
            ) from None
        return message


def shard_starts(lengths: Sequence[int], count: int) -> list[int]:
    """Where `count` runs of lines begin that have about as many characters each."""
    sums = [0, *itertools.accumulate(lengths)]
    return [bisect_left(sums, sums[-1] * part / count) for part in range(count)]


def _work(connection: Connection, run: str, checkpoint: CheckpointName, device: str, precision: Precision) -> None:
    """A worker's life: until the parent closes the pipe, or ends it. An interrupt is the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            translator = Translator.load(run, checkpoint, device, precision)
            while True:
                lines, config, settings = connection.recv()
                found = translator.translate(
                    lines,
                    config,
                    **settings,
                    on_truncated=lambda line: connection.send(("truncated", line)),
                    on_progress=lambda count: connection.send(("progress", count)),
                )
                connection.send(("found", found))
        except UserError as error:
            connection.send(("refused", str(error)))
