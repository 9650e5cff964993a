"""The figure of mutual information over updates."""

from __future__ import annotations

import math

import pytest

from nmt_ls.metrics.course_plot import information_figure


def test_means_over_seeds_and_levels() -> None:
    two_seeds = [{0: 0.1, 10: 2.0, 100: 1.0}, {0: 0.3, 10: 1.0}]
    figure = information_figure({"a": two_seeds, "b": [{0: 0.2, 10: 1.5}]}, 40, "title")
    axes = figure.axes[0]
    first, second, *levels = axes.lines
    assert [line.get_label() for line in (first, second)] == ["a", "b"]
    assert list(first.get_xdata()) == [0, 10]  # where both seeds have a value
    assert list(first.get_ydata()) == pytest.approx([0.2, 1.5])
    heights = sorted(float(line.get_ydata()[0]) for line in levels)  # type: ignore[arg-type, index]
    assert heights == pytest.approx([math.log(2), math.log(40)])
    assert axes.get_ylim()[0] == 0
    assert [text.get_text() for text in axes.texts] == ["log 2", "log N"]


def test_a_level_far_above_all_is_said_and_not_drawn() -> None:
    axes = information_figure({"a": [{0: 0.1, 5: 1.5}]}, 600, "words " * 20).axes[0]
    assert [text.get_text() for text in axes.texts] == ["log N = 6.4", "log 2"]
    assert len(axes.lines) == 2
    assert 1.5 < axes.get_ylim()[1] < 2
    assert axes.get_title("left").count("\n") == 1


def test_what_is_below_zero_is_seen() -> None:
    assert information_figure({"a": [{0: -0.3, 5: 1.0}]}, 600).axes[0].get_ylim()[0] < -0.3


def test_nothing_to_draw() -> None:
    for courses in ({}, {"a": []}):
        with pytest.raises(ValueError, match="no course"):
            information_figure(courses, 600)
