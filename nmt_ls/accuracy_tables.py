"""Rows of a report's tables of accuracy: Table 2 of the paper, and the same recipes in two precisions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nmt_ls.claims import Side, Test
from nmt_ls.findings import LEAST_SEEDS, interval_text
from nmt_ls.metrics.distributions import student_t_quantile
from nmt_ls.metrics.statistics import equivalence_test
from nmt_ls.study_results import SettingResults, mean_and_sd, scored_values
from nmt_ls.verdicts import ANSWERS, judge

ACCURACY_MATTERS = 0.005
"""Half a per cent of accuracy: less counts as similar."""


def accuracy_rows(results: SettingResults) -> Iterator[dict[str, Any]]:
    """Table 2: accuracy of classifiers at every α, and whether it is that of hard targets.

    By two one-sided tests at 5%, with images and seeds resampled, which decides, and over seeds alone (Welch): what
    other seeds would give on these images.
    """
    if not results.of_images or results.setting.split == "train":
        return
    for alpha in results.alphas:
        values = scored_values(results.runs(alpha), "accuracy")
        if not values:
            continue
        row: dict[str, Any] = {"alpha": alpha, "seeds": len(values), **mean_and_sd("accuracy", values)}
        if alpha > 0 and 0.0 in results.alphas:
            outcome = judge("accuracy", _similar(alpha), results)
            if outcome.finding is not None:
                row["difference"] = interval_text(outcome.finding.difference, *outcome.finding.interval_90, ".4f")
                row["similar"] = ANSWERS.get(outcome.word, outcome.word)
            hard = scored_values(results.runs(0.0), "accuracy")
            if min(len(hard), len(values)) >= LEAST_SEEDS:
                row |= {f"seeds {name}": value for name, value in _equivalence(hard, values, paired=False).items()}
        yield row


def _equivalence(baseline: Sequence[float], treated: Sequence[float], *, paired: bool) -> dict[str, str]:
    """The difference of accuracies over seeds, and whether it is within what matters (two one-sided t tests at 5%);
    "no" by the rule of claims that expect `similar`, with the 95% interval."""
    found = equivalence_test(baseline, treated, ACCURACY_MATTERS, paired=paired)
    reach = student_t_quantile(0.975, found.degrees) * found.standard_error
    apart = abs(found.difference) > reach and abs(found.difference) >= ACCURACY_MATTERS
    return {
        "difference": interval_text(found.difference, found.low, found.high, ".4f"),
        "similar": "yes" if found.equivalent else "no" if apart else "unresolved",
    }


def _similar(alpha: float) -> Test:
    return Test(
        statistic="accuracy",
        expect="similar",
        effect=ACCURACY_MATTERS,
        baseline=Side(alpha=0.0),
        treated=Side(alpha=alpha),
    )


def precision_rows(here: SettingResults, there: SettingResults) -> Iterator[dict[str, Any]]:
    """Accuracy at every α in two precisions, seed by seed, and of the seeds that all have their mean over α (one seed's
    runs have their batches in common, and count once); and whether it is the same."""
    pairs = {
        alpha: {
            mine.seed: (mine.scored[False]["accuracy"], theirs.scored[False]["accuracy"])
            for mine in here.runs(alpha)
            for theirs in there.runs(alpha)
            if mine.seed == theirs.seed and all("accuracy" in run.scored.get(False, {}) for run in (mine, theirs))
        }
        for alpha in here.alphas
    }
    rows = {alpha: list(found.values()) for alpha, found in pairs.items() if found}
    common = set.intersection(*(set(pairs[alpha]) for alpha in rows)) if len(rows) > 1 else set()
    means = [np.mean([pairs[alpha][seed] for alpha in rows], 0) for seed in sorted(common)]
    for alpha, found in (*rows.items(), *([("mean", means)] if means else [])):
        mine, theirs = np.transpose(found)
        row: dict[str, Any] = {
            "alpha": alpha, "seeds": len(found), "here": float(mine.mean()), "there": float(theirs.mean())
        }  # fmt: skip
        yield row | (_equivalence(theirs, mine, paired=True) if len(found) > 1 else {})
