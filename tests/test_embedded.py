from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.grammar import Grammar
from nmt_ls.corpus import Corpus
from nmt_ls.embedded import EmbeddedSizes, prepare_embedded
from nmt_ls.experiment.command_line import UserError

SIZES = EmbeddedSizes(train=400, validation=30, test=40, vocabulary=300)

# waits for the word, so that several start at the same moment
PREPARER = """
import sys
from nmt_ls.embedded import EmbeddedSizes, prepare_embedded
sizes = EmbeddedSizes(train=400, validation=30, test=40, vocabulary=300)
print("ready", flush=True)
sys.stdin.readline()
print(prepare_embedded(sys.argv[1], 1, sizes).checksum)
"""


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


def test_processes_that_prepare_it_at_once_do_not_disturb_each_other(tmp_path: Path, corpus: Corpus) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PREPARER, str(tmp_path / "embedded")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        out, errors = child.communicate(timeout=60)
        assert (child.returncode, out.strip(), errors) == (0, corpus.checksum, "")
    assert [path.name for path in tmp_path.iterdir()] == ["embedded"]
