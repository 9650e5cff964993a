"""Figures of one look: reliability diagrams, risk against coverage, logit gaps, estimators.

Colours are from the palette of Okabe and Ito, which colour-blind readers can tell apart; every line differs from the
others in its dashes or markers too, so that a figure stays legible in grey. Figures are made with matplotlib's
objects alone: no window system is touched and no global state is left behind.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nmt_ls.metrics.calibration import Calibration
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.logit_gaps import LogitGaps
from nmt_ls.metrics.selective import RiskCoverage

BLUE, RED, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (2, 1.2)), (0, (7, 2, 1.5, 2)), (0, (1, 1)), (0, (9, 3)))
INK, GREY, _PALE = "#222222", "#555555", "#DEDEDE"
_LEGEND_LINE = 0.16  # inches

FEW_EXAMPLES, FEW_SHARE = 20, 0.001
"""A bin of fewer examples than the first, or than this share of all, is drawn pale: of so few the accuracy is known to
no better than ± 0.2 (1.96 sd, where it is a half), and so small a share cannot move ECE by the 0.001 that is shown."""
CALIBRATED = "calibrated model, 95%"
FEW = f"few in the bin (below {FEW_EXAMPLES} or {FEW_SHARE:.1%})"
"""Legends of reliability diagrams, by which it can be told what a diagram shows."""

_LOOK: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fontsize": 8,
    "xtick.color": GREY,
    "ytick.color": GREY,
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


def _figure_above(entries: Sequence[str], width: float, height: float) -> Figure:
    """An empty figure with room below for a legend of these entries, a line each: its panels keep their size."""
    return new_figure(width, height + _LEGEND_LINE * sum(1 + entry.count("\n") for entry in entries))


def save_figure(figure: Figure, path: str | Path, svg: Callable[[], str] | None = None) -> list[Path]:
    """Write `path`.png and `path`.svg, each whole or not at all (the folder is made); the same figure gives the same
    bytes.

    svg: what draws it, for who wants to keep that; asked last, as drawing settles the layout.
    """
    stem, drawn = Path(path), BytesIO()
    stem.parent.mkdir(parents=True, exist_ok=True)
    with look():
        figure.savefig(drawn, format="png", metadata={"Software": None})
    text = figure_svg(figure) if svg is None else svg()
    return [_written(stem, "png", drawn.getvalue()), _written(stem, "svg", text.encode("utf-8"))]


def _written(stem: Path, kind: str, content: bytes) -> Path:
    """The file, written under another name first: a report shows what it finds, and half a figure is none."""
    file = stem.with_name(f"{stem.name}.{kind}")
    temporary = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return file


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

    Lines join neighbouring bins; those of few examples (`FEW_EXAMPLES`, `FEW_SHARE`) are pale symbols apart.
    `null_band`, from `NullDistribution.accuracy_band`, is where a calibrated model with the first system's
    confidences would lie with 95% probability: what is within it is noise. It is drawn where that system has more
    than a few.
    """
    if not systems:
        raise ValueError("a reliability diagram needs at least one system")
    few = any((_few(each) & (each.bin_counts > 0)).any() for each in systems.values())
    with look():
        # the legend below: inside, a line close to the diagonal runs into it wherever it stands
        entries = [_folded(f"{name} ({_whole(f'ECE {found.ece:.3f}')})") for name, found in systems.items()]
        figure = _figure_above(["perfect", *[CALIBRATED] * (null_band is not None), *entries, *[FEW] * few], 4.2, 5.1)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=GREY, linewidth=0.9, zorder=1, label="perfect calibration")
        if null_band is not None:
            _accuracy_band(upper, next(iter(systems.values())), null_band)
        for index, (entry, calibration) in enumerate(zip(entries, systems.values(), strict=True)):
            _accuracies(upper, calibration, index, entry)
            _histogram(lower, calibration, index)
        if few:
            upper.plot([], [], "o", color=GREY, label=FEW, **_PALE_SYMBOL)
        upper.set(xlim=(0, 1), ylim=(0, 1.01), ylabel="accuracy", title=_folded(title))
        figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center")
        lower.set(xlabel="confidence", ylabel="share")
        lower.set_ylim(bottom=0)
    return figure


_PALE_SYMBOL: dict[str, Any] = {"linestyle": "", "alpha": 0.35, "markeredgewidth": 0, "zorder": 2}


def _few(calibration: Calibration) -> NDArray[np.bool_]:
    """Which bins have few examples, or none: [B]."""
    return np.asarray(calibration.bin_counts < max(FEW_EXAMPLES, FEW_SHARE * calibration.count))


def _accuracies(axes: Axes, calibration: Calibration, index: int, entry: str) -> None:
    few, style = _few(calibration), _line(index)
    x, y = calibration.bin_confidence, calibration.bin_accuracy
    axes.plot(x, np.where(few, np.nan, y), label=entry, **style, zorder=3)
    pale = few & (calibration.bin_counts > 0)
    if pale.any():
        # whole symbols, as of few examples often all are right, or all wrong
        axes.plot(x[pale], y[pale], color=style["color"], marker=style["marker"], clip_on=False, **_PALE_SYMBOL)


