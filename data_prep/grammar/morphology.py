"""German inflection: articles, adjectives, nouns, pronouns, and the parts of a verb phrase.

Cases are "nom", "acc", "dat", "gen"; genders "m", "f", "n", and "p" for any plural.
"""

from __future__ import annotations

from typing import NamedTuple

from data_prep.grammar.lexicon import GermanNoun, GermanVerb

_ARTICLES = {
    "nom": {"m": "der", "f": "die", "n": "das", "p": "die"},
    "acc": {"m": "den", "f": "die", "n": "das", "p": "die"},
    "dat": {"m": "dem", "f": "der", "n": "dem", "p": "den"},
    "gen": {"m": "des", "f": "der", "n": "des", "p": "der"},
}
# dieser, jeder, alle; and what an adjective takes on where no article shows the case
_STRONG = {
    "nom": {"m": "er", "f": "e", "n": "es", "p": "e"},
    "acc": {"m": "en", "f": "e", "n": "es", "p": "e"},
    "dat": {"m": "em", "f": "er", "n": "em", "p": "en"},
    "gen": {"m": "es", "f": "er", "n": "es", "p": "er"},
}
_PRONOUNS = {
    "I": {"nom": "ich", "acc": "mich", "dat": "mir"},
    "we": {"nom": "wir", "acc": "uns", "dat": "uns"},
    "he": {"nom": "er", "acc": "ihn", "dat": "ihm"},
    "she": {"nom": "sie", "acc": "sie", "dat": "ihr"},
    "they": {"nom": "sie", "acc": "sie", "dat": "ihnen"},
}
_POSSESSIVES = {"a": "ein", "my": "mein", "his": "sein", "her": "ihr", "our": "unser", "their": "ihr", "no": "kein"}
_LIKE_ARTICLES = {"this": "dies", "these": "dies", "every": "jed", "all": "all"}
_NUMBERS = {"two": "zwei", "three": "drei", "": ""}

CONTRACTIONS = {
    ("in", "dem"): "im",
    ("in", "das"): "ins",
    ("an", "dem"): "am",
    ("an", "das"): "ans",
    ("bei", "dem"): "beim",
    ("von", "dem"): "vom",
    ("zu", "dem"): "zum",
    ("zu", "der"): "zur",
}


def determiners(determiner: str, case: str, gender: str) -> list[tuple[float, str, str]]:
    """German options for an English determiner ("no" included): (share, word, declension that follows)."""
    if determiner == "the":
        return [(1.0, _ARTICLES[case][gender], "weak")]
    if determiner in _LIKE_ARTICLES:
        return [(1.0, _LIKE_ARTICLES[determiner] + _STRONG[case][gender], "weak")]
    if determiner in _NUMBERS:
        return [(1.0, _NUMBERS[determiner], "strong")]
    if determiner == "some":
        return [(0.6, f"einig{_STRONG[case]['p']}", "strong"), (0.4, "ein paar", "strong")]
    if determiner == "many":
        return [(share, stem + _STRONG[case]["p"], "strong") for share, stem in ((0.75, "viel"), (0.25, "zahlreich"))]
    bare = (case == "nom" and gender in "mn") or (case == "acc" and gender == "n")
    return [(1.0, _POSSESSIVES[determiner] + ("" if bare else _STRONG[case][gender]), "mixed")]


def adjective_ending(declension: str, case: str, gender: str) -> str:
    """The ending of an adjective after a determiner that calls for this declension."""
    if declension == "strong":
        return "en" if case == "gen" and gender in "mn" else _STRONG[case][gender]
    if gender == "p" or case in ("dat", "gen") or (case == "acc" and gender == "m"):
        return "en"
    return "e" if declension == "weak" else _STRONG[case][gender]


def noun_form(noun: GermanNoun, case: str, plural: bool) -> str:
    """A noun in its case: -n in the dative plural, -(e)s in the genitive, -(e)n throughout for weak masculines."""
    if plural:
        return noun.plural if case != "dat" or noun.plural.endswith(("n", "s")) else f"{noun.plural}n"
    if noun.weak:
        return noun.singular if case == "nom" else noun.plural
    if case != "gen" or noun.gender == "f":
        return noun.singular
    vowels = "aeiouäöü"
    letters = noun.singular.lower()
    syllables = sum(
        letter in vowels and before not in vowels for before, letter in zip(f" {letters}", letters, strict=False)
    )
    short = syllables == 1 and letters[-1] not in vowels and not noun.plural.endswith("s")
    return f"{noun.singular}es" if short or letters.endswith(("s", "ß")) else f"{noun.singular}s"


def pronoun(subject: str, case: str) -> str:
    """The personal pronoun for an English one, named by its subject form."""
    return _PRONOUNS[subject][case]


def relative_pronoun(case: str, gender: str) -> str:
    """der, die, das as a relative pronoun."""
    return "denen" if (case, gender) == ("dat", "p") else _ARTICLES[case][gender]


class Cluster(NamedTuple):
    """The parts of a verb phrase: main clauses split it into `finite` and `bracket`, verb-final ones end in `final`."""

    finite: str
    bracket: str
    final: str


COPULA = GermanVerb(
    prefix="", infinitive="sein", first="bin", third="ist", past="war", participle="gewesen", auxiliary="sein",
    case="nom", preposition="", reflexive=False,
)  # fmt: skip
_AUXILIARIES = {
    "haben": {"first": "habe", "third": "hat", "plural": "haben"},
    "sein": {"first": "bin", "third": "ist", "plural": "sind"},
    "future": {"first": "werde", "third": "wird", "plural": "werden"},
    "can": {"first": "kann", "third": "kann", "plural": "können"},
    "must": {"first": "muss", "third": "muss", "plural": "müssen"},
    "should": {"first": "sollte", "third": "sollte", "plural": "sollten"},
}
# English tense -> German tenses with their shares.
_TENSES = {
    "past": ((0.55, "past"), (0.45, "perfect")),
    "perfect": ((0.8, "perfect"), (0.2, "past")),
    "future": ((0.65, "future"), (0.35, "present")),
}


def _past(verb: GermanVerb, person: str) -> str:
    if person != "plural":
        return verb.past
    return f"{verb.past}n" if verb.past.endswith("e") else f"{verb.past}en"


def _cluster(verb: GermanVerb, tense: str, person: str) -> Cluster:
    whole = f"{verb.prefix}{verb.infinitive}"
    if tense in ("present", "past"):
        plural = "sind" if verb is COPULA else verb.infinitive
        finite = {"first": verb.first, "third": verb.third, "plural": plural}[person]
        finite = finite if tense == "present" else _past(verb, person)
        return Cluster(finite, verb.prefix, f"{verb.prefix}{finite}")
    if tense == "perfect":
        finite, rest = _AUXILIARIES[verb.auxiliary][person], f"{verb.prefix}{verb.participle}"
    else:
        finite, rest = _AUXILIARIES[tense][person], whole
    return Cluster(finite, rest, f"{rest} {finite}")


def clusters(verb: GermanVerb, tense: str, person: str) -> list[tuple[float, Cluster]]:
    """The German verb phrases, with their shares, for an English tense; a past copula is hardly ever in the perfect."""
    options = ((0.95, "past"), (0.05, "perfect")) if verb is COPULA and tense == "past" else _TENSES.get(tense)
    return [(share, _cluster(verb, german, person)) for share, german in options or ((1.0, tense),)]


def to_infinitive(verb: GermanVerb) -> str:
    """zu sehen, anzusehen."""
    return f"{verb.prefix}zu{verb.infinitive}" if verb.prefix else f"zu {verb.infinitive}"
