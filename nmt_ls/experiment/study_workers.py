"""Runs the cells of a study: several at a time, each under a lock, stopped in time, and none left behind.

One loop starts commands and waits for them; a command runs under a keeper (keeper.py), which ends it when this process
asks or dies. Whatever happens, what a finished command left is either among the study's records or in its cell's
folder, from where the next session takes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from nmt_ls.experiment import keeper
from nmt_ls.experiment.atomic import fsync
from nmt_ls.experiment.records import Record, Signature, append_records, identity, provenance, read_records
from nmt_ls.experiment.signals import StopSignals
from nmt_ls.experiment.study import (
    COST,
    Cell,
    Costs,
    Estimate,
    Progress,
    Step,
    Study,
    lost_commands,
    unfinished,
)
from nmt_ls.experiment.study_records import check_data, last_of_each, record_of

GRACE = 60.0  # seconds between the wish that a command leaves and its end
_LOOK_EVERY = 0.1
_NOTE_EVERY = 15.0  # how often the time spent is noted: what a killed session forgets at most
_SIGNALLED = (128 + signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGKILL)


class Locked:
    """The lock on a cell; commands inherit it, so that it is held until the last of them is gone."""

    def __init__(self, cell: Cell) -> None:
        cell.state.mkdir(parents=True, exist_ok=True)
        self.handle = os.open(cell.state / "lock", os.O_RDWR | os.O_CREAT, 0o644)

    def take(self) -> bool:
        """False where another worker has it (`is_locked`, which only looks, has it for a moment)."""
        for _ in range(3):
            try:
                fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                time.sleep(0.02)
        os.close(self.handle)
        return False

    def give_back(self) -> None:
        """Closing is enough: nobody else has this description but commands, and they have left."""
        os.close(self.handle)


def is_locked(cell: Cell) -> bool:
    """Whether a worker is at the cell."""
    if not (cell.state / "lock").exists():
        return False
    lock = Locked(cell)
    if not lock.take():
        return True
    lock.give_back()
    return False


def command_environment(threads: int) -> dict[str, str]:
    """Ours, with the number of threads that libraries ask the environment for."""
    count = str(threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, count), "PYTHONUNBUFFERED": "1"}


class Worker:
    """One cell being worked at: its commands one after the other. The cell's lock is held."""

    def __init__(self, study: Study, cell: Cell, lock: Locked, costs: Costs) -> None:
        self.study, self.cell, self.lock = study, cell, lock
        self.progress = Progress.read(cell)
        self.progress.failure = None
        self.began = time.monotonic()
        self.noted = self.began
        self.progress.again = lost_commands(cell, costs, self.progress)
        # a command that goes on by itself is run again: the folders that later ones need may have gone
        to_do = unfinished(cell, costs, self.progress)
        self.todo = [step for step in cell.steps if step in to_do or step.scratch is None]
        self.log: TextIO = (cell.state / "log").open("a", encoding="utf-8")
        self.process: subprocess.Popen[bytes] | None = None
        self.log_begin = 0
        self.start()

    def start(self) -> None:
        """Run the first command that is left."""
        step = self.todo[0]
        if step.scratch is not None:
            _remove_folders_of_others(self.cell, step.scratch)
            step.scratch.mkdir(parents=True, exist_ok=True)
        self.log.write(f"\n$ {step.line}\n")
        self.log.flush()
        self.log_begin = self.log.tell()
        words = [sys.executable, *step.argv[1:]] if step.argv[0] in ("python", "python3") else list(step.argv)
        self.began = self.noted = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-S", keeper.__file__, str(GRACE), *words],
            stdin=subprocess.PIPE,  # never written to: closes when we die
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=command_environment(self.study.threads),
            pass_fds=[self.lock.handle],
            start_new_session=True,  # a Ctrl-C at our terminal is ours alone to pass on
        )

    def stop(self) -> None:
        """Ask the command to leave; after GRACE seconds its keeper ends it."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def poll(self) -> int | None:
        """The status of the command, once it has left; the time spent is noted."""
        assert self.process is not None
        status = self.process.poll()
        now = time.monotonic()
        if status is not None or now - self.noted > _NOTE_EVERY:
            line = self.todo[0].line
            self.progress.spent[line] = self.progress.spent.get(line, 0.0) + now - self.noted
            self.noted = now
            self.progress.write(self.cell)
        return status

    def ended_well(self) -> None:
        """Note that the command is done and hand its figures over."""
        step = self.todo.pop(0)
        if step.line not in self.progress.ended:
            self.progress.ended.append(step.line)
        self.progress.write(self.cell)
        hand_over(self.study, self.cell, self.progress)

    def failed(self, status: int) -> None:
        """Note which command failed, how, and what it said last."""
        self.progress.failure = {
            "command": self.todo[0].line,
            "status": status,
            "last_line": last_line(self.cell.state / "log", self.log_begin),
        }
        self.progress.write(self.cell)

    def close(self) -> None:
        """Leave the cell to others."""
        self.log.close()
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
        self.lock.give_back()


def last_line(log: Path, begin: int) -> str:
    """The last line that is not blank, of what was logged from `begin` on; progress bars count by their last state."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read()[-65536:].decode("utf-8", "replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def hand_over(study: Study, cell: Cell, progress: Progress) -> None:
    """Bring what ended commands left to the study's results; the cell's lock is held.

    Each command's cost is its last record. What a kill cut short is completed the next time: records that are there
    already are not added again.
    """
    if not progress.ended:
        return
    costs = Costs.read(study)
    for step in cell.steps:
        if step.line not in progress.ended or (costs.ended(cell, step) and step.line not in progress.again):
            continue
        if step.scratch is not None and not step.scratch.is_dir():
            continue  # a command before it has changed since: what it left is of other commands
        found: list[Record] = []
        if step.scratch is not None and (step.scratch / "records.jsonl").exists():
            found = last_of_each(read_records(step.scratch / "records.jsonl"))
        records = [record_of(study, cell, step, record) for record in found]
        if step.scratch is not None:
            _copy_files(step.scratch, study.results)
        known = set(map(identity, read_records(study.records))) if study.records.exists() else set()
        new = [record for record in records if identity(record) not in known]
        append_records(study.records, [*new, cost_record(study, cell, step, progress)])
    for step in cell.steps:
        if step.line in progress.ended and step.scratch is not None:
            shutil.rmtree(step.scratch, ignore_errors=True)
    progress.again = [line for line in progress.again if line not in progress.ended]
    progress.ended = []
    progress.write(cell)


