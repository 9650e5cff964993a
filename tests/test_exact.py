"""Exact calibration on the embedded corpus: every token against the grammar itself; a model that is the truth."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from data_prep.grammar import Grammar
from nmt_ls.corpus import Corpus
from nmt_ls.exact import ExactTokens, check_exact, estimator_diagram, exact_figures, exact_tokens, sample_sizes
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.fresh_text import fresh_pairs, fresh_text
from nmt_ls.metrics import expected_calibration_error
from nmt_ls.metrics.plots import figure_svg
from nmt_ls.translator import Translator


def test_fresh_pairs_begin_after_the_corpus_and_no_source_was_trained_on(small_corpus: Corpus) -> None:
    fresh = list(islice(fresh_pairs(small_corpus), 200))
    split, training = small_corpus.split("test"), small_corpus.split("train")
    assert fresh == Grammar(0).sample(len(split) + 200, "test")[len(split) :]
    assert not {source for source, _ in fresh} & {training.source_text(row) for row in range(len(training))}


def test_the_draw_is_kept_beside_the_corpus_and_drawn_again_where_it_is_not_its(
    small_corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = fresh_text(small_corpus, 150)
    assert drawn.tokens >= 150 > drawn.tokens - drawn.target_lengths_S[-1] - 1
    file = small_corpus.directory / "fresh-150.npz"
    with monkeypatch.context() as patch:
        patch.setattr("nmt_ls.fresh_text.fresh_pairs", lambda _: pytest.fail("drawn again"))
        kept = fresh_text(small_corpus, 150)
    for name, values in vars(kept).items():
        assert np.array_equal(getattr(drawn, name), values), name
    whole = file.read_bytes()
    other = Corpus(small_corpus.directory, {**small_corpus.manifest, "checksum": "another"})
    for corpus, content in ((small_corpus, whole[:-100]), (small_corpus, b""), (other, whole)):
        file.write_bytes(content)
        steps: list[int] = []
        again = fresh_text(corpus, 150, steps.append)
        assert sum(steps) == again.tokens == drawn.tokens
        assert np.array_equal(again.entry_probs_E, drawn.entry_probs_E)
    longer = fresh_text(small_corpus, 300)
    assert np.array_equal(longer.target_ids[: len(drawn.target_ids)], drawn.target_ids)


def test_every_token_by_the_grammars_own_words(small_run: RunDirectory, small_corpus: Corpus) -> None:
    translator = Translator.load(small_run.path)
    vocabulary = small_corpus.target_vocabulary
    tokens = exact_tokens(translator, fresh_text(small_corpus, 120), 120, temperature=1.5)
    assert len(tokens) == 120
    grammar, at = Grammar(), 0
    for source, target in islice(fresh_pairs(small_corpus), 3):
        pieces = vocabulary.encode(target)
        logs = translator.score([source], [target], 1.5)[0]
        for position, label in enumerate([*pieces, 2]):
            truth = grammar.true_next_piece_probs(source, pieces[:position], vocabulary.encode)
            by_id = {2 if piece is None else piece: p for piece, p in truth.items()}
            assert tokens.nll[at] == pytest.approx(-float(logs[position]), abs=1e-4)
            assert tokens.entropy[at] == pytest.approx(-sum(p * np.log(p) for p in by_id.values()), abs=1e-9)
            assert tokens.truths[at] in [pytest.approx(p) for p in [0.0, *by_id.values()]]
            if tokens.correct[at]:
                assert tokens.truths[at] == pytest.approx(by_id[label])
            at += 1


def test_a_model_that_is_the_truth_has_no_error_and_one_that_is_not_has(
    small_run: RunDirectory, small_corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = Translator.load(small_run.path)
    trained = exact_tokens(translator, fresh_text(small_corpus, 300), 300)
    assert trained.kl.min() > 0
    assert trained.variation.max() <= 1
    vocabulary, grammar = small_corpus.target_vocabulary, Grammar()
    # logits are log p* of the very tokens: positions of a batch are found by what the decoder was fed
    rows = list(islice(fresh_pairs(small_corpus), 60))

    def true_logits(source: str, prefix: tuple[int, ...]) -> torch.Tensor:
        row = torch.full((vocabulary.size,), -1e9, dtype=torch.float64)
        for piece, p in grammar.true_next_piece_probs(source, prefix, vocabulary.encode).items():
            row[2 if piece is None else piece] = np.log(p)
        return row

    by_source = {tuple(small_corpus.source_vocabulary.encode(source)): source for source, _ in rows}

    def forward(source_BS: torch.Tensor, target_in_BT: torch.Tensor) -> torch.Tensor:
        table = torch.zeros(*target_in_BT.shape, vocabulary.size, dtype=torch.float64)
        for b, source in enumerate(source_BS.tolist()):
            text = by_source[tuple(piece for piece in source if piece not in (0, 2))]
            fed = [piece for piece in target_in_BT[b].tolist() if piece != 0]
            for t in range(len(fed)):
                table[b, t] = true_logits(text, tuple(fed[1 : t + 1]))
        return table

    monkeypatch.setattr(translator.model, "forward", forward)
    monkeypatch.setattr(translator.model, "logits", lambda hidden: hidden)
    tokens = exact_tokens(translator, fresh_text(small_corpus, 300), 300)
    assert tokens.kl == pytest.approx(0.0, abs=1e-9)
    assert tokens.variation == pytest.approx(0.0, abs=1e-9)
    assert tokens.truths == pytest.approx(tokens.confidences)
    exact = exact_figures(tokens)[0].values
    assert exact["exact_ece"] == pytest.approx(0.0, abs=1e-9)
    assert exact["exact_squared_l2"] == pytest.approx(0.0, abs=1e-9)
    assert exact["exact_nll"] == pytest.approx(exact["entropy"])
    assert exact["sampled_nll"] == pytest.approx(exact["entropy"], abs=0.2)


def test_figures_by_hand() -> None:
    tokens = ExactTokens(
        confidences=np.array([0.9, 0.9, 0.3, 0.3]),
        correct=np.array([True, False, True, False]),
        truths=np.array([0.8, 0.6, 0.3, 0.1]),
        kl=np.array([0.1, 0.2, 0.3, 0.4]),
        variation=np.array([0.0, 0.2, 0.2, 0.4]),
        entropy=np.array([1.0, 0.0, 0.0, 1.0]),
        nll=np.array([2.0, 0.0, 0.0, 0.0]),
    )
    exact, *estimated = exact_figures(tokens)
    assert exact.values["exact_ece"] == pytest.approx(0.5 * 0.2 + 0.5 * 0.1)
    assert exact.values["exact_signed_gap"] == pytest.approx(-0.15)
    assert exact.values["exact_accuracy"] == pytest.approx(0.45)
    assert exact.values["kl_to_truth"] == pytest.approx(0.25)
    assert exact.values["tv_to_truth"] == pytest.approx(0.2)
    assert exact.values["exact_nll"] == pytest.approx(0.75)
    assert exact.values["sampled_nll"] == pytest.approx(0.5)
    by_name = {figures.recipe["estimator"]: figures.values for figures in estimated}
    ece = expected_calibration_error(tokens.confidences, tokens.correct)
    assert by_name["equal-width"] == {"estimated_ece": pytest.approx(ece)}
    # two bins of gaps -0.4 and 0.2, less the variance of each, 0.5 / 2; of the truths -0.2 and -0.1, less 0.02 / 2
    squared = 0.5 * (0.4**2 - 0.25) + 0.5 * (0.2**2 - 0.25)
    assert by_name["squared-l2"] == {"estimated_squared_l2": pytest.approx(squared)}
    assert exact.values["exact_squared_l2"] == pytest.approx(0.5 * (0.2**2 - 0.01) + 0.5 * (0.1**2 - 0.01))
    # a bin a token; tied tokens share the mean of their truths, 0.2 and 0.7
    assert exact.values["exact_sweep_ece"] == pytest.approx(0.5 * 0.2 + 0.5 * 0.1)
    assert {figures.recipe["sample_tokens"] for figures in estimated} == {4}


def test_each_estimator_tends_to_its_own_exact_value() -> None:
    rng = np.random.default_rng(1)
    count = 200_000
    confidences = rng.beta(2, 1, count)
    truths = np.clip(confidences - 0.15 * np.sin(8 * confidences), 0, 1)  # falls here and there: few sweep bins
    zeros = np.zeros(count)
    tokens = ExactTokens(
        confidences=confidences, correct=rng.random(count) < truths, truths=truths,
        kl=zeros, variation=zeros, entropy=zeros, nll=zeros,
    )  # fmt: skip
    exact, *estimated = exact_figures(tokens)
    whole = {str(each.recipe["estimator"]): each.values for each in estimated if each.recipe["sample_tokens"] == count}
    targets = {name: f"exact_{name.replace('-', '_')}_ece" for name in ("equal-mass", "sweep", "smooth")}
    targets |= {"equal-width": "exact_ece", "debiased": "exact_ece"}
    assert {*targets, "squared-l2"} == set(whole)
    for name, target in targets.items():
        assert whole[name]["estimated_ece"] == pytest.approx(exact.values[target], abs=0.004), name
    drawn = figure_svg(estimator_diagram([exact, *estimated], "estimators"))
    assert "sweep" in drawn
    assert "squared-l2" not in drawn  # of another unit
    assert abs(exact.values["exact_sweep_ece"] - exact.values["exact_ece"]) > 0.01
    error = whole["squared-l2"]["estimated_squared_l2"] - exact.values["exact_squared_l2"]
    assert abs(error) < 0.02 * exact.values["exact_squared_l2"]


def test_samples_do_not_overlap() -> None:
    assert sample_sizes(25_000) == [1_000, 10_000, 25_000]
    rng = np.random.default_rng(0)
    confidences = rng.random(3_000)
    zeros = np.zeros(3_000)
    tokens = ExactTokens(
        confidences=confidences, correct=rng.random(3_000) < confidences, truths=confidences,
        kl=zeros, variation=zeros, entropy=zeros, nll=zeros,
    )  # fmt: skip
    (found,) = (
        figures
        for figures in exact_figures(tokens)[1:]
        if figures.recipe["estimator"] == "equal-width" and figures.recipe["sample_tokens"] == 1_000
    )
    thirds = [
        expected_calibration_error(confidences[s : s + 1000], tokens.correct[s : s + 1000]) for s in (0, 1000, 2000)
    ]
    assert found.recipe["samples"] == 3
    assert found.values["estimated_ece"] == pytest.approx(np.mean(thirds))
    assert found.values["estimated_ece_sd"] == pytest.approx(np.std(thirds, ddof=1))


def test_another_corpus_is_refused_in_one_line(small_corpus: Corpus) -> None:
    other = Corpus(small_corpus.directory, {**small_corpus.manifest, "source": "multi30k"})
    with pytest.raises(UserError, match="exact_tokens: the true distribution is known") as refused:
        check_exact(other)
    assert "\n" not in str(refused.value)
    older = {"settings": {**small_corpus.manifest["recipe"]["settings"], "grammar": "0"}}
    with pytest.raises(UserError, match="leave exact_tokens out"):
        check_exact(Corpus(small_corpus.directory, {**small_corpus.manifest, "recipe": older}))
    check_exact(small_corpus)
