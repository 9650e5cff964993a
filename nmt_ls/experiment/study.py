"""A study: cells, each one or more ordinary command lines, expanded from a grid in a YAML file, and what is known of
each: done, part-way, failed, what it cost. `study_workers` runs them. Nothing here knows what the commands are about.

    results: results/NAME                # where figures go
    threads: 1                           # of a cell
    constants: {precision: fp32}         # more placeholders
    blocks:
      pilot:
        cell: m30k-ls{alpha}-s{seed}     # a name for each cell
        axes: {seed: [1, 2, 3], alpha: [0.0, 0.1]}      # their product, the last axis fastest
        commands:
          - python -m nmt_ls.train --ls {alpha} --seed {seed} --out runs/{cell}
          - python -m nmt_ls.score --run runs/{cell} --results {results}
      summary:
        after: [pilot]                   # waits for all cells of these blocks
        cell: summary
        commands: [python -m nmt_ls.sweep … --results {study}]

A command that names {results} leaves its figures there: for as long as it runs that is a folder of its own, which is
kept if it is stopped, and whose records and other files go to the study's results when it ends with status 0. It is
another folder once this command or one before it in the cell has changed. Every other command has to go on by itself
where it was stopped and to end at once when there is nothing left to do, as a training run with its --out does: it is
run again whenever its cell is taken up. {study} is the study's results folder itself, for commands that read all of it.

The last record of a command is its cost, named `seconds`, with the cell in its signature: it says that the command is
done, here or on another machine. A command line that has changed since is another one, and what follows it in its cell
is then to do again: a score is of the run that was trained before it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
import string
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from nmt_ls.experiment.atomic import atomic_write
from nmt_ls.experiment.command_line import UserError, load_config
from nmt_ls.experiment.config_values import read_yaml
from nmt_ls.experiment.records import read_records

STATE = Path("runs/studies")
COST = "seconds"
_RESERVED = ("cell", "results", "study", "threads")
_CELL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")


@dataclass(frozen=True, kw_only=True)
class Block:
    """Cells that share their commands: one for each combination of the axes' values.

    minutes: a guess at the cost of one, for `plan`, until one has been measured.
    """

    cell: str
    commands: tuple[str, ...]
    axes: dict[str, list[Any]] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    minutes: float = 0.0

    def __post_init__(self) -> None:
        if not self.commands or len(set(self.commands)) < len(self.commands):
            raise ValueError("commands: give at least one, and each only once")
        for name, values in self.axes.items():
            if name in _RESERVED or not name.isidentifier():
                raise ValueError(f"axes: {name!r} cannot be the name of an axis ({', '.join(_RESERVED)} are taken)")
            if not values or len(set(map(str, values))) < len(values):
                raise ValueError(f"axes: {name} needs at least one value, and each only once")
        if not self.minutes >= 0:
            raise ValueError(f"minutes must not be negative, got {self.minutes}")


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """The YAML file but for its blocks."""

    results: str
    threads: int = 1
    constants: dict[str, Any] = field(default_factory=dict)
    blocks: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        if taken := [name for name in self.constants if name in _RESERVED or not name.isidentifier()]:
            raise ValueError(f"constants: {taken[0]!r} cannot be the name of a placeholder")
        if not self.blocks:
            raise ValueError("blocks: name at least one")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of a cell. `line` is what a person would type; `argv` is what is run, {results} being `scratch`."""

    line: str
    argv: tuple[str, ...]
    scratch: Path | None  # None: the command goes on by itself


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the grid."""

    name: str
    block: str
    values: Mapping[str, Any]
    steps: tuple[Step, ...]
    state: Path  # its folder: lock, log, progress, scratch folders


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study file, expanded."""

    name: str
    results: Path
    state: Path
    threads: int
    constants: Mapping[str, Any]
    blocks: Mapping[str, Block]
    cells: tuple[Cell, ...]

    def kind(self, cell: Cell, number: int) -> tuple[Any, ...]:
        """What commands of like cost share: their text in the file, and what axes say in the place of constants."""
        instead = [(name, str(cell.values[name])) for name in self.constants if name in cell.values]
        return self.blocks[cell.block].commands[number], *instead

    @property
    def records(self) -> Path:
        """Where the study's figures are collected."""
        return self.results / "records.jsonl"

    def cells_of(self, blocks: Iterable[str]) -> list[Cell]:
        """The cells of some blocks."""
        return [cell for cell in self.cells if cell.block in set(blocks)]


