"""The language of the grammar: German by hand, English read back, samples and splits."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import sentencepiece

from data_prep.grammar import DESCRIPTION, LICENCE, Grammar, lexicon
from data_prep.grammar.english import spell
from data_prep.grammar.parser import parse
from data_prep.grammar.sampler import Sampler

GRAMMAR = Grammar(0)
CASES = [
    # articles and adjectives by case and gender
    ("Anna sees the old dog.", "Anna sieht den alten Hund.", "Anna sieht der alte Hund."),
    ("Anna sees the old dog.", "Anna sieht den uralten Köter.", "Anna sieht dem alten Hund."),
    ("The old dog sleeps.", "Der alte Hund schläft.", "Den alten Hund schläft."),
    ("An old dog sleeps.", "Ein alter Hund schläft.", "Ein alte Hund schläft."),
    ("Old dogs sleep.", "Alte Hunde schlafen.", "Alten Hunde schlafen."),
    ("My young children sleep.", "Meine jungen Kinder schlafen.", "Meine junge Kinder schlafen."),
    ("Anna sees a small child.", "Anna sieht ein kleines Kind.", "Anna sieht einen kleinen Kind."),
    ("Anna dances with old dogs.", "Anna tanzt mit alten Hunden.", "Anna tanzt mit alten Hunde."),
    ("Anna dances with the clever woman.", "Anna tanzt mit der klugen Frau.", "Anna tanzt mit die kluge Frau."),
    ("Anna dances without the man.", "Anna tanzt ohne den Mann.", "Anna tanzt ohne dem Mann."),
    ("The expensive house is empty.", "Das teure Haus ist leer.", "Das teuere Haus ist leer."),
    # weak masculines, genitives, contractions
    ("The boy sees the boy.", "Der Junge sieht den Jungen.", "Der Junge sieht den Junge."),
    ("The book of the old man is new.", "Das Buch des alten Mannes ist neu.", "Das Buch des alten Mann ist neu."),
    ("The book of Anna is new.", "Annas Buch ist neu.", "Annas neu ist Buch."),
    ("Anna sleeps in the house.", "Anna schläft im Haus.", "Anna schläft ins Haus."),
    ("Anna goes to the school.", "Anna geht zur Schule.", "Anna geht zum Schule."),
    # a synonym brings its own gender, and a verb its own case
    ("He sees the car which sleeps.", "Er sieht den Wagen, der schläft.", "Er sieht den Wagen, das schläft."),
    ("She helps the woman.", "Sie hilft der Frau.", "Sie hilft die Frau."),
    ("She helps the woman.", "Sie unterstützt die Frau.", "Sie unterstützt der Frau."),
    ("I see the man who she helps.", "Ich sehe den Mann, dem sie hilft.", "Ich sehe den Mann, den sie hilft."),
    ("I thank Anna.", "Ich bedanke mich bei Anna.", "Ich bedanke sich bei Anna."),
    # separable verbs, brackets, verb-final clauses
    ("Anna calls the man.", "Anna ruft den Mann an.", "Anna anruft den Mann."),
    ("Anna called the man.", "Anna hat den Mann angerufen.", "Anna hat angerufen den Mann."),
    ("Anna tries to call the man.", "Anna versucht, den Mann anzurufen.", "Anna versucht, zu anrufen den Mann."),
    (
        "Anna sleeps because he calls the man.",
        "Anna schläft, weil er den Mann anruft.",
        "Anna schläft, weil er mich ruft an.",
    ),
    ("Anna says that he can sleep.", "Anna sagt, dass er schlafen kann.", "Anna sagt, dass er kann schlafen."),
    ("Anna says that he can sleep.", "Anna meint, er kann schlafen.", "Anna meint, er schlafen kann."),
    # order
    ("Anna did not say that he slept.", "Anna sagte nicht, dass er schlief.", "Anna sagte nicht, er schlief."),
    ("Anna sleeps today.", "Heute schläft Anna.", "Heute Anna schläft."),
    ("If Anna sleeps, we dance.", "Wenn Anna schläft, tanzen wir.", "Wenn Anna schläft, wir tanzen."),
    ("Anna sleeps, so we dance.", "Anna schläft, deshalb tanzen wir.", "Anna schläft, deshalb wir tanzen."),
    ("Anna heard a dog which sleeps.", "Anna hat einen Hund gehört, der schläft.", "Anna einen Hund gehört hat."),
    (
        "Anna has gone to the house which he paints.",
        "Anna ist zum Haus gegangen, das er malt.",
        "Anna ist zum Haus, das er malt, gegangen, das er malt.",
    ),
    ("He gives Anna a ring.", "Er gibt Anna einen Ring.", "Er gibt Anna ein Ring."),
    ("Does she sleep?", "Schläft sie?", "Sie schläft?"),
    ("Anna does not see a dog.", "Anna sieht keinen Hund.", "Anna sieht nicht einen Hund."),
    ("Anna does not see the dog.", "Anna sieht den Hund nicht.", "Anna sieht keinen Hund."),
]


@pytest.mark.parametrize(("source", "right", "wrong"), CASES)
def test_german_by_hand(source: str, right: str, wrong: str) -> None:
    assert GRAMMAR.true_log_prob(source, right) > -math.inf
    assert GRAMMAR.true_log_prob(source, wrong) == -math.inf


def test_every_structure_is_read_back_as_it_was_meant() -> None:
    sampler = Sampler(random.Random(11))
    for _ in range(2000):
        sentence = sampler.sentence()
        assert parse(spell(sentence)) == sentence


def test_english_word_forms_are_unambiguous() -> None:
    nouns = [form for kind in lexicon.NOUNS.values() for noun in kind for form in (noun.singular, noun.plural)]
    verbs = {
        (form, verb.particle): verb.key
        for frame in lexicon.VERBS.values()
        for verb in frame
        for form in (verb.base, verb.third, verb.past, verb.participle)
    }
    assert len(set(nouns)) == len(nouns)
    adjectives = [adjective.word for adjective in lexicon.ADJECTIVES]
    names = [name.lower() for name in lexicon.NAMES]
    forms = [*nouns, *{form for form, _ in verbs}, *adjectives, *names]
    assert len(set(forms)) == len(forms)
    assert all(verb.past not in (verb.base, verb.third) for frame in lexicon.VERBS.values() for verb in frame)
    keys = [(verb.base, verb.particle) for frame in lexicon.VERBS.values() for verb in frame]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "not a sentence"),
        ("She sleeps", "not a sentence"),
        ("She sleeps. She sleeps.", "goes on"),
        ("She look the dog.", "missing"),
        ("She sleep.", "She sleeps."),
        ("she sleeps.", "She sleeps."),
        ("Anna sees a old dog.", "an old dog"),
        ("The zebra sleeps.", "zebra"),
        ("I see the man who she sleeps.", "one object"),
    ],
)
def test_other_text_is_refused(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRAMMAR.true_log_prob(source, "Sie schläft.")


def test_samples_have_the_shape_that_was_asked_for() -> None:
    pairs = GRAMMAR.sample(1500)
    lengths = [len(target.split()) for _, target in pairs]
    assert 10 < sum(lengths) / len(lengths) < 12
    assert max(lengths) >= 40
    log_prob = sum(GRAMMAR.true_log_prob(source, target) for source, target in pairs[:300])
    words = sum(lengths[:300]) + 300
    assert 0.3 < -log_prob / words < 0.8
    assert len({source for source, _ in pairs}) > 0.95 * len(pairs)
    for source, target in pairs:
        for text in (source, target):
            assert " ".join(text.split()) == text == unicodedata.normalize("NFKC", text)


def test_streams_share_no_source_and_longer_samples_begin_with_shorter_ones() -> None:
    splits = {name: list(pairs) for name, pairs in GRAMMAR.splits(train=1200, validation=200, test=300).items()}
    assert {name: len(pairs) for name, pairs in splits.items()} == {"train": 1200, "validation": 200, "test": 300}
    sources = {name: {source for source, _ in pairs} for name, pairs in splits.items()}
    assert not sources["train"] & sources["validation"]
    assert not sources["train"] & sources["test"]
    assert not sources["validation"] & sources["test"]
    assert GRAMMAR.sample(100, "test") == splits["test"][:100]
    assert Grammar(1).sample(20) != GRAMMAR.sample(20)
    with pytest.raises(ValueError, match="validation"):
        GRAMMAR.sample(1, "dev")
    assert DESCRIPTION
    assert LICENCE


def test_the_same_in_every_process() -> None:
    program = (
        "from data_prep.grammar import Grammar\n"
        "g = Grammar(4)\n"
        "pairs = g.sample(150)\n"
        "print(pairs, [g.true_next_word_probs(s, t.split()[:2]) for s, t in pairs], g.most_probable(pairs[0][0]))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert repr(Grammar(4).sample(150)).encode() in outputs[0]


def test_sentencepiece_segments_words_by_themselves(tmp_path: Path) -> None:
    targets = [target for _, target in GRAMMAR.sample(1500)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(targets),
        model_prefix=str(tmp_path / "spm"),
        vocab_size=500,
        model_type="bpe",
        character_coverage=1.0,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    fresh = [target for _, target in GRAMMAR.sample(250, "test")]
    assert max(len(model.encode(word)) for target in fresh for word in target.split()) > 2
    for target in fresh:
        assert model.encode(target) == [piece for word in target.split() for piece in model.encode(word)]
        assert model.decode(model.encode(target)) == target
