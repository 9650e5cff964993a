"""Drawing structures: what the sources talk about, and how often."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TypeVar

from data_prep.grammar import lexicon
from data_prep.grammar.english import CONJUNCTIONS, JOINTS, OBJECT_FORMS, PLURAL_DETERMINERS, SINGULAR_DETERMINERS
from data_prep.grammar.expression import Random
from data_prep.grammar.lexicon import Adjective, Adverb, Noun, Preposition, Verb
from data_prep.grammar.structure import TENSES, Clause, Name, Nominal, NounPhrase, Pair, Period, Pronoun, Sentence

Item = TypeVar("Item")

_FRAMES = ("transitive", "intransitive", "copula", "motion", "ditransitive", "prepositional", "clausal", "control")
_FRAME_SHARES = (0.34, 0.14, 0.12, 0.1, 0.1, 0.1, 0.06, 0.04)
_TENSE_SHARES = (0.38, 0.26, 0.1, 0.1, 0.06, 0.06, 0.04)
_SINGULAR_SHARES = (0.46, 0.2, 0.06, 0.06, 0.06, 0.05, 0.04, 0.04, 0.03)
_PLURAL_SHARES = (0.4, 0.06, 0.05, 0.04, 0.04, 0.03, 0.03, 0.05, 0.05, 0.04, 0.02, 0.02, 0.17)
_CONJUNCTION_SHARES = (0.28, 0.22, 0.14, 0.12, 0.1, 0.08, 0.06)
_JOINT_SHARES = (0.55, 0.3, 0.15)
# How often a word is drawn falls with its rank in the table, as 1 / (rank + shift).
_SHIFT = 3.0
_MAX_DEPTH = 3
_TEMPORAL = ("when", "before", "after", "if")


class Sampler:
    """Draws structures; every draw is a function of the random numbers alone."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def sentence(self) -> Sentence:
        """A sentence; its "richness" decides how much is added to the bare clause, so that lengths have a long tail."""
        richness = 2.0 if self._chance(0.02) else 0.65 + 0.25 * self._rng.random()
        if self._chance(0.07):
            return Sentence(periods=(Period(main=self._clause(min(richness, 0.6), 2, plain=True)),), question=True)
        periods = [self._period(richness)]
        while len(periods) < 4 and self._chance(0.07 * richness):
            periods.append(self._period(richness))
        joints = tuple(self._pick(JOINTS, _JOINT_SHARES) for _ in periods[1:])
        spoken = [periods[0]]
        for joint, period in zip(joints, periods[1:], strict=True):
            main = replace(period.main, fronted=False) if joint == "so" else period.main
            spoken.append(replace(period, main=main, leading=period.leading and joint != "so"))
        return Sentence(periods=tuple(spoken), joints=joints)

    # Choices ---------------------------------------------------------------------------------------------------

    def _chance(self, probability: float) -> bool:
        return self._rng.random() < probability

    def _pick(self, items: Sequence[Item], shares: Sequence[float]) -> Item:
        return items[bisect([*accumulate(shares)][:-1], self._rng.random() * sum(shares))]

    def _ranked(self, items: Sequence[Item]) -> Item:
        limits = _RANKS[: len(items)]
        return items[bisect(limits, self._rng.random() * limits[-1], hi=len(items) - 1)]

    # Clauses ---------------------------------------------------------------------------------------------------

    def _period(self, richness: float) -> Period:
        main = self._clause(richness, 0)
        if not self._chance(0.2 * richness):
            return Period(main=main)
        conjunction = self._pick(CONJUNCTIONS, _CONJUNCTION_SHARES)
        leading = self._chance(0.35)
        if leading:
            main = replace(main, fronted=False)
        subordinate = replace(self._clause(richness, 1), fronted=False)
        if conjunction in _TEMPORAL and subordinate.tense not in ("present", "past"):
            tense = "past" if main.tense in ("past", "perfect") else "present"
            subordinate = replace(subordinate, tense=tense, time=None)
        return Period(main=main, conjunction=conjunction, subordinate=subordinate, leading=leading)

    def _clause(self, richness: float, depth: int, plain: bool = False) -> Clause:
        subject = self._subject(richness, depth, plain)
        tense = self._pick(TENSES, _TENSE_SHARES)
        frame = self._pick(_FRAMES, _FRAME_SHARES)
        while depth >= (1 if plain else _MAX_DEPTH - 1) and frame in ("clausal", "control"):
            frame = self._pick(_FRAMES, _FRAME_SHARES)
        negated = not plain and self._chance(0.1)
        if frame == "copula":
            thing = isinstance(subject, NounPhrase) and subject.noun.kind in "tl"
            predicate = self._adjective("t" if thing else "p")
            time = self._time(tense, 0.2 * richness)
            return Clause(
                subject=subject,
                verb=None,
                tense=tense,
                negated=negated,
                predicate=predicate,
                time=time,
                fronted=time is not None and not plain and self._chance(0.35),
            )
        clause = Clause(subject=subject, verb=None, tense=tense, negated=negated)
        clause = self._filled(clause, self._ranked(lexicon.VERBS[frame]), richness, depth, plain)
        front = clause.time is not None and not plain and self._chance(0.35)
        return replace(clause, fronted=front)

    def _filled(self, clause: Clause, verb: Verb, richness: float, depth: int, plain: bool = False) -> Clause:
        """The clause with this verb, its objects, adverbials and complement."""
        time = self._time(clause.tense, 0.55 * richness)
        clause = replace(clause, verb=verb, time=time)
        if verb.frame == "clausal":
            inner = replace(self._clause(richness * 0.8, depth + 1), fronted=False)
            return replace(clause, complement=inner)
        if verb.frame == "control":
            inner = Clause(subject=None, verb=None, tense="to", negated=False)
            frame = self._pick(("transitive", "intransitive", "motion", "ditransitive"), (0.5, 0.2, 0.15, 0.15))
            return replace(clause, complement=self._filled(inner, self._ranked(lexicon.VERBS[frame]), richness, 2))
        objects: list[Nominal] = []
        if verb.frame == "ditransitive":
            objects.append(self._nominal("p", richness * 0.6, pronouns=0.3))
        manner = self._ranked(lexicon.MANNERS) if self._chance(0.2 * richness) else None
        places = self._places(richness, verb.frame)
        late = bool(manner or places or clause.time)
        if verb.objects:
            pronouns = 0.0 if verb.frame in ("motion", "prepositional", "ditransitive") else 0.15
            relative = 0.0 if late or plain or depth >= _MAX_DEPTH - 1 else 0.25 * richness
            kind = self._pick(verb.objects, (0.6, 0.15, 0.15, 0.1)[: len(verb.objects)])
            objects.append(self._nominal(kind, richness, pronouns=pronouns, relative=relative, depth=depth))
            last = objects[-1]
            if objects[0] == Pronoun("she") and isinstance(last, NounPhrase) and not last.determiner:
                objects[-1] = replace(last, determiner="some")  # "gives her books" would be read as a possessive
        return replace(clause, objects=tuple(objects), manner=manner, places=places)

    def _time(self, tense: str, probability: float) -> Adverb | None:
        if not self._chance(probability):
            return None
        fitting = {"past": _PAST_TIMES, "future": _FUTURE_TIMES, "present": _FUTURE_TIMES}.get(tense, _ANY_TIMES)
        return self._ranked(fitting)

    def _places(self, richness: float, frame: str) -> tuple[tuple[Preposition, Nominal], ...]:
        probability = 0.15 if frame in ("motion", "prepositional", "ditransitive") else 0.38
        places: list[tuple[Preposition, Nominal]] = []
        while len(places) < 2 and self._chance(probability * richness):
            preposition = self._ranked(lexicon.PREPOSITIONS)
            kind = self._pick(preposition.kinds, (0.7, 0.2, 0.1)[: len(preposition.kinds)])
            places.append((preposition, self._nominal(kind, richness * 0.6)))
        return tuple(places)

    # Noun phrases ------------------------------------------------------------------------------------------------

    def _subject(self, richness: float, depth: int, plain: bool) -> Nominal:
        if self._chance(0.27):
            return Pronoun(self._pick(tuple(OBJECT_FORMS), (0.3, 0.2, 0.2, 0.15, 0.15)))
        kind = self._pick("pa", (0.85, 0.15))
        relative = 0.0 if plain or depth >= _MAX_DEPTH - 1 else 0.1 * richness
        return self._nominal(kind, richness, relative=relative, depth=depth, pairs=0.1 * richness)

    def _nominal(
        self,
        kind: str,
        richness: float,
        *,
        pronouns: float = 0.0,
        relative: float = 0.0,
        depth: int = 0,
        pairs: float = 0.0,
    ) -> Nominal:
        """A nominal of a noun class; `pronouns`, `relative` and `pairs` are the probabilities of those forms."""
        if self._chance(pronouns):
            # "it" would hide a gender that German shows: of pronouns only "them" stands for things
            return Pronoun(self._pick(tuple(OBJECT_FORMS), (0.25, 0.15, 0.25, 0.15, 0.2)) if kind in "pa" else "they")
        if self._chance(pairs):
            return Pair(self._named(kind, 0.0), self._named(kind, 0.0))
        named = self._named(kind, richness)
        if isinstance(named, Name) or not self._chance(relative):
            return named
        return replace(named, owner=None, relative=self._relative(named, richness, depth + 1))

    def _named(self, kind: str, richness: float) -> Name | NounPhrase:
        if kind == "p" and self._chance(0.22):
            return Name(self._ranked(lexicon.NAMES))
        plural = self._chance(0.25)
        if plural:
            determiner = self._pick(PLURAL_DETERMINERS, _PLURAL_SHARES)
        else:
            determiner = self._pick(SINGULAR_DETERMINERS, _SINGULAR_SHARES)
        adjectives: list[Adjective] = []
        while len(adjectives) < 2 and self._chance((0.55 if not adjectives else 0.35) * richness):
            adjective = self._adjective("p" if kind in "pa" else "t")
            if adjective not in adjectives:
                adjectives.append(adjective)
        noun: Noun = self._ranked(lexicon.NOUNS[kind])
        owner: Name | NounPhrase | None = None
        if determiner in ("the", "all") and self._chance(0.22 * richness):
            owner = self._named("p", 0.0)
        return NounPhrase(determiner=determiner, adjectives=tuple(adjectives), noun=noun, plural=plural, owner=owner)

    def _adjective(self, describes: str) -> Adjective:
        return self._ranked(_DESCRIBING[describes])

    def _relative(self, described: NounPhrase, richness: float, depth: int) -> Clause:
        tense = self._pick(TENSES, _TENSE_SHARES)
        animate = described.noun.kind in "pa"
        if animate and self._chance(0.75):
            frame = self._pick(("transitive", "intransitive", "copula", "prepositional"), (0.45, 0.25, 0.15, 0.15))
            clause = Clause(subject=None, verb=None, tense=tense, negated=self._chance(0.08))
            if frame == "copula":
                return replace(clause, predicate=self._adjective("p"))
            return self._filled(clause, self._ranked(lexicon.VERBS[frame]), richness * 0.6, depth)
        verbs = [verb for verb in lexicon.VERBS["transitive"] if ("p" if animate else "t") in verb.objects]
        return Clause(
            subject=self._subject(richness * 0.5, depth, plain=True),
            verb=self._ranked(verbs),
            tense=tense,
            negated=False,
            objects=(None,),
            time=self._time(tense, 0.3 * richness),
        )


_RANKS = [*accumulate(1 / (rank + _SHIFT) for rank in range(max(map(len, lexicon.NOUNS.values())) + 1))]
_PAST_TIMES = [adverb for adverb in lexicon.TIMES if adverb.tense in "ap"]
_FUTURE_TIMES = [adverb for adverb in lexicon.TIMES if adverb.tense in "af"]
_ANY_TIMES = [adverb for adverb in lexicon.TIMES if adverb.tense == "a"]
_DESCRIBING = {
    kind: [adjective for adjective in lexicon.ADJECTIVES if adjective.describes in ("a", kind)] for kind in "pt"
}
