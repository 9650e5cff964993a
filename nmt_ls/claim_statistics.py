"""The statistics by which claims are tested, computed from a study's results (configs/claims.yaml says what each is).

Differences of translators are taken over sentences that both translated, those of classifiers over images: one resample
of them serves both sides and all seeds, and seeds are resampled apart. Figures that were only recorded are compared by
their values of seeds.

Shapes: A seeds, S sentences or images, J temperatures of NLL and calibration, D those of translations, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np

from nmt_ls.best_temperatures import TemperatureCurves
from nmt_ls.claims import Side, Test
from nmt_ls.findings import Finding, compared_runs
from nmt_ls.metrics.calibration import MOMENTS, ece_from_sums, unbiased_squared_l2_from_sums
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.statistics import Figure, combined_bootstrap, ratio_of_sums, seed_degrees, variances_of_fixed_seeds
from nmt_ls.metrics.translation import bleu_from_statistics
from nmt_ls.record_statistics import record, record_distance, record_error
from nmt_ls.study_results import NotMeasuredError, Run, SettingResults

Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """A side's sums by sentence or image, [A, S, ...], at the side's temperature."""

    side: Side
    runs: list[Run]
    temperature: float
    sums: FloatArray
    edge: bool = False

    def name(self) -> str:
        if isinstance(self.side.temperature, str):
            return f"{self.side}, {self.temperature:.3g}"
        return str(self.side)


def evaluate(test: Test, results: SettingResults) -> Finding:
    """What a test finds. Raises NotMeasuredError, saying what is missing."""
    return _STATISTICS[test.statistic](test, results)


class Choice(NamedTuple):
    """A temperature that was chosen on a grid; edge: it is the first or last there, and a better one may lie beyond."""

    temperature: float
    edge: bool


def choose_temperature(results: SettingResults, runs: Sequence[Run], by: str, without: float | None = None) -> Choice:
    """The temperature that is best for a recipe's mean over seeds on the split where temperatures are chosen, among
    those that were also measured on the split that is reported, and other than `without`.

    Raises NotMeasuredError where a run was not swept on both.
    """
    setting, kind = results.setting, "decoded" if by == "bleu" else "swept"
    elsewhere = {run.name: run for run in results.runs(split=setting.choose_on)}
    curves, names = list[dict[float, float]](), [run.name for run in runs]
    for run in runs:
        other = elsewhere.get(run.name)
        if other is None or other.signature.get("weights") != run.signature.get("weights"):
            raise NotMeasuredError(f"{run.name} was not swept on {setting.choose_on}, where temperatures are chosen")
        here: dict[float, dict[str, float]] = getattr(run, kind)
        there: dict[float, dict[str, float]] = getattr(other, kind)
        curves.append({t: there[t][by] for t in here if by in there.get(t, {}) and by in here[t]})
    grid = sorted(set.intersection(*(set(curve) for curve in curves)))
    common = [temperature for temperature in grid if temperature != without]
    if len(common) < 2:
        raise NotMeasuredError(f"{', '.join(names)} have no temperatures in common to choose from")
    means = [float(np.mean([curve[t] for curve in curves])) for t in common]
    chosen = common[int(np.argmax(means) if by == "bleu" else np.argmin(means))]
    return Choice(chosen, chosen in (grid[0], grid[-1]))


def readable(runs: Sequence[Run], read: Callable[[Run], Part]) -> tuple[list[Run], list[Part]]:
    """Those runs of which there is what is read, and that; NotMeasuredError, the last run's, where there are none."""
    kept, found, problem = list[Run](), list[Part](), "nothing is measured"
    for run in runs:
        try:
            found.append(read(run))
            kept.append(run)
        except NotMeasuredError as error:
            problem = str(error)
    if not kept:
        raise NotMeasuredError(problem)
    return kept, found


