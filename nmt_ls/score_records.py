"""What `score` keeps of its figures: one record each, and diagrams."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from matplotlib.figure import Figure

from nmt_ls.experiment.records import Record, records_of, store_records
from nmt_ls.experiment.tables import format_table
from nmt_ls.sweep_cells import part_stem, write_sentences

SEARCH_KEYS = ("beam", "length_penalty", "search")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures of one kind.

    values: by name. searched: whether they depend on the search, whose settings then belong to their recipe.
    recipe: what else does, or differs from the run's (None: is not of theirs). signatures: sacrebleu's, by name.
    """

    values: Mapping[str, float]
    searched: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)
    signatures: Mapping[str, str] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """For a table; what tells figures of one name apart is said beside the name, but a calibrator, which has a
        column."""
        apart = [str(self.recipe[key]) for key in ("slice", "estimator", "sample_tokens") if key in self.recipe]
        label = f" ({', '.join(apart)})" if apart else ""
        column = str(self.recipe.get("calibrator", "value"))
        return [{"figure": name + label, column: value} for name, value in self.values.items()]

    def records(self, recipe: Mapping[str, Any]) -> list[Record]:
        """One a figure; none for a value that is not finite (a correlation with a constant, say)."""
        shared = {
            key: value
            for key, value in {**recipe, **self.recipe}.items()
            if value is not None and (self.searched or key not in SEARCH_KEYS)
        }
        return records_of(self.values, shared, {name: {"sacrebleu": text} for name, text in self.signatures.items()})


def figure_table(groups: Iterable[Figures]) -> str:
    """A figure a row, for a terminal; what a calibrator makes of it stands beside it."""
    rows, places = list[dict[str, Any]](), dict[str, dict[str, Any]]()
    for row in (row for group in groups for row in group.rows()):
        if "value" in row:
            rows.append(row)
            places[row["figure"]] = row
        else:
            places[row["figure"]].update(row)
    return format_table(rows, list(dict.fromkeys(column for row in rows for column in row)))


def store(
    results: Path,
    groups: Iterable[Figures],
    recipe: Mapping[str, Any],
    diagrams: Mapping[str, Figure],
    sentences: pa.Table | None = None,
) -> None:
    """Write what belongs to sentences, append the records that are not there yet, and write the diagrams."""
    if sentences is not None:
        write_sentences(results, f"{part_stem(recipe)}-fitted", sentences)
    store_records(results, [record for group in groups for record in group.records(recipe)], diagrams)
