"""Section 4 in a report: the table of students, Figure 5, and accuracy by teacher's α and temperature."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nmt_ls.claims import TAUGHT, Side, Test
from nmt_ls.findings import runs_of
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.plots import BLUE, DASHES, GREEN, MARKERS, RED, SKY, look, new_figure
from nmt_ls.study_results import Run, SettingResults, means_of, scored_values
from nmt_ls.verdicts import judge

FIGURES = (
    *("gamma", "teacher_accuracy", "accuracy", "train_accuracy", "nll", "ece"),
    *("exact_accuracy", "exact_ece", "kl_to_truth"),
)
MATTERS = 0.001
"""A tenth of a per cent of accuracy: of no weight here, where differences are shown and not judged."""
APART = tuple(
    f"teacher_{key}" for key in ("checkpoint", "model", "settings", "train_size", "spread", "prior", "updates")
)
"""Of signatures of students, what else tells recipes apart."""
Recipe = tuple[float, ...]  # values of TAUGHT, in that order


def recipes(results: SettingResults) -> dict[tuple[Recipe, tuple[str, ...]], list[Run]]:
    """The students by what they were taught with: teacher's α and dropout, temperatures and β; and by what else tells
    them apart."""
    found: dict[tuple[Recipe, tuple[str, ...]], list[Run]] = {}
    for run in results.runs(taught=True):
        recipe = tuple(float(run.signature[key]) for key in TAUGHT)
        found.setdefault((recipe, tuple(str(run.signature[key]) for key in APART)), []).append(run)
    return dict(sorted(found.items()))


def usual(results: SettingResults) -> Iterator[tuple[float, float, float, list[Run]]]:
    """Teacher's α and dropout, the temperature, and the students taught with them at β = 1 and the teacher's
    temperature, with the factor T²; of several kinds of teachers, the first."""
    seen = set[Recipe]()
    for (recipe, _), runs in recipes(results).items():
        alpha, dropout, temperature, own, beta, factor = recipe
        if beta == 1 and own == temperature and (factor or temperature == 1) and recipe[:3] not in seen:
            seen.add(recipe[:3])
            yield alpha, dropout, temperature, runs


def student_rows(results: SettingResults) -> Iterator[dict[str, Any]]:
    """Of every recipe: figures, means over seeds, and the difference of accuracy from students that learnt from hard
    labels alone, over seeds (Welch)."""
    for (recipe, _), runs in recipes(results).items():
        how = dict(zip(TAUGHT, recipe, strict=True))
        row: dict[str, Any] = {**how, "seeds": len(runs), **means_of(runs, FIGURES)}
        taught = Side(alpha=0.0, taught=how)
        if results.runs(0.0) and runs_of(results, taught) == runs:
            test = Test(
                statistic="record", figure="accuracy", expect="higher", effect=MATTERS,
                baseline=Side(alpha=0.0), treated=taught,
            )  # fmt: skip
            row["accuracy difference"] = judge("accuracy", test, results).finding
        yield row


CURVES = {
    "teacher, label smoothing": (BLUE, DASHES[0]),
    "student, label smoothing": (SKY, DASHES[0]),
    "student of the hard-target teacher, by T": (RED, DASHES[1]),
    "student of smoothed teachers, T = 1": (BLUE, DASHES[1]),
    "student of the hard-target teacher with dropout, by T": (GREEN, DASHES[2]),
}
"""Curves of Figure 5 in its colours, and one that it has not."""


def curves(results: SettingResults, teachers: SettingResults | None) -> dict[str, dict[float, list[float]]]:
    """Those of CURVES that were measured: accuracies of the seeds by the smoothness γ; none without students."""
    found: dict[str, dict[float, list[float]]] = {name: {} for name in CURVES}
    _, _, from_hard, of_smoothed, with_dropout = found
    for alpha, dropout, temperature, runs in usual(results):
        name = with_dropout if dropout else from_hard if alpha == 0 else of_smoothed
        gammas, accuracies = scored_values(runs, "gamma"), scored_values(runs, "accuracy")
        if gammas and accuracies and (alpha == 0 or (temperature == 1 and not dropout)):
            found[name][float(np.mean(gammas))] = accuracies
    if not any(found.values()):
        return {}
    teacher, student, *_ = found
    found[teacher] = teachers.by_alpha("accuracy") if teachers is not None else {}
    found[student] = results.by_alpha("accuracy")
    return {name: dict(sorted(curve.items())) for name, curve in found.items() if curve}


def students_figures(results: SettingResults, teachers: SettingResults | None) -> Iterator[tuple[str, str, Figure]]:
    """What can be drawn of a setting's students: (short name, caption, figure)."""
    setting = results.setting
    if found := curves(results, teachers):
        yield (
            "distillation",
            f"{setting.name}, {setting.split} split, as Figure 5 of the paper: accuracy by the mass that targets "
            "put on wrong classes (γ; of label smoothing, α). Means over seeds, bands from the least to the greatest. "
            "β is 1, the loss has the factor T², and the student's temperature the teacher's.",
            smoothness_figure(found, title=setting.title),
        )
    grid = accuracy_grid(results)
    if min(grid[2].shape) > 1:
        yield (
            "distillation-grid",
            f"{setting.name}, {setting.split} split: accuracy of students by the α of their teacher and the "
            "temperature of its targets, means over seeds; teachers with dropout are left out. The paper varied one "
            "at a time.",
            grid_figure(*grid, title=setting.title),
        )


def accuracy_grid(results: SettingResults) -> tuple[list[float], list[float], FloatArray]:
    """Teachers' α, temperatures, and the mean accuracy of students [α, T]; nan where none was trained.

    Of the usual students whose teachers had no dropout.
    """
    means: dict[tuple[float, float], float] = {}
    for alpha, dropout, temperature, runs in usual(results):
        if not dropout and (accuracies := scored_values(runs, "accuracy")):
            means[alpha, temperature] = float(np.mean(accuracies))
    alphas, temperatures = (sorted({key[axis] for key in means}) for axis in (0, 1))
    values = [[means.get((alpha, temperature), np.nan) for temperature in temperatures] for alpha in alphas]
    return alphas, temperatures, np.array(values, dtype=np.float64).reshape(len(alphas), len(temperatures))


def smoothness_figure(found: dict[str, dict[float, list[float]]], title: str = "") -> Figure:
    """Accuracy against γ: a line through the means of every curve, with its seeds' range. Figure 5's colours."""
    with look():
        figure = new_figure(5.6, 4.2)
        axes = figure.subplots()
        for index, (name, curve) in enumerate(found.items()):
            colour, dashes = CURVES[name]
            _band(axes, curve, colour)
            axes.plot(
                list(curve), [np.mean(values) for values in curve.values()], color=colour, linestyle=dashes,
                marker=MARKERS[index], label=name, zorder=3,
            )  # fmt: skip
        axes.set(xlabel="smoothness γ of the targets", ylabel="accuracy", title=title)
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _band(axes: Axes, curve: dict[float, list[float]], colour: str) -> None:
    low, high = ([extreme(values) for values in curve.values()] for extreme in (min, max))
    axes.fill_between(list(curve), low, high, color=colour, alpha=0.15, linewidth=0, zorder=1)


def grid_figure(alphas: Sequence[float], temperatures: Sequence[float], values: FloatArray, title: str = "") -> Figure:
    """A heat map with a number in every cell; blank where nothing was measured."""
    with look():
        figure = new_figure(1.0 + 0.9 * len(temperatures), 1.5 + 0.55 * len(alphas))
        axes = figure.subplots()
        shown = axes.imshow(values, cmap="cividis", aspect="auto")
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                axes.text(
                    column, row, f"{100 * value:.2f}", ha="center", va="center", fontsize=8,
                    color="white" if value < middle else "black",
                )  # fmt: skip
        axes.set_xticks(range(len(temperatures)), [f"{temperature:g}" for temperature in temperatures])
        axes.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
        axes.set(xlabel="temperature T", ylabel="teacher's α", title=title)
        axes.grid(visible=False)
        figure.colorbar(shown, ax=axes, format=lambda value, _: f"{100 * value:.1f}", label="accuracy, %")
    return figure
