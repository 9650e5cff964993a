"""What a test of a claim finds, and the runs it is found in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nmt_ls.claims import Side, Test
from nmt_ls.metrics.distributions import student_t_quantile
from nmt_ls.study_results import NotMeasuredError, Run, SettingResults

LEAST_SEEDS = 2
"""On each side: one seed does not show how much seeds differ, and there is no interval."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a test found: a difference and how uncertain it is.

    ours: the figures it is a difference of, in words. sd: its standard error, of which intervals are multiples by
    Student's t with these degrees of freedom; there are none where a side has fewer than LEAST_SEEDS. seeds: how many
    on each side; one number where it is a difference within every run. fixed_sd: the part of the standard error that no
    number of seeds makes smaller, due to the sentences, images or samples. edge: which chosen temperatures lie at the
    edge of the grid, so that better ones may lie beyond.
    """

    difference: float
    sd: float
    degrees: float
    ours: str
    unit: str
    seeds: tuple[int, ...]
    fixed_sd: float
    runs: tuple[Run, ...]
    edge: str = ""

    def between(self, level: float) -> tuple[float, float]:
        """The interval of this level; everything where a side has fewer than LEAST_SEEDS."""
        known = min(self.seeds) >= LEAST_SEEDS
        reach = self.sd * student_t_quantile((1 + level) / 2, self.degrees) if known else math.inf
        return self.difference - reach, self.difference + reach

    @property
    def seed_sd(self) -> float:
        """Of one side's figure over seeds, or of the difference within runs, as it stands in the intervals: what of the
        standard error is not fixed, for one seed."""
        shrinks = max(self.sd**2 - self.fixed_sd**2, 0.0)
        return math.sqrt(shrinks / sum(1 / count for count in self.seeds))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% one."""
        return self.between(0.95)

    @property
    def interval_90(self) -> tuple[float, float]:
        """That of two one-sided tests at 5%."""
        return self.between(0.9)

    @property
    def low(self) -> float:
        return self.interval[0]

    @property
    def high(self) -> float:
        return self.interval[1]


def runs_of(results: SettingResults, side: Side) -> list[Run]:
    """The runs of a side's recipe; of students see Side."""
    if not side.taught:
        return results.runs(side.alpha)

    def meant(signature: Mapping[str, Any]) -> bool:
        temperature = signature["teacher_temperature"]
        wanted: dict[str, Any] = {"beta": 1.0, "student_temperature": temperature}
        if temperature != 1:
            wanted["squared_temperature_factor"] = True
        return all(signature[key] == value for key, value in {**wanted, **side.taught}.items())

    return [run for run in results.runs(side.alpha, taught=True) if meant(run.signature) and not run.of_student]


def compared_runs(test: Test, results: SettingResults) -> list[list[Run]]:
    """The runs of every side. Raises NotMeasuredError where there are none, or they cannot be compared."""
    sides = [runs_of(results, side) for side in test.sides]
    for side, runs in zip(test.sides, sides, strict=True):
        if not runs:
            raise NotMeasuredError(f"no run with {replace(side, temperature=1.0)}")
    results.comparable(sides)
    return sides


def interval_text(value: float, low: float, high: float, digits: str, unit: str = "") -> str:
    """A difference with its interval and unit; without an interval where one seed leaves none."""
    ours, *ends = [format(number, f"+{digits}").replace("-", "−") for number in (value, low, high)]
    return f"{ours} [{', '.join(ends)}]{unit}" if math.isfinite(low) else f"{ours}{unit}, no interval from one seed"
