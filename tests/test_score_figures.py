"""What score gives besides likelihood and BLEU: logit gaps, inference calibration, sentences, slices."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nmt_ls.corpus import Corpus
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import read_records
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.losses import LossConfig
from nmt_ls.metrics import calibration_figures, expected_calibration_error
from nmt_ls.metrics.logit_gaps import LogitGapAccumulator
from nmt_ls.metrics.ter_alignment import ter_alignment
from nmt_ls.reporting import ScoreConfig
from nmt_ls.score import main
from nmt_ls.score_figures import (
    OutputTokens,
    Watcher,
    calibration_apart,
    forced_figures,
    gap_figures,
    nbest_figures,
    sentence_figures,
    slice_figures,
)
from nmt_ls.scoring import Evaluation, Tokens, evaluate, score_batches, split_batches
from nmt_ls.search import SearchConfig
from nmt_ls.search_changes import SearchChanges
from nmt_ls.translator import Hypothesis, Translator
from nmt_ls.vocabulary import EOS

SEARCH = SearchConfig(beam=2, temperature=1.3)


@pytest.fixture(scope="module")
def watched(small_run: RunDirectory, small_corpus: Corpus) -> tuple[Translator, Evaluation, Watcher]:
    split, translator = small_corpus.split("test"), Translator.load(small_run.path, "last")
    watcher = Watcher(len(split), SEARCH.temperature)
    return translator, evaluate(translator, split, SEARCH, loss=LossConfig(alpha=0.0), watch=watcher), watcher


def test_the_empty_translation(watched: tuple[Translator, Evaluation, Watcher], small_corpus: Corpus) -> None:
    translator, evaluation, watcher = watched
    split = small_corpus.split("test")
    sources = [split.source_text(row) for row in range(len(split))]
    empty = translator.score(sources, [""] * len(sources), SEARCH.temperature)
    assert watcher.empty_S == pytest.approx([float(row[0]) for row in empty], abs=1e-4)
    values = sentence_figures(evaluation, split, watcher.empty_S).values
    assert values["empty_probability"] == pytest.approx(np.exp(watcher.empty_S).mean())
    log_probs = [found[0].log_prob for found in evaluation.hypotheses]
    assert values["empty_preferred"] == pytest.approx(np.mean(watcher.empty_S > log_probs))
    assert -1 <= values["mean_log_prob_bleu_spearman"] <= 1


def test_broken_logits_are_one_line(small_run: RunDirectory, small_corpus: Corpus) -> None:
    split, translator = small_corpus.split("test"), Translator.load(small_run.path, "last")
    with torch.no_grad():
        translator.model.output_weight[3] = torch.nan
    with pytest.raises(UserError, match="take another checkpoint"):
        translator.score(["a"], ["b"])
    with pytest.raises(ValueError, match="temperature"):
        translator.score(["a"], ["b"], 0.0)
    for watch in (None, Watcher(len(split), 1.0)):
        with pytest.raises(UserError, match="another checkpoint"):
            score_batches(translator.model, split_batches(split), loss=LossConfig(alpha=0.0), watch=watch)


def test_every_calibration_figure_of_the_library_is_given(watched: tuple[Translator, Evaluation, Watcher]) -> None:
    forced = watched[1].teacher_forced
    expected = calibration_figures(forced.tokens.confidences, forced.tokens.correct)
    values = forced_figures(forced).values
    assert values == {**values, **expected}
    assert values == {**values, **forced.figures()}  # one number by one name
    assert {"mce", "brier", "within_bin", "equal_mass_ece", "sweep_ece", "smooth_ece", "ece_null_mean"} <= set(values)


def test_gaps_are_of_temperature_one_and_of_every_token(watched: tuple[Translator, Evaluation, Watcher]) -> None:
    _, evaluation, watcher = watched
    gaps = watcher.gaps.compute()
    assert gaps.count == evaluation.teacher_forced.likelihood.tokens
    # NLL is the mean of log(1 + sum of exp(-gap)), convex in the gaps: by Jensen at least its value at their mean
    nll = evaluation.teacher_forced.smoothed_loss  # alpha 0, temperature 1
    assert math.log1p((gaps.classes - 1) * math.exp(-gaps.mean)) <= nll + 1e-6
    assert nll <= math.log1p((gaps.classes - 1) * math.exp(-gaps.mean)) + 3
    found = gap_figures(gaps, LossConfig(alpha=0.1))
    assert found.recipe["temperature"] == 1.0
    assert found.values["logit_gap_ideal"] == pytest.approx(math.log(1 + 9 * gaps.classes))
    assert "logit_gap_ideal" not in gap_figures(gaps, LossConfig(alpha=0.1, prior="unigram")).values


def test_output_tokens_are_aligned_with_the_nearer_reference(
    watched: tuple[Translator, Evaluation, Watcher], small_corpus: Corpus
) -> None:
    class TwoReferences:
        def references(self, row: int) -> list[str]:
            return [["Der Hund", "Die alte Katze sieht"], ["Niemand"]][row]

    vocabulary = small_corpus.target_vocabulary
    pieces = vocabulary.pieces(vocabulary.encode("Die Katze sieht"))
    said = Hypothesis(text="Die Katze sieht", pieces=pieces, score=0.0, token_log_probs=[-0.5] * len(pieces) + [-3.0])
    evaluation = Evaluation(
        teacher_forced=watched[1].teacher_forced, translation=watched[1].translation, hypotheses=[[said], []]
    )
    found = OutputTokens(evaluation, TwoReferences(), vocabulary)  # type: ignore[arg-type]
    assert found.confidences == pytest.approx([math.exp(-0.5)] * len(pieces))  # end-of-sentence is left out
    reference = vocabulary.pieces(vocabulary.encode("Die alte Katze sieht"))
    assert found.correct.tolist() == ter_alignment(pieces, reference).correct
    assert found.correct.all()
    values = found.figures().values
    assert values["inference_ece"] == pytest.approx(1 - math.exp(-0.5))
    assert values["inference_under_confidence"] == pytest.approx(1 - math.exp(-0.5))
    assert values["inference_over_confidence"] == 0
    assert values["inference_tokens"] == len(pieces)
    expected = calibration_figures(found.confidences, found.correct)
    of_the_null = {"ece_floor", "ece_null_mean", "ece_p_value", "squared_l2_p_value"}  # for tokens apart, not aligned
    assert set(values) == {f"inference_{name}" for name in {*expected, "tokens"} - of_the_null}


def test_nbest_lists_are_calibrated_against_the_best_of_each(watched: tuple[Translator, Evaluation, Watcher]) -> None:
    class OneReference:
        def references(self, row: int) -> list[str]:
            return [["der alte Hund schläft heute hier"], ["die Katze"]][row]

    def said(text: str, probability: float) -> Hypothesis:
        return Hypothesis(text=text, pieces=[], score=0.0, token_log_probs=[math.log(probability)])

    right, wrong = "der alte Hund schläft heute hier", "niemand"
    lists = [[said(right, 0.3), said(wrong, 0.1)], [said("die Katze", 0.2)]]
    evaluation = Evaluation(
        teacher_forced=watched[1].teacher_forced, translation=watched[1].translation, hypotheses=lists
    )
    (found,) = nbest_figures(evaluation, OneReference())  # type: ignore[arg-type]
    # shares 3/4 (right), 1/4 (wrong), 1 (right): gaps 1/4, 1/4, 0
    assert found.values["nbest_ece"] == pytest.approx((0.25 + 0.25 + 0) / 3)
    assert found.values["nbest_brier"] == pytest.approx((0.0625 + 0.0625) / 3)
    assert found.searched
    assert nbest_figures(watched[1], OneReference()) == []  # type: ignore[arg-type]


def test_a_slice_has_a_floor_of_its_own() -> None:
    rng = np.random.default_rng(0)
    confidences = rng.beta(3, 1, 4_000)
    groups = (np.arange(4_000) % 20 == 0).astype(np.intp)
    correct = rng.random(4_000) < confidences - 0.1 * (groups == 0)  # the large slice is too sure, the small one not
    large, small = calibration_apart(confidences, correct, {"end": (groups, ["words", "end of sentence"])})
    assert (large.recipe["tokens"], small.recipe["tokens"]) == (3_800, 200)
    whole = calibration_figures(confidences[groups == 1], correct[groups == 1])
    for name in ("ece", "ece_floor", "ece_p_value", "debiased_ece", "signed_gap"):
        assert small.values[f"{name}_by_end"] == pytest.approx(whole[name]), name
    assert small.values["ece_floor_by_end"] > 3 * large.values["ece_floor_by_end"]
    assert large.values["ece_p_value_by_end"] < 0.01 < small.values["ece_p_value_by_end"]
    assert "ece_floor_by_end (words)" in [row["figure"] for row in large.rows()]


def test_slices_partition_the_tokens(watched: tuple[Translator, Evaluation, Watcher], small_corpus: Corpus) -> None:
    tokens = watched[1].teacher_forced.tokens
    split = small_corpus.split("test")
    groups = slice_figures(tokens, split, small_corpus)
    for kind in ("position", "predicted_frequency", "predicted_end", "source_length"):
        members = [group for group in groups if f"ece_by_{kind}" in group.values]
        assert sum(group.recipe["tokens"] for group in members) == len(tokens.labels)
        signed = sum(group.recipe["tokens"] * group.values[f"signed_gap_by_{kind}"] for group in members)
        assert signed / len(tokens.labels) == pytest.approx((tokens.correct - tokens.confidences).mean())
    (end,) = (group for group in groups if group.recipe["slice"] == "end of sentence")
    ends = tokens.predictions == EOS
    expected = expected_calibration_error(tokens.confidences[ends], tokens.correct[ends])
    assert end.values["ece_by_predicted_end"] == pytest.approx(expected)
    assert end.recipe["tokens"] == ends.sum()
    lengths = [len(split.source[row]) + 1 for row in range(len(split))]
    longest = [group for group in groups if "ece_by_source_length" in group.values][-1]
    least = {"> 30": 30, "20 to 30": 20, "21 to 30": 20, "15 to 20": 15, "16 to 20": 15}[longest.recipe["slice"]]
    assert longest.recipe["tokens"] == sum(lengths[row] > least for row in tokens.sentences)


def test_a_calibrated_model_passes_in_every_slice(small_corpus: Corpus) -> None:
    """Labels drawn from the model's own distributions: no slice may depend on what was drawn."""
    rng = np.random.default_rng(0)
    split, count, pieces = small_corpus.split("test"), 6_000, small_corpus.target_vocabulary.size
    logits = rng.normal(0, 2.5, (count, pieces))
    logits[:, EOS] += 3
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    labels = (probs.cumsum(1) > rng.random((count, 1))).argmax(1)
    tokens = Tokens(
        sentences=np.arange(count) % len(split),
        positions=np.arange(count) // len(split),
        labels=labels,
        log_probs=np.log(probs[np.arange(count), labels]),
        confidences=probs.max(1),
        predictions=probs.argmax(1),
        correct=probs.argmax(1) == labels,
    )
    groups = slice_figures(tokens, split, small_corpus)
    p_values = [value for group in groups for name, value in group.values.items() if "p_value" in name]
    assert len(p_values) > 8
    assert min(p_values) > 0.05 / len(p_values)
    by_label = calibration_apart(
        tokens.confidences, tokens.correct, {"end": ((labels == EOS).astype(np.intp), ["words", "end"])}, {"end"}
    )
    assert abs(by_label[1].values["signed_gap_by_end"]) > 0.1  # which is why it has no floor and no p-value
    assert set(by_label[1].values) == {"ece_by_end", "debiased_ece_by_end", "signed_gap_by_end"}