def _measured(
    results: SettingResults, runs: Sequence[Run], columns: Sequence[tuple[str, Sequence[float]]]
) -> tuple[list[Run], list[FloatArray]]:
    """Those runs of which every column is there, and each column as [A, J, S, ...]."""
    kept, found = readable(
        runs, lambda run: [results.sentences(run, column, temperatures) for column, temperatures in columns]
    )
    return kept, [np.stack(arrays) for arrays in zip(*found, strict=True)]


def _image_sums(results: SettingResults, side: Side, runs: Sequence[Run], column: str) -> _Sums:
    if side.temperature == "nll":
        return _fitted(side, runs, lambda run: results.image_sums(run, column, fitted=True))
    if side.temperature != 1.0:
        raise NotMeasuredError("images are scored at temperature 1, and at one fitted to each run by NLL")
    kept, found = readable(runs, lambda run: results.image_sums(run, column, fitted=False))
    return _Sums(side=side, runs=kept, temperature=1.0, sums=np.stack(found))


def _fitted(side: Side, runs: Sequence[Run], read: Callable[[Run], FloatArray]) -> _Sums:
    """Sums at a temperature of its own for each run."""
    kept, found = readable(runs, read)
    mean = float(np.mean([run.fitted_temperature[0] for run in kept]))
    return _Sums(side=side, runs=kept, temperature=mean, sums=np.stack(found))


def _side_sums(results: SettingResults, side: Side, runs: Sequence[Run], column: str, without: float | None) -> _Sums:
    if results.of_images:
        return _image_sums(results, side, runs, column)
    if column == "correct":
        raise NotMeasuredError("accuracy is compared of images")
    temperature, edge = side.temperature, False
    if temperature == "nll" and column in ("nll", "bin_sums"):
        return _fitted(side, runs, lambda run: results.fitted_sums(run, column))
    if isinstance(temperature, str):
        swept = [run for run in runs if run.decoded] if temperature == "bleu" else [run for run in runs if run.swept]
        if not swept:
            raise NotMeasuredError(f"no run with α = {side.alpha:g} was swept on {results.setting.split}")
        runs, (temperature, edge) = swept, choose_temperature(results, swept, temperature, without)
    columns = [("nll", [temperature]), ("tokens", [temperature])] if column == "nll" else [(column, [temperature])]
    kept, arrays = _measured(results, runs, columns)
    sums = np.concatenate([array[:, 0].astype(np.float64) for array in arrays], -1)
    if column == "bin_sums":
        sums = sums.reshape(*sums.shape[:2], MOMENTS, -1)
    return _Sums(side=side, runs=kept, temperature=temperature, sums=sums, edge=edge)


def _paired(
    test: Test,
    results: SettingResults,
    column: str,
    figure: Figure,
    unit: str,
    shown: Callable[[FloatArray], str],
) -> Finding:
    # beside the same α at a given temperature, the best of the others
    without = next((s.temperature for s in test.sides if test.within_runs and isinstance(s.temperature, float)), None)
    sides = [
        _side_sums(results, side, runs, column, without)
        for side, runs in zip(test.sides, compared_runs(test, results), strict=True)
    ]
    ours = " → ".join(f"{shown(side.sums.sum(1))} ({side.name()})" for side in sides)
    edge = ", ".join(side.name() for side in sides if side.edge)
    runs = [side.runs for side in sides]
    if test.within_runs:  # the seeds are the same ones: they are resampled together
        common = [run.name for run in runs[0] if run.name in {other.name for other in runs[1]}]
        both = [side.sums[[run.name in common for run in side.runs]] for side in sides]
        arrays, figure_of = [np.stack(both, 2)], _difference_of(figure)
        per_seed = [figure_of(arrays[0].sum(1))]
        found = _finding(arrays, figure_of, lambda means: means[0], per_seed=per_seed, ours=ours, unit=unit, runs=runs)
        return replace(found, edge=edge)
    found = _finding(
        [side.sums for side in sides],
        figure,
        lambda means: means[1] - means[0],
        per_seed=[figure(side.sums.sum(1)) for side in sides],
        ours=ours,
        unit=unit,
        runs=runs,
    )
    return replace(found, edge=edge)


