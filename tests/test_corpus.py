from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_prep.reporting import describe
from nmt_ls.corpus import Corpus, epoch_batches
from nmt_ls.corpus_writer import CorpusConfig, Origin, existing_corpus, write_corpus
from nmt_ls.experiment.command_line import UserError
from nmt_ls.staged_texts import FilterConfig
from nmt_ls.vocabulary import EOS, UNK, VocabularyConfig, load_vocabularies

Pairs = list[tuple[str, str]]
ENGLISH = [
    "the dog",
    "a cat",
    "my sister",
    "one painter",
    "sleeps",
    "sings",
    "at night",
    "under the table",
    "slowly",
    ".",
]
GERMAN = [
    "der Hund",
    "eine Katze",
    "meine Schwester",
    "ein Maler",
    "schläft",
    "singt",
    "nachts",
    "unter dem Tisch",
    "langsam",
    ".",
]
ORIGIN = Origin(source="made up", source_language="en", target_language="de", licence="none needed")
SMALL = CorpusConfig(vocabulary=VocabularyConfig(size=90))


def made_up(count: int, seed: int) -> Pairs:
    draw = np.random.default_rng(seed)
    phrases = [draw.integers(0, len(ENGLISH), draw.integers(2, 9)).tolist() for _ in range(count)]
    return [(" ".join(ENGLISH[p] for p in some), " ".join(GERMAN[p] for p in some)) for some in phrases]


TRAIN, VALIDATION, TEST = made_up(300, seed=1), made_up(20, seed=2), made_up(30, seed=3)


def splits(train: Pairs = TRAIN, test: Pairs = TEST) -> dict[str, Pairs]:
    return {"train": train, "validation": VALIDATION, "test": test}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("data") / "made-up", splits(), ORIGIN, SMALL)


def test_what_was_written_is_read(corpus: Corpus) -> None:
    assert corpus.joint
    assert (corpus.source_language, corpus.target_language) == ("en", "de")
    assert corpus.split_names == ["train", "validation", "test"]
    kept = list(dict.fromkeys(TRAIN))
    split = corpus.split("train")
    assert len(split) == len(kept)
    for row, (source, target) in enumerate(kept):
        assert (split.source_text(row), split.references(row)) == (source, [target])
        assert split.source_ids(row) == corpus.source_vocabulary.encode(source)
        assert split.target_ids(row) == corpus.target_vocabulary.encode(target)
    assert corpus.split("train") is split


def test_the_manifest_says_what_was_done(corpus: Corpus) -> None:
    manifest = json.loads((corpus.directory / "manifest.json").read_text())
    assert manifest == corpus.manifest
    assert (manifest["source"], manifest["licence"]) == ("made up", "none needed")
    train = manifest["splits"]["train"]
    assert train["rows"] == 300
    assert train["rows"] - sum(train["dropped"].values()) == train["sentences"] == len(set(TRAIN))
    lengths = [len(corpus.source_vocabulary.encode(source)) for source, _ in dict.fromkeys(TRAIN)]
    assert (train["source_pieces"], train["source_longest"], train["source_unknown"]) == (sum(lengths), max(lengths), 0)
    assert manifest["vocabulary"]["spm.model"]["size"] == 90
    assert {"sentencepiece", "datasets", "numpy"} < set(manifest["versions"])
    assert manifest["command"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest["date"])


def test_a_split_is_cut_into_batches_of_its_ids(corpus: Corpus) -> None:
    split, seen = corpus.split("train"), set()
    for batch in epoch_batches(split, max_tokens=500, seed=1, epoch=0):
        for row, target in zip(batch.indices_B.tolist(), batch.target_out_BT.tolist(), strict=True):
            assert [piece for piece in target if piece] == [*split.target_ids(row), EOS]
            seen.add(row)
    assert seen == set(range(len(split)))


def test_the_unigram_prior_is_the_labels_relative_frequency(corpus: Corpus) -> None:
    counts: Counter[int] = Counter()
    for _, target in dict.fromkeys(TRAIN):
        counts.update([*corpus.target_vocabulary.encode(target), EOS])
    prior = corpus.unigram_prior()
    assert prior.shape == (90,)
    assert prior.sum().item() == pytest.approx(1, abs=1e-12)
    for piece in range(90):
        assert prior[piece].item() == pytest.approx(counts[piece] / counts.total(), abs=1e-15)


