"""The picture of Figure 6: what training runs recorded on their way, over updates, beside levels of meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from nmt_ls.metrics.plots import COLOURS, DASHES, INK, MARKERS, look, new_figure

Course = Mapping[int, float]
"""Values by update."""
_MOST_MARKERS = 12


def information_figure(courses: Mapping[str, Sequence[Course]], images: int, title: str = "") -> Figure:
    """Mutual information in nats: a line through the means over seeds, a band from the least to the greatest, and the
    levels of log 2 (one bit: which class) and log N (which image).

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
        for level, what in ((math.log(2), "log 2"), (math.log(images), "log N")):
            axes.axhline(level, color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
            axes.annotate(
                what, (1, level), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
                ha="left", va="center", fontsize=8,
            )  # fmt: skip
        axes.set_xscale("symlog", linthresh=next((update for update in every if update), 1))
        axes.set(xlabel="updates", ylabel="mutual information (nats)", xlim=(0, every[-1]), title=title)
        least = min(value for seeds in courses.values() for seed in seeds for value in seed.values())
        axes.set_ylim(min(0.0, 1.1 * least), 1.06 * math.log(images))
        figure.legend(loc="outside lower center", ncols=2)
    return figure
