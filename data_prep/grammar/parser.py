"""Reading the structure back from an English sentence.

Every source has exactly one structure. Reading is deterministic: the longest known phrase wins, what follows a clause
belongs to the innermost clause that is still open, and a sentence that would not be spelt the same way is refused.
"""

from __future__ import annotations

from collections.abc import Collection

from data_prep.grammar import lexicon
from data_prep.grammar.english import (
    CONJUNCTIONS,
    JOINTS,
    OBJECT_FORMS,
    PLURAL_DETERMINERS,
    SINGULAR_DETERMINERS,
    spell,
)
from data_prep.grammar.lexicon import Adjective, Adverb, Preposition, Verb
from data_prep.grammar.structure import Clause, Name, Nominal, NounPhrase, Pair, Period, Pronoun, Sentence

_OBJECT_PRONOUNS = {form: subject for subject, form in OBJECT_FORMS.items()}
_DETERMINERS = frozenset([*SINGULAR_DETERMINERS, *PLURAL_DETERMINERS, "an"]) - {""}
_NOUNS = {
    form: (noun, plural)
    for nouns in lexicon.NOUNS.values()
    for noun in nouns
    for form, plural in ((noun.singular, False), (noun.plural, True))
}
_ADJECTIVES = {adjective.word: adjective for adjective in lexicon.ADJECTIVES}
_NAMES = frozenset(lexicon.NAMES)
_TIMES = {tuple(adverb.words.split()): adverb for adverb in lexicon.TIMES}
_MANNERS = {tuple(adverb.words.split()): adverb for adverb in lexicon.MANNERS}
_PREPOSITIONS = {tuple(preposition.words.split()): preposition for preposition in lexicon.PREPOSITIONS}
_OBJECTS = {"transitive": 1, "prepositional": 1, "motion": 1, "ditransitive": 2}


def _verb_forms() -> dict[str, dict[tuple[str, ...], Verb]]:
    """Form -> particle -> verb ("looks" -> ("at",) -> look at)."""
    forms: dict[str, dict[tuple[str, ...], Verb]] = {}
    for verbs in lexicon.VERBS.values():
        for verb in verbs:
            for form in (verb.base, verb.third, verb.past, verb.participle):
                forms.setdefault(form, {})[tuple(verb.particle.split())] = verb
    return forms


_VERBS = _verb_forms()
_BE = {"am": "present", "is": "present", "are": "present", "was": "past", "were": "past"}
_AUXILIARIES = _BE | {
    "do": "present", "does": "present", "did": "past", "has": "perfect", "have": "perfect", "will": "future",
    "can": "can", "cannot": "can", "must": "must", "should": "should",
}  # fmt: skip


def parse(source: str) -> Sentence:
    """The structure of a source sentence.

    Raises ValueError where the text is not a sentence of the grammar exactly as the grammar spells it.
    """
    try:
        sentence = _Reader(source).sentence()
    except _NotInGrammarError as problem:
        raise ValueError(f"not a sentence of the grammar, {problem}: {source!r}") from None
    if spell(sentence) != source:
        raise ValueError(f"the grammar would spell this {spell(sentence)!r}: {source!r}")
    return sentence


class _NotInGrammarError(Exception):
    """The words do not form a sentence of the grammar."""


