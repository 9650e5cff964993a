"""Beam searches at several temperatures together: they find what each finds alone, and share what they can."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from test_beam import LETTERS, check_equal, padded, penalty, random_case, reference
from test_search_with_transformer import random_sources, tiny_model
from toy_stepper import ToyStepper, next_log_probs, next_logits

from nmt_ls.prefix_decoder import PrefixDecoder
from nmt_ls.search import Found, SearchConfig, beam_search, beam_search_at, maximum_lengths
from nmt_ls.search.stepper import BOS, EOS, UNK


class ToyPrefixStepper:
    """Implements search.PrefixStepper over next_logits; `asked` records the prefixes of each step by sentence."""

    def __init__(self, seed: int, vocabulary: int, dtype: torch.dtype = torch.float64, model=None):
        self.model = model or (lambda sentence, prefix: next_logits(seed, sentence, prefix, vocabulary))
        self.dtype = dtype
        self.asked: list[list[tuple[int, tuple[int, ...]]]] = []

    def logits(self, tokens_N: torch.Tensor, parents_N: torch.Tensor, sentences_N: torch.Tensor) -> torch.Tensor:
        rows = list(zip(sentences_N.tolist(), parents_N.tolist(), tokens_N.tolist(), strict=True))
        if self.asked:
            asked = [(sentence, (*self.asked[-1][parent][1], token)) for sentence, parent, token in rows]
            assert all(self.asked[-1][parent][0] == sentence for sentence, parent, _ in rows)
        else:
            assert rows == [(sentence, sentence, BOS) for sentence in range(len(rows))]
            asked = [(sentence, ()) for sentence, _, _ in rows]
        assert len(set(asked)) == len(asked)
        assert sentences_N.tolist() == sorted(sentences_N.tolist())
        self.asked.append(asked)
        return torch.tensor(np.stack([self.model(*row) for row in asked]), dtype=self.dtype)


@pytest.mark.parametrize("seed", range(60))
def test_equals_the_plain_reference_at_each_temperature(seed: int) -> None:
    config, vocabulary, longest, prefixes = random_case(seed)
    temperatures = random.Random(seed).sample([0.5, 0.9, 1.0, 1.1, 1.7, 3.0], 3)
    found = beam_search_at(
        temperatures,
        ToyPrefixStepper(seed, vocabulary),
        max_lengths_B=torch.tensor(longest),
        config=config,
        prefix_BP=padded(prefixes),
    )
    for temperature, sentences in zip(temperatures, found, strict=True):
        at = SearchConfig(**{**vars(config), "temperature": temperature})
        for sentence, (length, prefix) in enumerate(zip(longest, prefixes, strict=True)):
            expected = reference(
                lambda tokens, s=sentence: next_logits(seed, s, tokens, vocabulary), vocabulary, length, at, prefix
            )
            check_equal(sentences[sentence], expected)


def test_a_beam_as_wide_as_the_space_finds_what_exhaustive_search_finds() -> None:
    vocabulary, longest, temperatures = 6, 4, [0.6, 1.0, 1.8]
    config = SearchConfig(beam=108, nbest=7, length_penalty=0.6)
    found = beam_search_at(
        temperatures, ToyPrefixStepper(3, vocabulary), max_lengths_B=torch.tensor([longest]), config=config
    )
    for temperature, (best,) in zip(temperatures, found, strict=True):
        every = []
        for words in range(longest):
            for letters in itertools.product([UNK, LETTERS, LETTERS + 1], repeat=words):
                tokens = (*letters, EOS)
                log_prob = sum(
                    next_log_probs(next_logits(3, 0, tokens[:i], vocabulary), temperature)[token]
                    for i, token in enumerate(tokens)
                )
                every.append((log_prob / penalty(len(tokens), config), log_prob, tokens))
        check_equal(best, sorted(every, key=lambda hypothesis: -hypothesis[0])[:7])


def test_no_prefix_is_computed_twice_and_none_that_no_search_holds() -> None:
    lengths, config = torch.tensor([7, 9, 4]), SearchConfig(beam=4)

    def asked(temperatures: list[float]) -> list[set[tuple[int, tuple[int, ...]]]]:
        stepper = ToyPrefixStepper(1, 40)  # which asserts that those of a step differ
        beam_search_at(temperatures, stepper, max_lengths_B=lengths, config=config)
        return [set(step) for step in stepper.asked]

    alone = [asked([temperature]) for temperature in (0.7, 1.0, 1.6)]
    expected = [set().union(*steps) for steps in itertools.zip_longest(*alone, fillvalue=set())]
    assert asked([0.7, 1.0, 1.6]) == expected
    assert asked([1.0, 1.0, 1.0]) == alone[1]
    assert sum(map(len, expected)) < sum(len(step) for steps in alone for step in steps)


def test_equal_scores_rank_by_position_as_in_a_search_alone() -> None:
    def model(*_: object) -> np.ndarray:
        return np.zeros(9)

    lengths, config = torch.tensor([5]), SearchConfig(beam=4, nbest=4, length_penalty=0.5)
    alone = beam_search(ToyStepper(0, [0], 4, 9, model=model), max_lengths_B=lengths, config=config)
    (found,) = beam_search_at([1.0], ToyPrefixStepper(0, 9, model=model), max_lengths_B=lengths, config=config)
    assert found == alone


def test_fp32_differs_from_searches_alone_only_in_rounding() -> None:
    lengths, temperatures = torch.tensor([6, 9, 12, 5]), [0.8, 1.0, 1.3]
    config = SearchConfig(beam=5, nbest=5)
    found = beam_search_at(temperatures, ToyPrefixStepper(2, 300, torch.float32), max_lengths_B=lengths, config=config)
    for temperature, sentences in zip(temperatures, found, strict=True):
        at = SearchConfig(beam=5, nbest=5, temperature=temperature)
        alone = beam_search(ToyStepper(2, [0, 1, 2, 3], 5, 300, torch.float32), max_lengths_B=lengths, config=at)
        check_same(sentences, alone, 1e-5)


def check_same(found: list[list[Found]], expected: list[list[Found]], tolerance: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert [one.ids for one in ours] == [one.ids for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.token_log_probs == pytest.approx(other.token_log_probs, abs=tolerance)
            assert one.score == pytest.approx(other.score, abs=tolerance)


@pytest.mark.parametrize(
    "config",
    [
        SearchConfig(beam=4, nbest=4),
        SearchConfig(beam=3, stop="early", length_penalty_kind="gnmt", length_penalty=0.6),
        SearchConfig(beam=2, no_repeat_ngram=2, min_length=3, allow_unknown=False),
        SearchConfig(beam=1),
    ],
)
def test_over_the_real_model_in_float64(config: SearchConfig) -> None:
    model, source_BS = tiny_model(torch.float64), random_sources([3, 6, 2, 5, 4, 8, 6, 7])
    longest_B, temperatures = maximum_lengths(source_BS, config), [0.5, 0.9, 1.0, 1.1, 2.0]
    prefix_BP = torch.tensor([[5, 6], [0, 0], [4, 0], [0, 0], [7, 8], [9, 4], [0, 0], [0, 0]])
    for prefixes in (None, prefix_BP):
        found = beam_search_at(
            temperatures, PrefixDecoder(model, source_BS), max_lengths_B=longest_B, config=config, prefix_BP=prefixes
        )
        for temperature, sentences in zip(temperatures, found, strict=True):
            stepper = model.start(source_BS, config.beam, int(longest_B.max()))
            at = SearchConfig(**{**vars(config), "temperature": temperature})
            alone = beam_search(stepper, max_lengths_B=longest_B, config=at, prefix_BP=prefixes)
            check_same(sentences, alone, 1e-11)


def test_what_cannot_be_shared_and_logits_that_are_nan_are_refused() -> None:
    lengths = torch.tensor([4, 4])
    for config in (SearchConfig(samples=2), SearchConfig(alternatives=2)):
        with pytest.raises(ValueError, match="not found at several temperatures together"):
            beam_search_at([1.0, 2.0], ToyPrefixStepper(0, 9), max_lengths_B=lengths, config=config)
    with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
        beam_search_at([1.0, 0.0], ToyPrefixStepper(0, 9), max_lengths_B=lengths, config=SearchConfig())

    def model(sentence: int, prefix: tuple[int, ...]) -> np.ndarray:
        return np.full(9, np.nan) if sentence == 1 and len(prefix) == 2 else np.linspace(0, 1, 9)

    with pytest.raises(ValueError, match=r"NaN.* at token 3"):
        beam_search_at([1.0, 2.0], ToyPrefixStepper(0, 9, model=model), max_lengths_B=lengths, config=SearchConfig())


def test_an_empty_batch_is_empty() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    found = beam_search_at([1.0, 2.0], ToyPrefixStepper(0, 9), max_lengths_B=nothing, config=SearchConfig())
    assert found == [[], []]