def test_score_writes_them_all(small_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"run": str(small_run.path), "checkpoint": "last", "search": SearchChanges(nbest=2)}
    main(ScoreConfig(**settings, results=str(tmp_path), exact_tokens=500))  # type: ignore[arg-type]
    records = read_records(tmp_path / "records.jsonl")
    by_name = {record.name: record for record in records}
    wanted = {"logit_gap_mean", "logit_gap_sd", "logit_gap_within_sd", "logit_gap_ideal", "inference_ece", "aurc",
              "ece_floor", "exact_ece", "kl_to_truth", "tv_to_truth", "entropy", "sentence_aurc",
              "empty_probability", "estimated_ece", "ece_by_position", "ece_by_predicted_end",
              "nbest_ece"}  # fmt: skip
    assert wanted <= set(by_name)
    assert not {"inference_ece_floor", "inference_ece_p_value"} & set(by_name)
    assert by_name["exact_ece"].signature["drawn"] == "afresh"
    assert by_name["exact_ece"].signature["tokens"] == 500
    assert by_name["inference_ece"].signature["beam"] == 2
    assert by_name["logit_gap_mean"].signature["temperature"] == 1.0
    pictures = {path.name.split("-small")[0] for path in (tmp_path / "figures").glob("*.svg")}
    assert pictures == {"reliability", "risk-coverage", "logit-gaps", "inference", "exact"}
    shown = capsys.readouterr().out
    assert "ece_by_predicted_end (end of sentence)" in shown
    assert "estimated_ece (smooth, 500)" in shown


def test_hard_targets_have_no_ideal_gap_to_record() -> None:
    gaps = LogitGapAccumulator().update(torch.eye(3) * 4, torch.arange(3)).compute()
    figures = gap_figures(gaps, LossConfig(alpha=0.0))
    assert figures.values["logit_gap_ideal"] == math.inf
    assert "logit_gap_ideal" not in {record.name for record in figures.records({})}
