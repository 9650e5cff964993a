"""What a sweep comes to: for every recipe the best temperatures and what they bring, differences from the baseline
with their uncertainty, and Figure 4 of the paper.

A recipe is what runs have in common that differ in their seed only. Its figures are means over seeds.

A best temperature is chosen on the split that was swept, and the figures at it are of the same split: too good, since
choice and figure share their noise. Beside them stand two-fold figures: the temperature is chosen on every other
sentence and used on the rest, and the other way round.

Shapes: A seeds, S sentences, J temperatures, B bins, H two halves of the sentences.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nmt_ls.experiment.command_line import UserError, config_to_dict, flatten
from nmt_ls.experiment.precision import Kind
from nmt_ls.experiment.records import Record, command
from nmt_ls.experiment.run_directory import atomic_write
from nmt_ls.measured_run import MeasuredRun, search_keys, shared_keys
from nmt_ls.metrics.calibration import MOMENTS, ece_from_sums, unbiased_squared_l2_from_sums
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.statistics import Estimate, crossed_bootstrap
from nmt_ls.metrics.sweep_plot import Curve, SweepSeries
from nmt_ls.metrics.translation import BLEU_STATISTICS, bleu_from_statistics
from nmt_ls.scoring import BINS
from nmt_ls.search import SearchConfig
from nmt_ls.sweep_cells import Ledger, cell_key, read_sentences, rounded_temperature

_NOT_SAID = ("temperature", "versions", "sacrebleu")  # of a row's own columns; taken apart; of one kind of score
_IN_CAPTIONS = ("spread", "prior", "seed", "precision", "bins", "corpus", "commit")
_NOT_A_RECIPE = ("seed", "out", "threads", "device", "checkpoints", "validation_sentences", "search")
_OF_ONE_TEACHER = ("run", "weights", "seed")
RESOLVED = 0.05
"""Differences with a larger p-value are not resolved: the sample does not tell them from nothing."""


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What was swept: a recipe's cells are those of its runs at these temperatures."""

    ledger: Ledger
    split: str
    inverses: Sequence[float]
    searches: Sequence[SearchConfig]  # of one beam and length penalty, by temperature; may be none
    precision: Kind = "fp32"  # of the searches


class Recipe:
    """Runs that differ in their seed only, and what was measured of them."""

    def __init__(self, runs: Sequence[MeasuredRun], settings: Mapping[str, Any], swept: Swept) -> None:
        self.runs, self.settings, self.swept = runs, settings, swept
        self.label = ""
        self.temperatures = [rounded_temperature(inverse) for inverse in swept.inverses]
        self.decoded_temperatures = [search.temperature for search in swept.searches]

    @property
    def alpha(self) -> float:
        return self.runs[0].config.loss.alpha

    def teacher_forced(self, name: str) -> FloatArray:
        """A figure of every seed at every temperature of the grid: [A, J]."""
        return np.array([[record.value for record in row] for row in self._teacher_forced(name)])

    def decoded(self, name: str) -> FloatArray:
        """A figure of every seed's translations at every temperature: [A, J]."""
        return np.array([[record.value for record in row] for row in self._decoded(name)])

    def signatures(self) -> list[Mapping[str, Any]]:
        """Of everything that was measured of it."""
        rows = [*self._teacher_forced("nll"), *self._decoded("bleu")]
        return [record.signature for row in rows for record in row]

    def _teacher_forced(self, name: str) -> list[list[Record]]:
        return [[self._record(run, {"temperature": t}, name) for t in self.temperatures] for run in self.runs]

    def _decoded(self, name: str) -> list[list[Record]]:
        kind = self.swept.precision
        return [[self._record(run, search_keys(s, kind), name) for s in self.swept.searches] for run in self.runs]

    def _record(self, run: MeasuredRun, keys: Mapping[str, Any], name: str) -> Record:
        return self.swept.ledger.records[cell_key({**run.identity(self.swept.split), **keys})][name]

    def series(self) -> SweepSeries:
        """For the figure."""
        return SweepSeries(
            bleu=Curve(temperatures=self.decoded_temperatures, values=self.decoded("bleu")),
            ece=Curve(temperatures=self.temperatures, values=self.teacher_forced("ece")),
            nll=Curve(temperatures=self.temperatures, values=self.teacher_forced("nll")),
        )

    @cached_property
    def bin_sums(self) -> FloatArray:
        """At every temperature of the grid, of every seed, summed over each half: [H, A, J, 6, B]."""
        return self._halves("bin_sums", self.temperatures, {}, (MOMENTS, BINS))

    @cached_property
    def nll_sums(self) -> FloatArray:
        """[H, A, J]."""
        return self._halves("nll", self.temperatures, {}, ())

    @cached_property
    def bleu_sums(self) -> FloatArray:
        """[H, A, J, 10]."""
        keys = shared_keys(self.swept.searches[0], self.swept.precision)
        return self._halves("bleu_statistics", self.decoded_temperatures, keys, (BLEU_STATISTICS,))

    def _halves(
        self, column: str, temperatures: Sequence[float], keys: Mapping[str, Any], shape: tuple[int, ...]
    ) -> FloatArray:
        seeds = []
        for run in self.runs:
            values = self.sentences(run, column, temperatures, keys).reshape(len(temperatures), -1, *shape)
            seeds.append([values[:, half::2].sum(1, dtype=np.float64) for half in (0, 1)])
        return np.array(seeds).swapaxes(0, 1)

    def sentences(
        self, run: MeasuredRun, column: str, temperatures: Sequence[float], keys: Mapping[str, Any]
    ) -> FloatArray:
        """A column of the sentences of a run, by temperature and sentence: [J · S, ...]."""
        cell = {**run.identity(self.swept.split), **keys}
        return read_sentences(self.swept.ledger.sentences, cell, column, temperatures)

    def at_one(self, column: str) -> FloatArray:
        """Sentence statistics of every seed at temperature 1: [A, S, ...]."""
        keys: dict[str, Any] = {}
        shape: tuple[int, ...] = (MOMENTS, BINS)
        if column == "bleu_statistics":
            keys, shape = shared_keys(self.swept.searches[0], self.swept.precision), (BLEU_STATISTICS,)
        return np.array([self.sentences(run, column, [1.0], keys).reshape(-1, *shape) for run in self.runs])


