"""The grammar's probabilities against brute force over derivations, and against samples."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from scipy.stats import chi2

from data_prep.grammar import Grammar, PieceFilter
from data_prep.grammar.automaton import PieceAutomaton, WordAutomaton
from data_prep.grammar.expression import Choice, Node, Phrase, Word, choice, draw, join, phrase
from data_prep.grammar.german import translation
from data_prep.grammar.parser import parse

SHORT = [
    "She sleeps.",
    "Is the house big?",
    "Anna slept quietly today.",
    "The woman helps the old dog.",
    "He gives Anna a cup.",
    "The boy who sleeps is old.",
    "Yesterday they did not visit a friend.",
    "Paul knows that she dances.",
    "I remember the boat of Anna.",
]


def derivations(node: Node) -> Iterator[tuple[float, tuple[str, ...]]]:
    """Every derivation of an expression: its probability and its words and marks. The oracle of this file."""
    if isinstance(node, Word):
        yield 1.0, (node.text,)
    elif isinstance(node, Choice):
        for share, option in node.options:
            yield from ((share * p, words) for p, words in derivations(option))
    elif isinstance(node, Phrase):
        if not node.parts:
            yield 1.0, ()
            return
        rest = list(derivations(Phrase(node.parts[1:])))
        for p, words in derivations(node.parts[0]):
            yield from ((p * q, words + more) for q, more in rest)
    else:
        yield from derivations(node.node)


@cache
def enumerated(source: str) -> tuple[dict[tuple[str, ...], float], int]:
    """({target words: probability}, number of derivations)."""
    totals: dict[tuple[str, ...], float] = {}
    number = 0
    for p, words in derivations(translation(parse(source))):
        key = tuple(join(words))
        totals[key] = totals.get(key, 0.0) + p
        number += 1
    return totals, number


def next_symbols(strings: dict[tuple[str, ...], float], prefix: tuple[str, ...]) -> dict[str | None, float]:
    """The next-symbol distribution after a prefix, from the probabilities of whole strings."""
    following: dict[str | None, float] = {}
    for symbols, p in strings.items():
        if symbols[: len(prefix)] == prefix:
            symbol = symbols[len(prefix)] if len(symbols) > len(prefix) else None
            following[symbol] = following.get(symbol, 0.0) + p
    total = sum(following.values())
    return {symbol: p / total for symbol, p in following.items()}


def marked_pairs(word: str) -> list[str]:
    """Pieces of two letters, the first marked as a word's start."""
    return [("▁" if at == 0 else "") + word[at : at + 2] for at in range(0, len(word), 2)]


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return Grammar(0)


@pytest.mark.parametrize("source", SHORT)
def test_string_and_next_word_probabilities_equal_enumeration(grammar: Grammar, source: str) -> None:
    strings, _ = enumerated(source)
    assert sum(strings.values()) == pytest.approx(1.0, abs=1e-12)
    for words, p in list(strings.items())[:300]:
        assert grammar.true_log_prob(source, " ".join(words)) == pytest.approx(math.log(p), abs=1e-9)
    for prefix in sorted({words[:n] for words in strings for n in range(len(words) + 1)})[:300]:
        expected = next_symbols(strings, prefix)
        given = grammar.true_next_word_probs(source, prefix)
        assert given.keys() == expected.keys()
        assert given == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("segment", [marked_pairs, list], ids=["word starts marked", "letters, no word starts"])
@pytest.mark.parametrize("source", ["She sleeps.", "He gives Anna a cup.", "I remember the boat of Anna."])
def test_next_piece_probabilities_equal_enumeration(grammar: Grammar, source: str, segment) -> None:
    pieces: dict[tuple[str, ...], float] = {}
    for words, p in enumerated(source)[0].items():
        key = tuple(piece for word in words for piece in segment(word))
        pieces[key] = pieces.get(key, 0.0) + p
    automaton = PieceAutomaton(grammar.automaton(source), segment)
    for prefix in sorted({key[:n] for key in pieces for n in range(len(key) + 1)})[::7]:
        expected = next_symbols(pieces, prefix)
        given = automaton.next_probs(automaton.read(prefix))
        assert given.keys() == expected.keys()
        assert given == pytest.approx(expected, abs=1e-12)
    prefix = max(pieces, key=len)[:5]
    assert grammar.true_next_piece_probs(source, prefix, segment) == pytest.approx(next_symbols(pieces, prefix))


@pytest.mark.parametrize("source", SHORT)
def test_most_probable_is_the_argmax_over_strings(grammar: Grammar, source: str) -> None:
    strings, _ = enumerated(source)
    words, log_prob = grammar.most_probable(source)
    assert log_prob == pytest.approx(math.log(max(strings.values())), abs=1e-9)
    assert strings[tuple(words)] == pytest.approx(max(strings.values()), rel=1e-9)


def test_ambiguous_orders_are_summed_not_picked() -> None:
    either = choice([(0.6, "a b"), (0.4, phrase(choice([(0.5, "a"), (0.5, "b")]), choice([(0.5, "b"), (0.5, "a")])))])
    automaton = WordAutomaton(phrase(either, "."))
    assert math.exp(sum(automaton.log_probs(["A", "b."]))) == pytest.approx(0.6 + 0.4 * 0.25)
    assert math.exp(sum(automaton.log_probs(["B", "a."]))) == pytest.approx(0.4 * 0.25)
    # after A: 0.6 of one derivation, 0.1 + 0.1 of the other
    assert automaton.next_probs(automaton.read(["A"])) == pytest.approx({"b.": 0.7 / 0.8, "a.": 0.1 / 0.8})
    words, log_prob = automaton.most_probable()
    assert (words, math.exp(log_prob)) == (["A", "b."], pytest.approx(0.7))


