"""The decode command: what it reads, what it writes, what it refuses."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nmt_ls.corpus import Corpus
from nmt_ls.decode import SHORT_NAMES
from nmt_ls.decoding import DecodeConfig, decode
from nmt_ls.experiment.command_line import UserError, parse
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.lines import portions_of, read_lines
from nmt_ls.search import SearchConfig

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "nmt_ls.decode", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def source_file(small_corpus: Corpus, tmp_path: Path) -> Path:
    split = small_corpus.split("test")
    file = tmp_path / "source.en"
    file.write_text("\n".join([split.source_text(0), "", split.source_text(1), split.source_text(2)]) + "\n")
    return file


def test_a_file_keeps_its_order_and_its_empty_lines(small_run: RunDirectory, source_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "hyp.de"
    decode(DecodeConfig(run=str(small_run.path), input=str(source_file), output=str(output)))
    lines = output.read_text().split("\n")
    assert len(lines) == 5
    assert lines[1] == ""
    assert all(lines[i] for i in (0, 2, 3))
    reversed_source = source_file.with_suffix(".reversed")
    reversed_source.write_text("\n".join(source_file.read_text().rstrip("\n").split("\n")[::-1]))
    decode(DecodeConfig(run=str(small_run.path), input=str(reversed_source), output=str(output)))
    assert output.read_text().rstrip("\n").split("\n")[::-1] == lines[:4]
    assert not list(tmp_path.glob("*.partial"))


def test_a_split_is_scored_against_its_references(small_run: RunDirectory, tmp_path: Path) -> None:
    """At the settings of the run's own summary, BLEU is that of the summary."""
    summary = small_run.read_summary()
    scores = decode(DecodeConfig(run=str(small_run.path), output=str(tmp_path / "hyp"), search=SearchConfig(beam=2)))
    assert scores is not None
    assert scores.bleu == pytest.approx(summary["bleu"], abs=0.5)
    assert set(scores.scores) == {"bleu", "bleu_lowercase", "chrf"}


def test_json_lines_hold_everything_known(small_run: RunDirectory, source_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "hyp.jsonl"
    config = DecodeConfig(
        run=str(small_run.path),
        input=str(source_file),
        output=str(tmp_path / "hyp"),
        json=str(output),
        temperature=1.2,
        search=SearchConfig(beam=3, nbest=2, alternatives=2),
    )
    decode(config)
    entries = [json.loads(line) for line in output.read_text().splitlines()]
    assert [entry["line"] for entry in entries] == [1, 2, 3, 4]
    assert entries[1]["translations"][0]["text"] == ""
    for entry in (entries[0], entries[2], entries[3]):
        assert len(entry["translations"]) == 2
        for one in entry["translations"]:
            assert one["tokens"][-1]["piece"] == "</s>"
            assert math.fsum(token["log_prob"] for token in one["tokens"]) == pytest.approx(one["log_prob"])
            assert all(len(token["alternatives"]) == 2 for token in one["tokens"])
            assert " ".join(word["word"] for word in one["words"]).strip() == one["text"].strip()
            assert all(0 < word["confidence"] <= 1 for word in one["words"])
    text = (tmp_path / "hyp").read_text().splitlines()
    assert [line.split("\t")[0] for line in text] == ["1", "1", "2", "3", "3", "4", "4"]


def test_references_of_a_file(small_run: RunDirectory, small_corpus: Corpus, source_file: Path, tmp_path: Path) -> None:
    split = small_corpus.split("test")
    reference = tmp_path / "reference.de"
    rows = [split.references(0)[0], "leer", split.references(1)[0], split.references(2)[0]]
    reference.write_text("\n".join(rows) + "\n")
    base = {"run": str(small_run.path), "input": str(source_file), "output": str(tmp_path / "hyp")}
    scores = decode(DecodeConfig(**base, reference=(str(reference),)))  # type: ignore[arg-type]
    assert scores is not None
    assert "nrefs:1" in scores.signatures["bleu"]
    both = decode(DecodeConfig(**base, reference=(str(reference), str(reference))))  # type: ignore[arg-type]
    assert both is not None
    assert both.bleu == pytest.approx(scores.bleu)
    reference.write_text("zu wenig\n")
    with pytest.raises(UserError, match="1 lines, but the input has 4"):
        decode(DecodeConfig(**base, reference=(str(reference),)))  # type: ignore[arg-type]


def test_a_fitted_temperature_is_announced(
    small_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decode(DecodeConfig(run=str(small_run.path), temperature="fitted", output=str(tmp_path / "hyp")))
    assert "lowest NLL on the validation split" in capsys.readouterr().err


def test_standard_input_line_by_line(small_run: RunDirectory, source_file: Path) -> None:
    """Each line is answered before the next is sent."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nmt_ls.decode", "--run", str(small_run.path), "--input", "-", "--beam", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    answers = []
    for line in source_file.read_text().splitlines():
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answers.append(process.stdout.readline())
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    at_once = command("--run", small_run.path, "--input", "-", "--beam", 2, input=source_file.read_text())
    assert at_once.returncode == 0
    assert "".join(answers) == at_once.stdout
    assert answers[1] == "\n"


def test_portions_take_what_has_arrived() -> None:
    assert sum(portions_of(io.StringIO("a\nb\nc")), []) == ["a", "b", "c"]  # noqa: RUF017
    reader, writer = os.pipe()
    stream = os.fdopen(reader)
    portions = portions_of(stream)
    os.write(writer, b"one\n")
    assert next(portions) == ["one"]
    threading.Timer(0.05, lambda: (os.write(writer, b"two\n"), os.close(writer))).start()
    assert next(portions) == ["two"]
    assert list(portions) == []


def test_the_newest_run_is_taken_and_named(small_run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "only").symlink_to(small_run.path)
    done = command("--input", "-", "--temperature", 1.13, input="A dog runs.\n", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "run: runs/only (the newest finished one)" in done.stderr
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "nowhere"], "nowhere"),
        ([], "no finished run"),
        (["--run", "RUN", "--temperature", "0"], "temperature"),
        (["--run", "RUN", "--temperature", "warm"], "temperature"),
        (["--run", "RUN", "--beam", "0"], "beam"),
        (["--run", "RUN", "--beem", "2"], "beam"),
        (["--run", "RUN", "--nbest", "9", "--beam", "2"], "nbest"),
        (["--run", "RUN", "--input", "missing.txt"], "missing.txt"),
        (["--run", "RUN", "--split", "dev"], "dev"),
        (["--run", "RUN", "--input", "latin1.txt"], "latin1.txt:2"),
        (["--run", "RUN", "--split", "test", "--input", "latin1.txt"], "split"),
        (["--run", "RUN", "--input", "-", "--prefix", "prefixes"], "prefix"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    small_run: RunDirectory, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "latin1.txt").write_bytes("gut\nschön\n".encode("latin-1"))
    (tmp_path / "prefixes").write_text("Der\n")
    done = command(*[str(small_run.path) if word == "RUN" else word for word in arguments], cwd=tmp_path, input="a\n")
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert words in errors[0]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_short_names_reach_their_settings() -> None:
    line = ["--beam", "3", "--nbest", "2", "--temperature", "1.13", "--length_penalty", "0.6"]
    config = parse(DecodeConfig, line, program="decode", description="", short_names=SHORT_NAMES)
    assert (config.search.beam, config.search.nbest, config.search.length_penalty) == (3, 2, 0.6)
    assert config.temperature == 1.13


def test_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes("eins\r\n\u2028zwei\n\ndrei".encode())
    assert read_lines(str(file)) == ["eins", "\u2028zwei", "", "drei"]
