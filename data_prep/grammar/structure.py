"""What a source sentence says: the tree that the sampler draws, English spells and German translates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from data_prep.grammar.lexicon import Adjective, Adverb, Noun, Preposition, Verb

TENSES = ("present", "past", "perfect", "future", "can", "must", "should")


@dataclass(frozen=True)
class Pronoun:
    """A personal pronoun, named by its English subject form: I, we, he, she, they."""

    subject: str


@dataclass(frozen=True)
class Name:
    """A proper name, the same in both languages."""

    name: str


@dataclass(frozen=True, kw_only=True)
class NounPhrase:
    """Determiner ("" for a bare plural), adjectives, noun; `owner` follows "of", `relative` ends the phrase."""

    determiner: str
    adjectives: tuple[Adjective, ...]
    noun: Noun
    plural: bool
    owner: NounPhrase | Name | None = None
    relative: Clause | None = None


@dataclass(frozen=True)
class Pair:
    """Two phrases joined by "and"."""

    first: NounPhrase | Name
    second: NounPhrase | Name


Nominal: TypeAlias = Pronoun | Name | NounPhrase | Pair


@dataclass(frozen=True, kw_only=True)
class Clause:
    """A clause. In a relative clause the subject, or the object, is missing (None): it is the phrase described.

    `verb` None is the copula, with `predicate`. Objects stand in English order (the receiver first). `complement` is
    a clause after "that", or one without subject and tense after "to". `fronted`: the time stands first.
    """

    subject: Nominal | None
    verb: Verb | None
    tense: str
    negated: bool
    objects: tuple[Nominal | None, ...] = ()
    predicate: Adjective | None = None
    manner: Adverb | None = None
    places: tuple[tuple[Preposition, Nominal], ...] = ()
    time: Adverb | None = None
    fronted: bool = False
    complement: Clause | None = None


@dataclass(frozen=True, kw_only=True)
class Period:
    """A main clause with at most one subordinate clause, before it (`leading`) or after it."""

    main: Clause
    conjunction: str = ""
    subordinate: Clause | None = None
    leading: bool = False


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """Periods joined by "and", "but" or "so" (one joint fewer than periods); a question is a single plain clause."""

    periods: tuple[Period, ...]
    joints: tuple[str, ...] = ()
    question: bool = False


def person(nominal: Nominal) -> str:
    """The person that a verb agrees with: "first" (I), "third", or "plural"."""
    match nominal:
        case Pronoun(subject):
            return {"I": "first", "he": "third", "she": "third"}.get(subject, "plural")
        case NounPhrase():
            return "plural" if nominal.plural else "third"
        case Pair():
            return "plural"
        case Name():
            return "third"
