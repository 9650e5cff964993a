"""Figures of one look: reliability diagrams, temperature sweeps, risk against coverage, logit gaps.

Colours are from the palette of Okabe and Ito, which colour-blind readers can tell apart; every line differs from the
others in its dashes or markers too, so that a figure stays legible in grey. Figures are made with matplotlib's
objects alone: no window system is touched and no global state is left behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nmt_ls.metrics.calibration import Calibration
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.logit_gaps import LogitGaps
from nmt_ls.metrics.selective import RiskCoverage

BLUE, RED, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (2, 1.2)), (0, (7, 2, 1.5, 2)), (0, (1, 1)), (0, (9, 3)))
_GREY, _PALE = "#555555", "#D9D9D9"
_LEGEND_LINE = 0.16  # inches

_LOOK: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": "#222222",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fontsize": 8,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.hashsalt": "nmt_ls",
    "svg.fonttype": "none",
}


@contextmanager
def look() -> Iterator[None]:
    """Within it, whatever is drawn and saved looks like the figures here."""
    with rc_context(_LOOK):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, that can be drawn without a display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path, svg: Callable[[], str] | None = None) -> list[Path]:
    """Write `path`.png and `path`.svg (the folder is made); the same figure gives the same bytes.

    svg: what draws it, for who wants to keep that; asked last, as drawing settles the layout.
    """
    stem = Path(path)
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    with look():
        figure.savefig(files[0], metadata={"Software": None})
    files[1].write_text(figure_svg(figure) if svg is None else svg(), encoding="utf-8")
    return files


def figure_svg(figure: Figure) -> str:
    """The figure as SVG, to stand in a page."""
    text = StringIO()
    with look():
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def reliability_diagram(
    systems: Mapping[str, Calibration],
    null_band: tuple[FloatArray, FloatArray] | None = None,
    title: str = "",
) -> Figure:
    """Accuracy against confidence for each bin, over a histogram of the confidences.

    `null_band`, from `NullDistribution.accuracy_band`, is where a calibrated model with the first system's
    confidences would lie with 95% probability: what is within it is noise.
    """
    if not systems:
        raise ValueError("a reliability diagram needs at least one system")
    with look():
        # the legend below: inside, a line close to the diagonal runs into it wherever it stands
        entries = [_folded(f"{name} (ECE\N{NO-BREAK SPACE}{found.ece:.3f})") for name, found in systems.items()]
        figure = new_figure(4.2, 5.1 + _LEGEND_LINE * (1 + sum(1 + entry.count("\n") for entry in entries)))
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=_GREY, linewidth=0.9, zorder=1, label="perfect calibration")
        for index, (entry, calibration) in enumerate(zip(entries, systems.values(), strict=True)):
            full = calibration.bin_counts > 0
            x, y = calibration.bin_confidence[full], calibration.bin_accuracy[full]
            if index == 0 and null_band is not None:
                low, high = (edge[full] for edge in null_band)
                upper.fill_between(x, low, high, color=_PALE, linewidth=0, zorder=0, label="calibrated model, 95%")
            upper.plot(x, y, label=entry, **_line(index), zorder=3)
            _histogram(lower, calibration, index)
        upper.set(xlim=(0, 1), ylim=(0, 1.01), ylabel="accuracy", title=_folded(title))
        figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center")
        lower.set(xlabel="confidence", ylabel="share")
        lower.set_ylim(bottom=0)
    return figure


def _folded(text: str) -> str:
    """Text of a legend or title on as many lines as a narrow figure needs; names of runs stay whole."""
    return fill(text, 46, break_on_hyphens=False, break_long_words=False)


def _line(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }


def _histogram(axes: Axes, calibration: Calibration, index: int) -> None:
    bins = len(calibration.bin_counts)
    share = calibration.bin_counts / calibration.count
    colour = COLOURS[index % len(COLOURS)]
    axes.stairs(
        share, np.linspace(0, 1, bins + 1), color=colour, linestyle=DASHES[index % len(DASHES)], linewidth=1.4,
        fill=False, zorder=3,
    )  # fmt: skip
    if index == 0:
        axes.stairs(share, np.linspace(0, 1, bins + 1), color=colour, alpha=0.18, fill=True, zorder=2)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A figure at every temperature, for every seed: values [seeds, temperatures]."""

    temperatures: Sequence[float]
    values: FloatArray

    def __post_init__(self) -> None:
        if np.ndim(self.values) != 2 or np.shape(self.values)[1] != len(self.temperatures):
            raise ValueError(
                f"values must be [seeds, {len(self.temperatures)} temperatures], got {np.shape(self.values)}"
            )


@dataclass(frozen=True, kw_only=True)
class SweepSeries:
    """One recipe's sweep. The temperatures of BLEU (a decode each) may be fewer than those of ECE and NLL."""

    bleu: Curve
    ece: Curve
    nll: Curve