def test_each_reason_to_leave_a_pair_out_is_counted(tmp_path: Path) -> None:
    long = " ".join(["slowly"] * 40)
    faulty = [
        ("", "der Hund ."),
        ("the dog .", " \t "),
        ("the dog .", "der Hund ."),
        ("  the dog .", "der Hund .\n"),  # the same once its edges are stripped
        ("nachts .", "nachts ."),
        (long, long + " ."),
        ("sings", "ein Maler singt nachts unter dem Tisch ."),
    ]
    config = CorpusConfig(
        vocabulary=VocabularyConfig(size=80),
        filters=FilterConfig(max_pieces=40, max_ratio=4, copies=True),
    )
    train = faulty + [(f"the dog sings {'slowly ' * n}.", f"der Hund singt {'langsam ' * n}.") for n in range(10)]
    corpus = write_corpus(tmp_path / "filtered", splits(train=train), ORIGIN, config)
    summary = corpus.manifest["splits"]["train"]
    assert summary["dropped"] == {
        "empty side": 2,
        "source equals target": 1,
        "duplicate pair": 1,
        "more than 40 pieces": 1,
        "length ratio above 4": 1,
    }
    assert summary["sentences"] == summary["rows"] - 6 == 11
    assert corpus.split("train").source_text(0) == "the dog ."


def test_filters_can_be_turned_off(tmp_path: Path) -> None:
    train = [("a cat .", "a cat ."), *TRAIN, *TRAIN]
    config = CorpusConfig(
        vocabulary=VocabularyConfig(size=90), filters=FilterConfig(max_pieces=0, max_ratio=0, duplicates=False)
    )
    corpus = write_corpus(tmp_path / "all", splits(train=train), ORIGIN, config)
    assert len(corpus.split("train")) == 601
    assert corpus.manifest["splits"]["train"]["dropped"] == {"empty side": 0}


def test_training_pairs_are_sampled_before_the_vocabulary(tmp_path: Path) -> None:
    def sampled(name: str, size: int, train: Pairs = TRAIN) -> Corpus:
        config = CorpusConfig(vocabulary=VocabularyConfig(size=80), filters=FilterConfig(sample=size))
        return write_corpus(tmp_path / name, splits(train=train), ORIGIN, config)

    def texts(corpus: Corpus) -> list[str]:
        split = corpus.split("train")
        return [split.source_text(row) for row in range(len(split))]

    whole, half = sampled("whole", 0), sampled("half", 150, [*TRAIN, *TRAIN])
    everything, chosen = texts(whole), texts(half)
    assert "sample" not in whole.manifest["recipe"]["filters"]  # as in corpora that are older than samples
    assert half.manifest["recipe"]["filters"]["sample"] == 150
    dropped = half.manifest["splits"]["train"]["dropped"]
    assert dropped["duplicate pair"] == 600 - len(everything)
    assert dropped["not in the sample"] == len(everything) - 150
    assert len(chosen) == 150
    assert set(chosen) < set(everything)
    assert chosen != everything[:150]
    assert chosen == [text for text in everything if text in set(chosen)]  # in their order
    assert len(half.split("test")) == len(whole.split("test"))
    assert texts(sampled("half again", 150)) == chosen
    assert half.source_vocabulary.checksum() != whole.source_vocabulary.checksum()
    with pytest.raises(UserError, match=r"filters.sample: 400 training pairs were asked for, and there are 2\d\d"):
        sampled("more", 400)


def test_held_out_rows_are_never_filtered_and_share_their_source(tmp_path: Path) -> None:
    long = " ".join(["slowly"] * 300)
    test = [("the dog .", "der Hund ."), (long, ""), ("a cat .", "Katze ."), ("the dog .", "ein Hund ."), ("", "leer")]
    test += [("the dog . ", "der Hund .")]
    corpus = write_corpus(tmp_path / "grouped", splits(test=test), ORIGIN, SMALL)
    split = corpus.split("test")
    assert [split.source_text(row) for row in range(len(split))] == ["the dog .", long, "a cat .", ""]
    assert split.references(0) == ["der Hund .", "ein Hund ."]
    assert split.references(1) == [""]
    # teacher-forced scores use the first reference
    assert split.target_ids(0) == corpus.target_vocabulary.encode("der Hund .")
    summary = corpus.manifest["splits"]["test"]
    assert (summary["rows"], summary["sentences"], summary["references"]) == (6, 4, 5)

    apart = write_corpus(
        tmp_path / "apart",
        splits(test=test),
        ORIGIN,
        CorpusConfig(vocabulary=VocabularyConfig(size=90), group_references=False),
    )
    assert [apart.split("test").source_text(row) for row in range(6)] == [source.strip() for source, _ in test]


