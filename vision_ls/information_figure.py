"""The picture of Figure 6: mutual information over updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from nmt_ls.metrics.plots import COLOURS, DASHES, MARKERS, look, new_figure

Course = Sequence[tuple[int, float]]
_MOST_MARKERS = 12
_INK = "#222222"


def information_figure(courses: Mapping[str, Course], images: int, title: str = "") -> Figure:
    """One line a network, with the levels of log 2 (one bit: which class) and log N (which image).

    courses: (update, nats) by name; updates are drawn on a scale that is linear up to the first one after 0, then
    logarithmic. Raises ValueError where nothing was measured.
    """
    updates = sorted({update for course in courses.values() for update, _ in course})
    if not updates:
        raise ValueError("there is no course of mutual information to draw")
    with look():
        figure = new_figure(6.0, 3.6)
        axes = figure.subplots()
        for index, (name, course) in enumerate(courses.items()):
            axes.plot(
                [update for update, _ in course], [value for _, value in course], label=name,
                color=COLOURS[index % len(COLOURS)], linestyle=DASHES[index % len(DASHES)],
                marker=MARKERS[index % len(MARKERS)], markevery=max(1, len(course) // _MOST_MARKERS), markersize=4,
            )  # fmt: skip
        for level, what in ((math.log(2), "log 2"), (math.log(images), "log N")):
            axes.axhline(level, color=_INK, linewidth=0.8, linestyle=(0, (3, 2)))
            axes.annotate(
                what, (1, level), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
                ha="left", va="center", fontsize=8,
            )  # fmt: skip
        first = next((update for update in updates if update), 1)
        axes.set_xscale("symlog", linthresh=first)
        axes.set(xlabel="updates", ylabel="mutual information (nats)", xlim=(0, updates[-1]))
        axes.set_ylim(min(0.0, *(value for course in courses.values() for _, value in course)), 1.06 * math.log(images))
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=2)
    return figure
