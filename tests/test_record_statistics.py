"""Claims that need records alone: what figures of seeds say, and what samples that all seeds share take from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from nmt_ls.claims import Setting, Side, Test
from nmt_ls.experiment.records import Record
from nmt_ls.metrics.distributions import student_t_quantile
from nmt_ls.record_statistics import SamplingError, record_error
from nmt_ls.study_results import SettingResults
from nmt_ls.verdicts import judge

SETTING = Setting(title="made up", results="study", runs="run-*", dropout=0.1, command="python -m made_up")
EXACT, SEEDS = 0.012, 5
TEST = Test(
    statistic="record_error", figure="estimated_squared_l2 squared-l2 10000", target="exact_squared_l2",
    treated=Side(alpha=0.0), expect="similar", effect=0.0004,
)  # fmt: skip


def results_of(sd_of_samples: float | None, samples: int = 20) -> SettingResults:
    """Seeds whose estimates, means over samples, are all 0.00015 below the exact value, give or take 0.00001."""
    records = []
    for seed in range(SEEDS):
        recipe: dict[str, Any] = {
            "run": f"run-s{seed}", "alpha": 0.0, "seed": seed, "dropout": 0.1, "split": "fresh", "checkpoint": "last",
            "weights": str(seed), "temperature": 1.0, "temperature_is": "given",
        }  # fmt: skip
        of_samples = {**recipe, "estimator": "squared-l2", "sample_tokens": 10_000, "samples": samples}
        value = EXACT - 0.00015 + 0.00001 * (seed - 2)
        figures: list[tuple[str, float, dict[str, Any]]] = [
            ("exact_squared_l2", EXACT, recipe),
            ("estimated_squared_l2", value, of_samples),
        ]
        if sd_of_samples is not None:
            figures.append(("estimated_squared_l2_sd", sd_of_samples, of_samples))
        records += [Record(name=name, value=v, signature=s, command="python -m nmt_ls.exact") for name, v, s in figures]
    return SettingResults(SETTING, Path("study"), records)


def test_samples_that_all_seeds_share_are_no_evidence_of_their_own() -> None:
    """Seeds agree closely because they were judged on the same tokens; other tokens would give another mean."""
    found = record_error(TEST, results_of(0.0012))
    assert found.difference == pytest.approx(-0.00015)
    of_samples, of_seeds = 0.0012 / math.sqrt(20), 0.00001 * math.sqrt(2.5) / math.sqrt(SEEDS)
    assert found.sd == pytest.approx(math.hypot(of_samples, of_seeds))
    assert found.fixed_sd == pytest.approx(of_samples)
    assert found.high - found.difference == pytest.approx(student_t_quantile(0.975, 19) * of_samples, rel=0.01)
    outcome = judge("a", TEST, results_of(0.0012))
    assert outcome.word == "unresolved"
    assert "too few samples" in outcome.why
    assert judge("a", TEST, results_of(0.0003)).word == "reproduced"


def test_without_several_samples_seeds_alone_speak() -> None:
    found = record_error(TEST, results_of(None, samples=1))
    assert found.fixed_sd == 0
    assert found.sd == pytest.approx(0.00001 * math.sqrt(2.5) / math.sqrt(SEEDS))
    assert SamplingError.of("ece", results_of(0.001).runs(), fitted=False) is None
    assert SamplingError.of(TEST.figure, results_of(0.001).runs(), fitted=True) is None  # there is none at a fitted T
