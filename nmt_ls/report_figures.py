"""The figures of a report, drawn of records and sentence sums: Figures 3 and 4 of the paper, and figures against α."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure

from nmt_ls.claim_statistics import readable
from nmt_ls.distillation_report import students_figures
from nmt_ls.image_calibration import reliabilities
from nmt_ls.information_report import information_figures
from nmt_ls.metrics.alpha_plot import alpha_figure
from nmt_ls.metrics.calibration import MOMENTS, Calibration, calibration_from_sums
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.null import null_distribution_from_sums
from nmt_ls.metrics.plots import (
    CALIBRATED,
    FEW,
    FEW_EXAMPLES,
    FEW_SHARE,
    estimator_figure,
    figure_svg,
    reliability_diagram,
)
from nmt_ls.metrics.sweep_plot import Curve, SweepSeries, sweep_figure
from nmt_ls.study_results import NotMeasuredError, Run, SettingResults, estimates

SMOOTHED = 0.1
AGAINST_ALPHA = {
    "BLEU": "bleu",
    "accuracy": "accuracy",
    "NLL, nats": "nll",
    "ECE": "ece",
    "exact ECE": "exact_ece",
    "KL(p* to model), nats": "kl_to_truth",
    "total variation": "tv_to_truth",
    "logit gap": "logit_gap_mean",
}
"""Panels: names, and the records they show. Accuracy is of images; tokens have a BLEU instead."""
WIDE = 6.0  # inches


SHOWN = {
    "projection-*-raw": "as Figure 1 of the paper: penultimate activations of three classes on the plane through their "
    "templates (rows of the last layer), in the units of the activations, on shared axes",
    "projection-*-scaled": "the same in units of the templates' mean distance",
    "projection-*-near-raw": "as the fourth row of Figure 1 of the paper: two near classes and a different one on the "
    "plane through their templates, in the units of the activations, on shared axes",
    "projection-*-near-scaled": "two near classes and a different one, in units of their templates' mean distance",
    "logit-gaps-*": "the gaps between the logit of a label and the others, {split} split, beside the gap of least "
    "loss: all gaps in the upper panel, the mean of each {unit}'s in the lower one",
    "risk-coverage-*-T1.0": "selective prediction: the error among those that are most certain, by their share",
    "risk-coverage-*-test": "selective prediction: the error among those that are most certain, by their share",
    "inference-*-T1.0": "calibration on the model's own translations (is a piece right by alignment with the "
    "reference?), beside that on the reference's prefixes",
}
"""Figures that the study drew itself, by pattern of their names, and what they show."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure of a study: its name below figures/ (without its ending), what it shows, and it or None, where the study
    drew it itself."""

    name: str
    caption: str
    figure: Figure | None = None

    def svg(self, folder: Path) -> str:
        """Its drawing; folder: figures/."""
        if self.figure is not None:
            return self._drawn
        return (folder / f"{self.name}.svg").read_text(encoding="utf-8")

    @cached_property
    def _drawn(self) -> str:
        assert self.figure is not None
        return figure_svg(self.figure)

    def wide(self, folder: Path) -> bool:
        """Whether it is too wide for half a page."""
        if self.figure is not None:
            return bool(self.figure.get_figwidth() > WIDE)
        width = re.search(r'<svg[^>]* width="([0-9.]+)pt"', self.svg(folder))
        return width is not None and float(width[1]) / 72 > WIDE


def setting_pictures(name: str, results: SettingResults, teachers: SettingResults | None = None) -> Iterator[Picture]:
    """What can be drawn of a setting of this name, and what its study drew of it; teachers: of its students."""
    if results.setting.students:
        for kind, caption, figure in students_figures(results, teachers):
            yield Picture(name=f"report-{name}-{kind}", caption=caption, figure=figure)
        return
    drawn = [*setting_figures(results), *students_figures(results, teachers), *information_figures(results)]
    for kind, caption, figure in drawn:
        yield Picture(name=f"report-{name}-{kind}", caption=caption, figure=figure)
    if "reliability" not in [kind for kind, _, _ in drawn]:
        yield from _kept_reliability(f"report-{name}-reliability", results)
    yield from study_pictures(results)


def _kept_reliability(name: str, results: SettingResults) -> Iterator[Picture]:
    """The diagram of this name, if there is one."""
    file = results.folder / "figures" / f"{name}.svg"
    if file.exists():
        caption = _reliability_caption(results, file.read_text(encoding="utf-8"))
        yield Picture(name=name, caption=f"{caption} Drawn when the study ran: the rows it was made of are not kept.")


def study_pictures(results: SettingResults) -> Iterator[Picture]:
    """The figures of `SHOWN` that the study drew of a setting's runs: projections where its split is the training one,
    others where it is theirs."""
    setting = results.setting
    for pattern, what in SHOWN.items():
        kind = pattern.split("*")[0]
        for file in sorted((results.folder / "figures").glob(f"{pattern}.svg")):
            of_training = kind.startswith("projection") or file.stem.endswith("-train")
            if of_training != (setting.split == "train") or f"-{setting.checkpoint}-" not in file.stem:
                continue
            if file.stem.endswith("-bf16"):  # of an evaluation in it; what is compared is of fp32
                continue
            if ("-near-" in file.stem) != ("-near-" in pattern):
                continue
            rest = file.stem.removeprefix(kind)
            runs = [run.name for run in results.runs() if f"-{run.name}-" in f"-{rest}-"]
            if any(rest.startswith(f"{run}-") for run in runs):
                each = what.format(unit="image" if results.of_images else "token", split=setting.split)
                caption = f"{setting.name}, {setting.checkpoint} checkpoint, {each}. Runs: {', '.join(runs)}."
                yield Picture(name=file.stem, caption=caption)


def setting_figures(results: SettingResults) -> Iterator[tuple[str, str, Figure]]:
    """What can be drawn of a setting: (short name, caption, figure)."""
    split, title = results.setting.split, results.setting.name
    if (systems := _sweeps(results)) is not None:
        caption = (
            f"{title}, {split} split, as Figure 4 of the paper: BLEU (blue), ECE and NLL (vermilion) against "
            "temperature. Means over seeds with bands of one sd. Hollow symbols are the best temperatures on the split "
            "that is shown, with an arrow where that is the edge of the grid."
        )
        yield (
            "sweep",
            caption,
            sweep_figure(
                systems, title=fill(f"{title}, {split} split; best temperatures are those of this split", 110)
            ),
        )
    narrow = f"{title}, {split} split"
    diagrams, sums_of_first = _reliabilities(results)
    if diagrams:
        band = null_distribution_from_sums(sums_of_first).accuracy_band()
        yield _reliability(results, reliability_diagram(diagrams, band, title=narrow))
    of_images, band_of_images = reliabilities(results)
    if of_images:
        yield _reliability(results, reliability_diagram(of_images, band_of_images, title=narrow))
    if panels := _against_alpha(results):
        caption = f"{title}, {split} split, T = 1, {results.setting.checkpoint} checkpoint: a dot is a seed."
        yield "alpha", caption, alpha_figure(panels, title=fill(title, 70))
    for alpha in (0.0, SMOOTHED):
        curves, exact = _estimators(results, alpha)
        if curves:
            caption = (
                f"{title}, α = {alpha:g}: what estimators of ECE make of samples of several sizes, beside the "
                "exact value of 15 bins (equal-mass, sweep and smooth ECE have exact values of their own); mean over "
                "seeds, bars of one sd over samples."
            )
            yield f"estimators-ls{alpha:g}", caption, estimator_figure(curves, exact, title=f"α = {alpha:g}")


def _reliability(results: SettingResults, diagram: Figure) -> tuple[str, str, Figure]:
    legend = "\n".join(text.get_text() for text in diagram.legends[0].get_texts())
    return "reliability", _reliability_caption(results, legend), diagram


def _reliability_caption(results: SettingResults, drawn: str) -> str:
    """Of a diagram that holds this text: one that was drawn earlier may have no band, or all bins alike."""
    setting = results.setting
    unit, figure, given, chosen = "token", 3, " given the correct prefix", ""
    if results.of_images:
        unit, figure, given = "image", 2, ""
        several = sum(alpha > 0 for alpha in results.alphas) > 1
        chosen = ", and α above 0 is the one of lowest NLL there" if several else ""
    said = [
        f"{setting.name}, {setting.split} split, as Figure {figure} of the paper: accuracy against confidence{given}, "
        "seeds pooled."
    ]
    if CALIBRATED in drawn:
        said.append(
            "Within the band a calibrated model with the confidences of the first would lie (95%; the seeds have their "
            f"{unit}s in common, so it is as wide as that of one)."
        )
    if FEW in drawn:
        said.append(
            f"Bins of fewer than {FEW_EXAMPLES} {unit}s or less than {FEW_SHARE:.1%} of all are pale symbols, outside "
            "the lines and the band."
        )
    said.append(f"Temperatures are fitted to each run by NLL on {setting.choose_on}{chosen}.")
    return " ".join(said)


def _estimators(results: SettingResults, alpha: float) -> tuple[dict[str, dict[int, tuple[float, float]]], float]:
    """Mean and sd over samples by estimator and size, and the exact ECE: means over seeds."""
    runs = [run for run in results.runs(alpha) if "exact_ece" in run.scored.get(False, {})]
    found = [estimates(run) for run in runs]
    curves: dict[str, dict[int, tuple[float, float]]] = {}
    for key in dict.fromkeys(key for of_run in found for key in of_run):
        kind, estimator, tokens = key
        if kind == "estimated_ece" and all(key in of_run for of_run in found):
            mean = float(np.mean([of_run[key].mean for of_run in found]))
            curves.setdefault(estimator, {})[tokens] = (
                mean,
                float(np.mean([of_run[key].sd or 0.0 for of_run in found])),
            )
    return curves, float(np.mean([run.scored[False]["exact_ece"] for run in runs])) if runs else 0.0


def _sweeps(results: SettingResults) -> dict[str, SweepSeries] | None:
    systems = {}
    for alpha in (0.0, SMOOTHED):
        runs = [run for run in results.runs(alpha) if run.swept and run.decoded]
        if not runs:
            return None
        systems[f"α = {alpha:g} ({len(runs)} seed{'s' if len(runs) > 1 else ''})"] = SweepSeries(
            bleu=_curve(runs, "bleu"), ece=_curve(runs, "ece"), nll=_curve(runs, "nll")
        )
    return systems


def _curve(runs: Sequence[Run], name: str) -> Curve:
    cells = [run.decoded if name == "bleu" else run.swept for run in runs]
    common = sorted(set.intersection(*({t for t, figures in run.items() if name in figures} for run in cells)))
    return Curve(temperatures=common, values=np.array([[run[t][name] for t in common] for run in cells]))


def _reliabilities(results: SettingResults) -> tuple[dict[str, Calibration], FloatArray]:
    """Of hard targets at 1 and at their fitted temperature, and of smoothed ones, seeds pooled; and the first's sums,
    mean over seeds."""
    found: dict[str, Calibration] = {}
    first: FloatArray = np.zeros((MOMENTS, 0))
    for alpha, fitted in ((0.0, False), (0.0, True), (SMOOTHED, False)):
        runs = [run for run in results.runs(alpha) if run.swept]
        if not runs:
            continue
        try:
            temperature, pooled = _pooled(results, runs, fitted)
        except NotMeasuredError:
            continue
        name = f"α = {alpha:g}" + (f", T = {temperature:.2f}" if fitted else "")
        first = first if found else np.mean(pooled, 0)
        found[name] = calibration_from_sums(np.sum(pooled, 0))
    return found, first


def _pooled(results: SettingResults, runs: Sequence[Run], fitted: bool) -> tuple[float, list[FloatArray]]:
    """A temperature (1, or the mean of those fitted to each run) and each run's binned sums [6, B] at it.

    Raises NotMeasuredError where no run has its sentences.
    """
    if fitted:
        kept, found = readable(runs, lambda run: results.fitted_sums(run, "bin_sums").sum(0))
        return float(np.mean([run.fitted_temperature[0] for run in kept])), found
    _, sums = readable(runs, lambda run: results.sentences(run, "bin_sums", [1.0]).sum((0, 1), dtype=np.float64))
    return 1.0, [array.reshape(MOMENTS, -1) for array in sums]


def _against_alpha(results: SettingResults) -> dict[str, dict[float, list[float]]]:
    if len(results.alphas) < 3:
        return {}
    panels = {}
    for title, name in AGAINST_ALPHA.items():
        measured = results.by_alpha(name)
        if len(measured) >= 3 and not (name == "accuracy" and "BLEU" in panels):
            panels[title] = measured
    return panels
