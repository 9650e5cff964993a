"""The source language: spelling a structure in English (`parser.py` reads it back)."""

from __future__ import annotations

from data_prep.grammar.structure import Clause, Name, Nominal, NounPhrase, Pair, Period, Pronoun, Sentence, person

OBJECT_FORMS = {"I": "me", "we": "us", "he": "him", "she": "her", "they": "them"}
SINGULAR_DETERMINERS = ("the", "a", "this", "my", "his", "her", "our", "their", "every")
PLURAL_DETERMINERS = ("the", "these", "my", "his", "her", "our", "their", "some", "many", "two", "three", "all", "")
CONJUNCTIONS = ("because", "when", "although", "if", "while", "before", "after")
JOINTS = ("and", "but", "so")
MODALS = ("can", "must", "should")
COPULA = {
    "present": {"first": "am", "third": "is", "plural": "are"},
    "past": {"first": "was", "third": "was", "plural": "were"},
}


def spell(sentence: Sentence) -> str:
    """The English text of a structure."""
    if sentence.question:
        words = _question(sentence.periods[0].main)
    else:
        words = _period(sentence.periods[0])
        for joint, period in zip(sentence.joints, sentence.periods[1:], strict=True):
            words += [",", joint, *_period(period)]
    text = " ".join([*words, "?" if sentence.question else "."])
    for mark in ",.?":
        text = text.replace(f" {mark}", mark)
    return text[0].upper() + text[1:]


def _period(period: Period) -> list[str]:
    main = _clause(period.main)
    if period.subordinate is None:
        return main
    subordinate = [period.conjunction, *_clause(period.subordinate)]
    return [*subordinate, ",", *main] if period.leading else [*main, *subordinate]


def _question(clause: Clause) -> list[str]:
    assert clause.subject is not None
    auxiliary, *verbal = _verbal(clause, person(clause.subject), question=True)
    return [auxiliary, *_nominal(clause.subject, True), *verbal, *_rest(clause)]


def _clause(clause: Clause, agreement: str = "") -> list[str]:
    """A clause with its subject, or (agreement given) a relative clause without it."""
    front = clause.time.words.split() if clause.time and clause.fronted else []
    if clause.subject is None:
        return [*_verbal(clause, agreement), *_rest(clause)]
    return [*front, *_nominal(clause.subject, True), *_verbal(clause, person(clause.subject)), *_rest(clause)]


def _rest(clause: Clause) -> list[str]:
    """Everything after the verb."""
    words = [word for item in clause.objects if item is not None for word in _nominal(item, False)]
    if clause.verb is not None and clause.verb.frame == "motion":
        words = ["to", *words]
    if clause.predicate is not None:
        words.append(clause.predicate.word)
    words += clause.manner.words.split() if clause.manner else []
    for preposition, nominal in clause.places:
        words += [*preposition.words.split(), *_nominal(nominal, False)]
    words += clause.time.words.split() if clause.time and not clause.fronted else []
    if clause.complement is not None:
        finite = clause.complement.tense != "to"
        words += ["that", *_clause(clause.complement)] if finite else ["to", *_infinitive(clause.complement)]
    return words


def _infinitive(clause: Clause) -> list[str]:
    assert clause.verb is not None
    return [*clause.verb.key.split(), *_rest(clause)]


def _verbal(clause: Clause, agreement: str, question: bool = False) -> list[str]:
    verb, tense = clause.verb, clause.tense
    no = ["not"] if clause.negated else []
    if tense in MODALS or tense == "future":
        auxiliary = ["will"] if tense == "future" else [tense]
        head = ["cannot"] if tense == "can" and clause.negated else [*auxiliary, *no]
        return [*head, "be"] if verb is None else [*head, *verb.key.split()]
    if tense == "perfect":
        participle = ["been"] if verb is None else [verb.participle, *verb.particle.split()]
        return ["has" if agreement == "third" else "have", *no, *participle]
    if verb is None:
        return [COPULA[tense][agreement], *no]
    if clause.negated or question:
        present = "does" if agreement == "third" else "do"
        return [present if tense == "present" else "did", *no, *verb.key.split()]
    present = verb.third if agreement == "third" else verb.base
    return [present if tense == "present" else verb.past, *verb.particle.split()]


def _nominal(nominal: Nominal, subject: bool) -> list[str]:
    match nominal:
        case Pronoun():
            return [nominal.subject if subject else OBJECT_FORMS[nominal.subject]]
        case Name():
            return [nominal.name]
        case Pair():
            return [*_nominal(nominal.first, subject), "and", *_nominal(nominal.second, subject)]
        case NounPhrase():
            return _noun_phrase(nominal)


def _noun_phrase(phrase: NounPhrase) -> list[str]:
    words = [adjective.word for adjective in phrase.adjectives]
    words.append(phrase.noun.plural if phrase.plural else phrase.noun.singular)
    determiner = phrase.determiner
    if determiner == "a" and words[0][0] in "aeiou":
        determiner = "an"
    words = [determiner, *words] if determiner else words
    if phrase.owner is not None:
        words += ["of", *_nominal(phrase.owner, False)]
    if phrase.relative is not None:
        words.append("who" if phrase.noun.kind == "p" else "which")
        words += _clause(phrase.relative, "plural" if phrase.plural else "third")
    return words
