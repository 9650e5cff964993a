"""Rows of a report's tables of translators: Tables 1 and 3 of the paper in one, and on the embedded corpus what the
estimators of ECE make of samples beside the exact values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nmt_ls.claim_statistics import evaluate
from nmt_ls.claims import Side, Statistic, Test
from nmt_ls.findings import Finding
from nmt_ls.study_results import NotMeasuredError, SettingResults, estimates, fitted_text, mean_and_sd, scored_values

FIGURES = ("bleu", "nll", "perplexity", "ece", "debiased_ece", "squared_l2")
COMPARED: tuple[Statistic, ...] = ("bleu", "nll", "squared_l2")
EXACT_OF = {
    "equal-width": "exact_ece",
    "debiased": "exact_ece",
    "equal-mass": "exact_equal_mass_ece",
    "sweep": "exact_sweep_ece",
    "smooth": "exact_smooth_ece",
    "squared-l2": "exact_squared_l2",
}
"""The exact value that each estimator of nmt_ls.exact is of."""


def translation_rows(results: SettingResults) -> Iterator[dict[str, Any]]:
    """Hard targets, the same at the temperature fitted to each run, and every α at T = 1: means over seeds, their sd,
    and of every α the difference from hard targets with its 95% interval (`<figure> difference`) and what that is
    taken over (`over`)."""
    if results.of_images:
        return
    for alpha in results.alphas:
        for fitted in (False, True) if alpha == 0 else (False,):
            runs = [run for run in results.runs(alpha) if run.scored.get(fitted)]
            if not runs:
                continue
            row: dict[str, Any] = {
                "alpha": alpha,
                "temperature": fitted_text(runs) if fitted else "1",
                "seeds": len(runs),
            }
            for name in FIGURES:
                if values := scored_values(runs, name, fitted=fitted):
                    row |= mean_and_sd(name, values)
            if alpha > 0:
                row |= _differences(results, alpha)
            yield row


def _differences(results: SettingResults, alpha: float) -> dict[str, Finding | str]:
    """Over sentences and seeds where the sentences of all runs are kept, else over the recorded figures of seeds."""
    of_sentences, of_records = (
        {
            f"{figure} difference": finding
            for figure in COMPARED
            if (finding := _difference(results, alpha, figure, kind))
        }
        for kind in (True, False)
    )
    chosen, over = of_sentences, "sentences and seeds"
    if any(
        name not in of_sentences or sum(of_sentences[name].seeds) < sum(finding.seeds)
        for name, finding in of_records.items()
    ):
        chosen, over = of_records, "seeds"
    return {**chosen, "over": over} if chosen else {}


def _difference(results: SettingResults, alpha: float, figure: Statistic, over_sentences: bool) -> Finding | None:
    test = Test(
        statistic=figure if over_sentences else "record",
        figure="" if over_sentences else figure,
        expect="higher",
        effect=1.0,  # asked by every test, and of no account where none is judged
        baseline=Side(alpha=0.0),
        treated=Side(alpha=alpha),
    )
    try:
        return evaluate(test, results)
    except NotMeasuredError:
        return None


def estimator_rows(results: SettingResults) -> Iterator[dict[str, Any]]:
    """Of every α, estimator and size of sample: mean over seeds of the estimate, of the exact value of its own, of the
    sd over samples, and of the root of the mean squared error (bias and sd; no sd of one sample as large as all)."""
    for alpha in results.alphas:
        runs = [run for run in results.runs(alpha) if "exact_ece" in run.scored.get(False, {})]
        found = [(run.scored[False], estimates(run)) for run in runs]
        for key in dict.fromkeys(key for _, of_run in found for key in of_run):
            _, estimator, tokens = key
            exact = EXACT_OF.get(estimator, "")
            have = [(of_run[key], figures[exact]) for figures, of_run in found if key in of_run and exact in figures]
            if not have:
                continue
            bias = np.array([estimate.mean - truth for estimate, truth in have])
            row: dict[str, Any] = {
                "alpha": alpha,
                "estimator": estimator,
                "sample_tokens": tokens,
                "seeds": len(have),
                "estimate": float(np.mean([estimate.mean for estimate, _ in have])),
                "exact": float(np.mean([truth for _, truth in have])),
                "bias": float(bias.mean()),
            }
            sds = [estimate.sd for estimate, _ in have if estimate.sd is not None]
            if len(sds) == len(have):
                row |= {
                    "sd over samples": float(np.mean(sds)),
                    "rmse": float(np.sqrt(np.mean(bias**2 + np.square(sds)))),
                }
            yield row
