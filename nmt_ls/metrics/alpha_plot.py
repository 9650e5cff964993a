"""Figures of runs against the smoothing that they were trained with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from nmt_ls.metrics.plots import BLUE, look, new_figure


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
