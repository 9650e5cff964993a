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


def check_equal(found: list[Found], expected, rtol: float = 1e-12) -> None:
    assert [tuple(f.ids) for f in found] == [tokens for _, _, tokens in expected]
    np.testing.assert_allclose([f.score for f in found], [score for score, _, _ in expected], rtol=rtol)
    np.testing.assert_allclose([f.log_prob for f in found], [log_prob for _, log_prob, _ in expected], rtol=rtol)
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
    vocabulary = rng.choice([6, 9, 40, 261])
    longest = [rng.randint(3, 8) for _ in range(rng.choice([1, 3, 8]))]
    prefixes = [()] * len(longest)
    if rng.random() < 0.4:
        prefixes = [tuple(rng.randint(UNK, 5) for _ in range(rng.randint(0, n - 1))) for n in longest]
    return config, vocabulary, longest, prefixes


def padded(prefixes) -> torch.Tensor:
    width = max(len(prefix) for prefix in prefixes)
    return torch.tensor([[*prefix, *[PAD] * (width - len(prefix))] for prefix in prefixes], dtype=torch.int64)


@pytest.mark.parametrize("seed", range(100))
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
    config = SearchConfig(beam=108, nbest=nbest, length_penalty_kind=kind, length_penalty=beta, temperature=temperature)
    for seed in range(2):
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


@pytest.mark.parametrize("prefix", [(), (5,)])
def test_a_beam_wider_than_a_prime_vocabulary(prefix: tuple[int, ...]) -> None:
    # of the 600 first candidates 255 are real, or one where it is forced; the others must stay out
    vocabulary, config = 257, SearchConfig(beam=300, nbest=300)

    def model(sentence: int, tokens: tuple[int, ...]) -> np.ndarray:
        return next_logits(0, sentence, tokens, vocabulary) + 6 * (np.arange(vocabulary) == 256)

    found = beam_search(
        ToyStepper(0, [0], config.beam, vocabulary, model=model),
        max_lengths_B=torch.tensor([3]),
        config=config,
        prefix_BP=padded([prefix]),
    )
    check_equal(found[0], reference(lambda tokens: model(0, tokens), vocabulary, 3, config, prefix))


# --- stopping, batches, temperature -------------------------------------------------------------------------------


def scripted(table: dict[tuple[int, ...], dict[int, float]], otherwise: dict[int, float]):
    """A model from probabilities written down: prefix -> {token: p}; what is left goes to padding."""

    def model(_sentence: int, prefix: tuple[int, ...]) -> np.ndarray:
        p = np.full(6, 1e-30)
        for token, probability in table.get(prefix, otherwise).items():
            p[token] = probability
        p[PAD] = 1 - p[1:].sum()
        return np.log(np.maximum(p, 1e-30))

    return model


def run(model, longest: int, **settings) -> tuple[list[Found], int]:
    config = SearchConfig(**settings)
    stepper = ToyStepper(0, [0], config.beam, 6, model=model)
    found = beam_search(stepper, max_lengths_B=torch.tensor([longest]), config=config)
    return found[0], len(stepper.width_log)


A, B = 4, 5


def test_the_exact_rule_stops_as_soon_as_nothing_live_can_win_and_not_before() -> None:
    model = scripted({(): {EOS: 0.9, A: 0.1}}, {A: 0.5, EOS: 0.1})
    # finished: log 0.9 / 1 = -0.105. The best live hypothesis has log 0.1 = -2.303, over 10^1 at most -0.230.
    assert run(model, 10, beam=2, length_penalty=1.0)[1] == 1
    # over 30 it is -0.077, so the search goes on: log 0.05 / 30 = -0.0999 beats -0.105, log 0.025 / 30 = -0.123 no more
    assert run(model, 30, beam=2, length_penalty=1.0)[1] == 3
    # no penalty, and a penalty that punishes length: nothing live can win
    assert run(model, 30, beam=2, length_penalty_kind="none")[1] == 1
    assert run(model, 30, beam=2, length_penalty=-1.0)[1] == 1
    assert run(model, 30, beam=2, length_penalty=0.0)[1] == 1


def test_each_sentence_stops_by_its_own_maximum_length() -> None:
    # as above with 10 and 30, together: the first leaves at once, the second goes on as if alone
    config = SearchConfig(beam=2)
    model = scripted({(): {EOS: 0.9, A: 0.1}}, {A: 0.5, EOS: 0.1})
    stepper = ToyStepper(0, [0, 1], 2, 6, model=model)
    beam_search(stepper, max_lengths_B=torch.tensor([10, 30]), config=config)
    assert stepper.width_log == [2, 1, 1]