def recipes_of(runs: Sequence[MeasuredRun], swept: Swept) -> list[Recipe]:
    """Runs grouped by recipe, in order of α, each with a label: α, dropout, and what tells it from the others.

    Raises UserError where two runs of a recipe have one seed: they would show seeds to differ by nothing.
    """
    groups: dict[str, list[MeasuredRun]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for run in runs:
        flat = flatten({k: v for k, v in config_to_dict(run.config).items() if k not in _NOT_A_RECIPE})
        if "teacher" in run.manifest:  # students of a recipe's seeds are of one recipe
            facts = {key: value for key, value in run.manifest["teacher"].items() if key not in _OF_ONE_TEACHER}
            flat["distillation.teacher"] = ", ".join(f"{key} {value}" for key, value in facts.items())
        key = json.dumps(flat, sort_keys=True)
        for other in groups.setdefault(key, []):
            if other.config.seed == run.config.seed:
                raise UserError(
                    f"runs: {other.path} and {run.path} have one recipe and one seed, so that they are no two seeds; "
                    "leave one of them out (what was measured is kept)"
                )
        groups[key].append(run)
        settings[key] = flat
    recipes = [Recipe(group, settings[key], swept) for key, group in groups.items()]
    differing = [
        key
        for key in recipes[0].settings
        if key not in ("loss.alpha", "model.dropout")
        and len({json.dumps(recipe.settings.get(key)) for recipe in recipes}) > 1
    ]
    for recipe in recipes:
        others = [f"{key.rpartition('.')[2]} {recipe.settings[key]}" for key in differing]
        recipe.label = ", ".join([f"α={recipe.alpha:g}", f"dropout {recipe.settings['model.dropout']:g}", *others])
    return sorted(recipes, key=lambda recipe: (recipe.label.partition(",")[2], recipe.alpha))


def said(recipes: Iterable[Recipe]) -> dict[str, str]:
    """The signatures of all figures of some recipes as one: of every key its value, or the values where they differ."""
    values: dict[str, dict[str, None]] = {}
    for signature in (signature for recipe in recipes for signature in recipe.signatures()):
        kept = {key: value for key, value in signature.items() if key not in _NOT_SAID}
        for key, value in {**kept, **signature.get("versions", {})}.items():
            values.setdefault(key, {})[str(value)] = None
    return {key: ", ".join(found) for key, found in values.items()}


def sacrebleu_of(recipes: Iterable[Recipe]) -> str:
    """sacrebleu's signature of their BLEU; empty where nothing was translated."""
    found = (str(one["sacrebleu"]) for recipe in recipes for one in recipe.signatures() if "sacrebleu" in one)
    return ", ".join(dict.fromkeys(found))


def caption(recipe: Mapping[str, str]) -> str:
    """What a figure says of what `said` found; α and dropout are in its labels, checksum and commit are cut short."""
    short = {key: re.sub(r"[0-9a-f]{13,}", lambda digits: digits[0][:10], recipe.get(key, "?")) for key in _IN_CAPTIONS}
    return textwrap.fill(", ".join(f"{key} {value}" for key, value in short.items()), 105, break_on_hyphens=False)


def baseline_of(recipe: Recipe, recipes: Sequence[Recipe]) -> Recipe | None:
    """The recipe of hard targets that is otherwise the same."""

    def rest(one: Recipe) -> dict[str, Any]:
        return {key: value for key, value in one.settings.items() if not key.startswith("loss.")}

    return next((other for other in recipes if other.alpha == 0 != recipe.alpha and rest(other) == rest(recipe)), None)


def best_row(recipe: Recipe) -> dict[str, Any]:
    """One line of the table: best temperatures by NLL, ECE and BLEU, and the figures at 1 and at them."""
    t = recipe.temperatures
    nll, ece = recipe.teacher_forced("nll").mean(0), recipe.teacher_forced("ece").mean(0)
    one, by_nll, by_ece = t.index(1.0), int(nll.argmin()), int(ece.argmin())
    row: dict[str, Any] = {
        "recipe": recipe.label,
        "alpha": recipe.alpha,
        "seeds": len(recipe.runs),
        "T by NLL": t[by_nll],
        "T by ECE": t[by_ece],
        "NLL, T=1": nll[one],
        "NLL, best T": nll[by_nll],
        "ECE, T=1": ece[one],
        "ECE, T by NLL": ece[by_nll],
        "ECE, T by ECE": ece[by_ece],
        "ECE, two-fold": two_fold(recipe.nll_sums, recipe.bin_sums, _lowest, ece_from_sums),
        "at the edge": ", ".join(
            name for name, at, of in (("NLL", by_nll, t), ("ECE", by_ece, t)) if at in (0, len(of) - 1)
        ),
    }
    if not recipe.swept.searches:
        return row
    bleu, decoded = recipe.decoded("bleu").mean(0), recipe.decoded_temperatures
    best = int(bleu.argmax())
    row |= {
        "T by BLEU": decoded[best],
        "BLEU, T=1": bleu[decoded.index(1.0)] if 1.0 in decoded else None,
        "BLEU, best T": bleu[best],
        "BLEU, two-fold": two_fold(
            bleu_from_statistics(recipe.bleu_sums), recipe.bleu_sums, _highest, bleu_from_statistics
        ),
    }
    if len(decoded) > 1 and best in (0, len(decoded) - 1):
        row["at the edge"] = ", ".join(filter(None, [row["at the edge"], "BLEU"]))
    return row


def _lowest(values_AJ: FloatArray) -> int:
    return int(values_AJ.mean(0).argmin())


def _highest(values_AJ: FloatArray) -> int:
    return int(values_AJ.mean(0).argmax())


def two_fold(
    criterion_HAJ: FloatArray,
    sums_HAJ: FloatArray,
    choose: Callable[[FloatArray], int],
    figure: Callable[[FloatArray], FloatArray],
) -> float:
    """The mean figure over seeds, each half of the sentences at the temperature that the other half chose."""
    chosen = [choose(criterion_HAJ[half]) for half in (0, 1)]
    total_A = sums_HAJ[0][:, chosen[1]] + sums_HAJ[1][:, chosen[0]]
    return float(np.mean(figure(total_A)))


def difference_row(recipe: Recipe, baseline: Recipe) -> dict[str, Any]:
    """One line of the second table: the recipe less its baseline at temperature 1, sentences and seeds resampled.

    Calibration is compared by the unbiased squared L2 error, since differences of ECE are biased.
    """
    calibration = crossed_bootstrap(
        baseline.at_one("bin_sums"), recipe.at_one("bin_sums"), unbiased_squared_l2_from_sums
    )
    row: dict[str, Any] = {
        "recipe": recipe.label,
        "against": baseline.label,
        "seeds": f"{len(recipe.runs)} and {len(baseline.runs)}",
        "squared L2": calibration.value,
        "± L2": calibration.reach(),
        "p, L2": calibration.p_value,
        "resolved, L2": _resolved(calibration, recipe, baseline),
    }
    if 1.0 in recipe.decoded_temperatures:
        bleu = crossed_bootstrap(
            baseline.at_one("bleu_statistics"), recipe.at_one("bleu_statistics"), bleu_from_statistics
        )
        row |= {
            "BLEU": bleu.value,
            "± BLEU": bleu.reach(),
            "p, BLEU": bleu.p_value,
            "resolved, BLEU": _resolved(bleu, recipe, baseline),
        }
    return row


def _resolved(difference: Estimate, *recipes: Recipe) -> str:
    """One seed cannot tell a difference of recipes from one of seeds, however small the p-value of its sentences."""
    if min(len(recipe.runs) for recipe in recipes) < 2:
        return "one seed"
    return "yes" if difference.p_value < RESOLVED else "no"


def csv_row(recipe: Recipe, row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the table, with what a reader of a file alone has to know: its whole recipe, and where T was chosen."""
    rest = {key: value for key, value in said([recipe]).items() if key not in row}
    translated = {"BLEU signature": sacrebleu_of([recipe])} if recipe.swept.searches else {}
    return {**row, "T chosen on": recipe.swept.split, **rest, **translated, "command": command()}


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table as a file."""
    import pandas as pd

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, pd.DataFrame(rows).to_csv(index=False))