def test_the_likeliest_string_may_have_no_likeliest_derivation() -> None:
    # "x y" is reached twice with 0.3, "z" once with 0.4
    automaton = WordAutomaton(choice([(0.3, phrase("x", "y")), (0.4, "z"), (0.3, phrase(choice([(1.0, "x")]), "y"))]))
    words, log_prob = automaton.most_probable()
    assert (words, math.exp(log_prob)) == (["X", "y"], pytest.approx(0.6))


def test_the_grammar_itself_is_ambiguous(grammar: Grammar) -> None:
    source = "Anna slept quietly today."  # both adverbs early, both late, or one of each: the same words
    target = "Anna schlief heute leise."
    parts = [p for p, words in derivations(translation(parse(source))) if " ".join(join(words)) == target]
    assert len(parts) == 3
    assert math.exp(grammar.true_log_prob(source, target)) == pytest.approx(sum(parts))
    assert math.exp(grammar.true_log_prob(source, target)) > 1.2 * max(parts)


def test_marks_join_the_word_before_and_collapse() -> None:
    optional = choice([(0.25, phrase(",", "b", ",")), (0.75, phrase("b"))])
    automaton = WordAutomaton(phrase("a", optional, "."))
    assert automaton.next_probs(automaton.start) == pytest.approx({"A,": 0.25, "A": 0.75})
    assert automaton.next_probs(automaton.read(["A,"])) == {"b.": 1.0}
    assert automaton.next_probs(automaton.read(["A", "b."])) == {None: 1.0}


def test_every_prefix_of_every_target_sums_to_one(grammar: Grammar) -> None:
    checked = 0
    for source, target in grammar.sample(120, "test"):
        words = target.split()
        logs = []
        for at in range(len(words) + 1):
            following = grammar.true_next_word_probs(source, words[:at])
            assert sum(following.values()) == pytest.approx(1.0, abs=1e-12)
            assert min(following.values()) > 0
            logs.append(math.log(following[words[at] if at < len(words) else None]))
            checked += 1
        assert grammar.true_log_prob(source, target) == pytest.approx(sum(logs), abs=1e-9)
    assert checked > 1000


def test_piece_filter_agrees_with_words_and_with_single_questions(grammar: Grammar) -> None:
    ids: dict[str, int] = {}

    def segment(word: str) -> list[int]:
        return [ids.setdefault(piece, len(ids) + 10) for piece in marked_pairs(word)]

    for source, target in grammar.sample(60, "test"):
        pieces = [piece for word in target.split() for piece in segment(word)]
        found = PieceFilter(grammar, source, segment, end=2).distributions(pieces)
        assert np.bincount(found.positions, weights=found.probs) == pytest.approx(np.ones(len(pieces) + 1), abs=1e-12)
        labels = np.array([*pieces, 2])[found.positions]
        true_label = found.probs[found.ids == labels]
        assert len(true_label) == len(pieces) + 1
        logs = grammar.true_piece_log_probs(source, pieces, segment)
        assert np.log(true_label) == pytest.approx(logs, abs=1e-9)
        assert logs.sum() == pytest.approx(grammar.true_log_prob(source, target), abs=1e-9)
        at = len(pieces) // 2
        row = found.positions == at
        single = grammar.true_next_piece_probs(source, pieces[:at], segment)
        assert dict(zip(found.ids[row].tolist(), found.probs[row].tolist(), strict=True)) == pytest.approx(
            {2 if piece is None else piece: p for piece, p in single.items()}
        )


@pytest.mark.parametrize(
    "source", ["Anna slept quietly today.", "The woman helps the old dog.", "I remember the boat of Anna."]
)
def test_samples_follow_the_probabilities(grammar: Grammar, source: str) -> None:
    rng, draws = random.Random(5), 100_000
    expression = grammar.automaton(source).expression
    counts = Counter(tuple(draw(expression, rng)) for _ in range(draws - 1))
    counts[tuple(grammar.sample_target(source, rng).split())] += 1
    expected = {words: draws * math.exp(grammar.true_log_prob(source, " ".join(words))) for words in counts}
    frequent = {words for words, e in expected.items() if e >= 5}
    rare = draws - sum(expected[words] for words in frequent)
    statistic = sum((counts[words] - expected[words]) ** 2 / expected[words] for words in frequent)
    cells = len(frequent) - 1
    if rare > 5:
        statistic += (sum(counts[words] for words in counts if words not in frequent) - rare) ** 2 / rare
        cells += 1
    assert cells > 5
    assert 1e-4 < chi2.sf(statistic, cells) < 1 - 1e-4


def test_impossible_targets_and_prefixes(grammar: Grammar) -> None:
    assert grammar.true_log_prob("She sleeps.", "Sie lacht.") == -math.inf
    assert grammar.true_log_prob("She sleeps.", "Sie") == -math.inf
    assert grammar.true_log_prob("She sleeps.", "Sie schläft. Sie") == -math.inf
    with pytest.raises(ValueError, match="impossible"):
        grammar.true_next_word_probs("She sleeps.", ["Er"])
    with pytest.raises(ValueError, match="piece 1 "):
        PieceFilter(grammar, "She sleeps.", lambda word: [len(word)], end=2).distributions([77])
    with pytest.raises(ValueError, match="no pieces"):
        grammar.true_next_piece_probs("She sleeps.", [], lambda _: [])


def test_hand_computed() -> None:
    assert math.exp(Grammar(0).true_log_prob("She sleeps.", "Sie schläft.")) == pytest.approx(0.8)
    # the past: simple 0.55, perfect 0.45
    assert Grammar(3).true_next_word_probs("We opened them.", ["Wir"]) == pytest.approx(
        {"öffneten": 0.55 * 0.55, "machten": 0.45 * 0.55, "haben": 0.45}
    )