def test_a_negative_penalty_is_bounded_by_the_next_length() -> None:
    # finished: log 0.4 · 1 = -0.916; live: log 0.6 · 2 = -1.02. Bounded by the maximum length it would be -5.1.
    model = scripted({(): {EOS: 0.4, A: 0.6}}, {EOS: 1.0})
    found, steps = run(model, 10, beam=2, length_penalty=-1.0)
    assert (found[0].ids, steps) == ([EOS], 1)
    # log 0.7 · 2 = -0.713 wins
    model = scripted({(): {EOS: 0.3, A: 0.7}}, {EOS: 1.0})
    found, steps = run(model, 10, beam=2, length_penalty=-1.0)
    assert (found[0].ids, steps) == ([A, EOS], 2)


def test_the_exact_rule_waits_for_the_nth_best() -> None:
    model = scripted({(): {EOS: 0.9, A: 0.1}, (A,): {EOS: 0.5, A: 0.5}}, {EOS: 0.5, A: 0.5})
    settings = {"beam": 2, "length_penalty_kind": "none"}
    assert run(model, 30, nbest=1, **settings)[1] == 1
    found, steps = run(model, 30, nbest=2, **settings)
    assert ([f.ids for f in found], steps) == ([[EOS], [A, EOS]], 2)


def test_the_early_rule_stops_at_the_beamth_finished_hypothesis() -> None:
    # A EOS (0.3) and EOS (0.2) finish first; A A A EOS has a better mean, which only the exact rule waits for
    model = scripted(
        {(): {EOS: 0.4, A: 0.6}, (A,): {EOS: 0.45, A: 0.55}, (A, A): {A: 1.0}, (A, A, A): {A: 1.0}}, {EOS: 1.0}
    )
    found, steps = run(model, 9, beam=2, stop="early", nbest=2)
    assert ([f.ids for f in found], steps) == ([[A, EOS], [EOS]], 2)
    found, steps = run(model, 9, beam=2, stop="exact", nbest=2)
    assert ([f.ids for f in found], steps) == ([[A, A, A, A, EOS], [A, EOS]], 5)


def test_a_sentence_done_early_finds_nothing_more_while_it_stays_in_the_batch() -> None:
    ends = scripted({(): {EOS: 0.4, A: 0.6}, (A,): {EOS: 0.45, A: 0.55}, (A, A): {A: 1.0}}, {EOS: 1.0})
    goes_on = scripted({}, {A: 0.6, B: 0.3, EOS: 1e-4})
    stepper = ToyStepper(0, [0, 1, 2, 3, 4], 2, 6, model=lambda s, prefix: (goes_on if s else ends)(s, prefix))
    config = SearchConfig(beam=2, nbest=2, stop="early")
    found = beam_search(stepper, max_lengths_B=torch.full((5,), 7), config=config)
    assert stepper.width_log == [5] * 7  # one done of five is no reason to copy the others
    assert [f.ids for f in found[0]] == [[A, EOS], [EOS]]


