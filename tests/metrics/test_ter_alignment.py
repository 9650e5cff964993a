import numpy as np
import pytest
from sacrebleu.metrics.lib_ter import translation_edit_rate

from nmt_ls.metrics.ter_alignment import ter_alignment


def right(hypothesis, reference):
    hypothesis = hypothesis.split()
    return [w for w, ok in zip(hypothesis, ter_alignment(hypothesis, reference.split()).correct, strict=True) if ok]


def test_equal_sentences_are_all_right():
    result = ter_alignment(["a", "b", "c"], ["a", "b", "c"])
    assert result.correct == [True] * 3
    assert result.edits == result.shifts == 0


def test_substitutions_and_insertions_are_wrong():
    assert ter_alignment(["a", "x", "c", "d"], ["a", "b", "c"]).correct == [True, False, True, False]
    assert ter_alignment(["a", "x", "c", "d"], ["a", "b", "c"]).edits == 2
    assert right("the cat sat", "the big cat sat down") == ["the", "cat", "sat"]


def test_a_shifted_block_is_right_and_costs_one():
    result = ter_alignment(["d", "e", "f", "a", "b", "c"], ["a", "b", "c", "d", "e", "f"])
    assert result.correct == [True] * 6
    assert (result.edits, result.shifts) == (1, 1)


def test_correctness_is_given_in_the_original_order():
    # "x" is the only wrong token, and stands in the block that moves
    result = ter_alignment(["d", "e", "f", "x", "a", "b", "c"], ["a", "b", "c", "d", "e", "f"])
    assert result.correct == [True, True, True, False, True, True, True]
    assert result.edits == 2


def test_a_repeated_token_is_right_only_as_often_as_the_reference_has_it():
    assert sum(ter_alignment(["no"] * 5, ["no", "no"]).correct) == 2


@pytest.mark.parametrize(("hypothesis", "reference"), [([], ["a"]), (["a"], []), ([], [])])
def test_empty_sentences(hypothesis, reference):
    result = ter_alignment(hypothesis, reference)
    assert result.correct == [False] * len(hypothesis)
    assert result.edits == len(hypothesis) + len(reference)


def plain_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def test_edits_are_near_those_of_sacrebleu_and_never_above_the_edit_distance():
    rng = np.random.default_rng(0)
    ours = peers = 0
    for _ in range(60):
        reference = rng.choice(list("abcdefghijklmnop"), rng.integers(3, 16)).tolist()
        parts = np.array_split(np.array(reference), 3)
        hypothesis = [str(w) for i in rng.permutation(3) for w in parts[i]]
        hypothesis = [w if rng.random() > 0.15 else "z" for w in hypothesis]
        result = ter_alignment(hypothesis, reference)
        assert result.edits <= plain_distance(hypothesis, reference)
        assert sum(result.correct) <= min(len(hypothesis), len(reference))
        ours += result.edits
        peers += translation_edit_rate(hypothesis, reference)[0]
    assert ours == pytest.approx(peers, rel=0.05)
