"""Tables and pictures of the report that need only records, and files that a study drew."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nmt_ls.accuracy_tables import precision_rows
from nmt_ls.claims import Claim, Claims, Regime, Setting, Side, Test
from nmt_ls.experiment.records import Record, append_records
from nmt_ls.findings import interval_text
from nmt_ls.metrics.plots import CALIBRATED, FEW
from nmt_ls.report_content import word_of
from nmt_ls.report_figures import setting_pictures, study_pictures
from nmt_ls.report_tables import geometry_rows, recipe_rows
from nmt_ls.study_results import NotMeasuredError, SettingResults, read_results
from nmt_ls.verdicts import regimes_missed, verdict

HERE = Setting(
    title="digits", results="study", runs="a-*", dropout=0.0, command="python -m nmt_ls.study", caution="own split"
)
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="{}pt" height="200pt"></svg>'


def recorded(
    root: Path, runs: Mapping[str, tuple[float, int, dict[str, float]]], setting: Setting = HERE, **more: Any
) -> SettingResults:
    """runs: α, seed and figures by name."""
    records = [
        Record(
            name=name,
            value=value,
            signature={
                "run": run, "alpha": alpha, "seed": seed, "dropout": 0.0, "split": setting.split, "checkpoint": "last",
                "weights": run, "temperature": 1.0, "temperature_is": "given", **more,
            },
            command="python -m vision_ls.evaluate",
        )
        for run, (alpha, seed, figures) in runs.items()
        for name, value in figures.items()
    ]  # fmt: skip
    append_records(root / setting.results / "records.jsonl", records)
    return read_results(setting, root)


def test_two_precisions_are_compared_seed_by_seed(tmp_path: Path) -> None:
    there = {f"a-s{seed}": (0.0, seed, {"accuracy": 0.7 + seed / 100}) for seed in (1, 2, 3, 4)}
    same = {f"b-s{seed}": (0.0, seed, {"accuracy": 0.701 + seed / 100}) for seed in (1, 2, 3)}
    other = {f"c-s{seed}": (0.0, seed, {"accuracy": 0.7 + seed**2 / 100}) for seed in (1, 2, 3)}
    reference = recorded(tmp_path, there)
    (row,) = precision_rows(recorded(tmp_path, same, dataclasses.replace(HERE, runs="b-*")), reference)
    assert (row["seeds"], row["similar"]) == (3, "yes")
    assert row["here"] - row["there"] == pytest.approx(0.001)
    assert row["difference"] == "+0.0010 [+0.0010, +0.0010]"  # the seeds' own spread cancels
    (row,) = precision_rows(recorded(tmp_path, other, dataclasses.replace(HERE, runs="c-*")), reference)
    assert row["similar"] == "unresolved"
    both = {**same, **{f"b1-s{seed}": (0.1, seed, {"accuracy": 0.80 + seed / 100}) for seed in (1, 2, 3)}}
    beside = {**there, **{f"a1-s{seed}": (0.1, seed, {"accuracy": 0.803 + seed / 100}) for seed in (1, 2, 3)}}
    *_, together = precision_rows(
        recorded(tmp_path, both, dataclasses.replace(HERE, runs="b*")),
        recorded(tmp_path, beside, dataclasses.replace(HERE, runs="a*")),
    )
    assert (together["alpha"], together["seeds"], together["similar"]) == ("mean", 3, "yes")
    assert together["here"] - together["there"] == pytest.approx(-0.001)  # means of +0.001 and -0.003
    apart = {f"d-s{seed}": (0.0, seed, {"accuracy": 0.72 + seed / 100}) for seed in (1, 2, 3)}
    (row,) = precision_rows(recorded(tmp_path, apart, dataclasses.replace(HERE, runs="d-*")), reference)
    assert row["similar"] == "no"


def test_p_values_and_updates_of_several_seeds_are_not_averaged(tmp_path: Path) -> None:
    figures = [{"nll": nll, "ece_p_value": p} for nll, p in ((1.0, 0.004), (2.0, 0.388))]
    results = recorded(tmp_path, {f"a-s{i}": (0.0, i, figures[i]) for i in (0, 1)}, updates=5600)
    (row,) = recipe_rows(results)
    assert (row["nll"], row["ece_p_value"], row["updates"]) == (1.5, "0.004 to 0.388", 5600)


def test_another_checkpoint_with_the_same_weights_has_no_row(tmp_path: Path) -> None:
    for run, alpha in (("a-s1", 0.0), ("a-ls0.1-s1", 0.1)):
        for checkpoint in ("last", "best"):
            weights = run if alpha == 0 else f"{run} {checkpoint}"
            results = recorded(
                tmp_path, {run: (alpha, 1, {"nll": 1.0 + alpha})}, checkpoint=checkpoint, weights=weights
            )
    assert [(row["alpha"], row["checkpoint"]) for row in recipe_rows(results)] == [
        (0.0, "last"), (0.1, "last"), (0.1, "best")
    ]  # fmt: skip


def test_figures_in_another_arithmetic_are_not_read(tmp_path: Path) -> None:
    recorded(tmp_path, {"a-s1": (0.0, 1, {"nll": 1.0})}, precision="fp32/medium")
    results = recorded(tmp_path, {"a-s1": (0.0, 1, {"nll": 2.0})}, precision="bf16/highest")
    (run,) = results.runs()
    assert run.scored == {False: {"nll": 1.0}}


def test_the_note_of_the_data_joins_the_caution(tmp_path: Path) -> None:
    results = recorded(tmp_path, {"a-s1": (0.0, 1, {"nll": 1.0})}, note="re-encoded")
    assert results.setting.name == "digits (own split; re-encoded)"
    said = recorded(tmp_path / "said", {"a-s1": (0.0, 1, {"nll": 1.0})}, note="Own split")
    assert said.setting.name == "digits (own split)"


def test_a_setting_outside_its_regime_says_so(tmp_path: Path) -> None:
    regime = Regime(figure="train_accuracy", at_least=0.95)
    claim = Claim(
        name="x", kind="claim", title="x", where="x", sentence="x", numbers="x", settings=("digits",),
        regimes=(regime,), tests={}, not_run="",
    )  # fmt: skip
    results = recorded(tmp_path, {"a-s1": (0.0, 1, {"train_accuracy": 0.9})})
    claims = Claims(settings={"digits": HERE, "others": HERE}, claims=(claim,))
    assert regimes_missed(claims, "digits", results) == ["train accuracy of hard targets is 0.9000, below 0.95"]
    assert regimes_missed(claims, "others", results) == []
    reached = recorded(tmp_path / "more", {"a-s1": (0.0, 1, {"train_accuracy": 0.97})})
    assert regimes_missed(claims, "digits", reached) == []


def test_a_claim_with_some_of_its_runs_is_not_run_in_full(tmp_path: Path) -> None:
    """α = 0.05 is missing, and what there is has a number."""
    sides = {"statistic": "record", "figure": "ece", "baseline": Side(alpha=0.0), "expect": "lower", "effect": 0.1}
    tests = {str(alpha): Test(treated=Side(alpha=alpha), **sides) for alpha in (0.05, 0.1)}  # type: ignore[arg-type]
    claim = Claim(
        name="x", kind="claim", title="x", where="x", sentence="x", numbers="x", settings=("digits",), regimes=(),
        tests=tests, not_run="",
    )  # fmt: skip
    results = recorded(tmp_path, {"a-s1": (0.0, 1, {"ece": 0.3}), "a-ls0.1-s1": (0.1, 1, {"ece": 0.1})})
    found = verdict(claim, "digits", HERE, results)
    assert word_of(found, question=False) == "not run here in full"
    without = dataclasses.replace(claim, tests={"0.05": tests["0.05"]})
    assert word_of(verdict(without, "digits", HERE, results), question=False) == "not run here"


def test_numbers_beside_the_projections(tmp_path: Path) -> None:
    setting = dataclasses.replace(HERE, split="train")
    figures = [{"scatter_ratio": value, "nc1": 2 * value, "arc_ratio_near": 1.0} for value in (1.0, 3.0)]
    recorded(tmp_path, {f"a-s{i}": (0.1, i, figures[i]) for i in (0, 1)}, setting)
    results = recorded(tmp_path, {"a-s0": (0.1, 0, {"scatter_ratio": 5.0})}, setting, split="validation")
    train, validation = geometry_rows(results)
    assert (train["split"], train["seeds"], train["scatter_ratio"], train["nc1"]) == ("train", 2, 2.0, 4.0)
    assert train["scatter_ratio sd"] == pytest.approx(2**0.5)
    assert (train["arc_ratio_near"], train["arc_ratio_near sd"]) == (1.0, 0.0)
    assert (validation["split"], validation["seeds"], validation["scatter_ratio"]) == ("validation", 1, 5.0)
    assert list(geometry_rows(read_results(HERE, tmp_path))) == []  # of images that were not trained on there are none


def test_projections_of_other_classes_are_not_compared(tmp_path: Path) -> None:
    setting = dataclasses.replace(HERE, split="train")
    recorded(tmp_path, {"a-s1": (0.0, 1, {"scatter_ratio": 1.0})}, setting, classes=["cat", "dog", "deer"])
    results = recorded(tmp_path, {"a-s2": (0.0, 2, {"scatter_ratio": 1.0})}, setting, classes=["cat", "dog", "bird"])
    with pytest.raises(
        NotMeasuredError, match=r"scatter_ratio is not of the same classes.*cat, dog, bird; cat, dog, d"
    ):
        results.comparable([results.runs()])


def test_what_a_study_drew_is_shown_with_its_setting(tmp_path: Path) -> None:
    results = recorded(tmp_path, {"a-s1": (0.0, 1, {"nll": 1.0}), "a-s10": (0.0, 10, {"nll": 1.0})})
    drawn = tmp_path / "study" / "figures"
    drawn.mkdir()
    for name, width in (("logit-gaps-a-s1-last-test", 300), ("projection-a-s1-a-s2-last-raw", 700),
                        ("logit-gaps-b-a-s1-last-test", 300), ("projection-a-s1-a-s2-last-near-raw", 700),
                        ("projection-a-s1-a-s2-last-scaled", 700),
                        ("projection-a-s1-a-s2-best-raw", 700),  # of no claim
                        ("logit-gaps-a-s1-last-train", 300)):  # fmt: skip
        (drawn / f"{name}.svg").write_text(SVG.format(width))
    (gaps,) = study_pictures(results)
    assert (gaps.name, gaps.wide(drawn)) == ("logit-gaps-a-s1-last-test", False)
    assert gaps.caption.startswith("digits (own split), last checkpoint, the gaps")
    assert "the mean of each token's in the lower" in gaps.caption
    assert gaps.caption.endswith("Runs: a-s1.")
    trained = dataclasses.replace(HERE, split="train")
    projection, scaled, near, of_training = study_pictures(
        recorded(tmp_path, {"a-s1": (0.0, 1, {"nll": 1.0})}, trained)
    )
    assert (near.name, "two near classes" in near.caption) == ("projection-a-s1-a-s2-last-near-raw", True)
    assert (of_training.name, "train split" in of_training.caption) == ("logit-gaps-a-s1-last-train", True)
    assert (projection.name, projection.wide(drawn)) == ("projection-a-s1-a-s2-last-raw", True)
    assert scaled.name == "projection-a-s1-a-s2-last-scaled"
    assert "two near classes" not in projection.caption + scaled.caption
    assert "last checkpoint, as Figure 1 of the paper" in projection.caption
    assert "<svg" in projection.svg(drawn)


@pytest.mark.parametrize("words", [(), (CALIBRATED,), (CALIBRATED, FEW)])
def test_a_kept_diagram_is_said_to_show_what_it_shows(tmp_path: Path, words: tuple[str, ...]) -> None:
    results = recorded(tmp_path, {"a-s1": (0.0, 1, {"nll": 1.0})})
    drawn = tmp_path / "study" / "figures" / "report-here-reliability.svg"
    drawn.parent.mkdir()
    drawn.write_text(f"<svg>{''.join(f'<text>{text}</text>' for text in words)}</svg>")
    (picture,) = setting_pictures("here", results)
    assert ("Within the band" in picture.caption, "Bins of fewer than 20 tokens" in picture.caption) == (
        CALIBRATED in words, FEW in words
    )  # fmt: skip
    assert picture.caption.endswith("Drawn when the study ran: the rows it was made of are not kept.")


def test_intervals_are_written_alike() -> None:
    assert interval_text(-0.5, -1.0, 0.25, ".2f") == "−0.50 [−1.00, +0.25]"
    assert interval_text(-0.5, -1.0, 0.25, ".2f", " BLEU") == "−0.50 [−1.00, +0.25] BLEU"
    assert interval_text(0.5, float("-inf"), float("inf"), ".1f") == "+0.5, no interval from one seed"
    assert interval_text(0.5, float("-inf"), float("inf"), ".1f", " nats") == "+0.5 nats, no interval from one seed"
