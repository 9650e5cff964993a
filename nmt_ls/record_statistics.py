"""The statistics of claims that need only records: figures of seeds, compared by Student's t (and of estimates that are
means over samples, with the samples' own error).

Shapes: A seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from nmt_ls.claims import Side, Test
from nmt_ls.findings import LEAST_SEEDS, Finding, compared_runs
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.statistics import equivalence_test, summed_degrees
from nmt_ls.study_results import NotMeasuredError, Run, SettingResults, estimates

NAMES = {
    "bleu": "BLEU",
    "exact_ece": "exact ECE",
    "exact_equal_mass_ece": "exact equal-mass ECE",
    "exact_squared_l2": "exact squared L2",
    "estimated_ece": "ECE",
    "estimated_squared_l2": "unbiased squared L2",
    "kl_to_truth": "KL(p* to model)",
    "tv_to_truth": "total variation from p*",
    "logit_gap_mean": "mean logit gap",
    "logit_gap_ideal": "ideal",
    "logit_gap_sd": "sd of mean logit gaps",
    "logit_gap_within_sd": "sd of logit gaps over classes",
    "log_scatter_ratio": "log of within over between",
    "log_projection_scale": "log of the distance from the centre",
    "arc_ratio_near": "arc ratio",
    "steps_to_98": "updates to 98% of the final accuracy",
    "steps_to_99": "updates to 99% of the final accuracy",
    "teacher_accuracy": "the teacher's accuracy",
    "teacher_steps_to_99": "the teacher's updates to 99% of its final accuracy",
}
"""What records are called in the report; others by their own names."""


class SamplingError(NamedTuple):
    """The standard error of a mean over samples that all runs share, and its degrees of freedom."""

    sd: float
    degrees: float

    @classmethod
    def of(cls, figure: str, runs: Sequence[Run], *, fitted: bool) -> SamplingError | None:
        """Of an estimate (`estimated_ece equal-width 10000`); None where it is no mean of several samples."""
        named = [
            each
            for run in runs
            for (kind, estimator, size), each in estimates(run, fitted=fitted).items()
            if f"{kind} {estimator} {size}" == figure
        ]
        variances = [each.sd**2 / each.samples for each in named if each.sd is not None]
        if not variances:
            return None
        return cls(math.sqrt(float(np.mean(variances))), min(each.samples for each in named) - 1)

    def added(self, sd: float, degrees: float) -> tuple[float, float]:
        """A standard error with this one added, and their degrees of freedom together (Satterthwaite 1946)."""
        parts = [(sd**2, degrees), (self.sd**2, self.degrees)]
        return math.hypot(sd, self.sd), summed_degrees(parts)


def _name(figure: str) -> str:
    kind, *parts = figure.split(" ")
    name = NAMES.get(kind, kind.replace("_", " ").replace(" ece", " ECE"))
    if len(parts) == 2:  # an estimate of exact calibration: by which estimator, of how many tokens
        estimator, tokens = parts
        return f"{'' if estimator == 'squared-l2' else f'{estimator} '}{name} of {int(tokens):,} tokens"
    return " ".join([name, *parts])


def _recorded(
    results: SettingResults, side: Side, runs: Sequence[Run], names: Sequence[str]
) -> tuple[list[Run], FloatArray]:
    """Those runs whose figures of these names are recorded at the side's temperature, and the figures [A, names]."""
    fitted = side.temperature == "nll"
    kept = [run for run in runs if all(name in run.scored.get(fitted, {}) for name in names)]
    if not kept:
        how = " at a fitted temperature" if fitted else ""
        raise NotMeasuredError(
            f"{' and '.join(names)} of {replace(side, temperature=1.0)} not recorded{how} on {results.setting.split}"
        )
    return kept, np.array([[run.scored[fitted][name] for name in names] for run in kept])


def _of_seeds(
    test: Test,
    values: Sequence[FloatArray],
    runs: Sequence[Sequence[Run]],
    ours: str,
    sampling: SamplingError | None = None,
) -> Finding:
    """The difference of two means over seeds, or one mean against 0, by Student's t; sampling: an error that is
    common to all seeds and adds to what they show."""
    seeds = tuple(len(side) for side in values)
    difference = float(values[-1].mean() - (values[0].mean() if len(values) > 1 else 0.0))
    sd, degrees = math.nan, math.inf
    if min(seeds) >= LEAST_SEEDS:
        paired = len(values) == 1
        first = np.zeros_like(values[0]) if paired else values[0]
        found = equivalence_test(first, values[-1], test.effect, paired=paired)
        sd, degrees = found.standard_error, found.degrees
        if sampling is not None:
            sd, degrees = sampling.added(sd, degrees)
    return Finding(
        difference=difference,
        sd=sd,
        degrees=degrees,
        ours=ours,
        unit="",
        seeds=seeds,
        fixed_sd=sampling.sd if sampling is not None else 0.0,
        runs=tuple(run for side in runs for run in side),
    )


def record(test: Test, results: SettingResults) -> Finding:
    """Difference of a recorded figure."""
    sides = [
        _recorded(results, side, runs, [test.figure])
        for side, runs in zip(test.sides, compared_runs(test, results), strict=True)
    ]
    values = [figures[:, 0] for _, figures in sides]
    if test.within_runs and len(values[0]) != len(values[1]):
        raise NotMeasuredError(f"{test.figure} is not recorded of every run on both sides")
    ours = " → ".join(f"{side.mean():.4g} ({name})" for side, name in zip(values, test.sides, strict=True))
    compared = [values[1] - values[0]] if test.within_runs else values
    return _of_seeds(test, compared, [runs for runs, _ in sides], f"{_name(test.figure)} {ours}")


def record_distance(test: Test, results: SettingResults) -> Finding:
    """Difference of the distances of a recorded figure from another, which is that of the treated side.

    The target belongs to the treated recipe (an ideal that hard targets put at infinity).
    """
    sides = compared_runs(test, results)
    _, both = _recorded(results, test.treated, sides[-1], [test.figure, test.target])
    target = float(both[:, 1].mean())
    found = [_recorded(results, side, runs, [test.figure]) for side, runs in zip(test.sides, sides, strict=True)]
    values = [np.abs(figures[:, 0] - target) for _, figures in found]
    means = " → ".join(f"{figures.mean():.4g} ({side})" for (_, figures), side in zip(found, test.sides, strict=True))
    ours = f"{_name(test.figure)} {means}, {_name(test.target)} {target:.4g}"
    return _of_seeds(test, values, [runs for runs, _ in found], ours)


def record_error(test: Test, results: SettingResults) -> Finding:
    """A recorded figure less the one that it estimates, of all runs of a recipe.

    Where the figure is a mean over samples, all runs have the same ones (nmt_ls.exact): how such means vary adds to how
    the seeds do.
    """
    (runs,) = compared_runs(test, results)
    kept, both = _recorded(results, test.treated, runs, [test.figure, test.target])
    ours = f"{_name(test.figure)} {both[:, 0].mean():.5f}, {_name(test.target)} {both[:, 1].mean():.5f}"
    sampling = SamplingError.of(test.figure, kept, fitted=test.treated.temperature == "nll")
    return _of_seeds(test, [both[:, 0] - both[:, 1]], [kept], ours, sampling)