def test_greedy_is_the_chain_of_most_probable_tokens() -> None:
    for seed in range(5):
        chain, longest, vocabulary = [], 12, 7
        while EOS not in chain:
            logits = next_logits(seed, 0, tuple(chain), vocabulary).copy()
            logits[[PAD, BOS]] = -np.inf
            chain.append(int(logits.argmax()) if len(chain) < longest - 1 else EOS)
        for stop in ("exact", "early"):
            config = SearchConfig(beam=1, stop=stop, length_penalty=2.0)
            stepper = ToyStepper(seed, [0], 1, vocabulary)
            (found,) = beam_search(stepper, max_lengths_B=torch.tensor([longest]), config=config)[0]
            assert found.ids == chain
            assert len(stepper.width_log) == len(chain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_neither_order_nor_size_of_the_batch_changes_a_translation(dtype: torch.dtype) -> None:
    config = SearchConfig(beam=3, nbest=3, no_repeat_ngram=2, alternatives=2)
    lengths = [4, 9, 2, 7, 3, 12, 5]

    def translate(order: list[int]) -> dict[int, list[Found]]:
        stepper = ToyStepper(5, order, config.beam, 8, dtype)
        prefixes = padded([(4, 5)[: min(sentence, 2)] if lengths[sentence] > 2 else () for sentence in order])
        longest = torch.tensor([lengths[sentence] for sentence in order])
        found = beam_search(stepper, max_lengths_B=longest, config=config, prefix_BP=prefixes)
        return dict(zip(order, found, strict=True))

    together = translate(list(range(7)))
    assert translate([6, 2, 4, 0, 1, 3, 5]) == together
    for sentence in range(7):
        assert translate([sentence]) == {sentence: together[sentence]}


def test_finished_sentences_leave_the_batch() -> None:
    config = SearchConfig(beam=2, min_length=2)
    lengths = [2] * 6 + [3] * 3 + [12]
    stepper = ToyStepper(0, list(range(10)), 2, 6, model=scripted({}, {A: 0.99, EOS: 0.001}))
    found = beam_search(stepper, max_lengths_B=torch.tensor(lengths), config=config)
    assert [len(f[0].ids) for f in found] == lengths
    assert stepper.width_log == [10, 10, 4] + [1] * 9


def test_temperature_decides_between_a_sure_start_and_a_sure_end() -> None:
    # A (0.6) may go on in four ways of 0.25; B (0.4) ends for sure. p(B EOS) = 0.4 > p(A EOS) = 0.15.
    # At T = 0.1: 0.6^10 / (0.6^10 + 0.4^10) = 0.983, a quarter of which is 0.246 > 0.017.
    model = scripted({(): {A: 0.6, B: 0.4}, (A,): {EOS: 0.25, UNK: 0.25, A: 0.25, B: 0.25}}, {EOS: 1.0})
    settings = {"beam": 6, "length_penalty_kind": "none", "nbest": 2}
    warm, _ = run(model, 5, **settings)
    cold, _ = run(model, 5, temperature=0.1, **settings)
    assert warm[0].ids == [B, EOS]
    assert warm[0].log_prob == pytest.approx(np.log(0.4))
    assert cold[0].ids == [A, EOS]
    assert cold[0].log_prob == pytest.approx(np.log(0.25 / (1 + (0.4 / 0.6) ** 10)))
    assert cold[0].token_log_probs == pytest.approx([-np.log(1 + (0.4 / 0.6) ** 10), np.log(0.25)])


def test_alternatives_are_the_models_most_probable_tokens_forbidden_or_not() -> None:
    config = SearchConfig(beam=3, nbest=3, alternatives=4, temperature=1.3, allow_unknown=False)
    stepper = ToyStepper(9, [0, 1], 3, 8)
    for sentence, found in enumerate(beam_search(stepper, max_lengths_B=torch.tensor([6, 4]), config=config)):
        for hypothesis in found:
            assert hypothesis.alternatives is not None
            assert len(hypothesis.alternatives) == len(hypothesis.ids)
            for i, alternatives in enumerate(hypothesis.alternatives):
                expected = next_log_probs(next_logits(9, sentence, tuple(hypothesis.ids[:i]), 8), 1.3)
                assert [token for token, _ in alternatives] == np.argsort(-expected)[:4].tolist()
                np.testing.assert_allclose([p for _, p in alternatives], np.sort(expected)[:-5:-1], rtol=1e-12)


# --- edges --------------------------------------------------------------------------------------------------------


def test_unless_asked_for_there_are_no_alternatives_and_an_empty_batch_is_empty() -> None:
    assert run(scripted({}, {EOS: 1.0}), 3)[0][0].alternatives is None
    stepper = ToyStepper(0, [], 5, 6)
    assert beam_search(stepper, max_lengths_B=torch.zeros(0, dtype=torch.int64), config=SearchConfig()) == []


def test_no_translation_where_the_constraints_leave_none() -> None:
    # letters A, B and unknown may each come once, and the sentence may not end before its fifth token
    found, _ = run(scripted({}, {A: 0.5, B: 0.4}), 6, no_repeat_ngram=1, min_length=5)
    assert found == []


def test_a_forced_prefix_overrides_the_other_constraints() -> None:
    config = SearchConfig(beam=2, allow_unknown=False, no_repeat_ngram=1)
    stepper = ToyStepper(0, [0], 2, 7)
    found = beam_search(
        stepper, max_lengths_B=torch.tensor([5]), config=config, prefix_BP=torch.tensor([[UNK, A, A, PAD]])
    )
    assert found[0][0].ids[:3] == [UNK, A, A]


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ([[A, B, A]], "sentence 0: a forced prefix of 3 tokens leaves no room .* 3"),
        ([[A, PAD, B]], "padding only after it"),
        ([[A, EOS, PAD]], "neither beginning- nor end-of-sentence"),
        ([[A], [B]], "2 rows for 1 sentences"),
    ],
)
def test_refuses_impossible_prefixes(prefix: list[list[int]], message: str) -> None:
    stepper = ToyStepper(0, [0], 5, 6)
    with pytest.raises(ValueError, match=message):
        beam_search(stepper, max_lengths_B=torch.tensor([3]), config=SearchConfig(), prefix_BP=torch.tensor(prefix))


def test_refuses_a_minimum_above_the_maximum_logits_that_are_nan_and_too_many_alternatives() -> None:
    with pytest.raises(ValueError, match="sentence 0: its maximum length 3 is below min_length"):
        run(scripted({}, {EOS: 1.0}), 3, min_length=4)
    with pytest.raises(ValueError, match=r"NaN.* at token 1"):
        run(lambda *_: np.full(6, np.nan), 3)
    with pytest.raises(ValueError, match="alternatives must be at most the vocabulary's size, 6, got 7"):
        run(scripted({}, {EOS: 1.0}), 3, alternatives=7)
