"""What `score` keeps of its figures: one record each, and diagrams."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nmt_ls.experiment.records import Record, append_new_records, command
from nmt_ls.metrics.plots import save_figure

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
        """For a table; what tells figures of one name apart is said beside the name."""
        apart = [str(self.recipe[key]) for key in ("slice", "estimator", "sample_tokens") if key in self.recipe]
        label = f" ({', '.join(apart)})" if apart else ""
        return [{"figure": name + label, "value": value} for name, value in self.values.items()]

    def records(self, recipe: Mapping[str, Any]) -> list[Record]:
        """One a figure; none for a value that is not finite (a correlation with a constant, say)."""
        shared = {
            key: value
            for key, value in {**recipe, **self.recipe}.items()
            if value is not None and (self.searched or key not in SEARCH_KEYS)
        }
        return [
            Record(
                name=name,
                value=value,
                signature={
                    **shared,
                    **({"sacrebleu": self.signatures[name]} if name in self.signatures else {}),
                },
                command=command(),
            )
            for name, value in self.values.items()
            if math.isfinite(value)
        ]


def store(results: Path, groups: Iterable[Figures], recipe: Mapping[str, Any], diagrams: Mapping[str, Figure]) -> None:
    """Append the records that are not there yet, and write the diagrams by their names; say so on standard error.

    A figure measured again with the same recipe (commit and versions are of it) and value is not recorded twice; one
    of another commit is a record of its own, and the later.
    """
    records = [record for group in groups for record in group.records(recipe)]
    added = append_new_records(results / "records.jsonl", records)
    for name, figure in diagrams.items():
        for path in save_figure(figure, results / "figures" / name):
            print(f"wrote {path}", file=sys.stderr)
    before = f" ({len(records) - added} were there)" if added < len(records) else ""
    print(f"added {added} records to {results / 'records.jsonl'}{before}", file=sys.stderr)