def test_what_is_held_out_and_in_training_too_is_counted(tmp_path: Path) -> None:
    """Among the training pairs that are kept; copies of one another are filtered there, and nothing is here."""
    config = CorpusConfig(vocabulary=VocabularyConfig(size=60), filters=FilterConfig(max_pieces=20))
    train = [(f"the dog {n} .", f"der Hund {n} .") for n in range(60)] + [(" ".join(["far"] * 40), "weit")]
    test = [*train[:2], ("the dog 2 .", "ein Hund"), ("a cat .", "Katze ."), train[-1]]
    corpus = write_corpus(tmp_path / "seen", {"train": train, "test": test}, ORIGIN, config)
    summary = corpus.manifest["splits"]["test"]
    assert (summary["sources_in_train"], summary["pairs_in_train"]) == (3, 2)
    assert "; in train too: sources 3, pairs 2" in describe(corpus)


def test_line_breaks_become_spaces_and_other_runs_are_left_alone(tmp_path: Path) -> None:
    test = [("the \r\n dog", "der\nHund  schläft")]
    split = write_corpus(tmp_path / "lines", splits(test=test), ORIGIN, SMALL).split("test")
    assert (split.source_text(0), split.references(0)) == ("the   dog", ["der Hund  schläft"])
    assert split.target_ids(0) == write_corpus(tmp_path / "lines", splits(), ORIGIN, SMALL).target_vocabulary.encode(
        "der Hund schläft"
    )


def test_separate_vocabularies(tmp_path: Path) -> None:
    config = CorpusConfig(vocabulary=VocabularyConfig(size=39, joint=False, kind="unigram"))
    corpus = write_corpus(tmp_path / "separate", splits(), ORIGIN, config)
    assert not corpus.joint
    assert corpus.source_vocabulary.decode(corpus.split("test").source_ids(0)) == TEST[0][0]
    assert UNK in corpus.source_vocabulary.encode("schläft")
    assert UNK not in corpus.target_vocabulary.encode("schläft")
    run = tmp_path / "run"
    run.mkdir()
    corpus.copy_vocabulary(run)
    source, target = load_vocabularies(run)
    assert [v.checksum() for v in (source, target)] == [
        corpus.manifest["vocabulary"][name]["sha256"] for name in ("spm.source.model", "spm.target.model")
    ]


def test_the_vocabulary_is_trained_on_a_sample(tmp_path: Path) -> None:
    def checksum(name: str, **settings: int) -> str:
        config = CorpusConfig(vocabulary=VocabularyConfig(size=80, **settings))  # type: ignore[arg-type]
        return write_corpus(tmp_path / name, splits(), ORIGIN, config).source_vocabulary.checksum()

    whole = checksum("whole", sample=0)
    assert checksum("more", sample=10_000) == whole
    one = checksum("one", sample=40, seed=1)
    assert one != whole
    assert checksum("one again", sample=40, seed=1) == one
    assert checksum("two", sample=40, seed=2) != one


def test_the_checksum_depends_on_the_content_alone(tmp_path: Path, corpus: Corpus) -> None:
    workers = CorpusConfig(vocabulary=SMALL.vocabulary, workers=2)
    assert write_corpus(tmp_path / "elsewhere", splits(), ORIGIN, workers).checksum == corpus.checksum
    changed = [*TEST[:-1], (TEST[-1][0], TEST[-1][1] + " !")]
    assert write_corpus(tmp_path / "changed", splits(test=changed), ORIGIN, SMALL).checksum != corpus.checksum
    corpus.verify()


@pytest.mark.parametrize("file", ["test/data-00000-of-00001.arrow", "spm.model", "manifest.json"])
def test_damage_is_found_and_named(tmp_path: Path, file: str) -> None:
    corpus = write_corpus(tmp_path / "damaged", splits(), ORIGIN, SMALL)
    path = corpus.directory / file
    content = path.read_bytes()
    # a letter of a text, of a piece, of a checksum
    piece = max(corpus.source_vocabulary.pieces(range(4, 90)), key=len)
    word = {"spm.model": piece.encode(), "manifest.json": b'"checksum": "'}.get(file, "schläft".encode())
    at = content.index(word) + len(word) - 1
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(UserError, match=r"differs from its checksum|manifest\.json is damaged"):
        Corpus.load(corpus.directory).verify()


