"""Locally normalised, weighted, acyclic automata, and the exact questions that one may ask of them.

An automaton is expanded only where a question leads, so that following one target through the automaton of a long
sentence costs little. It need not be deterministic: several derivations may spell the same words, and every answer
here sums over all of them. A belief is the forward filter's state: `{state: probability}` given the prefix read.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import count
from math import inf, log
from typing import Generic, TypeVar

from data_prep.grammar.expression import MARKS, Choice, Node, Phrase, Word

Symbol = TypeVar("Symbol", bound=Hashable)
Belief = dict[int, float]


class Automaton(Generic[Symbol]):
    """The forward filter over a lazily expanded automaton whose arcs from each state, and its end, sum to one."""

    def __init__(self) -> None:
        self.start: Belief = {}
        # Per state: symbol -> ((next state, probability), ...), and symbol -> probability with None for the end.
        self._arcs: dict[int, dict[Symbol, tuple[tuple[int, float], ...]]] = {}
        self._outgoing: dict[int, dict[Symbol | None, float]] = {}

    def _expand(self, state: int) -> tuple[dict[tuple[Symbol, int], float], float]:
        """({(symbol, next state): probability}, probability of ending here)."""
        raise NotImplementedError

    def arcs(self, state: int) -> dict[Symbol, tuple[tuple[int, float], ...]]:
        """What may be read in a state, and where each reading leads, with its probability."""
        if state not in self._arcs:
            arcs, end = self._expand(state)
            by_symbol: dict[Symbol, list[tuple[int, float]]] = {}
            for (symbol, target), probability in arcs.items():
                by_symbol.setdefault(symbol, []).append((target, probability))
            self._arcs[state] = {symbol: tuple(targets) for symbol, targets in by_symbol.items()}
            outgoing: dict[Symbol | None, float] = {s: sum(p for _, p in ts) for s, ts in by_symbol.items()}
            if end:
                outgoing[None] = end
            self._outgoing[state] = outgoing
        return self._arcs[state]

    def outgoing(self, state: int) -> dict[Symbol | None, float]:
        """The probabilities of the next symbol in a state; None stands for the end."""
        self.arcs(state)
        return self._outgoing[state]

    def next_probs(self, belief: Belief) -> dict[Symbol | None, float]:
        """The distribution of the next symbol (None: the end) under a belief, summed over its states."""
        if len(belief) == 1:
            (only,) = belief
            return dict(self.outgoing(only))
        total: dict[Symbol | None, float] = {}
        for state, weight in belief.items():
            for symbol, probability in self.outgoing(state).items():
                total[symbol] = total.get(symbol, 0.0) + weight * probability
        return total

    def advance(self, belief: Belief, symbol: Symbol) -> tuple[float, Belief]:
        """(probability of the symbol, normalised belief after it); (0, {}) where it cannot follow."""
        moved: Belief = {}
        for state, weight in belief.items():
            for target, probability in self.arcs(state).get(symbol, ()):
                moved[target] = moved.get(target, 0.0) + weight * probability
        mass = sum(moved.values())
        return mass, {state: weight / mass for state, weight in moved.items()} if mass else {}

    def read(self, symbols: Iterable[Symbol]) -> Belief:
        """The belief after a prefix; empty where the prefix is impossible."""
        belief = self.start
        for symbol in symbols:
            _, belief = self.advance(belief, symbol)
        return belief

    def log_probs(self, symbols: Sequence[Symbol]) -> list[float]:
        """log p (nats) of every symbol given those before it, then of the end; -inf from an impossible one on."""
        logs = []
        belief = self.start
        for symbol in symbols:
            probability, belief = self.advance(belief, symbol)
            logs.append(log(probability) if probability else -inf)
        end = sum(weight * self.outgoing(state).get(None, 0.0) for state, weight in belief.items())
        return [*logs, log(end) if end else -inf]

    def most_probable(self) -> tuple[list[Symbol], float]:
        """The most probable string and its log probability (nats), summed over its derivations.

        Best-first search over prefixes. The bound of a prefix is the mass of each state that it may be in, times a
        bound on the likeliest string from there; as the maximum of a sum is at most the sum of the maxima, the bound
        never falls short (and is at most the prefix's own probability), so the first complete string found is best.
        """
        bounds: dict[int, float] = {}
        order = count()

        def bounded(belief: Belief) -> float:
            return sum(weight * self._bound(state, bounds) for state, weight in belief.items())

        queue: list[tuple[float, int, list[Symbol], Belief | None]] = [
            (-bounded(self.start), next(order), [], self.start)
        ]
        while True:
            score, _, prefix, belief = heapq.heappop(queue)
            if belief is None:
                return prefix, log(-score)
            for symbol in self.next_probs(belief):
                if symbol is None:
                    end = sum(weight * self.outgoing(state).get(None, 0.0) for state, weight in belief.items())
                    heapq.heappush(queue, (-end, next(order), prefix, None))
                    continue
                moved: Belief = {}
                for state, weight in belief.items():
                    for target, probability in self.arcs(state).get(symbol, ()):
                        moved[target] = moved.get(target, 0.0) + weight * probability
                heapq.heappush(queue, (-bounded(moved), next(order), [*prefix, symbol], moved))

    def _bound(self, state: int, known: dict[int, float]) -> float:
        if state not in known:
            best = self.outgoing(state).get(None, 0.0)
            for targets in self.arcs(state).values():
                best = max(best, sum(probability * self._bound(target, known) for target, probability in targets))
            known[state] = best
        return known[state]


class WordAutomaton(Automaton[str]):
    """All the words that an expression may spell: a state is the stack of what is still to come.

    Its words are those of the text, marks joined and the first capitalised as by `expression.join`.
    """

    def __init__(self, expression: Node) -> None:
        super().__init__()
        self._cells: list[tuple[Node, int] | None] = [None]  # cell 0 is the empty stack: nothing more to come
        self._known: dict[tuple[int, int], int] = {}
        self._spelt: dict[int, tuple[dict[tuple[str, int], float], float]] = {}
        self.expression = expression
        self._first = self._cell(expression, 0)
        self.start = {self._first: 1.0}

    def _cell(self, node: Node, rest: int) -> int:
        key = (id(node), rest)
        if key not in self._known:
            self._known[key] = len(self._cells)
            self._cells.append((node, rest))
        return self._known[key]

    def _spell(self, state: int) -> tuple[dict[tuple[str, int], float], float]:
        """The words (and marks) that come next, before marks are joined to words."""
        if state in self._spelt:
            return self._spelt[state]
        arcs: dict[tuple[str, int], float] = {}
        end = 0.0
        pending = [(state, 1.0)]
        while pending:
            cell, probability = pending.pop()
            content = self._cells[cell]
            if content is None:
                end += probability
                continue
            node, rest = content
            if isinstance(node, Word):
                arcs[node.text, rest] = arcs.get((node.text, rest), 0.0) + probability
            elif isinstance(node, Phrase):
                for part in reversed(node.parts):
                    rest = self._cell(part, rest)
                pending.append((rest, probability))
            elif isinstance(node, Choice):
                pending.extend((self._cell(option, rest), probability * share) for share, option in node.options)
            else:
                pending.append((self._cell(node.node, rest), probability))
        self._spelt[state] = arcs, end
        return arcs, end

    def _expand(self, state: int) -> tuple[dict[tuple[str, int], float], float]:
        spelt, end = self._spell(state)
        # Marks here have been joined to the word before, with their share of the mass: renormalise what is left.
        mass = end + sum(probability for (word, _), probability in spelt.items() if word not in MARKS)
        arcs: dict[tuple[str, int], float] = {}
        for (word, target), probability in spelt.items():
            if word in MARKS:
                continue
            if state == self._first:
                word = word[0].upper() + word[1:]
            for mark, after, share in self._joined(target):
                key = (word + mark, after)
                arcs[key] = arcs.get(key, 0.0) + probability * share / mass
        return arcs, end / mass

    def _joined(self, target: int) -> list[tuple[str, int, float]]:
        """(mark to join to the word read, state after it, probability) for every run of marks that may follow."""
        found = []
        pending = [("", target, 1.0)]
        while pending:
            mark, state, share = pending.pop()
            spelt, end = self._spell(state)
            words = end
            for (word, after), probability in spelt.items():
                if word in MARKS:
                    pending.append((word if mark in ("", ",") else mark, after, share * probability))
                else:
                    words += probability
            if words:
                found.append((mark, state, share * words))
        return found


class PieceAutomaton(Automaton[Symbol]):
    """A word automaton read piece by piece, under a segmentation that treats every word by itself.

    Each arc of a word becomes a chain of arcs, one a piece. Words that begin alike are several chains that the filter
    keeps in view at once: whether a word ends here or goes on is summed over, whatever the pieces look like.
    """

    def __init__(self, words: Automaton[str], segment: Callable[[str], Sequence[Symbol]]) -> None:
        super().__init__()
        self._words = words
        self._segment = segment
        # State 0, 1, ...: (word state, word being read, pieces of it already read); no word: between two words.
        self._places: list[tuple[int, str, int]] = []
        self._known: dict[tuple[int, str, int], int] = {}
        self.start = {self._place(state, "", 0): weight for state, weight in words.start.items()}

    def _place(self, state: int, word: str, done: int) -> int:
        key = (state, word, done)
        if key not in self._known:
            self._known[key] = len(self._places)
            self._places.append(key)
        return self._known[key]

    def _expand(self, state: int) -> tuple[dict[tuple[Symbol, int], float], float]:
        target, word, done = self._places[state]
        if word:
            return {self._step(target, word, done): 1.0}, 0.0
        arcs: dict[tuple[Symbol, int], float] = {}
        for following, targets in self._words.arcs(target).items():
            for after, probability in targets:
                step = self._step(after, following, 0)
                arcs[step] = arcs.get(step, 0.0) + probability
        return arcs, self._words.outgoing(target).get(None, 0.0)

    def _step(self, target: int, word: str, done: int) -> tuple[Symbol, int]:
        pieces = self._segment(word)
        if not pieces:
            raise ValueError(f"the segmentation has no pieces for the word {word!r}; give every word at least one")
        if done + 1 == len(pieces):
            return pieces[done], self._place(target, "", 0)
        return pieces[done], self._place(target, word, done + 1)
