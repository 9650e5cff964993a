"""Sampling: frequencies against probabilities, the narrowed choices by hand, and seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from toy_stepper import ToyStepper, next_log_probs, next_logits

from nmt_ls.search import SearchConfig, sample
from nmt_ls.search.sampling import draw, narrow
from nmt_ls.search.stepper import BOS, EOS, PAD, UNK

VOCABULARY = 6


def draw_translations(config: SearchConfig, longest=(3,), sentences=None, seed=0, **more):
    stepper = ToyStepper(seed, sentences or list(range(len(longest))), config.samples, VOCABULARY)
    return sample(stepper, max_lengths_B=torch.tensor(longest), config=config, **more)


def sequence_probabilities(temperature: float, longest: int, shape=lambda p: p) -> dict[tuple[int, ...], float]:
    """The probability that sampling gives each sequence: tokens allowed, renormalised, then `shape`d."""
    result, open_prefixes = {}, {(): 1.0}
    for step in range(longest):
        grown = {}
        for prefix, mass in open_prefixes.items():
            p = np.exp(next_log_probs(next_logits(0, 0, prefix, VOCABULARY), temperature))
            p[[PAD, BOS]] = 0
            if step == longest - 1:
                p[np.arange(VOCABULARY) != EOS] = 0
            p = shape(p / p.sum())
            for token in np.flatnonzero(p):
                target = result if token == EOS else grown
                target[(*prefix, int(token))] = mass * p[token] / p.sum()
        open_prefixes = grown
    assert sum(result.values()) == pytest.approx(1)
    return result


def keep_two(p: np.ndarray) -> np.ndarray:
    return np.where(p >= np.sort(p)[-2], p, 0)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (SearchConfig(samples=8000), lambda p: p),
        (SearchConfig(samples=8000, temperature=1.9), lambda p: p),
        (SearchConfig(samples=8000, temperature=1.9, top_k=2), keep_two),
    ],
)
def test_frequencies_follow_the_probabilities(config: SearchConfig, shape) -> None:
    found = draw_translations(config)[0]
    assert len(found) == config.samples
    counts: dict[tuple[int, ...], int] = {}
    for translation in found:
        counts[tuple(translation.ids)] = counts.get(tuple(translation.ids), 0) + 1
    expected = sequence_probabilities(config.temperature, 3, shape)
    assert set(counts) <= set(expected)
    frequent = [ids for ids, p in expected.items() if p * config.samples >= 5]
    rest = config.samples - sum(counts.get(ids, 0) for ids in frequent)
    rest_expected = config.samples * (1 - sum(expected[ids] for ids in frequent))
    observed = [*(counts.get(ids, 0) for ids in frequent), rest]
    wanted = [*(config.samples * expected[ids] for ids in frequent), rest_expected]
    statistic = sum((o - w) ** 2 / max(w, 1) for o, w in zip(observed, wanted, strict=True))
    assert stats.chi2.sf(statistic, len(frequent)) > 1e-3


def test_log_probabilities_are_the_models_own_whatever_narrows_the_choice() -> None:
    config = SearchConfig(samples=5, temperature=1.4, top_k=2, length_penalty_kind="gnmt", length_penalty=0.6)
    for translation in draw_translations(config, longest=(6,))[0]:
        ids = tuple(translation.ids)
        expected = [next_log_probs(next_logits(0, 0, ids[:i], VOCABULARY), 1.4)[token] for i, token in enumerate(ids)]
        np.testing.assert_allclose(translation.token_log_probs, expected, rtol=1e-12)
        assert translation.score == pytest.approx(sum(expected) / ((5 + len(ids)) / 6) ** 0.6)
        assert ids[-1] == EOS
        assert len(ids) <= 6


def test_a_seed_and_a_sentence_decide_the_samples_not_the_batch() -> None:
    config = SearchConfig(samples=4, temperature=1.5, seed=7)
    together = draw_translations(config, longest=(5, 9, 3, 7))
    for sentence, length in enumerate((5, 9, 3, 7)):
        alone = draw_translations(config, (length,), [sentence], sentence_ids_B=torch.tensor([sentence]))
        assert alone[0] == together[sentence]
    backwards = draw_translations(config, (7, 3, 9, 5), [3, 2, 1, 0], sentence_ids_B=torch.tensor([3, 2, 1, 0]))
    assert backwards[::-1] == together
    more = draw_translations(SearchConfig(samples=9, temperature=1.5, seed=7), longest=(5, 9, 3, 7))
    assert [found[:4] for found in more] == together
    other = draw_translations(SearchConfig(samples=4, temperature=1.5, seed=8), longest=(5, 9, 3, 7))
    assert other != together
    assert len({tuple(f.ids) for f in together[1]}) > 1


def test_constraints_hold() -> None:
    config = SearchConfig(samples=50, min_length=4, no_repeat_ngram=1, allow_unknown=False)
    vocabulary = 12
    stepper = ToyStepper(0, [0, 1], 50, vocabulary)
    prefix = torch.tensor([[UNK, 5], [0, 0]])
    found = sample(stepper, max_lengths_B=torch.tensor([6, 5]), config=config, prefix_BP=prefix)
    for translation in found[0]:
        assert translation.ids[:2] == [UNK, 5]
    assert all(UNK not in translation.ids for translation in found[1])
    for translation in found[0] + found[1]:
        assert 4 <= len(translation.ids) <= 6
        assert len(set(translation.ids)) == len(translation.ids)
        assert not {PAD, BOS} & set(translation.ids)


def test_an_improbable_prefix_is_taken_all_the_same() -> None:
    def model(*_: object) -> np.ndarray:
        return np.array([0, 0, 50.0, 0, 0, -3000.0])

    stepper = ToyStepper(0, [0], 1, 6, dtype=torch.float32, model=model)
    found = sample(
        stepper, max_lengths_B=torch.tensor([4]), config=SearchConfig(samples=1), prefix_BP=torch.tensor([[5]])
    )
    assert found[0][0].ids == [5, EOS]
    assert found[0][0].token_log_probs == pytest.approx([-3050.0, 0.0])


def test_narrowed_choices_by_hand() -> None:
    p = torch.tensor([[[0.1, 0.4, 0.05, 0.3, 0.15]]], dtype=torch.float64)

    def kept(top_k: int, top_p: float) -> list[int]:
        return narrow(p, top_k, top_p)[0, 0].nonzero()[:, 0].tolist()

    assert kept(0, 1.0) == [0, 1, 2, 3, 4]
    assert kept(2, 1.0) == [1, 3]
    assert kept(99, 1.0) == [0, 1, 2, 3, 4]
    assert kept(0, 0.4) == [1]
    assert kept(0, 0.41) == [1, 3]
    assert kept(0, 0.8) == [1, 3, 4]
    assert kept(0, 1e-9) == [1]
    assert kept(2, 0.5) == [1]  # 0.4 of the 0.7 that top_k left is 57%
    assert kept(2, 0.6) == [1, 3]
    ties = torch.full((1, 1, 4), 0.25, dtype=torch.float64)
    assert narrow(ties, 2, 1.0)[0, 0].tolist() == [0.25, 0.25, 0, 0]
    assert narrow(ties, 0, 0.5)[0, 0].tolist() == [0.25, 0.25, 0, 0]


def test_draw_inverts_the_cumulative_weights() -> None:
    weights = torch.tensor([[[0.0, 2.0, 0.0, 6.0, 0.0]] * 5])
    uniform = torch.tensor([[0.0, 0.2499, 0.25, 0.9, 1 - 2**-53]], dtype=torch.float64)
    assert draw(weights, uniform).tolist() == [[1, 1, 3, 3, 3]]
    for total in (1.0, 1.0 + 2**-52, 3.0, 7.1):  # the greatest number drawn stays below any total
        assert draw(torch.tensor([[[total, 0.0]]], dtype=torch.float64), uniform[:, 4:]).tolist() == [[0]]
    assert draw(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.float64)).tolist() == [[PAD]]


def test_refuses_no_samples_and_the_wrong_number_of_ids() -> None:
    with pytest.raises(ValueError, match="samples must be at least 1"):
        draw_translations(SearchConfig())
    with pytest.raises(ValueError, match="2 entries for 1 sentences"):
        draw_translations(SearchConfig(samples=1), sentence_ids_B=torch.tensor([1, 2]))