def _difference_of(figure: Figure) -> Figure:
    """Of sums [..., 2, *], the second's figure less the first's."""

    def difference(total: FloatArray) -> FloatArray:
        values = figure(total)
        return np.asarray(values[..., 1] - values[..., 0])

    return difference


def _finding(
    arrays: Sequence[FloatArray],
    figure: Figure,
    combine: Callable[[Sequence[FloatArray]], FloatArray],
    *,
    per_seed: Sequence[FloatArray],
    ours: str,
    unit: str,
    runs: Sequence[Sequence[Run]],
) -> Finding:
    """per_seed: one value a seed, of each side, whose spread is that of the seeds."""
    if len({array.shape[1] for array in arrays}) > 1:
        raise NotMeasuredError(
            "the two sides have different numbers of sentences or images: they are of different data"
        )
    whole = combined_bootstrap(arrays, figure, combine)
    return Finding(
        difference=whole.value,
        sd=whole.sd,
        degrees=seed_degrees(whole.sd, per_seed),
        ours=ours,
        unit=unit,
        seeds=tuple(len(values) for values in per_seed),
        fixed_sd=_sentence_sd(arrays, figure, combine),
        runs=tuple(run for side in runs for run in side),
    )


def _sentence_sd(
    arrays: Sequence[FloatArray], figure: Figure, combine: Callable[[Sequence[FloatArray]], FloatArray]
) -> float:
    """The sd that no number of seeds makes smaller.

    With seeds held fixed a resample of sentences varies by V(A) = s^2 + i^2 / A, where i^2 is how sentences and seeds
    act together. One seed a side has V(1) = s^2 + i^2; hence s^2 = (A V(A) - V(1)) / (A - 1).
    """
    several, alone = variances_of_fixed_seeds(arrays, figure, combine)
    seeds, one = len(alone), float(alone.mean())
    if seeds == 1:
        return math.sqrt(one)
    return math.sqrt(max((seeds * several - one) / (seeds - 1), 0.0))


def bleu(test: Test, results: SettingResults) -> Finding:
    """Difference of BLEU."""
    return _paired(
        test,
        results,
        "bleu_statistics",
        bleu_from_statistics,
        "BLEU",
        lambda sums_A: f"{float(np.mean(bleu_from_statistics(sums_A))):.2f}",
    )


def squared_l2(test: Test, results: SettingResults) -> Finding:
    """Difference of the unbiased squared L2 calibration error; the ECE of both sides is shown beside it."""
    return _paired(
        test,
        results,
        "bin_sums",
        unbiased_squared_l2_from_sums,
        "squared L2",
        lambda sums_A: f"ECE {float(np.mean(ece_from_sums(sums_A))):.4f}",
    )


def nll(test: Test, results: SettingResults) -> Finding:
    """Difference of NLL."""
    return _paired(
        test, results, "nll", ratio_of_sums, "nats", lambda sums_A: f"NLL {float(np.mean(ratio_of_sums(sums_A))):.4f}"
    )


def accuracy(test: Test, results: SettingResults) -> Finding:
    """Difference of accuracy on images."""
    return _paired(
        test,
        results,
        "correct",
        ratio_of_sums,
        "",
        lambda sums_A: f"accuracy {float(np.mean(ratio_of_sums(sums_A))):.4f}",
    )


