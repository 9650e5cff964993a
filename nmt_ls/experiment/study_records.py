"""Figures of a study's cells as they stand among its records, and whether its data are still those they are of."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import Record
from nmt_ls.experiment.study import Cell, Costs, Step, Study

_SHOWN = 12  # characters of a checksum


def record_of(study: Study, cell: Cell, step: Step, record: Record) -> Record:
    """A figure that a command left in its own folder, as it stands among the study's."""
    command = record.command
    if step.scratch is not None:
        command = command.replace(str(step.scratch), str(study.results))
    signature = {**record.signature, "study": study.name, "cell": cell.name}
    return Record(name=record.name, value=record.value, signature=signature, command=command)


def last_of_each(records: Iterable[Record]) -> list[Record]:
    """Without figures that a later record measured again: the same name and recipe, whatever machine and commit."""
    last: dict[str, Record] = {}
    for record in records:
        recipe = {key: record.signature[key] for key in record.signature if key not in _ORIGIN}
        key = json.dumps([record.name, recipe], sort_keys=True, default=str)
        last.pop(key, None)
        last[key] = record
    return list(last.values())


_ORIGIN = ("commit", "versions", "device", "threads")


def check_data(study: Study, cells: Iterable[Cell], costs: Costs) -> None:
    """Hold the data of cells that are to do against those on which figures of cells with the same data were measured.

    Raises UserError where they are others: the tables would mix the two.
    """
    checksum = functools.cache(prepared_checksum)
    measured: dict[frozenset[str], list[Cell]] = {}
    for cell in study.cells:
        if cell.name in costs.corpora:
            measured.setdefault(frozenset(data_of(cell, checksum)), []).append(cell)
    for cell in cells:
        data = data_of(cell, checksum)
        earlier = measured.get(frozenset(data), []) if data and not costs.done(cell) else []
        recorded = {corpus: other for other in earlier for corpus in costs.corpora[other.name]}
        if recorded and not recorded.keys() & set(data.values()):
            here = " and ".join(f"{name} has checksum {found[:_SHOWN]}…" for name, found in sorted(data.items()))
            corpus, other = next(iter(recorded.items()))
            raise UserError(
                f"{here}, but this study's figures of it (cell {other.name}) were measured on {corpus[:_SHOWN]}…; "
                "prepare that (results/data.md), or measure all anew with --results"
            )


def data_of(cell: Cell, checksum: Callable[[str], str | None]) -> dict[str, str]:
    """The prepared data that a cell's commands name, as `--data PLACE` or `--data=PLACE`: checksums by place."""
    words = [word for step in cell.steps for word in step.argv]
    places = [word.partition("=")[2] if word.startswith("--") else word for word in words]
    return {place: found for place in places if place and (found := checksum(place)) is not None}


def prepared_checksum(place: str) -> str | None:
    """The checksum of the prepared data that lie there; None for whatever else does (a run has none of its own)."""
    try:
        manifest = json.loads((Path(place) / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest["checksum"] if isinstance(manifest, dict) and isinstance(manifest.get("checksum"), str) else None
