"""What a test of a claim finds, and the runs it is found in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nmt_ls.claims import Side, Test
from nmt_ls.metrics.distributions import student_t_quantile
from nmt_ls.study_results import NotMeasuredError, Run, SettingResults

LEAST_SEEDS = 2
"""On each side: one seed does not show how much seeds differ, and there is no interval."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a test found: a difference with its 95% interval (and the 90% one, that of two one-sided tests at 5%).

    ours: the figures it is a difference of, in words. sd: the standard error of which the intervals are multiples.
    seeds: how many on each side; one number where it is a difference within every run. fixed_sd: the part of the
    standard error that no number of seeds makes smaller, due to the sentences, images or samples. Where a side has one
    seed, nothing is known of seeds: sd is NaN and the intervals are infinite. edge: which chosen temperatures lie at
    the edge of the grid, so that better ones may lie beyond.
    """

    difference: float
    low: float
    high: float
    low_90: float
    high_90: float
    ours: str
    unit: str
    sd: float
    seeds: tuple[int, ...]
    fixed_sd: float
    runs: tuple[Run, ...]
    edge: str = ""

    @classmethod
    def from_error(
        cls,
        difference: float,
        sd: float,
        degrees: float,
        *,
        ours: str,
        unit: str,
        seeds: tuple[int, ...],
        fixed_sd: float,
        runs: Sequence[Sequence[Run]],
    ) -> Finding:
        """With the intervals of Student's t; without any where a side has fewer than LEAST_SEEDS."""
        known = min(seeds) >= LEAST_SEEDS
        reach, reach_90 = (student_t_quantile(p, degrees) * sd if known else math.inf for p in (0.975, 0.95))
        return cls(
            difference=difference,
            low=difference - reach,
            high=difference + reach,
            low_90=difference - reach_90,
            high_90=difference + reach_90,
            ours=ours,
            unit=unit,
            sd=sd if known else math.nan,
            seeds=seeds,
            fixed_sd=fixed_sd,
            runs=tuple(run for side in runs for run in side),
        )

    @property
    def seed_sd(self) -> float:
        """Of one side's figure over seeds, or of the difference within runs, as it stands in the intervals: what of the
        standard error is not fixed, for one seed."""
        shrinks = max(self.sd**2 - self.fixed_sd**2, 0.0)
        return math.sqrt(shrinks / sum(1 / count for count in self.seeds))

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
