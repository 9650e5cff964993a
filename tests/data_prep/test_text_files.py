from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.text_files import TextFilesConfig, main
from nmt_ls.corpus import Corpus
from nmt_ls.experiment.command_line import UserError, run_command
from nmt_ls.vocabulary import VocabularyConfig

ENGLISH = [
    f"the {noun} {verb} {number} times ."
    for noun in ("dog", "cat")
    for verb in ("sings", "sleeps")
    for number in range(12)
]
GERMAN = [
    f"{noun} {verb} {number} Mal ."
    for noun in ("der Hund", "die Katze")
    for verb in ("singt", "schläft")
    for number in range(12)
]

CUT = gzip.compress("".join(f"{n * n}\n" for n in range(9_000)).encode())[:9_000]


def write(path: Path, content: list[str] | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else "".join(line + "\n" for line in content).encode())
    return path


def config(directory: Path, **changes: str) -> TextFilesConfig:
    """A configuration over files that are written unless they are there."""
    files = {}
    for split, rows in {"train": slice(None), "validation": slice(0, 4), "test": slice(4, 9)}.items():
        for side, ending, lines in (("source", "en", ENGLISH), ("target", "de", GERMAN)):
            path = directory / f"{split}.{ending}"
            if not path.exists():
                write(path, lines[rows])
            files[f"{split}_{side}"] = str(path)
    settings = {**files, "out": str(directory / "out"), **changes}
    return TextFilesConfig(**settings, vocabulary=VocabularyConfig(size=75))  # type: ignore[arg-type]


def test_aligned_files_become_a_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(config(tmp_path))
    corpus = Corpus.load(tmp_path / "out")
    assert (corpus.source_language, corpus.target_language) == ("en", "de")
    split = corpus.split("train")
    assert [split.source_text(row) for row in range(len(split))] == ENGLISH
    assert [split.references(row) for row in range(len(split))] == [[line] for line in GERMAN]
    printed = capsys.readouterr().out
    assert "48 sentences" in printed
    assert corpus.checksum in printed

    main(config(tmp_path))
    assert "is there already, made by the same recipe: nothing to do" in capsys.readouterr().out
    write(tmp_path / "test.de", GERMAN[:5])
    with pytest.raises(UserError, match=r"out holds a corpus prepared otherwise \(files\.test\.target is"):
        main(config(tmp_path))


def test_gzip_crlf_and_byte_order_mark_make_no_difference(tmp_path: Path) -> None:
    for name in ("plain", "odd"):
        (tmp_path / name).mkdir()
    main(config(tmp_path / "plain"))
    odd = tmp_path / "odd"
    write(odd / "train.en", gzip.compress("".join(line + "\n" for line in ENGLISH).encode()))
    write(odd / "train.de", b"\xef\xbb\xbf" + "\r\n".join(GERMAN).encode())
    main(config(odd))
    assert Corpus.load(odd / "out").checksum == Corpus.load(tmp_path / "plain" / "out").checksum


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    write(tmp_path / "test.en", "one\u2028line\nand\x0banother\n".encode())
    write(tmp_path / "test.de", "eine\u0085Zeile\nund noch eine\n".encode())
    main(config(tmp_path))
    assert Corpus.load(tmp_path / "out").split("test").references(1) == ["und noch eine"]


def test_languages_come_from_the_names_or_are_given(tmp_path: Path) -> None:
    main(config(tmp_path, src="english", out=str(tmp_path / "given")))
    corpus = Corpus.load(tmp_path / "given")
    assert (corpus.source_language, corpus.target_language) == ("english", "de")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "train.de",
            GERMAN[:-1],
            "train.en has 48 lines but DIR/train.de has 47: line 48 of DIR/train.en has no partner",
        ),
        ("test.en", ENGLISH[4:11], "test.en has 7 lines but DIR/test.de has 5: line 6 of DIR/test.en has no partner"),
        (
            "validation.de",
            b"a\nb\nf\xfcr\nd\n",
            "validation.de, line 3: not valid UTF-8 (byte 0xfc at 2); convert the file",
        ),
        ("train.en", b"a\nb\0c\n", "train.en, line 2: it holds a NUL byte; mend the line"),
        ("train.en", CUT, "train.en, after line "),
        ("train.en", gzip.compress(b"a\nb\n", mtime=0)[:-8] + b"12345678", "train.en, after line 2: damaged gzip file"),
        ("test.de", [], "test.en has 5 lines but DIR/test.de has 0"),
    ],
)
def test_bad_input_is_one_line_that_names_the_place_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: list[str] | bytes, message: str
) -> None:
    write(tmp_path / file, content)
    arguments = []
    for key, value in vars(config(tmp_path)).items():
        if key.endswith(("_source", "_target")) or key == "out":
            arguments += [f"--{key}", value]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as exit_:
        run_command(
            main, TextFilesConfig, program="text_files", description="", argv=[*arguments, "--vocabulary.size", "75"]
        )
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/")
    assert error.count("\n") == 1
    assert message.replace("DIR", str(tmp_path)) in error
    assert sorted(tmp_path.iterdir()) == before


def test_a_missing_file_is_named_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.de: there is no such file"):
        main(config(tmp_path, test_target=str(tmp_path / "nowhere.de")))


@pytest.mark.parametrize(
    ("number", "status", "at_work"),
    [
        (signal.SIGTERM, 143, "scratch/train"),  # while texts are read
        (signal.SIGINT, 130, "scratch/tmp*"),  # while workers encode
    ],
)
def test_a_signal_while_preparing_leaves_nothing(
    tmp_path: Path, number: signal.Signals, status: int, at_work: str
) -> None:
    source = tmp_path / "data"
    source.mkdir()
    # enough lines that the signal finds it at work
    write(source / "train.en", [f"{line} {count}" for count in range(5_000) for line in ENGLISH])
    write(source / "train.de", [f"{line} {count}" for count in range(5_000) for line in GERMAN])
    arguments = ["--workers", "2", "--vocab_size", "75", "--vocabulary.sample", "1000"]
    for key, value in vars(config(source)).items():
        if key.endswith(("_source", "_target")):
            arguments += [f"--{key}", value]
    out = tmp_path / "prepared"
    out.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-m", "data_prep.text_files", *arguments, "--out", str(out / "name")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(out.glob(f".name.building-*/{at_work}")):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(child.pid, number)  # to its workers too, as a terminal would
    errors = child.communicate(timeout=60)[1]
    assert child.returncode == status
    assert errors == ("interrupted\n" if number == signal.SIGINT else "")
    assert not list(out.iterdir())