def sweep_figure(systems: Mapping[str, SweepSeries], title: str = "") -> Figure:
    """BLEU (blue, left axis) against temperature, with ECE and with NLL (red, right axis): Figure 4 of the paper.

    As there, a recipe is told by its markers. Lines are means over seeds and bands one standard deviation; the best
    temperature of each line is marked with a larger, hollow symbol.
    """
    if not systems:
        raise ValueError("a sweep figure needs at least one system")
    with look():
        figure = new_figure(8.8, 3.6)
        panels = figure.subplots(1, 2, gridspec_kw={"wspace": 0.08})
        for axes, right_name in zip(panels, ("ECE", "NLL"), strict=True):
            right = axes.twinx()
            right.spines["right"].set_visible(True)
            right.grid(False)
            for index, series in enumerate(systems.values()):
                marker = MARKERS[index % len(MARKERS)] if index else ""
                _sweep_line(axes, series.bleu, BLUE, "-", marker, best=np.argmax)
                curve = series.ece if right_name == "ECE" else series.nll
                _sweep_line(right, curve, RED, DASHES[1], marker, best=np.argmin)
            _twin_labels(axes, right, right_name)
        figure.legend(handles=_sweep_legend(systems), loc="outside lower center", ncols=min(len(systems), 4) + 2)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def _sweep_line(axes: Axes, curve: Curve, colour: str, dashes: Any, marker: str, best: Any) -> None:
    order = np.argsort(curve.temperatures)
    temperatures = np.asarray(curve.temperatures)[order]
    values = np.asarray(curve.values)[:, order]
    mean = values.mean(0)
    # about eight markers however fine the grid
    every = max(1, len(temperatures) // 8)
    axes.plot(
        temperatures, mean, color=colour, linestyle=dashes, marker=marker, markevery=every,
        markeredgecolor="white", markeredgewidth=0.6,
    )  # fmt: skip
    if len(values) > 1:
        spread = values.std(0, ddof=1)
        axes.fill_between(temperatures, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    at = int(best(mean))
    axes.plot(
        temperatures[at], mean[at], marker=marker or "o", color="white", markeredgecolor=colour,
        markeredgewidth=1.6, markersize=8, zorder=5,
    )  # fmt: skip


def _twin_labels(left: Axes, right: Axes, right_name: str) -> None:
    left.set_xlabel("temperature")
    left.set_ylabel("BLEU (solid)", color=BLUE)
    unit = "NLL, nats a token" if right_name == "NLL" else "ECE"
    right.set_ylabel(f"{unit} (dashed)", color=RED)
    left.tick_params(axis="y", colors=BLUE)
    right.tick_params(axis="y", colors=RED)
    left.set_title(f"BLEU and {right_name}")


def _sweep_legend(systems: Mapping[str, SweepSeries]) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=_GREY, marker=MARKERS[index % len(MARKERS)] if index else "", label=name)
        for index, name in enumerate(systems)
    ]
    hollow = Line2D(
        [], [], linestyle="", marker="o", color="white", markeredgecolor=_GREY, markeredgewidth=1.6, markersize=8,
        label="best temperature",
    )  # fmt: skip
    return [*handles, hollow]


def risk_coverage_figure(
    systems: Mapping[str, RiskCoverage], title: str = "", risk_label: str = "risk (share of wrong tokens)"
) -> Figure:
    """Risk of what is kept, against how much is kept; the area under each curve in the legend."""
    if not systems:
        raise ValueError("a risk-coverage figure needs at least one system")
    with look():
        figure = new_figure(4.6, 3.6)
        axes = figure.subplots()
        for index, (name, curve) in enumerate(systems.items()):
            # the first thousandth is the risk of a handful: noise that would set the scale
            first = len(curve.risk) // 1000
            shown = np.unique(np.linspace(first, len(curve.risk) - 1, 800).astype(int))
            style = _line(index) | {"markevery": (40 + index * 20, 100)}
            axes.plot(curve.coverage[shown], curve.risk[shown], label=f"{name} (AURC {curve.aurc:.3f})", **style)
        axes.set(xlim=(0, 1), xlabel="coverage (share kept, surest first)", ylabel=risk_label, title=_folded(title))
        axes.set_ylim(bottom=0)
        axes.legend(loc="best")
    return figure