def cost_record(study: Study, cell: Cell, step: Step, progress: Progress) -> Record:
    """What a command took, over all sessions."""
    recipe = Signature.of(provenance(threads=study.threads)).to_dict()
    values = {
        "study": study.name,
        "block": cell.block,
        "cell": cell.name,
        **{k: str(v) for k, v in cell.values.items()},
    }
    return Record(
        name=COST, value=round(progress.spent.get(step.line, 0.0), 3), signature=recipe | values, command=step.line
    )


def _remove_folders_of_others(cell: Cell, scratch: Path) -> None:
    """Clear away what commands that once stood in this one's place in the file left behind."""
    place = scratch.name.partition("-")[0]
    for folder in [*cell.state.glob(f"{place}-*"), cell.state / place]:
        if folder != scratch:
            shutil.rmtree(folder, ignore_errors=True)


def _copy_files(folder: Path, results: Path) -> None:
    """Everything but the records, each file whole or not at all."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name.startswith(".") or path == folder / "records.jsonl":
            continue
        target = results / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f".{target.name}.{os.getpid()}.new")
        shutil.copyfile(path, new)
        fsync(new)
        new.replace(target)


@dataclass(kw_only=True)
class Session:
    """How a session of workers ended: cells by name."""

    done: list[str] = field(default_factory=list)  # in this session
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)  # command, status, last_line
    stopped: list[str] = field(default_factory=list)  # part-way
    left: list[str] = field(default_factory=list)  # not begun, or waiting for others
    elsewhere: list[str] = field(default_factory=list)  # another worker is at them
    reason: str = "all that could be run has been run"


class Workers:
    """Runs cells of a study until they are done, the time is up, or a signal comes.

    Raises UserError where the data are others than those of the study's earlier figures.
    """

    def __init__(self, study: Study, cells: list[Cell], *, workers: int, seconds: float | None, stream: TextIO) -> None:
        self.study, self.cells, self.workers, self.stream = study, cells, workers, stream
        self.deadline = None
        if seconds is not None:
            # commands get time to save before ours is up
            self.deadline = time.monotonic() + seconds - min(GRACE, seconds / 10)
        self.running: list[Worker] = []
        self.session = Session()
        self.costs = Costs.read(study)
        self.stopping = False
        check_data(study, cells, self.costs)

    def run(self) -> Session:
        """Work; see the class. Cells that failed are left alone until the next session."""
        with StopSignals() as signals:
            try:
                while True:
                    if not self.stopping:
                        self._stop_if_due(signals)
                    if not self.stopping:
                        self._start_cells()
                    if not self.running:
                        break
                    time.sleep(_LOOK_EVERY)
                    for worker in list(self.running):
                        status = worker.poll()
                        if status is not None:
                            self._left(worker, status)
            finally:
                for worker in self.running:  # only where something went wrong here: no command outlives us
                    worker.stop()
        self._sum_up()
        return self.session

    def _stop_if_due(self, signals: StopSignals) -> None:
        if signals.received is not None:
            self.session.reason = f"stopped by {signals.received.name}"
        elif self.deadline is not None and time.monotonic() > self.deadline:
            self.session.reason = "the time is up"
        else:
            return
        self.stopping = True
        for worker in self.running:
            worker.stop()

    def _start_cells(self) -> None:
        for cell in self.cells if len(self.running) < self.workers else []:
            if not self._may_start(cell):
                continue
            lock = Locked(cell)
            if not lock.take():
                continue
            # another worker may have finished it since we last looked
            hand_over(self.study, cell, Progress.read(cell))
            self.costs = Costs.read(self.study)
            if self.costs.done(cell):
                lock.give_back()
                continue
            self._say(cell, "goes on" if Progress.read(cell).spent else "begins")
            self.running.append(Worker(self.study, cell, lock, self.costs))
            if len(self.running) == self.workers:
                return

    def _may_start(self, cell: Cell) -> bool:
        if self.costs.done(cell) or cell.name in self.session.failed:
            return False
        if any(worker.cell is cell for worker in self.running):
            return False
        return all(self.costs.done(other) for other in self.study.cells_of(self.study.blocks[cell.block].after))

    def _left(self, worker: Worker, status: int) -> None:
        """A command has left: the next one of its cell, or the end of the cell."""
        cell = worker.cell
        if status == 0:
            worker.ended_well()
            if worker.todo and not self.stopping:
                worker.start()
                return
        self.costs = Costs.read(self.study)
        if self.costs.done(cell):
            self.session.done.append(cell.name)
            spent = sum(self.costs.seconds[cell.name, step.line] for step in cell.steps)
            self._say(cell, f"done, {clock(spent)} of work")
        elif self.stopping and (status == 0 or status in _SIGNALLED):
            self.session.stopped.append(cell.name)
            self._say(cell, "stopped; goes on next time")
        else:
            worker.failed(status)
            assert worker.progress.failure is not None
            self.session.failed[cell.name] = worker.progress.failure
            self._say(cell, f"failed ({describe_status(status)}): {worker.progress.failure['last_line']}")
        self.running.remove(worker)
        worker.close()

    def _sum_up(self) -> None:
        for cell in self.cells:
            known = cell.name in self.session.failed or cell.name in self.session.stopped
            if known or self.costs.done(cell):
                continue
            (self.session.elsewhere if is_locked(cell) else self.session.left).append(cell.name)

    def _say(self, cell: Cell, what: str) -> None:
        done = sum(self.costs.done(each) for each in self.study.cells)
        whole = Estimate(self.study, self.costs).total(self.cells)
        left = f"; about {clock(whole.seconds / self.workers)} left" if whole.seconds and not whole.unknown else ""
        left += " (partly guessed)" if left and whole.guessed else ""
        print(f"[{done}/{len(self.study.cells)}] {cell.name}: {what}{left}", file=self.stream, flush=True)


def clock(seconds: float) -> str:
    """12 s, 5 min or 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def describe_status(status: int) -> str:
    """An exit status in words."""
    if status > 128:
        try:
            name = signal.Signals(status - 128).name
        except ValueError:
            return f"status {status}"
        return f"ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return {2: "status 2: a mistake in the command", 127: "no such program"}.get(status, f"status {status}")
