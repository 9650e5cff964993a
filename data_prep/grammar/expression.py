"""Weighted acyclic expressions over words: what a source may be translated into, before it becomes an automaton."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Protocol, TypeAlias

MARKS = frozenset(",.?")


class Random(Protocol):
    """What drawing needs: `random.Random` and `numpy.random.Generator` both have it."""

    def random(self) -> float:
        """A uniform draw from [0, 1)."""
        ...


class Word:
    """One word, or one punctuation mark (which the automaton joins to the word before it)."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class Phrase:
    """Parts one after another."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Node, ...]) -> None:
        self.parts = parts


class Choice:
    """One of several options, with probabilities that sum to one."""

    __slots__ = ("options",)

    def __init__(self, options: tuple[tuple[float, Node], ...]) -> None:
        self.options = options


class Deferred:
    """An expression that is built only when a derivation reaches it."""

    __slots__ = ("_build", "_node")

    def __init__(self, build: Callable[[], Node]) -> None:
        self._build = build
        self._node: Node | None = None

    @property
    def node(self) -> Node:
        """The expression, built on first use."""
        if self._node is None:
            self._node = self._build()
        return self._node


Node: TypeAlias = Word | Phrase | Choice | Deferred
EMPTY = Phrase(())


@cache
def text(words: str) -> Node:
    """Words separated by spaces; the same words are the same expression, so that automaton states are shared."""
    parts = words.split()
    return Word(parts[0]) if len(parts) == 1 else Phrase(tuple(text(part) for part in parts))


def phrase(*parts: Node | str) -> Node:
    """Parts in order, empty ones left out; a string is its words."""
    nodes = tuple(text(part) if isinstance(part, str) else part for part in parts if part not in ("", EMPTY))
    return nodes[0] if len(nodes) == 1 else Phrase(nodes) if nodes else EMPTY


def choice(options: Iterable[tuple[float, Node | str]]) -> Node:
    """One of the options, with their weights normalised; those of weight zero are left out."""
    kept = [(weight, phrase(option)) for weight, option in options if weight > 0]
    total = sum(weight for weight, _ in kept)
    return kept[0][1] if len(kept) == 1 else Choice(tuple((weight / total, option) for weight, option in kept))


def draw(node: Node, rng: Random) -> list[str]:
    """The words of one derivation, drawn choice by choice, as they stand in the text (see `join`)."""
    words: list[str] = []
    pending = [node]
    while pending:
        current = pending.pop()
        if isinstance(current, Word):
            words.append(current.text)
        elif isinstance(current, Phrase):
            pending.extend(reversed(current.parts))
        elif isinstance(current, Choice):
            threshold = rng.random()
            for share, option in current.options:
                chosen = option
                threshold -= share
                if threshold < 0:
                    break
            pending.append(chosen)
        else:
            pending.append(current.node)
    return join(words)


def join(words: Iterable[str]) -> list[str]:
    """Words and marks as the words of a text.

    A mark joins the word before it ("Hund,"), a run of marks leaves only the strongest (of ", ." the full stop), and
    the first word is capitalised.
    """
    joined: list[str] = []
    for word in words:
        if word not in MARKS:
            joined.append(word if joined else word[0].upper() + word[1:])
        elif joined[-1][-1] not in MARKS:
            joined[-1] += word
        elif joined[-1][-1] == ",":
            joined[-1] = joined[-1][:-1] + word
    return joined