def logit_gap_figure(
    systems: Mapping[str, LogitGaps], ideals: Mapping[str, float] = {}, title: str = "", unit: str = "token"
) -> Figure:
    """Histograms of the logit gaps z_y - z_k: above over all tokens and classes, below of each token's (unit's) mean.

    `ideals` holds the gap at which a system's smoothed loss is least, by the system's name; it is drawn as an upright
    line where it is finite (hard targets have none).
    """
    if not systems:
        raise ValueError("a figure of logit gaps needs at least one system")
    with look():
        figure = new_figure(4.6, 4.4)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        shown = [edge for gaps in systems.values() for edge in _shown_range(gaps)]
        for index, (name, gaps) in enumerate(systems.items()):
            colour, dashes = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
            ideal = ideals.get(name, float("inf"))
            for axes, counts in ((upper, gaps.gap_counts), (lower, gaps.token_counts)):
                edges, density = _coarser(gaps.edges, counts)
                means = f"{name} (mean {gaps.mean:.2f}, sd within {gaps.within_sd:.2f})"
                label = _folded(means) if axes is upper else None
                axes.stairs(density, edges, color=colour, linestyle=dashes, linewidth=1.4, label=label, zorder=3)
                axes.stairs(density, edges, color=colour, alpha=0.15, fill=True, zorder=2)
                if np.isfinite(ideal):
                    label = f"ideal {ideal:.2f}" if axes is upper else None
                    axes.axvline(ideal, color=colour, linewidth=1.1, linestyle=(0, (1, 1.5)), label=label, zorder=4)
            shown += [ideal] if np.isfinite(ideal) else []
        margin = 0.04 * (max(shown) - min(shown))
        upper.set(ylabel="density, all gaps", title=_folded(title), xlim=(min(shown) - margin, max(shown) + margin))
        legend = upper.legend(loc="upper left")
        lines = sum(1 + text.get_text().count("\n") for text in legend.get_texts())
        upper.set_ylim(0, upper.get_ylim()[1] * 1.05 / max(1 - 0.07 * lines, 0.3))  # room for the legend
        lower.set(xlabel="logit gap $z_y - z_k$, nats", ylabel=f"{unit} means")
        lower.set_ylim(bottom=0)
    return figure


def _coarser(edges: FloatArray, counts: FloatArray, wanted: float = 0.5) -> tuple[FloatArray, FloatArray]:
    """Edges and density of cells about `wanted` wide, made of whole finer ones."""
    width = float(edges[1] - edges[0])
    together = max(1, round(wanted / width))
    kept = len(counts) // together * together
    summed = counts[:kept].reshape(-1, together).sum(1)
    coarse = edges[: kept + 1 : together]
    return coarse, summed / (counts.sum() * width * together)


def _shown_range(gaps: LogitGaps, tail: float = 1e-3) -> tuple[float, float]:
    """Between what all but a few of the gaps lie."""
    below = np.cumsum(gaps.gap_counts) / gaps.gap_counts.sum()
    first, last = int(np.searchsorted(below, tail)), int(np.searchsorted(below, 1 - tail))
    return float(gaps.edges[first]), float(gaps.edges[min(last + 1, len(gaps.edges) - 1)])


def estimator_figure(
    curves: Mapping[str, Mapping[int, tuple[float, float]]], exact: float, title: str = "", label: str = "ECE"
) -> Figure:
    """What estimators make of samples of several sizes, mean and sd, beside the exact value (the level line)."""
    if not curves:
        raise ValueError("a figure of estimators needs at least one of them")
    with look():
        figure = new_figure(4.8, 3.6)
        axes = figure.subplots()
        axes.axhline(exact, color=_GREY, linewidth=1.1, label=f"exact {exact:.4f}", zorder=2)
        for index, (name, points) in enumerate(curves.items()):
            # a few per cent apart, so that bars of one size do not hide each other
            sizes = np.array(list(points)) * 1.06 ** (index - (len(curves) - 1) / 2)
            mean, sd = np.array(list(points.values())).T
            axes.errorbar(sizes, mean, yerr=sd, label=name, capsize=2, elinewidth=0.9, zorder=3, **_line(index))
        axes.set(xscale="log", xlabel="tokens in a sample", ylabel=f"{label}, mean ± sd of samples", title=title)
        axes.set_ylim(bottom=0)
        axes.legend(loc="best")
    return figure


def alpha_figure(figures: Mapping[str, Mapping[float, Sequence[float]]], title: str = "", most: int = 4) -> Figure:
    """Figures against the smoothing α: a panel each, a dot for every seed, a line through the means.

    `figures` maps a panel's name to the values of the seeds by α; `most` panels stand side by side.
    """
    if not figures or not all(figures.values()):
        raise ValueError("a figure against α needs at least one panel, and values in each")
    rows = math.ceil(len(figures) / most)
    columns = math.ceil(len(figures) / rows)
    with look():
        figure = new_figure(2.5 * columns, 2.5 * rows + 0.2)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(figures) :]:
            axes.set_axis_off()
        for axes, (name, values) in zip(panels, figures.items(), strict=False):
            alphas = sorted(values)
            axes.plot(alphas, [np.mean(values[alpha]) for alpha in alphas], color=BLUE, zorder=2)
            dots = [(alpha, value) for alpha in alphas for value in values[alpha]]
            axes.plot(*zip(*dots, strict=True), "o", color=BLUE, markeredgecolor="white", alpha=0.75, zorder=3)
            axes.set(title=name, xlabel="α")
            axes.set_xticks(alphas)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure
