"""Corpora whose training targets a system wrote, and vocabularies that are taken from elsewhere."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_runs import brief_config

from data_prep.retargeted import RetargetedConfig, main, pairs
from data_prep.text_files import TextFilesConfig
from data_prep.text_files import main as prepare_text
from nmt_ls.corpus import Corpus
from nmt_ls.decode import SHORT_NAMES
from nmt_ls.decoding import DecodeConfig, decode
from nmt_ls.exact import check_exact
from nmt_ls.experiment.command_line import UserError, parse
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.training import train
from nmt_ls.vocabulary import VocabularyConfig


def retarget(corpus: Corpus, lines: list[str], place: Path) -> Corpus:
    place.mkdir(exist_ok=True)
    (place / "targets").write_text("".join(f"{line}\n" for line in lines))
    main(RetargetedConfig(corpus=str(corpus.directory), targets=str(place / "targets"), out=str(place / "out")))
    return Corpus.load(place / "out")


def test_a_student_of_a_teachers_translations(small_corpus: Corpus, small_run: RunDirectory, tmp_path: Path) -> None:
    """From the teacher's decoding to the student's summary."""
    words = ["--run", str(small_run.path), "--split", "train", "--beam", "1", "--output", str(tmp_path / "targets")]
    decode(parse(DecodeConfig, words, program="", description="", short_names=SHORT_NAMES))
    lines = (tmp_path / "targets").read_text().splitlines()
    corpus = retarget(small_corpus, lines, tmp_path)
    training, sources = corpus.split("train"), small_corpus.split("train")
    kept = [row for row, line in enumerate(lines) if line.strip()]
    assert [training.source_text(row) for row in range(len(training))] == [sources.source_text(row) for row in kept]
    assert [training.references(row) for row in range(len(training))] == [[lines[row].strip()] for row in kept]
    np.testing.assert_array_equal(training.target_ids(0), small_corpus.target_vocabulary.encode(lines[kept[0]]))
    for name in ("validation", "test"):
        assert corpus.split(name).checksum() == small_corpus.split(name).checksum()
    assert corpus.target_vocabulary.checksum() == small_corpus.target_vocabulary.checksum()
    assert corpus.checksum != small_corpus.checksum
    check_exact(corpus)  # its held-out text is the grammar's still
    outcome = train(brief_config(corpus, tmp_path / "student", init_from=str(small_run.path)))
    assert outcome.summary is not None
    assert outcome.summary["entropy"] == small_run.read_summary()["entropy"]


def test_references_stay_together(tmp_path: Path) -> None:
    source = [f"the dog sings {number} times ." for number in range(30)]
    for split, rows in (("train", source), ("validation", source[:4]), ("test", source[:3] + source[:3])):
        (tmp_path / f"{split}.en").write_text("".join(f"{line}\n" for line in rows))
        (tmp_path / f"{split}.de").write_text("".join(f"{number} Hunde\n" for number in range(len(rows))))
    files = {f"{split}_{side}": str(tmp_path / f"{split}.{end}") for split in ("train", "validation", "test")
             for side, end in (("source", "en"), ("target", "de"))}  # fmt: skip
    prepare_text(TextFilesConfig(**files, out=str(tmp_path / "corpus"), vocabulary=VocabularyConfig(size=60)))
    corpus = Corpus.load(tmp_path / "corpus")
    assert corpus.split("test").references(0) == ["0 Hunde", "3 Hunde"]
    again = retarget(corpus, ["viele Hunde"] * 30, tmp_path / "again")
    assert list(pairs(again.split("test"))) == list(pairs(corpus.split("test")))
    assert again.split("test").checksum() == corpus.split("test").checksum()
    assert len(again.split("train")) == 30
    assert again.source_language == "en"


def test_a_corpus_outlives_the_run_whose_vocabulary_it_took(
    small_corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    small_corpus.copy_vocabulary(run)
    files = {}
    for name in ("train", "validation", "test"):
        for side, end, line in (("source", "en", "the dog"), ("target", "de", "ein Hund")):
            (tmp_path / f"{name}.{end}").write_text(f"{line}\n")
            files[f"{name}_{side}"] = str(tmp_path / f"{name}.{end}")
    asked = TextFilesConfig(**files, out=str(tmp_path / "out"), vocabulary=VocabularyConfig(like=str(run)))
    prepare_text(asked)
    shutil.rmtree(run)
    capsys.readouterr()
    prepare_text(asked)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="run holds no vocabulary"):  # before anything is read
        prepare_text(dataclasses.replace(asked, out=str(tmp_path / "other")))


@pytest.mark.parametrize(("count", "message"), [(399, "has 399 lines"), (401, "has more lines")])
def test_lines_that_do_not_pair_up(small_corpus: Corpus, tmp_path: Path, count: int, message: str) -> None:
    with pytest.raises(UserError, match=f"{message}, and the corpus 400 training sources"):
        retarget(small_corpus, ["Ein Hund."] * count, tmp_path)
    assert not (tmp_path / "out").exists()


def test_what_is_not_there(small_corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        main(
            RetargetedConfig(corpus=str(small_corpus.directory), targets=str(tmp_path / "no"), out=str(tmp_path / "o"))
        )
    with pytest.raises(UserError, match="is not a prepared corpus"):
        main(RetargetedConfig(corpus=str(tmp_path), targets=str(tmp_path / "no"), out=str(tmp_path / "o")))


def test_a_vocabulary_is_taken_as_it_is(small_corpus: Corpus, small_run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers is a number of processes"):
        RetargetedConfig(corpus="a", targets="b", out="c", workers=-1)
    taken = VocabularyConfig(like=str(small_run.path), size=100)
    assert taken.recipe() == VocabularyConfig(like=str(small_run.path)).recipe()
    like = VocabularyConfig(like=str(small_run.path))
    assert like.recipe() == VocabularyConfig(like=str(small_corpus.directory)).recipe()  # wherever it lies
    assert like.recipe() == {"like": [small_corpus.target_vocabulary.checksum()]}
    with pytest.raises(UserError, match="holds no vocabulary"):
        VocabularyConfig(like=str(tmp_path)).recipe()
    assert "like" not in VocabularyConfig().recipe()
