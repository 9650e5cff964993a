"""The target language: everything that a structure may become in German, as a weighted expression.

Choices that bind each other are made together, in the order in which they show: a noun with its gender (article,
adjectives, relative pronoun), a verb with the case that it governs, a relative clause behind the verb with its noun.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from data_prep.grammar.expression import EMPTY, Deferred, Node, choice, phrase, text
from data_prep.grammar.lexicon import Adverb, GermanVerb
from data_prep.grammar.morphology import (
    COPULA,
    clusters,
    pronoun,
    relative_pronoun,
    to_infinitive,
)
from data_prep.grammar.nominal import Nominals
from data_prep.grammar.structure import Clause, NounPhrase, Period, Pronoun, Sentence, person

# Conjunction -> (share, German word, order of the clause that it opens).
_CONJUNCTIONS = {
    "because": ((0.5, "weil", "final"), (0.25, "da", "final"), (0.25, "denn", "main")),
    "although": ((0.8, "obwohl", "final"), (0.2, "obgleich", "final")),
    "if": ((0.7, "wenn", "final"), (0.3, "falls", "final")),
    "while": ((1.0, "während", "final"),),
    "before": ((0.7, "bevor", "final"), (0.3, "ehe", "final")),
    "after": ((1.0, "nachdem", "final"),),
    "when": ((1.0, "wenn", "final"),),
}
_WHEN_PAST = ((0.85, "als", "final"), (0.15, "wenn", "final"))
_JOINTS = {
    "and": ((0.75, "und"), (0.25, ", und")),
    "but": ((0.75, ", aber"), (0.25, ", doch")),
    "so": ((0.5, ", deshalb"), (0.3, ", also"), (0.2, ", daher")),
}
# How likely an adverbial stands before the objects rather than behind them.
_EARLY = {"time": 0.7, "manner": 0.35, "place": 0.4}
_EXTRAPOSED = 0.4
_WITHOUT_DASS = 0.3
_OBJECTS_SWAPPED = 0.15
_LEADING = {True: 0.75, False: 0.3}


class Government(NamedTuple):
    """What a verb asks of the words before it."""

    case: str
    preposition: str
    reflexive: bool


class Objects(NamedTuple):
    """A clause's objects and negation in order: pronouns, the other objects, "nicht", and what comes last."""

    pronouns: Node = EMPTY
    others: Node = EMPTY
    last: Node = EMPTY
    negation: Node = EMPTY


def translation(sentence: Sentence) -> Node:
    """The expression of all the German sentences for a structure, with their probabilities."""
    return _Translation().sentence(sentence)