class _Reader:
    """Recursive descent without backtracking over the words and marks of one sentence."""

    def __init__(self, source: str) -> None:
        for mark in ",.?":
            source = source.replace(mark, f" {mark}")
        self.tokens = source.split()
        self.at = 0
        if self.tokens and self.tokens[0] not in _NAMES and self.tokens[0] != "I":
            self.tokens[0] = self.tokens[0][0].lower() + self.tokens[0][1:]

    def peek(self, ahead: int = 0) -> str:
        """The token to be read next (or some tokens later); "" past the end."""
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ""

    def take(self, expected: Collection[str]) -> str:
        """Read one token, which must be one of those expected."""
        word = self.peek()
        if word not in expected:
            raise _NotInGrammarError(f"word {self.at + 1} ({word!r}) does not fit there")
        self.at += 1
        return word

    def skip(self, word: str) -> bool:
        """Read a token if it is this one."""
        found = self.peek() == word
        self.at += found
        return found

    def match(self, keys: Collection[tuple[str, ...]]) -> tuple[str, ...]:
        """The longest key (up to three words) that the coming tokens spell, else (): does not read it."""
        for length in (3, 2, 1):
            key = tuple(self.tokens[self.at : self.at + length])
            if len(key) == length and key in keys:
                return key
        return ()

    def adverb(self, table: dict[tuple[str, ...], Adverb]) -> Adverb | None:
        """Read an adverbial of the table, if one comes."""
        key = self.match(table)
        self.at += len(key)
        return table[key] if key else None

    def sentence(self) -> Sentence:
        if self.peek() in _AUXILIARIES:
            period = Period(main=self.question())
            self.take(("?",))
            sentence = Sentence(periods=(period,), question=True)
        else:
            periods, joints = [self.period()], []
            while self.skip(","):
                joints.append(self.take(JOINTS))
                periods.append(self.period())
            self.take((".",))
            sentence = Sentence(periods=tuple(periods), joints=tuple(joints))
        if self.peek():
            raise _NotInGrammarError(f"it goes on after its end with {self.peek()!r}")
        return sentence

    def period(self) -> Period:
        if self.peek() in CONJUNCTIONS:
            conjunction, subordinate = self.take(CONJUNCTIONS), self.clause()
            self.take((",",))
            return Period(main=self.clause(), conjunction=conjunction, subordinate=subordinate, leading=True)
        main = self.clause()
        if self.peek() in CONJUNCTIONS:
            return Period(main=main, conjunction=self.take(CONJUNCTIONS), subordinate=self.clause())
        return Period(main=main)

    def question(self) -> Clause:
        auxiliary = self.take(_AUXILIARIES)
        subject = self.nominal(_SUBJECT_PRONOUNS)
        verb, tense, negated = self.after_auxiliary(auxiliary)
        return self.rest(subject, verb, tense, negated)

    def clause(self) -> Clause:
        front = self.adverb(_TIMES)
        subject = self.nominal(_SUBJECT_PRONOUNS)
        verb, tense, negated = self.verbal()
        return self.rest(subject, verb, tense, negated, front=front)

    def relative(self) -> Clause:
        if self.peek() in _AUXILIARIES or self.peek() in _VERBS:
            verb, tense, negated = self.verbal()
            return self.rest(None, verb, tense, negated)
        subject = self.nominal(_SUBJECT_PRONOUNS)
        verb, tense, negated = self.verbal()
        if verb is None or verb.frame != "transitive":
            raise _NotInGrammarError(f"only a verb with one object may lack it before word {self.at + 1}")
        return self.rest(subject, verb, tense, negated, gap=True)

    def verbal(self) -> tuple[Verb | None, str, bool]:
        """(verb, or None for the copula; tense; whether it is negated)."""
        if self.peek() in _AUXILIARIES:
            return self.after_auxiliary(self.take(_AUXILIARIES))
        form = self.peek()
        verb = self.verb()
        return verb, "past" if form == verb.past else "present", False

    def after_auxiliary(self, auxiliary: str) -> tuple[Verb | None, str, bool]:
        tense = _AUXILIARIES[auxiliary]
        negated = auxiliary == "cannot" or self.skip("not")
        be = auxiliary in _BE or self.skip("been" if tense == "perfect" else "be")
        return None if be else self.verb(), tense, negated

    def verb(self) -> Verb:
        particles = _VERBS[self.take(_VERBS)]
        particle = self.match(particles)
        self.at += len(particle)
        if particle not in particles:
            raise _NotInGrammarError(f"a word is missing before word {self.at + 1}")
        return particles[particle]

    def rest(
        self,
        subject: Nominal | None,
        verb: Verb | None,
        tense: str,
        negated: bool,
        *,
        gap: bool = False,
        front: Adverb | None = None,
    ) -> Clause:
        """A clause of which everything up to the verb has been read."""
        frame = verb.frame if verb is not None else "copula"
        if frame == "motion":
            self.take(("to",))
        objects: tuple[Nominal | None, ...] = (None,)
        if not gap:
            objects = tuple(self.nominal(_OBJECT_PRONOUNS) for _ in range(_OBJECTS.get(frame, 0)))
        predicate = _ADJECTIVES[self.take(_ADJECTIVES)] if verb is None else None
        manner = self.adverb(_MANNERS)
        places = self.places()
        time = self.adverb(_TIMES)
        complement = None
        if frame == "clausal":
            self.take(("that",))
            complement = self.clause()
        elif frame == "control":
            self.take(("to",))
            complement = self.rest(None, self.verb(), "to", False)
        return Clause(
            subject=subject,
            verb=verb,
            tense=tense,
            negated=negated,
            objects=objects,
            predicate=predicate,
            manner=manner,
            places=places,
            time=front or time,
            fronted=front is not None,
            complement=complement,
        )

    def places(self) -> tuple[tuple[Preposition, Nominal], ...]:
        found = []
        # "in the evening" is a time, though "in" would open a place
        while not self.match(_TIMES) and (key := self.match(_PREPOSITIONS)):
            self.at += len(key)
            found.append((_PREPOSITIONS[key], self.nominal(_OBJECT_PRONOUNS)))
        return tuple(found)

    def nominal(self, pronouns: dict[str, str]) -> Nominal:
        """A noun phrase, a name, a pair of them, or one of the pronouns given as form -> subject form."""
        possessive = self.peek() == "her" and (self.peek(1) in _ADJECTIVES or self.peek(1) in _NOUNS)
        if self.peek() in pronouns and not possessive:
            return Pronoun(pronouns[self.take(pronouns)])
        first = self.named(relative=True)
        if (isinstance(first, Name) or first.relative is None) and self.skip("and"):
            return Pair(first, self.named())
        return first

    def named(self, relative: bool = False) -> Name | NounPhrase:
        if self.peek() in _NAMES:
            return Name(self.take(_NAMES))
        determiner = self.take(_DETERMINERS) if self.peek() in _DETERMINERS else ""
        adjectives: list[Adjective] = []
        while self.peek() in _ADJECTIVES:
            adjectives.append(_ADJECTIVES[self.take(_ADJECTIVES)])
        noun, plural = _NOUNS[self.take(_NOUNS)]
        owner = self.named() if self.skip("of") else None
        described = None
        if relative and self.peek() in ("who", "which"):
            self.take(("who", "which"))
            described = self.relative()
        return NounPhrase(
            determiner="a" if determiner == "an" else determiner,
            adjectives=tuple(adjectives),
            noun=noun,
            plural=plural,
            owner=owner,
            relative=described,
        )


_SUBJECT_PRONOUNS = {form: form for form in OBJECT_FORMS}
