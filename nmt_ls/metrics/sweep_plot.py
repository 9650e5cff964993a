"""BLEU, ECE and NLL against temperature: Figure 4 of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.path import Path as Outline

from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.plots import BLUE, DASHES, GREY, MARKERS, RED, look, new_figure


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
    """BLEU (blue, left axis) against temperature, with ECE and with NLL (vermilion, right axis): Figure 4 of the paper.

    As there, a recipe is told by its markers. Lines are means over seeds and bands one standard deviation; the best
    temperature of each line is marked with a larger, hollow symbol, and an arrow outwards where it is the first or last
    of its grid, so that a better one may lie beyond.
    """
    if not systems:
        raise ValueError("a sweep figure needs at least one system")
    at_edge = False
    with look():
        figure = new_figure(8.8, 3.6)
        panels = figure.subplots(1, 2, gridspec_kw={"wspace": 0.08})
        for axes, right_name in zip(panels, ("ECE", "NLL"), strict=True):
            right = axes.twinx()
            right.spines["right"].set_visible(True)
            right.grid(False)
            for index, series in enumerate(systems.values()):
                marker = MARKERS[index % len(MARKERS)] if index else ""
                at_edge |= _sweep_line(axes, series.bleu, BLUE, "-", marker, best=np.argmax)
                curve = series.ece if right_name == "ECE" else series.nll
                at_edge |= _sweep_line(right, curve, RED, DASHES[1], marker, best=np.argmin)
            _twin_labels(axes, right, right_name)
        _sweep_legend(figure, list(systems), at_edge)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


_ARROW = np.array([(0.42, 0.04), (0.7, 0.04), (0.7, 0.2), (1, 0), (0.7, -0.2), (0.7, -0.04), (0.42, -0.04)])
"""A symbol that stands to the right of its point, beside a hollow one."""
_ARROW_SIZE = 24


def _sweep_line(axes: Axes, curve: Curve, colour: str, dashes: Any, marker: str, best: Any) -> bool:
    """Draw it; whether its best temperature is at an edge of its grid."""
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
    at, last = int(best(mean)), len(temperatures) - 1
    axes.plot(temperatures[at], mean[at], **_hollow(marker, colour), zorder=5)
    at_edge = last > 0 and at in (0, last)
    if at_edge:
        outwards = Outline(_ARROW * (1 if at else -1, 1))
        axes.plot(
            temperatures[at], mean[at], marker=outwards, color=colour, markersize=_ARROW_SIZE, markeredgewidth=0,
            clip_on=False, zorder=5,
        )  # fmt: skip
    return at_edge


def _hollow(marker: str, colour: str) -> dict[str, Any]:
    """How the best temperature of a recipe with these markers is drawn."""
    return {
        "linestyle": "",
        "marker": marker or "o",
        "color": "white",
        "markeredgecolor": colour,
        "markeredgewidth": 1.6,
        "markersize": 8,
    }


def _twin_labels(left: Axes, right: Axes, right_name: str) -> None:
    left.set_xlabel("temperature")
    left.set_ylabel("BLEU (solid)", color=BLUE)
    unit = "NLL, nats a token" if right_name == "NLL" else "ECE"
    right.set_ylabel(f"{unit} (dashed)", color=RED)
    left.tick_params(axis="y", colors=BLUE)
    right.tick_params(axis="y", colors=RED)
    left.set_title(f"BLEU and {right_name}")


def _sweep_legend(figure: Figure, names: Sequence[str], at_edge: bool) -> None:
    markers = [MARKERS[index % len(MARKERS)] if index else "" for index in range(len(names))]
    handles: list[Any] = [Line2D([], [], color=GREY, marker=marker) for marker in markers]
    handles.append(tuple(Line2D([], [], **_hollow(marker, GREY)) for marker in markers))
    labels = [*names, "best temperature"]
    if at_edge:
        centred = _ARROW - _ARROW.mean(0)
        size = _ARROW_SIZE * np.abs(centred).max()
        handles.append(
            Line2D([], [], color=GREY, linestyle="", marker=Outline(centred), markersize=size, markeredgewidth=0)
        )
        labels.append("at the edge of its grid")
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(names), 4) + 2,
        handler_map={tuple: HandlerTuple(ndivide=None)},
    )  # fmt: skip