class _Translation:
    """Builds the expression of one sentence; parts are built once and only when reached."""

    def __init__(self) -> None:
        self._parts: dict[tuple[object, ...], Node] = {}
        self._nominals = Nominals(self._relative)

    def _once(self, key: tuple[object, ...], build: Callable[[], Node]) -> Node:
        if key not in self._parts:
            self._parts[key] = Deferred(build)
        return self._parts[key]

    def sentence(self, sentence: Sentence) -> Node:
        if sentence.question:
            return phrase(self._from_verb(sentence.periods[0].main, ""), "?")
        parts = [self._period(sentence.periods[0])]
        for joint, period in zip(sentence.joints, sentence.periods[1:], strict=True):
            parts.append(choice([(share, phrase(*words.split())) for share, words in _JOINTS[joint]]))
            parts.append(self._period(period, after_adverb=joint == "so"))
        return phrase(*parts, ".")

    def _period(self, period: Period, after_adverb: bool = False) -> Node:
        """A main clause with its subordinate clause; after "deshalb" the verb follows at once and nothing leads."""
        if period.subordinate is None:
            return self._from_verb(period.main, "") if after_adverb else self._main(period.main)
        subordinate, options = period.subordinate, _CONJUNCTIONS[period.conjunction]
        if period.conjunction == "when" and subordinate.tense == "past":
            options = _WHEN_PAST
        opened = [
            (share, order, phrase(word, self._main(subordinate) if order == "main" else self._final(subordinate)))
            for share, word, order in options
        ]
        main = self._from_verb(period.main, "") if after_adverb else self._main(period.main)
        trailing = phrase(main, ",", choice([(share, node) for share, _, node in opened]))
        if after_adverb:
            return trailing
        then = choice([(0.7, EMPTY), (0.3, text("dann"))]) if period.conjunction == "if" else EMPTY
        first = choice([(share, node) for share, order, node in opened if order == "final"])
        leading = phrase(first, ",", then, self._from_verb(period.main, ""))
        share = _LEADING[period.leading]
        return choice([(share, leading), (1 - share, trailing)])

    # Clauses ---------------------------------------------------------------------------------------------------

    def _main(self, clause: Clause) -> Node:
        """Verb-second order: one of several constituents stands before the finite verb."""
        return self._once(("main", id(clause)), lambda: self._fronts(clause))

    def _fronts(self, clause: Clause) -> Node:
        assert clause.subject is not None
        fronts = [(1.0, "subject", self._nominals.of(clause.subject, "nom"))]
        if clause.time is not None:
            fronts.append((3.0 if clause.fronted else 0.5, "time", _adverb(clause.time)))
        if clause.places:
            fronts.append((0.25, "place", self._place(clause, 0)))
        last = clause.objects[-1] if clause.objects else None
        governments = {_government(verb) for _, verb in _verbs(clause)}
        if (
            isinstance(last, NounPhrase)
            and last.relative is None
            and not clause.negated
            and clause.verb is not None
            and clause.verb.frame == "transitive"
            and len(governments) == 1
        ):
            fronts.append((0.08, "object", self._nominals.of(last, governments.pop().case)))
        return choice([(share, phrase(node, self._from_verb(clause, front))) for share, front, node in fronts])

    def _from_verb(self, clause: Clause, front: str) -> Node:
        """A main clause from its finite verb on; `front` names what stands before it ("" where nothing of it does)."""
        return self._once(("verb", id(clause), front), lambda: self._finite_first(clause, front))

    def _finite_first(self, clause: Clause, front: str) -> Node:
        assert clause.subject is not None
        options = []
        for share, verb in _verbs(clause):
            for part, cluster in clusters(verb, clause.tense, person(clause.subject)):
                for portion, extraposed in self._plans(clause, front):
                    middle = self._middle(clause, _government(verb), front, extraposed, _reflexive(clause))
                    after = self._after(clause, extraposed, _reflexive(clause))
                    options.append(
                        (share * part * portion, phrase(cluster.finite, middle, cluster.bracket, after)),
                    )
        return choice(options)

    def _final(self, clause: Clause, agreement: str = "", reflexive: str = "") -> Node:
        """Verb-final order; a relative clause passes the agreement of the subject that it lacks."""
        key = ("final", id(clause), agreement, reflexive)
        return self._once(key, lambda: choice(self._by_government(clause, agreement, reflexive).values()))

    def _by_government(self, clause: Clause, agreement: str, reflexive: str) -> dict[Government, tuple[float, Node]]:
        """What the verb governs shows long before the verb: chosen first, and the verbs that share it afterwards."""
        reflexive = reflexive or _reflexive(clause)
        if clause.subject is not None:
            agreement = person(clause.subject)
        verbs: dict[Government, list[tuple[float, Node]]] = {}
        for share, verb in _verbs(clause):
            options = verbs.setdefault(_government(verb), [])
            if clause.tense == "to":
                options.append((share, text(to_infinitive(verb))))
            else:
                options += [
                    (share * part, text(cluster.final)) for part, cluster in clusters(verb, clause.tense, agreement)
                ]
        found = {}
        for government, options in verbs.items():
            share, ending = sum(part for part, _ in options), choice(options)
            found[government] = (
                share,
                choice(
                    (
                        portion,
                        phrase(
                            self._middle(clause, government, "", extraposed, reflexive),
                            ending,
                            self._after(clause, extraposed, reflexive),
                        ),
                    )
                    for portion, extraposed in self._plans(clause, "")
                ),
            )
        return found

    def _relative(self, noun_phrase: NounPhrase, gender: str) -> Node:
        """A relative clause, commas included, for a noun of this gender."""
        clause = noun_phrase.relative
        assert clause is not None
        return self._once(("relative", id(clause), gender), lambda: self._described(clause, gender))

    def _described(self, clause: Clause, gender: str) -> Node:
        agreement = "plural" if gender == "p" else "third"
        if clause.subject is None:
            return phrase(",", relative_pronoun("nom", gender), self._final(clause, agreement), ",")
        options = self._by_government(clause, agreement, "")
        return phrase(
            ",",
            choice(
                (share, phrase(government.preposition, relative_pronoun(government.case, gender), node))
                for government, (share, node) in options.items()
            ),
            ",",
        )

    # The field between the two parts of the verb, and what follows it ------------------------------------------------

    def _plans(self, clause: Clause, front: str) -> list[tuple[float, str]]:
        """Where the object's relative clause goes: "" in place, or behind the verb with a noun of the gender named."""
        last = clause.objects[-1] if clause.objects else None
        if front == "object" or not isinstance(last, NounPhrase) or last.relative is None:
            return [(1.0, "")]
        genders = self._nominals.genders(last)
        return [(1 - _EXTRAPOSED, "")] + [(_EXTRAPOSED * share, gender) for gender, share in genders.items()]

    def _after(self, clause: Clause, extraposed: str, reflexive: str) -> Node:
        """The relative clause put behind the verb, and the complement."""
        last = clause.objects[-1] if clause.objects else None
        relative: Node = EMPTY
        if extraposed and isinstance(last, NounPhrase):
            relative = self._relative(last, extraposed)
        complement = clause.complement
        if complement is None:
            return relative
        if complement.tense == "to":
            return phrase(relative, ",", self._final(complement, reflexive=reflexive), ",")
        with_dass = phrase("dass", self._final(complement))
        # what is denied needs its conjunction: "sagt nicht, dass er schläft"
        without = 0.0 if clause.negated else _WITHOUT_DASS
        clauses = choice([(1 - without, with_dass), (without, self._main(complement))])
        return phrase(relative, ",", clauses, ",")

    def _middle(self, clause: Clause, government: Government, front: str, extraposed: str, reflexive: str) -> Node:
        key = ("middle", id(clause), government, front, extraposed, reflexive)
        return self._once(key, lambda: self._field(clause, government, front, extraposed, reflexive))

    def _field(self, clause: Clause, government: Government, front: str, extraposed: str, reflexive: str) -> Node:
        subject: Node = EMPTY
        if clause.subject is not None and front != "subject":
            subject = self._nominals.of(clause.subject, "nom")
        opening = phrase(subject, reflexive if government.reflexive else "")
        if government.reflexive and subject is not EMPTY and not isinstance(clause.subject, Pronoun):
            opening = choice([(0.5, opening), (0.5, phrase(reflexive, subject))])
        objects = self._objects(clause, government, front, extraposed)
        adverbials = self._adverbials(clause, front)
        orders = []
        for early in product((True, False), repeat=len(adverbials)):
            share = 1.0
            for (kind, _), first in zip(adverbials, early, strict=True):
                share *= _EARLY[kind] if first else 1 - _EARLY[kind]
            before = [node for (_, node), first in zip(adverbials, early, strict=True) if first]
            behind = [node for (_, node), first in zip(adverbials, early, strict=True) if not first]
            orders.append((share, phrase(*before, objects.others, objects.negation, *behind)))
        return phrase(opening, objects.pronouns, choice(orders), objects.last)

    def _adverbials(self, clause: Clause, front: str) -> list[tuple[str, Node]]:
        found = []
        if clause.time is not None and front != "time":
            found.append(("time", _adverb(clause.time)))
        if clause.manner is not None:
            found.append(("manner", _adverb(clause.manner)))
        for index in range(int(front == "place"), len(clause.places)):
            found.append(("place", self._place(clause, index)))
        return found

    def _place(self, clause: Clause, index: int) -> Node:
        preposition, nominal = clause.places[index]
        return choice(
            (share, self._nominals.of(nominal, case, preposition=words)) for share, (words, case) in preposition.german
        )

    def _objects(self, clause: Clause, government: Government, front: str, extraposed: str) -> Objects:
        negation = text("nicht") if clause.negated else EMPTY
        if clause.predicate is not None:
            predicate = choice((share, text(adjective.lemma)) for share, adjective in clause.predicate.german)
            return Objects(last=predicate, negation=negation)
        last = clause.objects[-1] if clause.objects else None
        if last is None or front == "object":
            return Objects(negation=negation)
        if clause.verb is not None and clause.verb.frame == "motion":
            to = self._nominals.of(last, "dat", preposition="zu", extraposed=extraposed)
            into = self._nominals.of(last, "acc", preposition="in", extraposed=extraposed)
            return Objects(last=choice([(0.65, to), (0.35, into)]), negation=negation)
        if government.preposition:
            node = self._nominals.of(last, government.case, preposition=government.preposition, extraposed=extraposed)
            return Objects(last=node, negation=negation)
        indefinite = clause.negated and isinstance(last, NounPhrase) and last.determiner in ("a", "")
        node = self._nominals.of(last, government.case, negated=indefinite, extraposed=extraposed)
        in_order = [(last, node)]
        if len(clause.objects) == 2 and clause.objects[0] is not None:
            in_order = [(clause.objects[0], self._nominals.of(clause.objects[0], "dat")), *in_order]
        pronouns = [part for item, part in reversed(in_order) if isinstance(item, Pronoun)]
        others = [part for item, part in in_order if not isinstance(item, Pronoun)]
        full = phrase(*others)
        if len(others) == 2 and not (isinstance(last, NounPhrase) and last.relative is not None):
            full = choice([(1 - _OBJECTS_SWAPPED, full), (_OBJECTS_SWAPPED, phrase(*reversed(others)))])
        return Objects(phrase(*pronouns), full, EMPTY, EMPTY if indefinite else negation)


def _adverb(adverb: Adverb) -> Node:
    return choice(adverb.german)


def _verbs(clause: Clause) -> tuple[tuple[float, GermanVerb], ...]:
    return ((1.0, COPULA),) if clause.verb is None else clause.verb.german


def _government(verb: GermanVerb) -> Government:
    return Government(verb.case, verb.preposition, verb.reflexive)


def _reflexive(clause: Clause) -> str:
    """mich, uns or sich, for the subject of a clause."""
    if isinstance(clause.subject, Pronoun) and clause.subject.subject in ("I", "we"):
        return pronoun(clause.subject.subject, "acc")
    return "sich"
