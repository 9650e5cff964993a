"""The figure of students by the smoothness of their targets: what stands beside its points."""

from __future__ import annotations

import numpy as np
import pytest

from nmt_ls.distillation_report import CURVES, smoothness_figure

TEACHER, DIRECT, FROM_HARD, OF_SMOOTHED, _ = CURVES
FOUND = {
    DIRECT: {0.0: [0.8, 0.82, 0.81], 0.1: [0.7, 0.72]},
    FROM_HARD: {0.2: [0.7, 0.7, 0.7], 0.4: [0.8, 0.75, 0.85], 0.6: [0.6, 0.6, 0.6]},
    OF_SMOOTHED: {0.3: [0.5, 0.55, 0.6]},
}


def test_temperatures_and_seeds_stand_beside_points() -> None:
    temperatures = {(FROM_HARD, 0.2): 1.0, (FROM_HARD, 0.4): 4.0, (FROM_HARD, 0.6): 12.0, (OF_SMOOTHED, 0.3): 1.0}
    axes = smoothness_figure(FOUND, temperatures=temperatures).axes[0]
    assert {text.get_text(): text.xy for text in axes.texts} == {  # type: ignore[attr-defined]
        "n = 2": (0.1, 0.72),
        "T = 1": (0.2, 0.7),
        "T = 4": (0.4, 0.85),
        "T = 12": (0.6, 0.6),
    }
    # where the line does not go: it falls, rises, turns and falls
    assert [text.get_horizontalalignment() for text in axes.texts] == ["left", "right", "center", "left"]
    assert [line.get_label() for line in axes.lines] == list(FOUND)


def test_a_single_point_has_a_bar_from_the_least_to_the_greatest() -> None:
    axes = smoothness_figure({OF_SMOOTHED: FOUND[OF_SMOOTHED]}).axes[0]
    ((bar,),) = [bars.get_segments() for bars in axes.collections if hasattr(bars, "get_segments")]
    assert np.asarray(bar) == pytest.approx(np.array([[0.3, 0.5], [0.3, 0.6]]))
    assert not axes.texts
