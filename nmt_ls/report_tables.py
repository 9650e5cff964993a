"""The tables of a report: what was measured of every recipe of a setting, means over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nmt_ls.claim_statistics import choose_temperature
from nmt_ls.claims import Chosen
from nmt_ls.study_results import NotMeasuredError, Run, SettingResults


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table: the key of its values, its heading, and how numbers are written."""

    key: str
    heading: str
    format: str = ""

    def text(self, value: Any) -> str:
        """A cell; blank for what is not there."""
        if value is None:
            return ""
        return format(value, self.format) if self.format and not isinstance(value, str) else str(value)


RECIPE = [
    Column(key="alpha", heading="α", format="g"),
    Column(key="checkpoint", heading="checkpoint"),
    Column(key="temperature", heading="T"),
    Column(key="seeds", heading="seeds"),
    Column(key="updates", heading="updates"),
]
FIGURES = [
    Column(key="best_validation_step", heading="best step", format=".0f"),
    Column(key="bleu", heading="BLEU", format=".2f"),
    Column(key="chrf", heading="chrF", format=".2f"),
    Column(key="accuracy", heading="accuracy", format=".4f"),
    Column(key="nll", heading="NLL", format=".4f"),
    Column(key="perplexity", heading="perplexity", format=".3f"),
    Column(key="ece", heading="ECE", format=".4f"),
    Column(key="ece_floor", heading="ECE floor", format=".4f"),
    Column(key="ece_p_value", heading="p, if calibrated", format=".3f"),
    Column(key="debiased_ece", heading="debiased ECE", format=".4f"),
    Column(key="squared_l2", heading="squared L2", format=".5f"),
    Column(key="inference_ece", heading="inference ECE", format=".4f"),
    Column(key="exact_ece", heading="exact ECE", format=".4f"),
    Column(key="kl_to_truth", heading="KL to truth", format=".4f"),
    Column(key="tv_to_truth", heading="TV to truth", format=".4f"),
    Column(key="logit_gap_mean", heading="logit gap", format=".2f"),
    Column(key="logit_gap_within_sd", heading="its sd over classes", format=".2f"),
    Column(key="logit_gap_ideal", heading="ideal gap", format=".2f"),
]
TEMPERATURES = [
    Column(key="alpha", heading="α", format="g"),
    Column(key="seeds", heading="seeds"),
    Column(key="T by nll", heading="T by NLL", format=".3f"),
    Column(key="nll", heading="NLL, T = 1", format=".4f"),
    Column(key="nll at it", heading="NLL, T by NLL", format=".4f"),
    Column(key="ece", heading="ECE, T = 1", format=".4f"),
    Column(key="ece at it", heading="ECE, T by NLL", format=".4f"),
    Column(key="T by squared_l2", heading="T by calibration", format=".3f"),
    Column(key="ece at calibrated", heading="ECE, T by calibration", format=".4f"),
    Column(key="T by bleu", heading="T by BLEU", format=".2f"),
    Column(key="bleu", heading="BLEU, T = 1", format=".2f"),
    Column(key="bleu at it", heading="BLEU, T by BLEU", format=".2f"),
]

SCALING = [
    Column(key="system", heading="trained with"),
    RECIPE[0],
    *RECIPE[2:],
    *(column for column in FIGURES if column.key in ("accuracy", "nll")),
    *(
        each
        for key, heading in (("ece", "ECE"), ("debiased_ece", "debiased ECE"), ("squared_l2", "squared L2"))
        for each in (
            Column(key=key, heading=heading, format=".4f"),
            Column(key=f"{key} sd", heading="its sd over seeds", format=".4f"),
        )
    ),
]
"""Of Table 3 as images have it (nmt_ls.image_calibration)."""


def recipe_rows(results: SettingResults) -> Iterator[dict[str, Any]]:
    """Of every α, checkpoint and temperature (1, or fitted): each scored figure's mean over seeds, and its sd.

    The sd of a figure `x` is `x sd`; it is left out where there is one seed. α and checkpoint of the claims come first.
    """
    first = results.setting.checkpoint
    for checkpoint in sorted(results.checkpoints, key=lambda name: (name != first, name)):
        runs = results.runs(checkpoint=checkpoint)
        for alpha in sorted({run.alpha for run in runs}):
            for fitted in (False, True):
                scored = [run for run in runs if run.alpha == alpha and fitted in run.scored]
                if scored:
                    yield _recipe_row(scored, alpha, checkpoint, fitted)


def _recipe_row(runs: Sequence[Run], alpha: float, checkpoint: str, fitted: bool) -> dict[str, Any]:
    temperatures = [run.fitted_temperature[0] for run in runs] if fitted else [1.0]
    row: dict[str, Any] = {
        "alpha": alpha,
        "checkpoint": checkpoint,
        "temperature": f"fitted, {np.mean(temperatures):.3f}" if fitted else "1",
        "seeds": len(runs),
        "updates": runs[0].signature.get("updates"),
    }
    names = dict.fromkeys(name for run in runs for name in run.scored[fitted])
    for name in names:
        values = [run.scored[fitted][name] for run in runs if name in run.scored[fitted]]
        row[name] = float(np.mean(values))
        if len(values) > 1:
            row[f"{name} sd"] = float(np.std(values, ddof=1))
    return row


def temperature_rows(results: SettingResults) -> Iterator[dict[str, Any]]:
    """Of every α: temperatures chosen on the one split, and figures at 1 and at them on the other."""
    for alpha in results.alphas:
        row: dict[str, Any] = {"alpha": alpha}
        swept = [run for run in results.runs(alpha) if run.swept]
        decoded = [run for run in results.runs(alpha) if run.decoded]
        ways: Sequence[tuple[Chosen, Sequence[Run], Sequence[tuple[str, str]]]] = (
            ("nll", swept, (("nll", "nll at it"), ("ece", "ece at it"))),
            ("squared_l2", swept, (("ece", "ece at calibrated"),)),
            ("bleu", decoded, (("bleu", "bleu at it"),)),
        )
        for by, runs, figures in ways:
            if not runs:
                continue
            try:
                chosen, edge = choose_temperature(results, runs, by)
            except NotMeasuredError:
                continue
            row["seeds"], row[f"T by {by}"] = len(runs), f"{chosen:.3g}, at the edge of the grid" if edge else chosen
            for name, at_it in figures:
                at = [run.decoded if by == "bleu" else run.swept for run in runs]
                if all(name in cells.get(1.0, {}) for cells in at):
                    row[name] = float(np.mean([cells[1.0][name] for cells in at]))
                row[at_it] = float(np.mean([cells[chosen][name] for cells in at]))
        if len(row) > 1:
            yield row


def present(columns: Sequence[Column], rows: Sequence[dict[str, Any]]) -> list[Column]:
    """The columns of which some row has a value."""
    return [column for column in columns if any(row.get(column.key) is not None for row in rows)]
