from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from data_prep.grammar import Grammar
from nmt_ls.corpus import Corpus
from nmt_ls.embedded import EmbeddedSizes, prepare_embedded
from nmt_ls.experiment.command_line import UserError

SIZES = EmbeddedSizes(train=400, validation=30, test=40, vocabulary=300)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepare_embedded(tmp_path_factory.mktemp("data") / "embedded", 1, SIZES)


def test_the_corpus_is_what_the_grammar_says(corpus: Corpus) -> None:
    sizes = {"train": 400, "validation": 30, "test": 40}
    for name, pairs in Grammar(1).splits(**sizes).items():
        split = corpus.split(name)
        assert [(split.source_text(row), split.references(row)) for row in range(len(split))] == [
            (source, [target]) for source, target in pairs
        ]
        assert len(split) == sizes[name]


def test_segmentation_is_local_to_the_grammars_words(corpus: Corpus) -> None:
    split, vocabulary = corpus.split("train"), corpus.target_vocabulary
    assert corpus.joint
    for row in range(len(split)):
        word_by_word = [piece for word in split.references(row)[0].split() for piece in vocabulary.encode(word)]
        assert split.target_ids(row) == word_by_word
        assert vocabulary.decode(word_by_word) == split.references(row)[0]


def test_it_is_prepared_once_and_other_sizes_are_refused(corpus: Corpus) -> None:
    before = (corpus.directory / "manifest.json").stat().st_mtime_ns
    assert prepare_embedded(corpus.directory, 1, SIZES).checksum == corpus.checksum
    assert (corpus.directory / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"settings\.seed is 1 there, not 2"):
        prepare_embedded(corpus.directory, 2, SIZES)
    with pytest.raises(ValueError, match="vocabulary must be positive"):
        EmbeddedSizes(vocabulary=0)


def prepare_when_all_are_there(place: Path, together: Barrier, found: Connection) -> None:
    together.wait(timeout=60)
    found.send(prepare_embedded(place, 1, SIZES).checksum)


def test_processes_that_prepare_it_at_once_do_not_disturb_each_other(
    tmp_path: Path, corpus: Corpus, capfd: pytest.CaptureFixture[str]
) -> None:
    fork = multiprocessing.get_context("fork")  # they have imported everything already
    together, pipes = fork.Barrier(2), [fork.Pipe(duplex=False) for _ in range(2)]
    children = [
        fork.Process(target=prepare_when_all_are_there, args=(tmp_path / "embedded", together, theirs))
        for _, theirs in pipes
    ]
    for child in children:
        child.start()
    for child, (ours, _) in zip(children, pipes, strict=True):
        child.join(timeout=60)
        assert child.exitcode == 0
        assert ours.recv() == corpus.checksum
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["embedded"]