def load_study(path: str | Path, state: Path = STATE, results: str | None = None) -> Study:
    """Read a study file and expand its grid; the study is named after the file.

    results: where figures go, in place of the file's folder.

    Raises:
        UserError: one line for each mistake, naming file and key.
    """
    path, problems = Path(path), list[str]()
    content, lines = read_yaml(str(path), problems, advice="name the study's YAML file after run or plan")
    if problems:
        raise UserError("\n".join(problems))
    study_file = load_config(StudyFile, content, where=str(path))
    if results is not None:
        study_file = replace(study_file, results=results)
    blocks: dict[str, Block] = {}
    for name, block in study_file.blocks.items():
        where = f"{path}, line {lines.get(f'blocks.{name}', 1)}: blocks.{name}"
        if not isinstance(block, Mapping):
            raise UserError(f"{where}: expected cell, axes and commands below it")
        try:
            blocks[str(name)] = load_config(Block, block, where=where)
        except UserError as error:
            problems += [line if line.startswith(where) else f"{where}: {line}" for line in str(error).splitlines()]
    if problems:
        raise UserError("\n".join(problems))
    home, cells = state / path.stem, list[Cell]()
    for name, block in blocks.items():
        where = f"{path}: blocks.{name}"
        if unknown := [other for other in block.after if other not in blocks or other == name]:
            raise UserError(f"{where}.after: there is no other block {unknown[0]!r}; there are {', '.join(blocks)}")
        cells += _expand(name, block, study_file, home, where)
    _refuse_doubles(cells, blocks, path)
    return Study(
        name=path.stem,
        results=Path(study_file.results),
        state=home,
        threads=study_file.threads,
        constants=study_file.constants,
        blocks=blocks,
        cells=tuple(cells),
    )


def _expand(name: str, block: Block, study_file: StudyFile, home: Path, where: str) -> Iterator[Cell]:
    for combination in itertools.product(*block.axes.values()):
        values = dict(zip(block.axes, combination, strict=True))
        known = {**study_file.constants, **values, "threads": study_file.threads}
        cell = _fill(block.cell, known, f"{where}.cell")
        if not _CELL_NAME.fullmatch(cell):
            raise UserError(f"{where}.cell: {cell!r} cannot be a folder's name; use letters, digits and . _ + = -")
        known |= {"cell": cell, "study": study_file.results}
        steps = tuple(_steps(block.commands, known, study_file.results, home / cell, f"{where}.commands"))
        yield Cell(name=cell, block=name, values=values, steps=steps, state=home / cell)


def _steps(commands: Iterable[str], known: Mapping[str, Any], results: str, state: Path, where: str) -> Iterator[Step]:
    # partial figures of a command are kept for it: they must not become those of one that was changed meanwhile
    so_far = hashlib.sha256()
    for number, template in enumerate(commands, start=1):
        words = _words(template, where)
        line = shlex.join(_fill(word, {**known, "results": results}, where) for word in words)
        so_far.update(f"{line}\n".encode())
        scratch = state / f"step{number}-{so_far.hexdigest()[:8]}"
        argv = tuple(_fill(word, {**known, "results": scratch}, where) for word in words)
        leaves = any(name == "results" for word in words for _, name, _, _ in string.Formatter().parse(word))
        yield Step(line=line, argv=argv, scratch=scratch if leaves else None)


def _words(template: str, where: str) -> list[str]:
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise UserError(f"{where}: {template!r} is not a command line ({error})") from None
    if not words:
        raise UserError(f"{where}: an empty command")
    return words


