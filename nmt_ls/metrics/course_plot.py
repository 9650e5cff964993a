"""The picture of Figure 6: what training runs recorded on their way, over updates, beside levels of meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure

from nmt_ls.metrics.plots import COLOURS, DASHES, INK, MARKERS, look, new_figure

Course = Mapping[int, float]
"""Values by update."""
_MOST_MARKERS = 12
_TITLE = 62
"""Characters of a title in a line."""


def information_figure(courses: Mapping[str, Sequence[Course]], images: int, title: str = "") -> Figure:
    """Mutual information in nats: a line through the means over seeds, a band from the least to the greatest, and the
    levels of log 2 (one bit: which class) and log N (which image). A log N that lies above twice of all that was
    measured is said in the corner, and not drawn: the courses could not be told apart below it.

    courses: of every seed, by name; where a seed has no value at an update, none is drawn there. The scale of updates
    is linear up to the first one after 0, then logarithmic. Raises ValueError where nothing was measured.
    """
    common = {name: sorted(set.intersection(*map(set, seeds))) for name, seeds in courses.items() if seeds}
    if not any(common.values()):
        raise ValueError("there is no course of mutual information to draw")
    every = sorted({update for updates in common.values() for update in updates})
    with look():
        figure = new_figure(6.0, 3.6)
        axes = figure.subplots()
        for index, (name, updates) in enumerate(common.items()):
            values = np.array([[seed[update] for update in updates] for seed in courses[name]])
            colour = COLOURS[index % len(COLOURS)]
            axes.fill_between(updates, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
            axes.plot(
                updates, values.mean(0), label=name, color=colour, linestyle=DASHES[index % len(DASHES)],
                marker=MARKERS[index % len(MARKERS)], markevery=max(1, len(updates) // _MOST_MARKERS), markersize=4,
            )  # fmt: skip
        of_all = [value for seeds in courses.values() for seed in seeds for value in seed.values()]
        levels, most = {"log 2": math.log(2)}, math.log(images)
        if most <= 2 * max(*of_all, math.log(2)):
            levels["log N"] = most
        else:
            axes.annotate(
                f"log N = {most:.1f}", (0, 1), xycoords="axes fraction", xytext=(6, -3), textcoords="offset points",
                ha="left", va="top", fontsize=8,
            )  # fmt: skip
        for what, level in levels.items():
            axes.axhline(level, color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
            axes.annotate(
                what, (1, level), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
                ha="left", va="center", fontsize=8,
            )  # fmt: skip
        axes.set_xscale("symlog", linthresh=next((update for update in every if update), 1))
        axes.set(xlabel="updates", ylabel="mutual information (nats)", xlim=(0, every[-1]), title=fill(title, _TITLE))
        axes.set_ylim(min(0.0, 1.1 * min(of_all)), 1.06 * max(*of_all, *levels.values()))
        figure.legend(loc="outside lower center", ncols=2)
    return figure
