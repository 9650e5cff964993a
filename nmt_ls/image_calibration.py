"""Table 3 and Figure 2 of images, from records and examples.parquet: hard targets, the same at their fitted
temperature, and smoothed ones, with the α that is best on the split where things are chosen.

Shapes: N images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from nmt_ls.metrics.calibration import Calibration, CalibrationAccumulator
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.null import null_distribution_from_sums
from nmt_ls.study_results import NotMeasuredError, Run, SettingResults, fitted_text, means_of

Band = tuple[FloatArray, FloatArray]
FIGURES = ("accuracy", "nll", "ece", "debiased_ece", "squared_l2")


@dataclass(frozen=True, kw_only=True)
class System:
    """Runs of one α at temperature 1, or at the one fitted to each (`temperature`: their mean)."""

    name: str
    alpha: float
    fitted: bool
    temperature: float
    runs: Sequence[Run]


def systems(results: SettingResults) -> list[System]:
    """Those that are recorded, hard targets first; empty where no image was scored, or the split is trained on."""
    found = list[System]()
    if results.setting.split == "train" or not results.of_images:
        return found
    hard = results.runs(0.0)
    alpha = best_alpha(results)
    smoothed = results.runs(alpha) if alpha is not None else []
    for name, runs, fitted in (
        ("hard targets", hard, False),
        ("hard targets, temperature fitted", hard, True),
        ("label smoothing", smoothed, False),
    ):
        kept = [run for run in runs if fitted in run.scored and (run.fitted_temperature or not fitted)]
        if kept:
            mean = float(np.mean([run.fitted_temperature[0] for run in kept])) if fitted else 1.0
            found.append(System(name=name, alpha=kept[0].alpha, fitted=fitted, temperature=mean, runs=kept))
    return found


def best_alpha(results: SettingResults) -> float | None:
    """The α above 0 of lowest NLL on the split where things are chosen, mean over the seeds that all of them have (over
    each one's own, where they have none in common); None where there is none."""
    chosen_on = [
        run
        for run in results.runs(split=results.setting.choose_on)
        if run.alpha > 0 and "nll" in run.scored.get(False, {})
    ]
    by_alpha = {
        alpha: {run.seed: run.scored[False]["nll"] for run in chosen_on if run.alpha == alpha}
        for alpha in sorted({run.alpha for run in chosen_on})
    }
    common = set.intersection(*map(set, by_alpha.values())) if by_alpha else set()
    means = {
        alpha: float(np.mean([nll for seed, nll in seeds.items() if seed in common or not common]))
        for alpha, seeds in by_alpha.items()
    }
    return min(means, key=means.__getitem__) if means else None


def scaling_rows(results: SettingResults) -> Iterator[dict[str, Any]]:
    """Table 3: each system's figures, means over seeds, and their sd (left out for one seed)."""
    for system in systems(results):
        row: dict[str, Any] = {
            "system": system.name,
            "alpha": system.alpha,
            "temperature": fitted_text(system.runs) if system.fitted else "1",
            "seeds": len(system.runs),
        }
        yield row | means_of(system.runs, FIGURES, fitted=system.fitted)


def reliabilities(results: SettingResults) -> tuple[dict[str, Calibration], Band | None]:
    """Figure 2: the calibration of each system, its seeds pooled, by its name; and where the accuracies of one
    calibrated run with the confidences of the first system would lie (95%)."""
    found, band = dict[str, Calibration](), None
    for system in systems(results):
        total, runs = CalibrationAccumulator(), 0
        for run in system.runs:
            with suppress(NotMeasuredError):
                kept = results.images(run, fitted=system.fitted)
                total.update(kept["confidence"], kept["correct"])
                runs += 1
        if runs:
            band = band or null_distribution_from_sums(total.sums / runs).accuracy_band()
            temperature = f", T = {system.temperature:.2f}" if system.fitted else ""
            found[f"α = {system.alpha:g}{temperature}"] = total.compute()
    return found, band