def test_a_cut_or_missing_split_is_named(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "cut", splits(), ORIGIN, SMALL)
    path = corpus.directory / "test/data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="split 'test' is missing or damaged; prepare the corpus again"):
        corpus.split("test")
    with pytest.raises(UserError, match="has no split 'dev': choose one of train, validation, test"):
        corpus.split("dev")


def test_what_is_no_prepared_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not a prepared corpus .*data_prep\.parallel"):
        Corpus.load(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text('{"format": 0}')
    with pytest.raises(UserError, match="another format"):
        Corpus.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        Corpus.load(tmp_path)


def unread() -> Iterator[tuple[str, str]]:
    raise AssertionError("these pairs must not be read")
    yield


def test_the_same_recipe_finds_its_corpus_and_another_is_refused(corpus: Corpus) -> None:
    assert write_corpus(corpus.directory, {"train": unread()}, ORIGIN, SMALL).checksum == corpus.checksum
    other = CorpusConfig(vocabulary=VocabularyConfig(size=91))
    with pytest.raises(UserError, match=r"vocabulary\.size is 90 there, not 91"):
        write_corpus(corpus.directory, {"train": unread()}, ORIGIN, other)
    moved = Origin(source="made up", source_language="en", target_language="nl", licence="none needed")
    with pytest.raises(UserError, match="target_language is 'de' there, not 'nl'"):
        write_corpus(corpus.directory, {"train": unread()}, moved, SMALL)


def test_the_recipe_looks_at_files_not_at_where_they_lie(tmp_path: Path) -> None:
    def origin(source: str, checksum: str) -> Origin:
        return Origin(source=source, source_language="en", target_language="de", files={"train.jsonl": checksum})

    out = tmp_path / "out"
    write_corpus(out, splits(), origin("here", "1"), SMALL)
    assert existing_corpus(out, origin("there", "1"), SMALL) is not None
    with pytest.raises(UserError, match=r"files\.train\.jsonl is '1' there, not '2'"):
        existing_corpus(out, origin("here", "2"), SMALL)


def test_foreign_directories_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match="thesis exists and is not a prepared corpus"):
        write_corpus(tmp_path / "thesis", splits(), ORIGIN, SMALL)
    assert (tmp_path / "thesis/chapter.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert write_corpus(tmp_path / "empty", splits(), ORIGIN, SMALL).split_names


def broken_off() -> Iterator[tuple[str, str]]:
    yield from TRAIN
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("message", "data", "config"),
    [
        ("split 'train', pair 3: it holds a NUL byte", {"train": [*TRAIN[:2], ("a", "b\0c")]}, SMALL),
        ("split 'test', pair 1: it is not valid Unicode", {"train": TRAIN, "test": [("\ud800", "b")]}, SMALL),
        ("split 'test' has no rows", {"train": TRAIN, "test": []}, SMALL),
        ("a corpus needs a split named 'train'; there are test", {"test": TEST}, SMALL),
        ("no training pair is left of the 2 read; empty side: 2", {"train": [("", "a"), ("b", "")]}, SMALL),
        (
            "no training pair is left of the 300 read; duplicate pair: .*; more than 1 pieces: ",
            {"train": TRAIN},
            CorpusConfig(vocabulary=VocabularyConfig(size=60), filters=FilterConfig(max_pieces=1)),
        ),
        ("vocabulary.size 9000 is more than", {"train": TRAIN}, CorpusConfig(vocabulary=VocabularyConfig(size=9000))),
    ],
)
def test_what_fails_says_why_and_leaves_nothing(
    tmp_path: Path, message: str, data: dict[str, Pairs], config: CorpusConfig
) -> None:
    with pytest.raises(UserError, match=message):
        write_corpus(tmp_path / "failed", data, ORIGIN, config)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path / "interrupted", {"train": broken_off()}, ORIGIN, SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("filters.max_pieces", {"max_pieces": -1}),
        ("filters.max_ratio", {"max_ratio": 0.5}),
        ("filters.sample", {"sample": -1}),
    ],
)
def test_a_refused_filter_is_named(key: str, settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=re.escape(key)):
        FilterConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="workers"):
        CorpusConfig(workers=-1)