def _curves(
    results: SettingResults, sides: Sequence[Sequence[Run]], columns: Sequence[str]
) -> tuple[list[float], list[list[Run]], list[list[FloatArray]]]:
    """Teacher-forced columns of every side at all temperatures that all runs have, each [A, S, J, ...]."""
    swept = [[run for run in side if run.swept] for side in sides]
    if not all(swept):
        raise NotMeasuredError(f"no run was swept on {results.setting.split}")
    common = sorted(set.intersection(*(set(run.swept) for side in swept for run in side)))
    kept, arrays = list[list[Run]](), list[list[FloatArray]]()
    for side in swept:
        runs, found = _measured(results, side, [(column, common) for column in columns])
        kept.append(runs)
        arrays.append([np.moveaxis(array, 1, 2).astype(np.float64) for array in found])
    return common, kept, arrays


def nll_at_every_temperature(test: Test, results: SettingResults) -> Finding:
    """The least difference of NLL over temperatures."""
    temperatures, runs, arrays = _curves(results, compared_runs(test, results), ("nll", "tokens"))
    stacked = [np.concatenate([nll_ASJ1, tokens_ASJ1], -1) for nll_ASJ1, tokens_ASJ1 in arrays]
    means = [ratio_of_sums(array.sum(1)).mean(0) for array in stacked]
    at = int((means[1] - means[0]).argmin())
    low, high = (f"{temperatures[index]:.2f}" for index in (0, -1))
    return _finding(
        stacked,
        ratio_of_sums,
        lambda curves: np.asarray((curves[1] - curves[0]).min(-1)),
        per_seed=[ratio_of_sums(array.sum(1))[:, at] for array in stacked],
        ours=f"of T = {low} to {high} least at {temperatures[at]:.2f}: NLL {means[0][at]:.4f} → {means[1][at]:.4f}",
        unit="nats",
        runs=runs,
    )


def best_temperature_distance(test: Test, results: SettingResults) -> Finding:
    """|T by NLL - T by BLEU| - |T by calibration error - T by BLEU| of one recipe."""
    (side,) = compared_runs(test, results)
    side = [run for run in side if run.decoded]
    if not side:
        raise NotMeasuredError(f"no run with α = {test.treated.alpha:g} was translated at several temperatures")
    temperatures, (runs,), ((nll_A, tokens_A, bins_A),) = _curves(results, [side], ("nll", "tokens", "bin_sums"))
    decoded = sorted(set.intersection(*(set(run.decoded) for run in runs)))
    if len(temperatures) < 3 or len(decoded) < 3:
        raise NotMeasuredError("fewer than three temperatures were measured")
    kept, (bleu_A,) = _measured(results, runs, [("bleu_statistics", decoded)])
    if len(kept) < len(runs):
        raise NotMeasuredError("some runs were not translated at the temperatures of the others")
    grids = TemperatureCurves(temperatures=temperatures, decoded=decoded)
    sums = grids.sums([nll_A, tokens_A, bins_A, np.moveaxis(bleu_A, 1, 2).astype(np.float64)])
    per_seed = grids.of(sums.sum(1))
    mean = per_seed.mean(0)
    shown = dict(zip(("NLL", "calibration error", "BLEU"), (float(t[0]) for t in grids.best(mean[None])), strict=True))
    found = _finding(
        [sums],
        grids.of,
        lambda curves: grids.distance(curves[0]),
        per_seed=[grids.distance(per_seed)],
        ours=f"best T on {results.setting.split} " + ", ".join(f"by {name} {t:.2f}" for name, t in shown.items()),
        unit="in T",
        runs=[runs],
    )
    edge = (f"α = {test.treated.alpha:g} at the best T by {name}, {shown[name]:.3g}" for name in grids.edges(mean))
    return replace(found, edge=", ".join(edge))


_STATISTICS: dict[str, Callable[[Test, SettingResults], Finding]] = {
    "bleu": bleu,
    "squared_l2": squared_l2,
    "nll": nll,
    "accuracy": accuracy,
    "nll_at_every_temperature": nll_at_every_temperature,
    "best_temperature_distance": best_temperature_distance,
    "record": record,
    "record_distance": record_distance,
    "record_error": record_error,
}
