"""Figure 6 in a report: the table of mutual information, and its course while networks learnt, from their records."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure

from nmt_ls.metrics.course_plot import information_figure
from nmt_ls.study_results import SettingResults, means_of

COURSE = "mutual_information_course"
FIGURES = ("mutual_information", *(f"mutual_information_{kind}" for kind in ("initial", "peak", "fall", "reused")))


def information_rows(results: SettingResults) -> Iterator[dict[str, Any]]:
    """Of every α: nats, means over seeds, and the classes that are told apart."""
    for alpha in results.alphas:
        runs = [run for run in results.runs(alpha) if "mutual_information" in run.scored.get(False, {})]
        if not runs:
            continue
        row: dict[str, Any] = {
            "alpha": alpha,
            "seeds": len(runs),
            "classes": runs[0].classes["mutual_information"],
            "log N": math.log(runs[0].images["mutual_information"]),
        }
        yield row | means_of(runs, FIGURES)


def information_figures(results: SettingResults) -> Iterator[tuple[str, str, Figure]]:
    """What can be drawn of a setting: (short name, caption, figure)."""
    runs = [run for run in results.runs() if COURSE in run.course]
    if not runs:
        return
    first, setting = runs[0], results.setting
    courses = {
        f"α = {alpha:g}": [run.course[COURSE] for run in runs if run.alpha == alpha]
        for alpha in sorted({run.alpha for run in runs})
    }
    images = first.images["mutual_information"]
    yield (
        "information",
        f"{setting.name}, as Figure 6 of the paper: mutual information between {images} training images of the classes "
        f"{first.classes['mutual_information']} and the difference of their logits. Means over seeds, bands from the "
        "least to the greatest.",
        information_figure(courses, images, title=setting.title),
    )
