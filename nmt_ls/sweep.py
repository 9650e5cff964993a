"""python -m nmt_ls.sweep: runs at many temperatures: BLEU, NLL and ECE as a table and as Figure 4 of the paper."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from nmt_ls.experiment.command_line import run_command
from nmt_ls.experiment.records import one_line
from nmt_ls.experiment.tables import format_table
from nmt_ls.measured_run import MeasuredRun
from nmt_ls.metrics.plots import save_figure
from nmt_ls.metrics.sweep_plot import sweep_figure
from nmt_ls.search import SearchConfig
from nmt_ls.sweep_cells import Ledger
from nmt_ls.sweep_table import (
    Recipe,
    Swept,
    baseline_of,
    best_row,
    caption,
    csv_row,
    difference_row,
    recipes_of,
    sacrebleu_of,
    said,
    write_csv,
)
from nmt_ls.sweeping import SweepConfig, sweep

SHORT_NAMES = {"out": "results", "beam": "beams", "length_penalty": "length_penalties"}
BEST = {
    "recipe": "", "seeds": "", "T by NLL": ".3f", "T by ECE": ".3f", "T by BLEU": ".3f", "NLL, T=1": ".4f",
    "NLL, best T": ".4f", "ECE, T=1": ".4f", "ECE, T by NLL": ".4f", "ECE, T by ECE": ".4f", "ECE, two-fold": ".4f",
    "BLEU, T=1": ".2f", "BLEU, best T": ".2f", "BLEU, two-fold": ".2f", "at the edge": "",
}  # fmt: skip
DIFFERENCES = {
    "recipe": "", "against": "", "seeds": "", "BLEU": "+.2f", "± BLEU": ".2f", "p, BLEU": ".3f", "resolved, BLEU": "",
    "squared L2": "+.5f", "± L2": ".5f", "p, L2": ".3f", "resolved, L2": "",
}  # fmt: skip


def main(config: SweepConfig) -> None:
    runs, ledger = sweep(config)
    if not config.summarise:
        return
    for (beam, penalty), searches in groups(config):
        report(config, runs, ledger, f"beam {beam}, length penalty {penalty:g}", searches)


def groups(config: SweepConfig) -> list[tuple[tuple[int, float], list[SearchConfig]]]:
    """The searches by beam and length penalty; one group without any where nothing is translated."""
    found = itertools.groupby(config.searches(), key=lambda search: (search.beam, search.length_penalty))
    return [(key, list(searches)) for key, searches in found] or [((config.beams[0], config.length_penalties[0]), [])]


def report(
    config: SweepConfig, runs: Sequence[MeasuredRun], ledger: Ledger, searched: str, searches: Sequence[SearchConfig]
) -> None:
    """Print the tables of one beam and length penalty, and write them and the figure."""
    swept = Swept(
        ledger=ledger,
        split=config.split,
        inverses=config.whole_inverse_grid,
        searches=searches,
        precision=config.arithmetic.kind,
    )
    recipes = recipes_of(runs, swept)
    rows = [best_row(recipe) for recipe in recipes]
    what = f"{config.split} split, {config.checkpoint} checkpoint" + (f", {searched}" if searches else "")
    chosen = f"best temperatures are chosen on the {config.split} split and reported on it, which flatters them; "
    chosen += "two-fold: chosen on one half of its sentences, used on the other"
    print(f"\n{what}; means over seeds\n")
    print(format_table(rows, {name: spec for name, spec in BEST.items() if any(row.get(name) for row in rows)}))
    print(f"\n{chosen}")
    print_differences(recipes)
    print(f"\nBLEU: {sacrebleu_of(recipes)}" if searches else "")
    print(f"recipe: {one_line(said(recipes))}")
    stem = "-".join(filter(None, ["sweep", config.name, config.split, config.checkpoint]))
    if len(groups(config)) > 1:
        stem += "-" + searched.replace(", ", "-").replace(" ", "")
    table, extra = Path(config.results) / f"{stem}.csv", {"search": searched} if searches else {}
    write_csv(table, [csv_row(recipe, row) | extra for recipe, row in zip(recipes, rows, strict=True)])
    written = [table]
    if searches:
        title = f"{what}\n{caption(said(recipes))}"
        figure = sweep_figure({recipe.label: recipe.series() for recipe in recipes}, title=title)
        written += save_figure(figure, table.parent / "figures" / stem)
    print("\nwrote " + ", ".join(map(str, written)))


def print_differences(recipes: Sequence[Recipe]) -> None:
    """The second table, where there is a baseline."""
    pairs = [(recipe, baseline) for recipe in recipes if (baseline := baseline_of(recipe, recipes)) is not None]
    if not pairs:
        return
    alone = min(len(recipe.runs) for pair in pairs for recipe in pair) == 1
    resampled = (
        "sentences resampled; one seed does not show how much seeds differ"
        if alone
        else "sentences and seeds resampled"
    )
    print(f"\nless the hard-target baseline, at temperature 1 (± 95%; {resampled})\n")
    differences = [difference_row(recipe, baseline) for recipe, baseline in pairs]
    shown = {name: spec for name, spec in DIFFERENCES.items() if any(name in row for row in differences)}
    print(format_table(differences, shown))


if __name__ == "__main__":
    run_command(
        main,
        SweepConfig,
        program="python -m nmt_ls.sweep",
        description="Runs at many temperatures: BLEU, NLL and ECE, as a table and as Figure 4 of the paper.",
        short_names=SHORT_NAMES,
    )