def _accuracy_band(axes: Axes, calibration: Calibration, band: tuple[FloatArray, FloatArray]) -> None:
    x, enough = calibration.bin_confidence, ~_few(calibration)
    low, high = band
    axes.fill_between(x, low, high, enough, color=_PALE, linewidth=0, zorder=0, label=CALIBRATED)
    # a bin without a neighbour leaves nothing to fill: a bar
    alone = enough & ~(np.append(enough[1:], False) | np.append(False, enough[:-1]))
    axes.vlines(x[alone], low[alone], high[alone], color=_PALE, linewidth=4, zorder=0)


def _folded(text: str) -> str:
    """Text of a legend or title on as many lines as a narrow figure needs; names of runs stay whole."""
    return fill(text, 46, break_on_hyphens=False, break_long_words=False)


def _whole(words: str) -> str:
    """Words that `_folded` leaves on one line."""
    return words.replace(" ", "\N{NO-BREAK SPACE}")


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


def risk_coverage_figure(
    systems: Mapping[str, RiskCoverage], title: str = "", risk_label: str = "risk (share of wrong tokens)"
) -> Figure:
    """Risk of what is kept, against how much is kept; the area under each curve in the legend."""
    if not systems:
        raise ValueError("a risk-coverage figure needs at least one system")
    entries = [_folded(f"{name} ({_whole(f'AURC {curve.aurc:.3f}')})") for name, curve in systems.items()]
    with look():
        figure = _figure_above(entries, 4.6, 3.6)
        axes = figure.subplots()
        for index, (entry, curve) in enumerate(zip(entries, systems.values(), strict=True)):
            # the first thousandth is the risk of a handful: noise that would set the scale
            first = len(curve.risk) // 1000
            shown = np.unique(np.linspace(first, len(curve.risk) - 1, 800).astype(int))
            style = _line(index) | {"markevery": (40 + index * 20, 100)}
            axes.plot(curve.coverage[shown], curve.risk[shown], label=entry, **style)
        axes.set(xlim=(0, 1), xlabel="coverage (share kept, surest first)", ylabel=risk_label, title=_folded(title))
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside lower center")
    return figure


def logit_gap_figure(
    systems: Mapping[str, LogitGaps], ideals: Mapping[str, float] = {}, title: str = "", unit: str = "token"
) -> Figure:
    """Histograms of the logit gaps z_y - z_k: above over all tokens and classes, below of each token's (unit's) mean.

    `ideals` holds the gap at which a system's smoothed loss is least, by the system's name; it is drawn as an upright
    line where it is finite (hard targets have none). The sd in the legend is that of a token's gaps over the classes,
    mean over tokens.
    """
    if not systems:
        raise ValueError("a figure of logit gaps needs at least one system")
    finite = {name: ideals[name] for name in systems if np.isfinite(ideals.get(name, np.inf))}
    shown = [*finite.values(), *(edge for gaps in systems.values() for edge in _shown_range(gaps))]
    entries = {
        name: _folded(f"{name} (mean {gaps.mean:.2f}, {_whole(f'sd over classes {gaps.within_sd:.2f}')})")
        for name, gaps in systems.items()
    }
    with look():
        figure = _figure_above([*entries.values(), *finite], 4.6, 4.4)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        for index, (name, gaps) in enumerate(systems.items()):
            colour, dashes = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
            for axes, counts in ((upper, gaps.gap_counts), (lower, gaps.token_counts)):
                edges, density = _coarser(gaps.edges, counts)
                label = entries[name] if axes is upper else None
                axes.stairs(density, edges, color=colour, linestyle=dashes, linewidth=1.4, label=label, zorder=3)
                axes.stairs(density, edges, color=colour, alpha=0.15, fill=True, zorder=2)
                if name in finite:
                    label = f"ideal {finite[name]:.2f}" if axes is upper else None
                    axes.axvline(
                        finite[name], color=colour, linewidth=1.1, linestyle=(0, (1, 1.5)), label=label, zorder=4
                    )
        margin = 0.04 * (max(shown) - min(shown))
        upper.set(ylabel="density, all gaps", title=_folded(title), xlim=(min(shown) - margin, max(shown) + margin))
        lower.set(xlabel="logit gap $z_y - z_k$, nats", ylabel=f"{unit} means")
        lower.set_ylim(bottom=0)
        figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center")
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
    columns = 3
    with look():
        figure = new_figure(4.8, 3.7 + _LEGEND_LINE * math.ceil((1 + len(curves)) / columns))
        axes = figure.subplots()
        axes.axhline(exact, color=GREY, linewidth=1.1, label=f"exact {exact:.4f}", zorder=2)
        for index, (name, points) in enumerate(curves.items()):
            # a few per cent apart, so that bars of one size do not hide each other
            sizes = np.array(list(points)) * 1.06 ** (index - (len(curves) - 1) / 2)
            mean, sd = np.array(list(points.values())).T
            axes.errorbar(sizes, mean, yerr=sd, label=name, capsize=2, elinewidth=0.9, zorder=3, **_line(index))
        axes.set(xscale="log", xlabel="tokens in a sample", ylabel=f"{label}, mean ± sd of samples", title=title)
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside lower center", ncols=columns)
    return figure
