"""Section 4 in a report: the table of students, Figure 5, and accuracy (of translators, BLEU) by teacher's α and
temperature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nmt_ls.claims import TAUGHT, Side, Test
from nmt_ls.findings import runs_of
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.plots import BLUE, DASHES, GREEN, INK, MARKERS, RED, SKY, look, new_figure
from nmt_ls.study_results import Run, SettingResults, means_of, scored_values
from nmt_ls.verdicts import judge

FIGURES = (
    *("gamma", "teacher_bleu", "teacher_accuracy", "bleu", "accuracy", "train_accuracy", "nll", "ece"),
    *("exact_accuracy", "exact_ece", "kl_to_truth"),
)
MATTERS = 0.001
"""A tenth of a per cent of accuracy: of no weight here, where differences are shown and not judged."""
QUALITY = {"bleu": ("BLEU", 1.0), "accuracy": ("accuracy", 100.0)}
"""What students are shown by: its name, and by what it is multiplied in a heat map."""
APART = tuple(
    f"teacher_{key}"
    for key in (
        *("teacher", "checkpoint", "model", "settings", "train_size"),
        *("spread", "prior", "updates", "corpus"),
    )
)
"""Of signatures of students, what else tells recipes apart."""
Recipe = tuple[float, ...]  # values of TAUGHT, in that order


def recipes(results: SettingResults) -> dict[tuple[Recipe, tuple[str, ...]], list[Run]]:
    """The students by what they were taught with: teacher's α and dropout, temperatures and β; and by what else tells
    them apart."""
    found: dict[tuple[Recipe, tuple[str, ...]], list[Run]] = {}
    for run in results.runs(taught=True):
        recipe = tuple(float(run.signature[key]) for key in TAUGHT)
        found.setdefault((recipe, tuple(str(run.signature.get(key)) for key in APART)), []).append(run)
    return dict(sorted(found.items()))


def quality(results: SettingResults) -> str:
    """The first of QUALITY that any run of the setting has."""
    runs = results.runs(taught=None)
    return next((name for name in QUALITY if scored_values(runs, name)), "accuracy")


def usual(results: SettingResults) -> Iterator[tuple[float, bool, float, list[Run]]]:
    """Teacher's α, whether it had more dropout than other teachers, the temperature, and the students taught with them
    at β = 1 and the teacher's temperature, with the factor T²; of several kinds of teachers, the first."""
    seen, found = set[Recipe](), recipes(results)
    least = min((recipe[1] for recipe, _ in found), default=0.0)
    for (recipe, _), runs in found.items():
        alpha, dropout, temperature, own, beta, factor = recipe
        if beta == 1 and own == temperature and (factor or temperature == 1) and recipe[:3] not in seen:
            seen.add(recipe[:3])
            yield alpha, dropout > least, temperature, runs


def student_rows(results: SettingResults) -> Iterator[dict[str, Any]]:
    """Of every recipe: figures, means over seeds, and the difference of accuracy or BLEU from students that learnt from
    hard labels alone, over seeds (Welch)."""
    shown = quality(results)
    for (recipe, _), runs in recipes(results).items():
        how = dict(zip(TAUGHT, recipe, strict=True))
        row: dict[str, Any] = {**how, "seeds": len(runs), **means_of(runs, FIGURES)}
        row |= {f"{name} fitted": value for name, value in means_of(runs, ["kl_to_truth"], fitted=True).items()}
        taught = Side(alpha=0.0, taught=how)
        if results.runs(0.0) and runs_of(results, taught) == runs:
            test = Test(
                statistic="record", figure=shown, expect="higher", effect=MATTERS,
                baseline=Side(alpha=0.0), treated=taught,
            )  # fmt: skip
            row[f"{shown} difference"] = judge(shown, test, results).finding
        yield row


CURVES = {
    "teacher, label smoothing": (BLUE, DASHES[0]),
    "student, label smoothing": (SKY, DASHES[0]),
    "student of the hard-target teacher, by T": (RED, DASHES[1]),
    "student of smoothed teachers, T = 1": (BLUE, DASHES[1]),
    "student of the hard-target teacher with dropout, by T": (GREEN, DASHES[2]),
}
"""Curves of Figure 5 in its colours, and one that it has not."""


class Taught(NamedTuple):
    """A point of a curve of students: the smoothness of their targets (mean over seeds), the temperature of those, and
    accuracies (BLEU) of the seeds."""

    curve: str
    gamma: float
    temperature: float
    values: list[float]


def taught(results: SettingResults) -> Iterator[Taught]:
    """The points of those of CURVES that are of students of a teacher."""
    shown = quality(results)
    _, _, from_hard, of_smoothed, with_dropout = CURVES
    for alpha, more, temperature, runs in usual(results):
        name = with_dropout if more else from_hard if alpha == 0 else of_smoothed
        gammas, values = scored_values(runs, "gamma"), scored_values(runs, shown)
        if gammas and values and (alpha == 0 or (temperature == 1 and not more)):
            yield Taught(name, float(np.mean(gammas)), temperature, values)


def curves(results: SettingResults, teachers: SettingResults | None) -> dict[str, dict[float, list[float]]]:
    """Those of CURVES that were measured: accuracies (BLEU) of the seeds by the smoothness γ; none without students."""
    shown = quality(results)
    found: dict[str, dict[float, list[float]]] = {name: {} for name in CURVES}
    for point in taught(results):
        found[point.curve][point.gamma] = point.values
    if not any(found.values()):
        return {}
    teacher, student, *_ = found
    found[teacher] = teachers.by_alpha(shown) if teachers is not None else {}
    found[student] = results.by_alpha(shown)
    return {name: dict(sorted(curve.items())) for name, curve in found.items() if curve}


def students_figures(results: SettingResults, teachers: SettingResults | None) -> Iterator[tuple[str, str, Figure]]:
    """What can be drawn of a setting's students: (short name, caption, figure)."""
    setting, (named, scale) = results.setting, QUALITY[quality(results)]
    if found := curves(results, teachers):
        temperatures = {(point.curve, point.gamma): point.temperature for point in taught(results)}
        yield (
            "distillation",
            f"{setting.name}, {setting.split} split, as Figure 5 of the paper: {named} by the mass that targets "
            f"put on wrong classes (γ; of label smoothing, α). {_seeds_text(found)}, bands (of a single point, a bar) "
            "from the least to the greatest. β is 1, the loss has the factor T², and the student's temperature the "
            "teacher's.",
            smoothness_figure(found, named, title=setting.title, temperatures=temperatures),
        )
    grid = accuracy_grid(results)
    left_out = "; teachers with more dropout are left out" if any(more for _, more, *_ in usual(results)) else ""
    if min(grid[2].shape) > 1:
        yield (
            "distillation-grid",
            f"{setting.name}, {setting.split} split: {named} of students by the α of their teacher and the "
            f"temperature of its targets, means over seeds{left_out}. The paper varied one at a time.",
            grid_figure(*grid, named, scale, title=setting.title),
        )


def accuracy_grid(results: SettingResults) -> tuple[list[float], list[float], FloatArray]:
    """Teachers' α, temperatures, and the mean accuracy (BLEU) of students [α, T]; nan where none was trained.

    Of the usual students whose teachers had the least dropout.
    """
    means, shown = dict[tuple[float, float], float](), quality(results)
    for alpha, more, temperature, runs in usual(results):
        if not more and (accuracies := scored_values(runs, shown)):
            means[alpha, temperature] = float(np.mean(accuracies))
    alphas, temperatures = (sorted({key[axis] for key in means}) for axis in (0, 1))
    values = [[means.get((alpha, temperature), np.nan) for temperature in temperatures] for alpha in alphas]
    return alphas, temperatures, np.array(values, dtype=np.float64).reshape(len(alphas), len(temperatures))


def _most_seeds(found: Mapping[str, Mapping[float, Sequence[float]]]) -> int:
    return max(len(values) for curve in found.values() for values in curve.values())


def _seeds_text(found: Mapping[str, Mapping[float, Sequence[float]]]) -> str:
    most = _most_seeds(found)
    fewer = any(len(values) < most for curve in found.values() for values in curve.values())
    return f"Means over {most} seed{'s' if most > 1 else ''}{' (n, where they are fewer)' if fewer else ''}"


def smoothness_figure(
    found: Mapping[str, Mapping[float, Sequence[float]]],
    named: str = "accuracy",
    title: str = "",
    temperatures: Mapping[tuple[str, float], float] = {},
) -> Figure:
    """What is named against γ: a line through the means of every curve, with its seeds' range. Figure 5's colours.

    Points of curves "by T" say their temperature, given by curve and γ, and points of fewer seeds than the most how
    many these are.
    """
    most = _most_seeds(found)
    with look():
        figure = new_figure(5.6, 4.2)
        axes = figure.subplots()
        for index, (name, curve) in enumerate(found.items()):
            colour, dashes = CURVES[name]
            means = [float(np.mean(values)) for values in curve.values()]
            _range(axes, curve, colour)
            style = {"color": colour, "linestyle": dashes, "marker": MARKERS[index]}
            axes.plot(list(curve), means, label=name, zorder=3, **style)
            for at, (gamma, values) in enumerate(curve.items()):
                by_temperature = name.endswith("by T") and (name, gamma) in temperatures
                said = [f"T = {temperatures[name, gamma]:g}"] if by_temperature else []
                said += [f"n = {len(values)}"] if len(values) < most else []
                if said:
                    _note(axes, ", ".join(said), gamma, values, _rises(means, at))
        axes.margins(x=0.07)
        axes.set(xlabel="smoothness γ of the targets", ylabel=named, title=title)
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _range(axes: Axes, curve: Mapping[float, Sequence[float]], colour: str) -> None:
    """A band from the least to the greatest; where it would have no width, a bar."""
    low, high = ([extreme(values) for values in curve.values()] for extreme in (min, max))
    if len(curve) == 1:
        axes.vlines(list(curve), low, high, color=colour, alpha=0.5, zorder=1)
    axes.fill_between(list(curve), low, high, color=colour, alpha=0.15, linewidth=0, zorder=1)


def _rises(means: Sequence[float], at: int) -> tuple[float, float]:
    """By how much a line rises before and after a point; at an end both are of the segment that there is."""
    steps = np.diff(means)
    if not len(steps):
        return 0.0, 0.0
    return float(steps[max(at - 1, 0)]), float(steps[min(at, len(steps) - 1)])


def _note(axes: Axes, text: str, gamma: float, values: Sequence[float], rises: tuple[float, float]) -> None:
    """Words beside the range of a point, where the line does not go."""
    before, after = rises
    valley = before < 0 < after
    side = "center" if valley or before >= 0 >= after else "right" if before > 0 else "left"
    axes.annotate(
        text, (gamma, min(values) if valley else max(values)), xytext=(0, -4 if valley else 4),
        textcoords="offset points", ha=side, va="top" if valley else "bottom", fontsize=7, color=INK, zorder=4,
    )  # fmt: skip


def grid_figure(
    alphas: Sequence[float],
    temperatures: Sequence[float],
    values: FloatArray,
    named: str = "accuracy",
    scale: float = 100.0,
    title: str = "",
) -> Figure:
    """A heat map of what is named, with a number in every cell; blank where nothing was measured."""
    with look():
        figure = new_figure(1.0 + 0.9 * len(temperatures), 1.5 + 0.55 * len(alphas))
        axes = figure.subplots()
        shown = axes.imshow(values, cmap="cividis", aspect="auto")
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                axes.text(
                    column, row, f"{scale * value:.2f}", ha="center", va="center", fontsize=8,
                    color="white" if value < middle else "black",
                )  # fmt: skip
        axes.set_xticks(range(len(temperatures)), [f"{temperature:g}" for temperature in temperatures])
        axes.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
        axes.set(xlabel="temperature T", ylabel="teacher's α", title=title)
        axes.grid(visible=False)
        unit = ", %" if scale == 100 else ""
        figure.colorbar(shown, ax=axes, format=lambda value, _: f"{scale * value:.1f}", label=f"{named}{unit}")
    return figure
