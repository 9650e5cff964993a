"""What a test of a claim finds, and the runs it is found in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nmt_ls.claims import Side, Test
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.study_results import NotMeasuredError, Run, SettingResults


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a test found: a difference with its 95% interval (and the 90% one, that of two one-sided tests at 5%).

    ours: the figures it is a difference of, in words. seeds: how many on each side; one number where it is a difference
    within every run. seed_sd: of one side's figure over seeds, or of that difference; sentence_sd: of the difference,
    due to the sentences alone, however many seeds there are. Where a side has one seed, nothing is known of seeds:
    seed_sd is NaN. edge: which chosen temperatures lie at the edge of the grid, so that better ones may lie beyond.
    """

    difference: float
    low: float
    high: float
    low_90: float
    high_90: float
    ours: str
    unit: str
    seeds: tuple[int, ...]
    seed_sd: float
    sentence_sd: float
    runs: tuple[Run, ...]
    edge: str = ""

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% one."""
        return self.low, self.high

    @property
    def interval_90(self) -> tuple[float, float]:
        """That of two one-sided tests at 5%."""
        return self.low_90, self.high_90


def side_runs(results: SettingResults, side: Side) -> list[Run]:
    """The runs of a side's α. Raises NotMeasuredError where there are none."""
    runs = results.runs(side.alpha)
    if not runs:
        raise NotMeasuredError(f"no run with α = {side.alpha:g}")
    return runs


def compared_runs(test: Test, results: SettingResults) -> list[list[Run]]:
    """The runs of every side. Raises NotMeasuredError where there are none, or they cannot be compared."""
    sides = [side_runs(results, side) for side in test.sides]
    results.comparable(list({run.name: run for runs in sides for run in runs}.values()))
    return sides


def pooled_sd(sides: Sequence[FloatArray]) -> float:
    """Standard deviation over seeds, of several sides; NaN where one has a single seed."""
    if min(len(values) for values in sides) < 2:
        return math.nan
    return math.sqrt(float(np.mean([np.var(values, ddof=1) for values in sides])))
