"""The picture of Figure 1: three classes on the plane through their templates, runs and splits side by side.

Shape suffixes: N examples, 3 classes, 2 coordinates in the plane.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from numpy.typing import NDArray

from nmt_ls.metrics.plots import BLUE, GREEN, INK, MARKERS, RED, look, new_figure

if TYPE_CHECKING:
    from vision_ls.projecting import Panel

COLOURS = (BLUE, RED, GREEN)
_SIZE = 2.2  # of a point
_SHAPES = [style.get_path().transformed(style.get_transform()) for style in map(MarkerStyle, MARKERS[:3])]
_MARGIN = 0.04
_CHARACTERS, _LINE = 13, 0.17  # of the title: characters an inch, inches a line


def projection_figure(
    panels: Sequence[Panel], classes: Sequence[str], unit: str, title: str = "", remarks: Sequence[str] = ()
) -> Figure:
    """A row of panels on the same axes, both to the same scale; templates are hollow symbols joined by thin lines.

    classes: the names of the three. unit: of the axes, as their label says it. remarks: to stand below the title.
    Raises ValueError without a panel.
    """
    if not panels:
        raise ValueError("a projection figure needs at least one panel")
    low_2, high_2 = _limits(panels)
    width, height = high_2 - low_2
    # the panels are as tall as they are wide, as far as the data allow
    aspect = float(np.clip(height / width, 0.4, 1.6))
    inches = 2.45 * len(panels) + 0.5
    below = [line for remark in remarks for line in textwrap.wrap(remark, int(_CHARACTERS * inches))]
    with look():
        figure = new_figure(inches, 2.45 * aspect + 1.0 + _LINE * len(below))
        row = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axes, panel in zip(row, panels, strict=True):
            _draw(axes, panel)
            axes.set_xlabel(unit)
        row[0].set(xlim=(low_2[0], high_2[0]), ylim=(low_2[1], high_2[1]), ylabel=unit)
        figure.legend(handles=_legend(classes), loc="outside lower center", ncols=4 if len(panels) > 1 else 2)
        if heading := "\n".join(filter(None, [title, *below])):
            figure.suptitle(heading, x=0.01, ha="left", fontsize=10)
    return figure


def _limits(panels: Sequence[Panel]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    everything = np.concatenate([part for panel in panels for part in (panel.coordinates_N2, panel.templates_32)])
    low_2, high_2 = everything.min(0), everything.max(0)
    margin = _MARGIN * float((high_2 - low_2).max())
    return low_2 - margin, high_2 + margin


def _draw(axes: Axes, panel: Panel) -> None:
    order_N = _in_turn(panel.labels_N)
    x_N, y_N = panel.coordinates_N2[order_N].T
    labels = panel.labels_N[order_N].tolist()
    points = axes.scatter(
        x_N, y_N, s=_SIZE**2, c=[COLOURS[k] for k in labels], alpha=0.45, linewidths=0, rasterized=True, zorder=2
    )  # fmt: skip
    points.set_paths([_SHAPES[k] for k in labels])
    corners_42 = panel.templates_32[[0, 1, 2, 0]]
    axes.plot(corners_42[:, 0], corners_42[:, 1], color=INK, linewidth=0.6, linestyle=(0, (3, 2)))
    for index, (x, y) in enumerate(panel.templates_32):
        axes.plot(
            x, y, linestyle="", marker=MARKERS[index], markersize=7, markerfacecolor="none",
            markeredgecolor=INK, markeredgewidth=1.0, zorder=4,
        )  # fmt: skip
    axes.set_aspect("equal", adjustable="box")
    axes.set_title(panel.title)


def _in_turn(labels_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order in which points are drawn: one of each class in turn, so that no class lies on top of the others,
    whose images may be in the file class by class."""
    place_N = np.empty(len(labels_N), np.int64)
    for index in range(3):
        own_N = labels_N == index
        place_N[own_N] = np.arange(own_N.sum())
    return np.argsort(place_N, kind="stable")


def _legend(classes: Sequence[str]) -> list[Line2D]:
    named = [
        Line2D([], [], linestyle="", marker=MARKERS[index], color=COLOURS[index], label=name)
        for index, name in enumerate(classes)
    ]
    hollow = Line2D(
        [], [], color=INK, linestyle=(0, (3, 2)), linewidth=0.6, marker="o", markerfacecolor="none",
        markeredgecolor=INK, markeredgewidth=1.0, label="templates",
    )  # fmt: skip
    return [*named, hollow]
