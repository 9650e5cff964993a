import math
import os

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER

from nmt_ls.metrics.translation import (
    bleu_from_statistics,
    bleu_statistics,
    paired_test,
    sentence_bleu,
    sentence_chrf,
    translation_scores,
)

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "house", "quickly", "Big", "red", ".", ","]


def sentences(count, seed, noise=0.3):
    rng = np.random.default_rng(seed)
    references = [list(rng.choice(WORDS, rng.integers(5, 15))) for _ in range(count)]
    hypotheses = [" ".join(w if rng.random() > noise else rng.choice(WORDS) for w in words) for words in references]
    return hypotheses, [" ".join(words) for words in references]


def test_corpus_scores_equal_sacrebleu_with_its_signatures():
    hypotheses, references = sentences(40, 0)
    result = translation_scores(hypotheses, references, ("bleu", "bleu_lowercase", "chrf", "ter"))
    assert result.bleu == pytest.approx(BLEU().corpus_score(hypotheses, [references]).score)
    assert result.chrf == pytest.approx(CHRF().corpus_score(hypotheses, [references]).score)
    assert result.scores["ter"] == pytest.approx(TER().corpus_score(hypotheses, [references]).score)
    lower = BLEU(lowercase=True).corpus_score(hypotheses, [references]).score
    assert result.scores["bleu_lowercase"] == pytest.approx(lower)
    assert "case:mixed" in result.signatures["bleu"]
    assert "tok:13a" in result.signatures["bleu"]
    assert "case:lc" in result.signatures["bleu_lowercase"]


def test_bleu_of_a_hand_made_sentence():
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples; five words against six
    result = translation_scores(["a b c d x"], ["a b c d e f"], ("bleu",))
    precision = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert result.bleu == pytest.approx(100 * math.exp(1 - 6 / 5) * precision)
    assert result.brevity_penalty == pytest.approx(math.exp(1 - 6 / 5))
    assert result.length_ratio == pytest.approx(5 / 6)


def test_sentences_may_have_different_numbers_of_references():
    hypotheses = ["the cat sat on the mat", "a dog ran under the house"]
    references = [["a cat sat on the mat", "the cat sat on a mat", "the cat sat"], "a dog ran under the house"]
    result = translation_scores(hypotheses, references)
    assert "nrefs:var" in result.signatures["bleu"]
    streams = [[references[0][0], references[1]], [references[0][1], None], [references[0][2], None]]
    assert result.bleu == pytest.approx(BLEU().corpus_score(hypotheses, streams).score)
    one = translation_scores(hypotheses, [references[0][0], references[1]])
    assert result.bleu > one.bleu


@pytest.mark.parametrize("noise", [0.0, 0.3, 0.8, 0.97])
def test_vectorised_bleu_equals_sacrebleu(noise):
    hypotheses, references = sentences(30, 1, noise)
    statistics = bleu_statistics(hypotheses, references)
    rng = np.random.default_rng(2)
    rows = rng.integers(0, 30, (20, 3))  # small samples, where orders without a match are common
    found = bleu_from_statistics(statistics[rows].sum(1))
    metric = BLEU()
    expected = [metric.corpus_score([hypotheses[i] for i in row], [[references[i] for i in row]]).score for row in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(("hypothesis", "reference"), [("", "a b c d e"), ("x y z w", "a b c d"), ("a b", "a b")])
def test_vectorised_bleu_of_degenerate_output_equals_sacrebleu(hypothesis, reference):
    found = bleu_from_statistics(bleu_statistics([hypothesis], [reference]).sum(0))
    assert found == pytest.approx(BLEU().corpus_score([hypothesis], [[reference]]).score)


def test_sentence_scores_equal_sacrebleu():
    hypotheses, references = sentences(10, 3)
    expected = [
        BLEU(effective_order=True).sentence_score(h, [r]).score for h, r in zip(hypotheses, references, strict=True)
    ]
    np.testing.assert_allclose(sentence_bleu(hypotheses, references), expected)
    expected = [CHRF().sentence_score(h, [r]).score for h, r in zip(hypotheses, references, strict=True)]
    np.testing.assert_allclose(sentence_chrf(hypotheses, references), expected)


@pytest.mark.parametrize("method", ["bootstrap", "randomisation"])
def test_paired_tests_tell_a_worse_system_and_not_the_same(method, monkeypatch):
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    good, references = sentences(60, 4, 0.1)
    rng = np.random.default_rng(5)
    bad = [" ".join(w if rng.random() > 0.4 else "zebra" for w in line.split()) for line in good]
    result = paired_test(good, bad, references, method, metrics=("bleu", "bleu_lowercase"), trials=200)
    assert result["bleu"].p_value < 0.02
    assert result["bleu"].difference < -10
    assert result["bleu"].baseline == pytest.approx(BLEU().corpus_score(good, [references]).score)
    assert "case:lc" in result["bleu_lowercase"].signature
    assert paired_test(good, good, references, method, metrics=("bleu",), trials=200)["bleu"].p_value == 1
    assert "SACREBLEU_SEED" not in os.environ


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="2 hypotheses but references for 1"):
        translation_scores(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="sentence 1 has no reference"):
        translation_scores(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="no hypotheses"):
        translation_scores([], [])
    with pytest.raises(ValueError, match="unknown translation metric"):
        translation_scores(["a"], ["a"], ("rouge",))
    with pytest.raises(ValueError, match="method"):
        paired_test(["a"], ["a"], ["a"], "t-test")
    with pytest.raises(ValueError, match="baseline has 1"):
        paired_test(["a"], ["a", "b"], ["a", "b"])