def _fill(template: str, known: Mapping[str, Any], where: str) -> str:
    try:
        return template.format_map(known)
    except KeyError as error:
        raise UserError(f"{where}: unknown placeholder {{{error.args[0]}}}; known: {', '.join(known)}") from None
    except (ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{where}: {template!r}: {error}; a literal brace is written twice") from None


def _refuse_doubles(cells: Iterable[Cell], blocks: Mapping[str, Block], path: Path) -> None:
    seen: dict[str, str] = {}
    for cell in cells:
        if cell.name in seen:
            raise UserError(
                f"{path}: blocks.{cell.block}.cell: a second cell {cell.name} (the first in blocks.{seen[cell.name]})"
            )
        seen[cell.name] = cell.block
    settled: set[str] = set()
    while ready := {name for name in blocks if name not in settled and set(blocks[name].after) <= settled}:
        settled |= ready
    if waiting := [name for name in blocks if name not in settled]:
        raise UserError(f"{path}: blocks.{waiting[0]}.after: waits, by way of others, for itself")


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The `seconds` records of a study: which commands of which cells are done, and what they took; and on what data
    the other figures of its cells were measured."""

    seconds: Mapping[tuple[str, str], float]  # by cell and command line
    order: Mapping[tuple[str, str], int]  # likewise: their place among the records
    corpora: Mapping[str, Set[str]]  # by cell: checksums

    @classmethod
    def read(cls, study: Study) -> Costs:
        """From the study's records."""
        seconds: dict[tuple[str, str], float] = {}
        order: dict[tuple[str, str], int] = {}
        corpora: dict[str, set[str]] = {}
        for place, record in enumerate(read_records(study.records) if study.records.exists() else []):
            cell, corpus = record.signature.get("cell"), record.signature.get("corpus")
            if record.signature.get("study") != study.name or cell is None:
                continue
            if record.name == COST:
                seconds[str(cell), record.command] = record.value
                order[str(cell), record.command] = place
            elif corpus is not None:
                corpora.setdefault(str(cell), set()).add(str(corpus))
        return cls(seconds=seconds, order=order, corpora=corpora)

    def ended(self, cell: Cell, step: Step) -> bool:
        """Whether this command of the cell is done, after those before it."""
        places = [self.order.get((cell.name, before.line), -1) for before in cell.steps[: cell.steps.index(step) + 1]]
        return places[0] >= 0 and all(earlier < later for earlier, later in pairwise(places))

    def done(self, cell: Cell) -> bool:
        """Whether the cell is."""
        return all(self.ended(cell, step) for step in cell.steps)


@dataclass(kw_only=True)
class Progress:
    """What one cell has to remember besides its records; written whole at every change.

    spent: seconds by command line, over all sessions. ended: commands that ended well, whose figures may not have
    reached the records yet. again: commands to be run although the records have them. failure: of the last session, if
    it failed.
    """

    spent: dict[str, float] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    failure: dict[str, Any] | None = None

    @classmethod
    def read(cls, cell: Cell) -> Progress:
        """Of a cell; empty where it was never begun."""
        file = cell.state / "progress.json"
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()
        except (ValueError, TypeError):
            raise UserError(f"{file}: cannot be read; remove it (finished work is in the records)") from None

    def write(self, cell: Cell) -> None:
        """To the cell's folder."""
        atomic_write(cell.state / "progress.json", json.dumps(vars(self), indent=2, ensure_ascii=False) + "\n")


def lost_commands(cell: Cell, costs: Costs, progress: Progress) -> list[str]:
    """Commands of a cell that the records have as ended, without results of their own (training), and of which this
    machine knows nothing: what they made is elsewhere, or gone."""
    known = progress.spent.keys() - set(progress.again)
    return [
        step.line for step in cell.steps if step.scratch is None and costs.ended(cell, step) and step.line not in known
    ]


def unfinished(cell: Cell, costs: Costs, progress: Progress) -> list[Step]:
    """The commands of a cell that is not done which are to be measured: those that have not ended, and all from the
    first that is lost on, so that its figures are of one run (another machine trains to other weights)."""
    lost, anew, found = lost_commands(cell, costs, progress), False, []
    for step in cell.steps:
        anew = anew or step.line in lost
        if anew or not costs.ended(cell, step):
            found.append(step)
    return found


@dataclass(frozen=True, kw_only=True)
class Left:
    """Seconds of work until a cell is done: by measured costs, or guessed in the file; None where neither is there."""

    seconds: float | None
    guessed: bool = False


@dataclass(frozen=True, kw_only=True)
class LeftInAll:
    """Seconds of work left in cells of measured and in those of guessed cost, and the number of the others."""

    measured: float
    guessed: float
    unknown: int

    @property
    def seconds(self) -> float:
        """Of all cells about which something is known."""
        return self.measured + self.guessed


class Estimate:
    """Cost of what is left, from the measured cost of finished commands of the same kind, in any block;
    where one has none, the cell's is the guess in the file."""

    def __init__(self, study: Study, costs: Costs) -> None:
        self.study, self.costs = study, costs
        measured: dict[tuple[Any, ...], list[float]] = {}
        for cell in study.cells:
            for number, step in enumerate(cell.steps):
                if costs.ended(cell, step):
                    measured.setdefault(study.kind(cell, number), []).append(costs.seconds[cell.name, step.line])
        self._means = {key: sum(values) / len(values) for key, values in measured.items()}

    def left(self, cell: Cell) -> Left:
        """What is left of one cell; a guess wherever one of its commands was never measured."""
        if self.costs.done(cell):
            return Left(seconds=0.0)
        progress, left = Progress.read(cell), 0.0
        to_do = unfinished(cell, self.costs, progress)
        for number, step in enumerate(cell.steps):
            if step not in to_do:
                continue
            mean = self._means.get(self.study.kind(cell, number))
            if mean is None:
                whole = 60 * self.study.blocks[cell.block].minutes
                spent = sum(progress.spent.values())
                return Left(seconds=max(whole - spent, 0.0), guessed=True) if whole else Left(seconds=None)
            left += max(mean - progress.spent.get(step.line, 0.0), 0.0)
        return Left(seconds=left)

    def total(self, cells: Iterable[Cell]) -> LeftInAll:
        """What is left of some cells."""
        known = [(left.guessed, left.seconds) for left in map(self.left, cells)]
        return LeftInAll(
            measured=sum(seconds or 0.0 for guessed, seconds in known if not guessed),
            guessed=sum(seconds or 0.0 for guessed, seconds in known if guessed),
            unknown=sum(seconds is None for _, seconds in known),
        )
