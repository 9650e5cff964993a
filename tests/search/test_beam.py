"""Beam search against exhaustive search, and against a plain reference, over toy models that see the whole prefix."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from toy_stepper import ToyStepper, next_log_probs, next_logits

from nmt_ls.search import Found, SearchConfig, beam_search
from nmt_ls.search.stepper import BOS, EOS, PAD, UNK

LETTERS = 4  # the first ordinary token


def penalty(length: int, config: SearchConfig) -> float:
    base = {"gnmt": (5 + length) / 6, "average": length, "none": 1}[config.length_penalty_kind]
    return base**config.length_penalty


def reference(model, vocabulary: int, longest: int, config: SearchConfig, prefix: tuple[int, ...] = ()):
    """The n best of one sentence as (score, log p, tokens), by lists. `model(prefix)` gives logits.

    With stop="exact" it never stops before the end: the exact rule may save steps, not change what is found.
    """
    live, finished = [(0.0, ())], []
    for step in range(longest):
        candidates = []
        for rank, (log_prob, tokens) in enumerate(live):
            next_log_prob = next_log_probs(model(tokens), config.temperature)
            for token in allowed(tokens, step, vocabulary, longest, config, prefix):
                candidates.append((log_prob + next_log_prob[token], rank * vocabulary + token, (*tokens, token)))
        candidates.sort(key=lambda candidate: (-candidate[0], candidate[1]))
        for log_prob, _, tokens in candidates[: config.beam]:
            if tokens[-1] == EOS:
                finished.append((log_prob / penalty(len(tokens), config), log_prob, tokens))
        live = [(log_prob, tokens) for log_prob, _, tokens in candidates if tokens[-1] != EOS][: config.beam]
        if (config.stop == "early" or config.beam == 1) and len(finished) >= config.beam:
            break
    return sorted(finished, key=lambda hypothesis: -hypothesis[0])[: config.nbest]


def allowed(tokens, step, vocabulary, longest, config, prefix):
    if step < len(prefix):
        return [prefix[step]]
    if step == longest - 1:
        return [EOS]
    barred = {PAD, BOS}
    if not config.allow_unknown:
        barred.add(UNK)
    if step + 1 < config.min_length:
        barred.add(EOS)
    n = config.no_repeat_ngram
    if n:
        seen = {tokens[i : i + n] for i in range(len(tokens) - n + 1)}
        context = tokens[len(tokens) - (n - 1) :] if len(tokens) >= n - 1 else None
        barred |= {t for t in range(vocabulary) if context is not None and (*context, t) in seen}
    return [token for token in range(vocabulary) if token not in barred]


def check_equal(found: list[Found], expected) -> None:
    assert [tuple(f.ids) for f in found] == [tokens for _, _, tokens in expected]
    np.testing.assert_allclose([f.score for f in found], [score for score, _, _ in expected], rtol=1e-12)
    np.testing.assert_allclose([f.log_prob for f in found], [log_prob for _, log_prob, _ in expected], rtol=1e-12)
    for f in found:
        assert len(f.token_log_probs) == len(f.ids)
        assert sum(f.token_log_probs) == pytest.approx(f.log_prob, rel=1e-12)


def random_case(seed: int):
    rng = random.Random(seed)
    beam = rng.choice([1, 2, 3, 4, 5, 8])
    config = SearchConfig(
        beam=beam,
        nbest=rng.randint(1, beam),
        length_penalty_kind=rng.choice(["gnmt", "average", "none"]),
        length_penalty=rng.choice([-1.0, -0.3, 0.0, 0.6, 1.0, 2.0]),
        temperature=rng.choice([0.5, 1.0, 1.0, 1.7]),
        min_length=rng.choice([1, 1, 3]),
        no_repeat_ngram=rng.choice([0, 0, 1, 2, 3]),
        stop=rng.choice(["exact", "early"]),
        allow_unknown=rng.random() < 0.7,
    )
    vocabulary = rng.choice([6, 9, 140, 300])
    longest = [rng.randint(3, 9) for _ in range(rng.choice([1, 3, 6]))]
    prefixes = [()] * len(longest)
    if rng.random() < 0.4:
        prefixes = [tuple(rng.randint(UNK, 5) for _ in range(rng.randint(0, n - 1))) for n in longest]
    return config, vocabulary, longest, prefixes


def padded(prefixes) -> torch.Tensor:
    width = max(len(prefix) for prefix in prefixes)
    return torch.tensor([[*prefix, *[PAD] * (width - len(prefix))] for prefix in prefixes], dtype=torch.int64)


@pytest.mark.parametrize("seed", range(120))
def test_equals_the_plain_reference(seed: int) -> None:
    config, vocabulary, longest, prefixes = random_case(seed)
    stepper = ToyStepper(seed, list(range(len(longest))), config.beam, vocabulary)
    found = beam_search(stepper, max_lengths_B=torch.tensor(longest), config=config, prefix_BP=padded(prefixes))
    for sentence, (length, prefix) in enumerate(zip(longest, prefixes, strict=True)):
        expected = reference(
            lambda tokens, s=sentence: next_logits(seed, s, tokens, vocabulary), vocabulary, length, config, prefix
        )
        check_equal(found[sentence], expected)


@pytest.mark.parametrize("kind", ["gnmt", "average", "none"])
@pytest.mark.parametrize("beta", [-0.7, 0.0, 0.6, 1.0])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.8])
def test_a_beam_as_wide_as_the_space_finds_what_exhaustive_search_finds(kind, beta, temperature) -> None:
    vocabulary, longest, nbest = 6, 4, 7
    config = SearchConfig(beam=120, nbest=nbest, length_penalty_kind=kind, length_penalty=beta, temperature=temperature)
    for seed in range(3):
        every = []
        for words in range(longest):
            for letters in itertools.product([UNK, LETTERS, LETTERS + 1], repeat=words):
                tokens = (*letters, EOS)
                log_prob = sum(
                    next_log_probs(next_logits(seed, 0, tokens[:i], vocabulary), temperature)[token]
                    for i, token in enumerate(tokens)
                )
                every.append((log_prob / penalty(len(tokens), config), log_prob, tokens))
        assert len(every) == 1 + 3 + 9 + 27
        best = sorted(every, key=lambda hypothesis: -hypothesis[0])[:nbest]
        stepper = ToyStepper(seed, [0], config.beam, vocabulary)
        check_equal(beam_search(stepper, max_lengths_B=torch.tensor([longest]), config=config)[0], best)
