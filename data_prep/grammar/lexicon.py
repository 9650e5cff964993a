"""The lexicon: the tables of `tables.py` read into entries, with the English and German forms that they imply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from data_prep.grammar import tables

Entry = TypeVar("Entry")
Weighted = tuple[tuple[float, Entry], ...]

# Prefixes that stay on the verb and take the place of the participle's ge-.
_INSEPARABLE = ("be", "ver", "er", "ent", "zer", "ge", "unter", "über")
_FIRST_PERSON = {"wissen": "weiß", "mögen": "mag"}


@dataclass(frozen=True, kw_only=True)
class GermanNoun:
    """One German noun: its gender ("m", "f", "n"), singular and plural, and whether it declines weakly."""

    gender: str
    singular: str
    plural: str
    weak: bool


@dataclass(frozen=True, kw_only=True)
class Noun:
    """An English noun, its class ("p" person, "a" animal, "t" thing, "l" place) and its weighted translations."""

    singular: str
    plural: str
    kind: str
    german: Weighted[GermanNoun]


@dataclass(frozen=True, kw_only=True)
class GermanAdjective:
    """A German adjective: the form in a predicate and the stem that endings are added to."""

    lemma: str
    stem: str


@dataclass(frozen=True, kw_only=True)
class Adjective:
    """An English adjective, what it may describe ("p", "t" or "a") and its weighted translations."""

    word: str
    describes: str
    german: Weighted[GermanAdjective]


@dataclass(frozen=True, kw_only=True)
class GermanVerb:
    """A German verb without its separable prefix: forms, auxiliary, and the case (and preposition) of its object."""

    prefix: str
    infinitive: str
    first: str
    third: str
    past: str
    participle: str
    auxiliary: str
    case: str
    preposition: str
    reflexive: bool


@dataclass(frozen=True, kw_only=True)
class Verb:
    """An English verb (forms include its particle's host only), the frame it opens and its weighted translations."""

    base: str
    third: str
    past: str
    participle: str
    particle: str
    frame: str
    objects: str
    german: Weighted[GermanVerb]

    @property
    def key(self) -> str:
        """Base form and particle: what names the verb in a structure."""
        return f"{self.base} {self.particle}".strip()


@dataclass(frozen=True, kw_only=True)
class Adverb:
    """An English adverbial phrase, the tenses it goes with ("a", "p", "f") and its weighted translations."""

    words: str
    tense: str
    german: Weighted[str]


@dataclass(frozen=True, kw_only=True)
class Preposition:
    """An English preposition, the noun classes after it, and its weighted translations as (words, case)."""

    words: str
    kinds: str
    german: Weighted[tuple[str, str]]


def _rows(table: str) -> list[list[str]]:
    return [[field.strip() for field in line.split(" | ")] for line in table.strip().splitlines()]


def _alternatives(text: str, read: Callable[[str], Entry]) -> Weighted[Entry]:
    options = []
    for option in text.split(" / "):
        head, _, rest = option.partition(" ")
        if head.replace(".", "").isdigit():
            options.append((float(head), read(rest)))
        else:
            options.append((1.0, read(option)))
    assert abs(sum(weight for weight, _ in options) - 1.0) < 1e-9, text
    return tuple(options)


def _german_noun(text: str) -> GermanNoun:
    gender, singular, plural = text.split()
    return GermanNoun(gender=gender[0], singular=singular, plural=plural, weak=gender.endswith("*"))


def _nouns(table: str, kind: str) -> list[Noun]:
    nouns = []
    for english, german in _rows(table):
        singular, *rest = english.split()
        plural = rest[0] if rest else f"{singular}s"
        nouns.append(
            Noun(singular=singular, plural=plural, kind=kind, german=_alternatives(german, _german_noun)),
        )
    return nouns


def _german_adjective(text: str) -> GermanAdjective:
    lemma, _, stem = text.partition(":")
    return GermanAdjective(lemma=lemma, stem=stem or lemma)


def _weak_forms(infinitive: str) -> tuple[str, str, str]:
    """Third person, past and participle of a regular verb (machen: macht, machte, gemacht)."""
    stem = infinitive[:-2] if infinitive.endswith("en") else infinitive[:-1]
    clustered = stem[-1] in "nm" and (stem[-2] not in "aeiouäöühlrnm" or stem[-3:-1] == "ch")
    link = "e" if stem.endswith(("t", "d")) or clustered else ""
    opening = "" if infinitive.startswith(_INSEPARABLE) or infinitive.endswith("ieren") else "ge"
    return f"{stem}{link}t", f"{stem}{link}te", f"{opening}{stem}{link}t"


def _first_person(infinitive: str) -> str:
    if infinitive in _FIRST_PERSON:
        return _FIRST_PERSON[infinitive]
    if infinitive.endswith("eln"):
        return f"{infinitive[:-3]}le"
    return f"{infinitive[:-2]}e" if infinitive.endswith("en") else f"{infinitive[:-1]}e"


def _german_verb(text: str) -> GermanVerb:
    words = text.split()
    reflexive = words[0] == "sich"
    prefix, _, infinitive = words[int(reflexive)].rpartition("|")
    forms = [word for word in words[int(reflexive) + 1 :] if word[0] not in "+@"]
    third, past, participle = forms if forms else _weak_forms(infinitive)
    governed = next((word[1:] for word in words if word[0] == "@"), "acc")
    preposition, _, case = governed.rpartition("+")
    return GermanVerb(
        prefix=prefix,
        infinitive=infinitive,
        first=_first_person(infinitive),
        third=third,
        past=past,
        participle=participle,
        auxiliary="sein" if "+s" in words else "haben",
        case=case,
        preposition=preposition,
        reflexive=reflexive,
    )


def _verbs(table: str, frame: str, objects: str) -> list[Verb]:
    verbs = []
    for english, german in _rows(table):
        head, *forms = english.split(", ")
        base, _, particle = head.partition(" ")
        regular_past = f"{base}d" if base.endswith("e") else f"{base}ed"
        third, past, participle = forms or (f"{base}s", regular_past, regular_past)
        verbs.append(
            Verb(
                base=base,
                third=third,
                past=past,
                participle=participle,
                particle=particle,
                frame=frame,
                objects=objects,
                german=_alternatives(german, _german_verb),
            ),
        )
    return verbs


def _governed(text: str) -> tuple[str, str]:
    words, _, case = text.rpartition("+")
    return words, case


NOUNS = {
    kind: _nouns(table, kind)
    for kind, table in (("p", tables.PERSONS), ("a", tables.ANIMALS), ("t", tables.THINGS), ("l", tables.PLACES))
}
ADJECTIVES = [
    Adjective(word=word, describes=describes, german=_alternatives(german, _german_adjective))
    for word, german, describes in _rows(tables.ADJECTIVES)
]
TIMES = [
    Adverb(words=words, tense=tense, german=_alternatives(german, str)) for words, german, tense in _rows(tables.TIMES)
]
MANNERS = [Adverb(words=words, tense="a", german=_alternatives(german, str)) for words, german in _rows(tables.MANNERS)]
PREPOSITIONS = [
    Preposition(words=words, kinds=kinds, german=_alternatives(german, _governed))
    for words, german, kinds in _rows(tables.PREPOSITIONS)
]
NAMES = tables.NAMES.split()
# Frame -> its verbs. `objects` lists the noun classes of the (last) object.
VERBS = {
    "intransitive": _verbs(tables.INTRANSITIVE, "intransitive", ""),
    "motion": _verbs(tables.MOTION, "motion", "l"),
    "transitive": (
        _verbs(tables.TRANSITIVE_ANY, "transitive", "patl")
        + _verbs(tables.TRANSITIVE_THING, "transitive", "t")
        + _verbs(tables.TRANSITIVE_PERSON, "transitive", "pa")
    ),
    "ditransitive": _verbs(tables.DITRANSITIVE, "ditransitive", "t"),
    "prepositional": _verbs(tables.PREPOSITIONAL, "prepositional", "pat"),
    "clausal": _verbs(tables.CLAUSAL, "clausal", ""),
    "control": _verbs(tables.CONTROL, "control", ""),
}
