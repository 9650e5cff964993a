"""Verdicts on made-up studies whose truth is known: each verdict can be reached, and each test can fail."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_up_study import BOTH, INVERSES, Translator, write_study

from nmt_ls.claim_statistics import choose_temperature, evaluate
from nmt_ls.claims import Claim, Claims, Regime, Setting, Side, Test, read_claims
from nmt_ls.experiment.command_line import UserError
from nmt_ls.report_tables import temperature_rows
from nmt_ls.study_results import NotMeasuredError, SettingResults, read_results
from nmt_ls.verdicts import Verdict, judge, verdict, verdicts_of

SETTING = Setting(title="made up", results="fake", runs="fake-de-*", dropout=0.3, command="python -m made_up")
SHIPPED = read_claims(Path(__file__).parents[1] / "configs" / "claims.yaml")


def shipped(name: str) -> Claim:
    """A claim of the file that we ship, tried on the made-up setting."""
    (claim,) = (claim for claim in SHIPPED.claims if claim.name == name)
    return dataclasses.replace(claim, settings=("fake",))


def results_of(root: Path, hard: Translator, smooth: Translator, **options: Any) -> SettingResults:
    write_study(root / "fake", [hard, smooth], **options)
    return read_results(SETTING, root)


def judged(claim: Claim, results: SettingResults) -> Verdict:
    return verdict(claim, "fake", SETTING, results)


def hard_like(**changes: Any) -> Translator:
    """Over-confident at 1, calibrated at about 1.25, best BLEU at 1.1."""
    usual: dict[str, Any] = {
        "alpha": 0.0,
        "gap": lambda t: 0.25 * (1 / t - 0.8),
        "nll": lambda t: 1.5 + (1 / t - 0.9) ** 2,
        "precision": lambda t: 0.40 - 0.02 * (t - 1.1) ** 2,
        "scored": {"logit_gap_mean": 25.0, "logit_gap_sd": 6.0, "logit_gap_within_sd": 6.0},
    }
    return Translator(**{**usual, **changes})


def smooth_like(**changes: Any) -> Translator:
    """Calibrated at 1, and best there."""
    usual: dict[str, Any] = {
        "alpha": 0.1,
        "gap": lambda t: 0.25 * (1 / t - 1.0),
        "nll": lambda t: 1.65 + (1 / t - 1.1) ** 2,
        "precision": lambda t: 0.42 - 0.2 * (t - 1.0) ** 2,
        "scored": {"logit_gap_mean": 12.0, "logit_gap_sd": 2.0, "logit_gap_within_sd": 2.0, "logit_gap_ideal": 11.4},
    }
    return Translator(**{**usual, **changes})


@pytest.fixture(scope="module")
def as_the_paper_says(tmp_path_factory: pytest.TempPathFactory) -> SettingResults:
    return results_of(tmp_path_factory.mktemp("paper"), hard_like(), smooth_like(), splits=BOTH)


@pytest.fixture(scope="module")
def against_the_paper(tmp_path_factory: pytest.TempPathFactory) -> SettingResults:
    """Smoothing does harm in every respect."""
    hard = hard_like(
        nll=lambda t: 1.8 + (1 / t - 1.1) ** 2,
        precision=lambda t: 0.42 - 0.2 * (t - 0.9) ** 2,  # its best T is that by NLL, not that by ECE
        scored={"logit_gap_mean": 11.5, "logit_gap_sd": 2.0, "logit_gap_within_sd": 2.0},
    )
    smooth = smooth_like(
        gap=lambda t: 0.6 * (1 / t - 0.8),
        nll=lambda t: 1.6 + (1 / t - 0.9) ** 2,
        precision=lambda t: 0.40 - 0.1 * (t - 1.2) ** 2,
        scored={"logit_gap_mean": 20.0, "logit_gap_sd": 6.0, "logit_gap_within_sd": 6.0, "logit_gap_ideal": 11.4},
    )
    return results_of(tmp_path_factory.mktemp("against"), hard, smooth, splits=BOTH)


TRANSLATION = [
    "nmt-calibration",
    "nmt-calibration-as-temperature",
    "nmt-bleu",
    "nmt-nll-every-temperature",
    "nmt-temperature-recovers-part",
    "nmt-smoothed-temperature-hurts",
    "nmt-bleu-and-perplexity",
    "nmt-logit-gaps",
]


@pytest.mark.parametrize("name", TRANSLATION)
def test_a_world_as_the_paper_has_it(as_the_paper_says: SettingResults, name: str) -> None:
    assert judged(shipped(name), as_the_paper_says).word == "reproduced"


@pytest.mark.parametrize("name", [*TRANSLATION, "nmt-best-temperatures"])
def test_a_world_in_which_smoothing_does_harm(against_the_paper: SettingResults, name: str) -> None:
    found = judged(shipped(name), against_the_paper)
    nothing_to_explain = name == "nmt-temperature-recovers-part"
    assert found.word == ("regime not reached" if nothing_to_explain else "not reproduced")
    assert found.why


def test_differences_are_what_was_put_in(as_the_paper_says: SettingResults) -> None:
    bleu = judged(shipped("nmt-bleu"), as_the_paper_says).outcomes[0].finding
    assert bleu is not None
    assert bleu.difference == pytest.approx(100 * (0.42 - (0.40 - 0.0002)), abs=0.7)
    assert bleu.low < 100 * (0.42 - 0.3998) < bleu.high
    assert bleu.seeds == (3, 3)
    hard, smooth = (float(part.split()[0]) for part in bleu.ours.split(" → "))
    assert smooth - hard == pytest.approx(bleu.difference, abs=0.011)
    nll = judged(shipped("nmt-bleu-and-perplexity"), as_the_paper_says).outcomes[1].finding
    assert nll is not None
    assert nll.difference == pytest.approx(1.66 - 1.51, abs=1e-6)  # the sentences' own noise is the same on both sides
    worst = judged(shipped("nmt-nll-every-temperature"), as_the_paper_says).outcomes[0].finding
    assert worst is not None
    assert worst.difference == pytest.approx(
        min(1.65 + (b - 1.1) ** 2 - 1.5 - (b - 0.9) ** 2 for b in INVERSES), abs=1e-6
    )
    assert "least at 0.80" in worst.ours


def test_temperatures_of_one_model_are_compared_run_by_run(tmp_path: Path) -> None:
    """Seeds that differ widely, and a temperature that gives each of them the same: seeds cancel."""
    smooth = smooth_like(precision=lambda t: 0.40 + (0.01 if t > 1.15 else 0), between_seeds=0.03)
    found = judged(shipped("nmt-smoothed-temperature-hurts"), results_of(tmp_path, hard_like(), smooth, splits=BOTH))
    calibration, translation = (outcome.finding for outcome in found.outcomes[:2])
    assert calibration is not None
    assert translation is not None
    assert translation.seeds == (3,)
    assert translation.difference == pytest.approx(1.0, abs=0.5)
    assert translation.high - translation.low < 1.0  # and not 0.03 · 100 · 4
    assert found.outcomes[1].word == "not reproduced"
    assert found.outcomes[0].word == "reproduced"
    assert calibration.difference > 0.0002  # the best other temperature than 1 is not as good as 1


def test_tests_that_came_later_are_told_from_those_written_before(tmp_path: Path) -> None:
    """The best other temperature is no better, as was asked beforehand; that others are worse was asked later."""
    flat = smooth_like(precision=lambda t: 0.42 - 0.003 * abs(t - 1.0))
    found = judged(shipped("nmt-smoothed-temperature-hurts"), results_of(tmp_path, hard_like(), flat, splits=BOTH))
    assert found.word == "not reproduced"
    assert found.why.endswith("; by the tests written beforehand alone: reproduced")
    assert {bool(outcome.test.added) for outcome in found.outcomes if outcome.word == "not reproduced"} == {True}


def test_nothing_is_said_of_tests_that_changed_nothing(as_the_paper_says: SettingResults) -> None:
    assert "beforehand" not in judged(shipped("nmt-smoothed-temperature-hurts"), as_the_paper_says).why


def test_temperatures_are_chosen_on_validation(tmp_path: Path) -> None:
    results = results_of(tmp_path, hard_like(), smooth_like(), splits=BOTH)
    runs = results.runs(0.0)
    assert choose_temperature(results, runs, "nll").temperature == pytest.approx(1 / 0.9)
    assert choose_temperature(results, runs, "squared_l2").temperature == pytest.approx(1.25)
    assert choose_temperature(results, runs, "bleu").temperature == 1.1
    assert choose_temperature(results, runs, "bleu", without=1.1).temperature != 1.1
    # another best temperature on the reported split changes nothing: it is never looked at
    file = tmp_path / "fake" / "records.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(
        "".join(
            line.replace('"name": "nll", "value": ', '"name": "nll", "value": -')
            if '"split": "test"' in line and '"temperature": 0.909' in line
            else line
            for line in lines
        )
    )
    again = read_results(SETTING, tmp_path)
    assert min(again.runs(0.0)[0].swept.items(), key=lambda item: item[1]["nll"])[0] == pytest.approx(1 / 1.1)
    assert choose_temperature(again, again.runs(0.0), "nll").temperature == pytest.approx(1 / 0.9)
    # and without validation there is no choice
    file.write_text("".join(line for line in lines if '"split": "test"' in line))
    alone = read_results(SETTING, tmp_path)
    with pytest.raises(NotMeasuredError, match="was not swept on validation, where temperatures are chosen"):
        choose_temperature(alone, alone.runs(0.0), "nll")


def test_choices_of_older_weights_do_not_count(tmp_path: Path) -> None:
    results_of(tmp_path, hard_like(), smooth_like(), splits=BOTH)
    file = tmp_path / "fake" / "records.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(
        "".join(
            line.replace('"weights": "', '"weights": "0') if '"split": "validation"' in line else line for line in lines
        )
    )
    results = read_results(SETTING, tmp_path)
    assert judged(shipped("nmt-bleu"), results).word == "reproduced"
    assert judged(shipped("nmt-temperature-recovers-part"), results).word == "not run here"


def test_sentences_of_the_test_split_are_enough(tmp_path: Path) -> None:
    results_of(tmp_path, hard_like(), smooth_like(), splits=BOTH)
    for part in (tmp_path / "fake" / "sentences.parquet").glob("*-validation-*"):
        part.unlink()
    results = read_results(SETTING, tmp_path)
    assert {judged(shipped(name), results).word for name in TRANSLATION} == {"reproduced"}
    shutil.rmtree(tmp_path / "fake" / "sentences.parquet")
    found = judged(shipped("nmt-bleu"), read_results(SETTING, tmp_path))
    assert found.word == "not run here"
    assert "sentences" in found.why
    assert judged(shipped("nmt-logit-gaps"), results).word == "reproduced"  # records alone say it


def test_a_calm_model_is_not_the_regime(tmp_path: Path) -> None:
    results = results_of(tmp_path, hard_like(gap=lambda _: 0.005), smooth_like())
    found = judged(shipped("nmt-calibration"), results)
    assert found.word == "regime not reached"
    assert len(found.regime_values) == 1
    assert found.regime_values[0] < 0.03
    assert "below 0.03" in found.why
    assert judged(shipped("nmt-bleu"), results).word == "reproduced"  # says nothing of calibration


def test_every_regime_has_to_be_reached(tmp_path: Path) -> None:
    results = results_of(tmp_path, hard_like(), smooth_like())
    (over,) = shipped("nmt-calibration").regimes
    reached = dataclasses.replace(
        shipped("nmt-calibration"), regimes=(over, Regime(figure="debiased_ece", at_least=0.01))
    )
    assert judged(reached, results).word == "reproduced"
    missed = dataclasses.replace(reached, regimes=(over, Regime(figure="debiased_ece", at_least=0.9)))
    found = judged(missed, results)
    assert found.word == "regime not reached"
    assert found.why.startswith("debiased ECE of hard targets is ")
    assert found.why.endswith("below 0.9")
    assert len(found.regime_values) == 2


def test_an_under_confident_model_is_not_over_confident(tmp_path: Path) -> None:
    results = results_of(tmp_path, hard_like(gap=lambda _: -0.1), smooth_like())
    found = judged(shipped("nmt-calibration"), results)
    assert found.word == "regime not reached"
    assert found.regime_values[0] > 0.03
    assert "no more than under-confidence" in found.why


def test_a_gain_that_is_not_there_cannot_be_recovered(tmp_path: Path) -> None:
    same = smooth_like(precision=lambda t: 0.40 - 0.02 * (t - 1.1) ** 2)
    found = judged(shipped("nmt-temperature-recovers-part"), results_of(tmp_path, hard_like(), same, splits=BOTH))
    assert found.word == "regime not reached"
    assert "no gain to recover" in found.why


def test_the_edge_of_the_grid_is_not_a_best_temperature(tmp_path: Path) -> None:
    """BLEU that rises to the last temperature, and NLL that falls to the last. (A fitted one has no edge.)"""
    hard = hard_like(precision=lambda t: 0.36 + 0.02 * t, nll=lambda t: 1.5 + 1 / t)
    results = results_of(tmp_path, hard, smooth_like(), splits=BOTH)
    for name in ("nmt-temperature-recovers-part", "nmt-best-temperatures"):
        found = judged(shipped(name), results)
        (told, *_) = [outcome for outcome in found.outcomes if outcome.finding is not None and outcome.finding.edge]
        assert (found.word, told.word) == ("unresolved", "unresolved")
        assert "at the edge of the grid" in found.why
    row = next(iter(temperature_rows(results)))
    assert "at the edge of the grid" in row["T by bleu"]
    assert "at the edge of the grid" in row["T by nll"]
    assert row["T by squared_l2"] == pytest.approx(1.25)


def test_fewer_seeds_than_planned_are_provisional(tmp_path: Path) -> None:
    results = results_of(tmp_path, hard_like(), smooth_like(seeds=(1, 2)))
    found = verdict(shipped("nmt-bleu"), "fake", dataclasses.replace(SETTING, seeds=3), results)
    assert (found.word, found.provisional) == ("reproduced", "2 of 3 seeds")
    assert found.why.startswith("provisional, 2 of 3 seeds: ")
    few = results_of(tmp_path / "few", hard_like(seeds=(1,), gap=lambda _: 0.005), smooth_like(alpha=0.2))
    missed = verdict(shipped("nmt-calibration"), "fake", dataclasses.replace(SETTING, seeds=3), few)
    assert (missed.word, missed.provisional) == ("regime not reached", "1 of 3 seeds")  # no run with α = 0.1 at all
    assert not judged(shipped("nmt-bleu"), results).provisional


def test_runs_without_sentences_are_named(tmp_path: Path) -> None:
    results_of(tmp_path, hard_like(), smooth_like())
    for part in (tmp_path / "fake" / "sentences.parquet").glob("*-ls0.1-s3*"):
        part.unlink()
    found = judged(shipped("nmt-bleu"), read_results(SETTING, tmp_path))
    finding = found.outcomes[0].finding
    assert finding is not None
    assert finding.seeds == (3, 2)
    assert "without fake-de-ls0.1-s3" in found.why


def test_a_difference_below_resolution_is_unresolved(tmp_path: Path) -> None:
    hard = hard_like(precision=lambda _: 0.40, between_seeds=0.01)
    smooth = smooth_like(precision=lambda _: 0.404, between_seeds=0.01)
    found = judged(shipped("nmt-bleu"), results_of(tmp_path, hard, smooth))
    assert found.word == "unresolved"
    (outcome,) = found.outcomes
    assert outcome.finding is not None
    assert outcome.finding.seed_sd > 0.3
    assert outcome.seeds is not None
    assert outcome.seeds > 3
    assert f"{outcome.seeds} seeds a side" in found.why


def test_too_few_sentences_are_said_to_be(tmp_path: Path) -> None:
    rough = hard_like(precision=lambda _: 0.40, own_luck=True)
    other = smooth_like(precision=lambda _: 0.40, own_luck=True)
    found = judged(shipped("nmt-bleu"), results_of(tmp_path, rough, other, sentences=25))
    assert found.word == "unresolved"
    assert "too few sentences" in found.why
    assert found.outcomes[0].seeds is None


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    results = results_of(tmp_path, hard_like(seeds=(1,)), smooth_like())
    for name in ("nmt-bleu", "nmt-calibration", "nmt-logit-gaps"):
        found = judged(shipped(name), results)
        assert found.word == "unresolved"
        assert "one seed does not show" in found.why
        finding = found.outcomes[0].finding
        assert finding is not None
        assert finding.seeds == (1, 3)


def test_nothing_measured(tmp_path: Path) -> None:
    results = read_results(SETTING, tmp_path)
    found = judged(shipped("nmt-bleu"), results)
    assert (found.word, found.outcomes) == ("not run here", ())
    assert "no records of fake-de-*" in found.why
    write_study(tmp_path / "fake", [hard_like()])
    found = judged(shipped("nmt-bleu"), read_results(SETTING, tmp_path))
    assert found.word == "not run here"
    assert "no run with α = 0.1" in found.why


def test_dropout_has_to_be_said(tmp_path: Path) -> None:
    write_study(tmp_path / "fake", [hard_like(), smooth_like()], dropout=0.0)
    with pytest.raises(UserError, match=r"was trained with dropout 0.0, and its setting \(made up\) says 0.3"):
        read_results(SETTING, tmp_path)
    file = tmp_path / "fake" / "records.jsonl"
    file.write_text(file.read_text().replace('"dropout": 0.0, ', ""))
    found = judged(shipped("nmt-bleu"), read_results(SETTING, tmp_path))
    assert found.word == "not run here"
    assert "fake-de-ls0.0-s1" in found.why
    assert "do not say their dropout" in found.why


@pytest.mark.parametrize(
    ("key", "value", "other"),
    [("updates", 500, None), ("corpus", "beef", None), ("train_size", 5000, 10_000), ("settings", "0a", "0b")],
)
def test_unequal_runs_are_not_compared(tmp_path: Path, key: str, value: Any, other: Any) -> None:
    write_study(tmp_path / "fake", [hard_like()], **({} if other is None else {key: other}))
    write_study(tmp_path / "fake", [smooth_like()], **{key: value})
    found = judged(shipped("nmt-bleu"), read_results(SETTING, tmp_path))
    assert found.word == "not run here"
    assert f"differ in {key}" in found.why


def test_seeds_of_two_precisions_count_together_where_both_sides_have_them_alike(tmp_path: Path) -> None:
    for precision, seeds in (("bf16", (1, 2)), ("fp32", (3,))):
        write_study(tmp_path / "fake", [hard_like(seeds=seeds), smooth_like(seeds=seeds)], training_precision=precision)
    found = judged(shipped("nmt-bleu"), results := read_results(SETTING, tmp_path))
    assert found.word == "reproduced"
    assert found.outcomes[0].finding is not None
    assert found.outcomes[0].finding.seeds == (3, 3)
    assert results.setting.caution == "trained, by seed, in bf16: 1, 2; fp32: 3"


@pytest.mark.parametrize(("seeds", "more"), [((1, 2), 3), ((1, 2, 3), 4), ((), 1)])
def test_a_precision_that_one_side_has_alone_is_not_compared(tmp_path: Path, seeds: tuple[int, ...], more: int) -> None:
    write_study(tmp_path / "fake", [hard_like(), smooth_like(seeds=seeds)])
    write_study(tmp_path / "fake", [smooth_like(seeds=(more,))], training_precision="bf16")
    found = judged(shipped("nmt-bleu"), read_results(SETTING, tmp_path))
    assert found.word == "not run here"
    assert "differ in training_precision (fp32: 1, 2, 3 against bf16:" in found.why


def test_records_from_before_settings_were_named_stay_comparable(tmp_path: Path) -> None:
    write_study(tmp_path / "fake", [hard_like()])
    write_study(tmp_path / "fake", [smooth_like()], settings="0b")
    assert judged(shipped("nmt-bleu"), read_results(SETTING, tmp_path)).word == "reproduced"


def test_greedy_translations_do_not_count(tmp_path: Path) -> None:
    write_study(tmp_path / "fake", [hard_like(), smooth_like()])
    file = tmp_path / "fake" / "records.jsonl"
    file.write_text(file.read_text().replace('"beam": 5', '"beam": 1'))
    results = read_results(SETTING, tmp_path)
    assert all(not run.decoded for run in results.runs())
    assert judged(shipped("nmt-best-temperatures"), results).word == "not run here"


def test_best_temperatures_near_that_of_bleu(tmp_path: Path) -> None:
    """By ECE 1.25, by NLL 0.9, by BLEU 1.2 for hard targets; for smoothed 1.0, 1.25 and 1.0."""
    hard = hard_like(nll=lambda t: 1.5 + (1 / t - 1 / 0.9) ** 2, precision=lambda t: 0.42 - 0.4 * (t - 1.2) ** 2)
    smooth = smooth_like(nll=lambda t: 1.6 + (1 / t - 0.8) ** 2, precision=lambda t: 0.42 - 0.4 * (t - 1.0) ** 2)
    found = judged(shipped("nmt-best-temperatures"), results_of(tmp_path, hard, smooth, sentences=1500))
    first, second = (outcome.finding for outcome in found.outcomes)
    assert first is not None
    assert second is not None
    assert first.difference == pytest.approx(0.3 - 0.05, abs=0.08)
    assert second.difference == pytest.approx(0.25, abs=0.08)
    assert found.word == "reproduced"
    assert "by calibration error 1.2" in first.ours


def test_accuracy_is_similar_or_not(tmp_path: Path) -> None:
    """A claim of images, from records alone."""
    test = Test(
        statistic="record", figure="accuracy", expect="similar", effect=0.005,
        baseline=Side(alpha=0.0), treated=Side(alpha=0.1),
    )  # fmt: skip
    words = []
    for name, accuracy in (("same", 0.7801), ("other", 0.80)):
        hard, smooth = hard_like(scored={"accuracy": 0.78}), smooth_like(scored={"accuracy": accuracy})
        words.append(judge("a", test, results_of(tmp_path / name, hard, smooth, sentences=20)).word)
    assert words == ["reproduced", "not reproduced"]


def test_estimators_are_held_against_the_truth(tmp_path: Path) -> None:
    test = Test(
        statistic="record_error", figure="ece", target="exact_ece", expect="similar", effect=0.005,
        treated=Side(alpha=0.0),
    )  # fmt: skip
    words = []
    for name, exact in (("right", 0.05), ("wrong", 0.07)):
        hard = hard_like(gap=lambda _: 0.05, scored={"exact_ece": exact})
        write_study(tmp_path / name / "fake", [hard], sentences=4000)
        words.append(judge("a", test, read_results(SETTING, tmp_path / name)).word)
    assert words == ["reproduced", "not reproduced"]


def test_estimators_of_samples_are_found_by_name(tmp_path: Path) -> None:
    right = {"exact_ece": 0.05, "estimated_ece equal-width 10000": 0.052, "estimated_ece equal-width 1000": 0.07}
    wrong = {**right, "estimated_ece equal-width 10000": 0.06}
    for name, scored, word in (("right", right, "reproduced"), ("wrong", wrong, "not reproduced")):
        results = results_of(tmp_path / name, hard_like(scored=right), smooth_like(scored=scored), sentences=20)
        assert judged(shipped("embedded-ece"), results).word == word


def test_claims_in_order(tmp_path: Path) -> None:
    write_study(tmp_path / "fake", [hard_like(), smooth_like()])
    elsewhere = dataclasses.replace(SETTING, results="nothing")
    tested = dataclasses.replace(shipped("nmt-bleu"), settings=("fake", "elsewhere"))
    (untested,) = (claim for claim in SHIPPED.claims if claim.name == "distillation-cifar10")
    claims = Claims(settings={"fake": SETTING, "elsewhere": elsewhere}, claims=(untested, tested))
    results = {name: read_results(setting, tmp_path) for name, setting in claims.settings.items()}
    found = list(verdicts_of(claims, results))
    assert [one.word for one in found] == ["not run here", "reproduced", "not run here"]
    assert found[0].why == untested.not_run


def test_statistics_say_what_is_missing(tmp_path: Path) -> None:
    results = results_of(tmp_path, hard_like(), smooth_like())
    missing = Test(
        statistic="record", figure="kl_to_truth", expect="lower", effect=0.1,
        baseline=Side(alpha=0.0, temperature="nll"), treated=Side(alpha=0.1),
    )  # fmt: skip
    with pytest.raises(NotMeasuredError, match="kl_to_truth of α = 0 not recorded at a fitted temperature on test"):
        evaluate(missing, results)
