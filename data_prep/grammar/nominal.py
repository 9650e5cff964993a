"""German noun phrases: every way to say one, with the gender that each way has."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from data_prep.grammar.expression import EMPTY, Deferred, Node, choice, phrase, text
from data_prep.grammar.lexicon import Adjective
from data_prep.grammar.morphology import CONTRACTIONS, adjective_ending, determiners, noun_form, pronoun
from data_prep.grammar.structure import Name, Nominal, NounPhrase, Pair, Pronoun

_SWAPPED = 0.2
_GENITIVE = 0.6
_NAME_FIRST = 0.4
_CONTRACTED = 0.75
# Determiners that show no genitive: only "von" is idiomatic for an owner that has one of these.
_NO_GENITIVE = ("", "two", "three", "some", "many")


class Version(NamedTuple):
    """One way to say a noun phrase without its relative clause: share, gender, determiner, everything after it."""

    share: float
    gender: str
    determiner: str
    rest: Node


class Nominals:
    """Builds the expressions of noun phrases, each once; `relative(phrase, gender)` supplies relative clauses."""

    def __init__(self, relative: Callable[[NounPhrase, str], Node]) -> None:
        self._relative = relative
        self._known: dict[tuple[object, ...], Node] = {}

    def of(
        self, nominal: Nominal, case: str, *, preposition: str = "", negated: bool = False, extraposed: str = ""
    ) -> Node:
        """A nominal in its case, after a preposition if one is given.

        `negated` turns "a" into "no" (kein); `extraposed` leaves out the relative clause, and all nouns but those of
        the gender that it names.
        """
        key = (id(nominal), case, preposition, negated, extraposed)
        if key not in self._known:
            self._known[key] = Deferred(lambda: self._build(nominal, case, preposition, negated, extraposed))
        return self._known[key]

    def genders(self, noun_phrase: NounPhrase) -> dict[str, float]:
        """The genders ("p": plural) of the nouns that a phrase may use, with their shares."""
        shares: dict[str, float] = {}
        for share, noun in noun_phrase.noun.german:
            gender = "p" if noun_phrase.plural else noun.gender
            shares[gender] = shares.get(gender, 0.0) + share
        return shares

    def _build(self, nominal: Nominal, case: str, preposition: str, negated: bool, extraposed: str) -> Node:
        match nominal:
            case Pronoun(subject):
                return phrase(preposition, pronoun(subject, case))
            case Name(name):
                return phrase(preposition, name)
            case Pair(first, second):
                return phrase(self.of(first, case, preposition=preposition), "und", self.of(second, case))
            case NounPhrase():
                return self._noun_phrase(nominal, case, preposition, negated, extraposed)

    def _noun_phrase(self, nominal: NounPhrase, case: str, preposition: str, negated: bool, extraposed: str) -> Node:
        options = []
        for version in self._versions(nominal, case, negated):
            if extraposed not in ("", version.gender):
                continue
            relative: Node = EMPTY
            if nominal.relative is not None and not extraposed:
                relative = self._relative(nominal, version.gender)
            opening = _opening(preposition, version.determiner, contractible=nominal.determiner == "the")
            options.append((version.share, phrase(opening, version.rest, relative)))
        return choice(options)

    def _versions(self, nominal: NounPhrase, case: str, negated: bool) -> list[Version]:
        versions = []
        for share, noun in nominal.noun.german:
            gender = "p" if nominal.plural else noun.gender
            head = noun_form(noun, case, nominal.plural)
            owner = self._owner(nominal.owner)
            named = 0.0
            if isinstance(nominal.owner, Name) and nominal.determiner == "the" and nominal.owner.name[-1] not in "sxz":
                named = _NAME_FIRST
                adjectives = _adjectives(nominal.adjectives, "strong", case, gender)
                versions.append(
                    Version(share * named, gender, f"{nominal.owner.name}s", phrase(adjectives, head)),
                )
            determiner = "no" if negated else nominal.determiner
            for part, word, declension in determiners(determiner, case, gender):
                adjectives = _adjectives(nominal.adjectives, declension, case, gender)
                versions.append(
                    Version(share * part * (1 - named), gender, word, phrase(adjectives, head, owner)),
                )
        return versions

    def _owner(self, owner: NounPhrase | Name | None) -> Node:
        if owner is None:
            return EMPTY
        with_von = self.of(owner, "dat", preposition="von")
        if isinstance(owner, Name) or owner.determiner in _NO_GENITIVE:
            return with_von
        return choice([(_GENITIVE, self.of(owner, "gen")), (1 - _GENITIVE, with_von)])


def _opening(preposition: str, determiner: str, contractible: bool) -> Node:
    """Preposition and determiner: in dem, or im."""
    *before, last = preposition.split(" ")
    apart = phrase(*before, last, determiner)
    together = CONTRACTIONS.get((last, determiner))
    if together is None or not contractible:
        return apart
    return choice([(_CONTRACTED, phrase(*before, together)), (1 - _CONTRACTED, apart)])


def _adjectives(adjectives: tuple[Adjective, ...], declension: str, case: str, gender: str) -> Node:
    ending = adjective_ending(declension, case, gender)
    nodes = [
        choice((share, text(german.stem + ending)) for share, german in adjective.german) for adjective in adjectives
    ]
    if len(nodes) < 2:
        return phrase(*nodes)
    return choice([(1 - _SWAPPED, phrase(*nodes)), (_SWAPPED, phrase(*reversed(nodes)))])
