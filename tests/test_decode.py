"""The decode command: what it reads, what it writes, what it refuses."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from nmt_ls.corpus import Corpus
from nmt_ls.decode import SHORT_NAMES, main
from nmt_ls.decoding import DecodeConfig, decode
from nmt_ls.experiment.command_line import UserError, parse, run_command
from nmt_ls.experiment.config_help import field_help
from nmt_ls.experiment.precision import Precision
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.lines import Writer, portions_of, read_lines
from nmt_ls.metrics.translation import translation_scores
from nmt_ls.reporting import ScoreConfig
from nmt_ls.runs import run_corpus
from nmt_ls.scoring import first_text
from nmt_ls.search import SearchConfig
from nmt_ls.search_changes import SearchChanges
from nmt_ls.translator import EMPTY, Translator
from nmt_ls.workers import Workers, shard_starts

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
POSIX = {**ENVIRONMENT, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def command(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "nmt_ls.decode", *map(str, arguments)]
    options = {"text": True, "env": ENVIRONMENT, **options}
    return subprocess.run(line, capture_output=True, timeout=120, **options)  # type: ignore[call-overload, no-any-return]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one `error:` line of a command that refuses and prints nothing else that is to be read on."""
    with pytest.raises(SystemExit) as left:
        run_command(
            main,
            DecodeConfig,
            program="decode",
            description="",
            short_names=SHORT_NAMES,
            argv=list(map(str, arguments)),
        )
    said = capsys.readouterr()
    assert left.value.code == 2, said.err
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said.err
    return errors[0]


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


def test_a_split_is_scored_as_in_the_summary(small_run: RunDirectory, tmp_path: Path) -> None:
    """What is not given is the run's own: the scores are those of its summary, and the recipe says how."""
    summary = small_run.read_summary()["checkpoints"]["averaged"]
    decoded = decode(DecodeConfig(run=str(small_run.path), checkpoint="averaged", output=str(tmp_path / "hyp")))
    scores = decoded.scores
    assert scores is not None
    for name in ("bleu", "bleu_lowercase", "chrf"):
        assert scores.scores[name] == pytest.approx(summary[name], abs=1e-6)
    recipe = decoded.signature.to_dict()
    expected = {"alpha": 0.1, "beam": 2, "temperature": 1.0, "length_penalty": "average:1", "checkpoint": "averaged"}
    assert expected.items() <= recipe.items()
    assert recipe["split"] == "test"
    assert recipe["corpus"] == small_run.read_manifest()["corpus_checksum"]
    assert {"commit", "precision"} <= set(recipe)
    assert "bins" not in recipe  # nothing was binned


def test_what_is_given_changes_the_runs_search(small_run: RunDirectory, source_file: Path, tmp_path: Path) -> None:
    config = DecodeConfig(
        run=str(small_run.path),
        input=str(source_file),
        output=str(tmp_path / "hyp"),
        temperature=1.3,
        search=SearchChanges(length_penalty=0.5, min_length=3),
    )
    recipe = decode(config).signature.to_dict()
    assert (recipe["beam"], recipe["temperature"], recipe["length_penalty"]) == (2, 1.3, "average:0.5")
    assert recipe["search"] == {"min_length": 3}  # unusual, so it is said
    assert recipe["dropout"] == 0.1  # never left unsaid
    assert "split" not in recipe
    assert recipe["input"] == str(source_file)
    with pytest.raises(UserError, match=r"search\.nbest must be from 1 to beam \(2\)"):
        decode(DecodeConfig(run=str(small_run.path), search=SearchChanges(nbest=3)))


def test_draws_with_a_seed_of_their_own_have_a_recipe_too(
    small_run: RunDirectory, source_file: Path, tmp_path: Path
) -> None:
    config = DecodeConfig(
        run=str(small_run.path),
        input=str(source_file),
        output=str(tmp_path / "hyp"),
        search=SearchChanges(samples=2, seed=3),
    )
    recipe = decode(config).signature.to_dict()
    assert recipe["seed"] == 1  # of the training
    assert recipe["search"] == {"samples": 2, "seed": 3}


def test_changes_of_a_search() -> None:
    run = SearchConfig(beam=7, nbest=3, max_length_factor=0.0, max_length_offset=40, stop="early")
    assert SearchChanges().applied_to(run) == run
    changed = SearchChanges(beam=4, allow_unknown=False, samples=0).applied_to(run)
    assert (changed.beam, changed.nbest, changed.allow_unknown, changed.stop) == (4, 3, False, "early")
    # the longest length may be judged only beside the run's other half
    assert SearchChanges(max_length_offset=0).applied_to(SearchConfig(max_length_factor=1.5)).max_length_offset == 0
    with pytest.raises(UserError, match=r"search\.max_length_factor"):
        SearchChanges(max_length_offset=0).applied_to(run)
    for wrong in ({"top_p": 2.0}, {"beam": 0}, {"nbest": 0}, {"beam": 2, "nbest": 3}, {"length_penalty": math.inf}):
        with pytest.raises(ValueError, match=list(wrong)[-1]):
            SearchChanges(**wrong)  # type: ignore[arg-type]
    ours = {entry.name for entry in dataclasses.fields(SearchChanges)}
    assert ours == {entry.name for entry in dataclasses.fields(SearchConfig)} - {"temperature"}


def test_json_lines_hold_everything_known(small_run: RunDirectory, source_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "hyp.jsonl"
    config = DecodeConfig(
        run=str(small_run.path),
        input=str(source_file),
        output=str(tmp_path / "hyp"),
        json=str(output),
        temperature=1.2,
        search=SearchChanges(beam=3, nbest=2, alternatives=2),
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


def test_references_of_a_file(
    small_run: RunDirectory,
    small_corpus: Corpus,
    source_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split = small_corpus.split("test")
    reference = tmp_path / "reference.de"
    rows = [split.references(0)[0], "leer", split.references(1)[0], split.references(2)[0]]
    reference.write_text("\n".join(rows) + "\n")
    base = {"run": str(small_run.path), "input": str(source_file), "output": str(tmp_path / "hyp")}
    scores = decode(DecodeConfig(**base, reference=(str(reference),))).scores  # type: ignore[arg-type]
    assert scores is not None
    assert "nrefs:1" in scores.signatures["bleu"]
    hypotheses = (tmp_path / "hyp").read_text().removesuffix("\n").split("\n")
    assert scores == translation_scores(hypotheses, rows, ("bleu", "bleu_lowercase", "chrf", "ter"))
    both = decode(DecodeConfig(**base, reference=(str(reference), str(reference)))).scores  # type: ignore[arg-type]
    assert both is not None
    assert both.bleu == pytest.approx(scores.bleu)
    piped: dict[str, object] = {**base, "input": "-", "reference": (str(reference),)}
    monkeypatch.setattr("nmt_ls.decoding.standard_input", lambda: io.BytesIO(source_file.read_bytes()))
    from_pipe = decode(DecodeConfig(**piped))  # type: ignore[arg-type]
    assert from_pipe.scores == scores
    assert "|input:-|" in str(from_pipe.signature)
    reference.write_text("zu wenig\n")
    # of standard input the lines are known at the end only; what was translated is there
    (tmp_path / "hyp").unlink()
    with pytest.raises(UserError, match="1 lines, but the input has 4"):
        decode(DecodeConfig(**piped))  # type: ignore[arg-type]
    assert len((tmp_path / "hyp").read_text().splitlines()) == 4
    with pytest.raises(UserError, match="1 lines, but the input has 4"):
        decode(DecodeConfig(**base, reference=(str(reference),)))  # type: ignore[arg-type]


def test_a_fitted_temperature_is_announced(
    small_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decode(DecodeConfig(run=str(small_run.path), temperature="fitted", output=str(tmp_path / "hyp")))
    assert "lowest NLL on the validation split" in capsys.readouterr().err


def test_standard_input_line_by_line(small_run: RunDirectory, source_file: Path, tmp_path: Path) -> None:
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
    output = tmp_path / "hyp"
    decode(DecodeConfig(run=str(small_run.path), input=str(source_file), output=str(output)))
    assert "".join(answers) == output.read_text()
    assert answers[1] == "\n"


def test_portions_take_what_has_arrived() -> None:
    assert sum(portions_of(io.BytesIO(b"\xef\xbb\xbfa\nb\r\nc")), []) == ["a", "b", "c"]  # noqa: RUF017
    reader, writer = os.pipe()
    portions = portions_of(os.fdopen(reader, "rb"))
    os.write(writer, b"one\n")
    assert next(portions) == ["one"]
    threading.Timer(0.05, lambda: (os.write(writer, b"two\n"), os.close(writer))).start()
    assert next(portions) == ["two"]
    assert list(portions) == []


def test_standard_input_that_cannot_be_read_is_no_endless_wait() -> None:
    class Broken(io.BytesIO):
        def __next__(self) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(UserError, match="standard input: Input/output error"):
        list(portions_of(Broken()))


def test_bytes_that_are_no_text_are_refused_whatever_the_locale(small_run: RunDirectory) -> None:
    done = command("--run", small_run.path, "--input", "-", input=b"a\xff", text=False, env=POSIX)
    assert done.returncode == 2, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith(b"error: "))
    assert line == b"error: standard input, line 1: not valid UTF-8 (byte 0xff at 2); convert the text"
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


def test_the_line_that_is_no_text_is_named_once_those_before_it_were_taken() -> None:
    for bad, words in (
        (b"A\0cat.\n", "line 3: it holds a NUL byte"),
        (b"caf\xe9\n", r"line 3: not valid UTF-8 \(byte"),
    ):
        taken: list[str] = []
        portions = portions_of(io.BytesIO(b"A dog.\n\n" + bad + b"more\n"))
        with pytest.raises(UserError, match=words):
            taken.extend(line for portion in portions for line in portion)
        assert taken == ["A dog.", ""]


def test_the_newest_run_is_taken_and_named_and_text_is_utf8_whatever_the_locale(
    small_run: RunDirectory, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "only").symlink_to(small_run.path)
    (tmp_path / "source").write_text("A dog in a café.\n")
    (tmp_path / "prefix").write_text("schön\n")
    arguments = ["--input", "source", "--prefix", "prefix", "--temperature", 1.13]
    done = command(*arguments, text=False, env=POSIX, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"run: runs/only (the newest finished one)" in done.stderr
    assert done.stdout.startswith("schön".encode())
    assert done.stdout.count(b"\n") == 1


def feed_a_line(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Write a line to its standard input, and wait until something of its output lies in the folder."""
    assert process.stdin is not None
    process.stdin.write(b"A dog.\n")
    process.stdin.flush()
    while not any(path.stat().st_size for path in folder.glob("*.partial")):
        assert process.poll() is None
        time.sleep(0.02)


def test_an_interrupt_leaves_quietly_and_nothing_behind(small_run: RunDirectory, tmp_path: Path) -> None:
    """Also while a thread waits for standard input."""
    output = tmp_path / "hyp"
    process = subprocess.Popen(
        [sys.executable, "-m", "nmt_ls.decode", "--run", small_run.path, "--input", "-", "--output", output],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    feed_a_line(process, tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert process.wait(timeout=60) == 130
    assert process.stderr.read().endswith(b"interrupted\n")
    assert list(tmp_path.iterdir()) == []
    process.stdin.close()
    process.stderr.close()


@pytest.mark.parametrize("prefixed", [False, True], ids=["beam", "samples, prefixes"])
def test_workers_translate_what_one_process_does(
    prefixed: bool, small_run: RunDirectory, source_file: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)  # as of each worker
    search, prefix = SearchChanges(beam=2), None
    if prefixed:
        search, prefix = SearchChanges(samples=2), str(tmp_path / "prefix")
        Path(prefix).write_text("".join(f"{'der' * (n % 2)}\n" for n in range(len(read_lines(str(source_file))))))
    base = DecodeConfig(run=str(small_run.path), input=str(source_file), prefix=prefix, search=search)
    written = []
    for workers in (1, 2):
        output = tmp_path / f"hyp{workers}"
        decode(dataclasses.replace(base, output=str(output), workers=workers))
        written.append(output.read_text())
    assert written[0] == written[1]
    assert written[0].strip()


def test_shards_have_about_as_many_characters_each() -> None:
    assert shard_starts([5, 5, 5, 5], 2) == [0, 2]
    assert shard_starts([100, 1, 1, 1, 1], 3) == [0, 1, 1]  # one may be empty
    assert shard_starts([], 2) == [0, 0]
    assert shard_starts([0, 0], 2) == [0, 0]


def test_a_worker_that_ends_and_one_that_refuses_are_told_in_a_line(small_run: RunDirectory, tmp_path: Path) -> None:
    settings = {"max_tokens": 100, "on_truncated": print, "on_progress": print}
    with Workers(2, small_run.path, "best", "cpu", Precision()) as workers:
        found = workers.translate(["A dog.", "", "A cat."], SearchConfig(beam=1), **settings)
        assert found[1] == [EMPTY]
        workers._processes[1].kill()
        with pytest.raises(UserError, match=r"workers: one of 2 came to an end \(exit code -9"):
            workers.translate(["A dog.", "A cat."], SearchConfig(beam=1), **settings)
    assert not any(process.is_alive() for process in workers._processes)
    with (
        Workers(1, tmp_path, "best", "cpu", Precision()) as workers,
        pytest.raises(UserError, match=r"config\.yaml"),
    ):
        workers.translate(["A dog."], SearchConfig(beam=1), **settings)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_the_command(number: signal.Signals, small_run: RunDirectory, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "nmt_ls.decode", "--run", small_run.path, "--input", "-"),
            *("--workers", "2", "--output", tmp_path / "hyp"),
        ],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    feed_a_line(process, tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    process.send_signal(number)
    status = process.wait(timeout=60)  # also while a thread waits for standard input
    process.stdin.close()
    for _ in range(500):
        if not any(Path(f"/proc/{child}").exists() for child in children):
            break
        time.sleep(0.02)
    else:
        pytest.fail(f"of {children} some live on")
    if number == signal.SIGINT:  # it leaves quietly, and nothing behind
        assert status == 130
        assert process.stderr.read().endswith(b"interrupted\n")
        assert list(tmp_path.iterdir()) == []
    process.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "nowhere"], "nowhere"),
        ([], "no finished run"),
        (["--run", "RUN", "--temperature", "0"], "temperature"),
        (["--run", "RUN", "--temperature", "warm"], "temperature"),
        (["--run", "RUN", "--temperature", "1e-42"], "search at temperature 1e-42: the model's logits are not numbers"),
        (["--run", "RUN", "--beam", "0"], "beam"),
        (["--run", "RUN", "--beem", "2"], "beam"),
        (["--run", "RUN", "--nbest", "9", "--beam", "2"], "nbest"),
        (["--run", "RUN", "--input", "missing.txt"], "missing.txt"),
        (["--run", "RUN", "--split", "dev"], "dev"),
        (["--run", "RUN", "--input", "latin1.txt"], "latin1.txt:2"),
        (["--run", "RUN", "--split", "test", "--input", "latin1.txt"], "split"),
        (["--run", "RUN", "--input", "-", "--prefix", "prefixes"], "prefix"),
        (["--run", "RUN", "--input", "-", "--reference", "missing.de"], "missing.de"),
        (
            [
                "--run",
                "RUN",
                "--input",
                "prefixes",
                "--prefix",
                "prefixes",
                "--search.max_length_offset",
                "1",
                "--search.max_length_factor",
                "0",
            ],
            "prefixes:1: its ",
        ),
        (["--run", "RUN", "--alternatives", "100000"], "search.alternatives: 100000 is more than"),
        (["--run", "RUN", "--output", "no/where/hyp"], "output: no/where/hyp cannot be written"),
        (["--run", "RUN", "--json", "."], "json: . is a directory"),
        (["--run", "RUN", "--data", "nowhere"], "nowhere is not a prepared corpus"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    small_run: RunDirectory,
    tmp_path: Path,
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin1.txt").write_bytes("gut\nschön\n".encode("latin-1"))
    (tmp_path / "prefixes").write_text("Der\n")
    monkeypatch.setattr("nmt_ls.decoding.standard_input", lambda: io.BytesIO(b"a\n"))
    assert words in refusal(capsys, *[small_run.path if word == "RUN" else word for word in arguments])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latin1.txt", "prefixes"]


def test_short_names_reach_their_settings() -> None:
    line = ["--beam", "3", "--nbest", "2", "--temperature", "1.13", "--length_penalty", "0.6"]
    config = parse(DecodeConfig, line, program="decode", description="", short_names=SHORT_NAMES)
    assert (config.search.beam, config.search.nbest, config.search.length_penalty) == (3, 2, 0.6)
    assert config.temperature == 1.13
    line = ["--length_penalty_kind", "gnmt", "--alternatives", "4", "--samples", "5", "--seed", "6"]
    search = parse(DecodeConfig, line, program="decode", description="", short_names=SHORT_NAMES).search
    given = {"length_penalty_kind": "gnmt", "alternatives": 4, "samples": 5, "seed": 6}
    assert search.given() == given


def test_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes("eins\r\n\u2028zwei\n\ndrei".encode())
    assert read_lines(str(file)) == ["eins", "\u2028zwei", "", "drei"]
    file.write_bytes(b"\xef\xbb\xbfone\ntwo\n")
    assert read_lines(str(file)) == ["one", "two"]
    file.write_bytes(b"")
    assert read_lines(str(file)) == []
    file.write_bytes(b"one\ntw\0o\n")
    with pytest.raises(UserError, match="lines:2: it holds a NUL byte"):
        read_lines(str(file))


def test_what_is_written_is_neither_read_nor_written_twice(tmp_path: Path) -> None:
    here = str(tmp_path / "lines")
    roundabout = str(tmp_path / "up" / ".." / "lines")
    for wrong in (
        {"input": here, "output": roundabout},
        {"input": here, "json": roundabout},
        {"input": "-", "output": here, "json": roundabout},
        {"input": "-", "reference": ("other", here), "output": roundabout},
        {"input": "other", "prefix": here, "json": roundabout},
    ):
        with pytest.raises(ValueError, match="are the same file"):
            DecodeConfig(**wrong)  # type: ignore[arg-type]


def test_nothing_is_loaded_before_the_inputs_were_read(
    small_run: RunDirectory, source_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("nmt_ls.decoding.Translator.load", load)
    run, short = str(small_run.path), tmp_path / "short"
    short.write_text("eins\n")
    for wrong in (
        {"input": str(source_file), "reference": (str(short),)},
        {"input": str(source_file), "prefix": str(short)},
        {"input": str(tmp_path / "missing")},
        {"split": "dev"},
        {"output": str(tmp_path / "no" / "hyp")},
        {"data": str(tmp_path), "temperature": "fitted", "input": str(source_file)},
    ):
        with pytest.raises(UserError):
            decode(DecodeConfig(run=run, **wrong))  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="the model was loaded"):
        decode(DecodeConfig(run=run, input=str(source_file), output=str(tmp_path / "hyp"), json=str(tmp_path / "j")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short", source_file.name]


def test_a_device_is_written_into(small_run: RunDirectory, source_file: Path) -> None:
    decode(DecodeConfig(run=str(small_run.path), input=str(source_file), output="/dev/null"))
    assert Path("/dev/null").is_char_device()


def test_the_line_of_a_prefix_is_the_files(small_run: RunDirectory, tmp_path: Path) -> None:
    """Not the row in a batch sorted by length, nor in a portion."""
    lines = ["A dog runs in the park.", "", "A cat."] * 700 + ["A dog."]
    prefixes = [""] * 2100 + ["der Hund " * 40]
    source, prefix = tmp_path / "source", tmp_path / "prefix"
    source.write_text("\n".join(lines) + "\n")
    prefix.write_text("\n".join(prefixes) + "\n")
    config = DecodeConfig(run=str(small_run.path), input=str(source), prefix=str(prefix), output=str(tmp_path / "hyp"))
    with pytest.raises(UserError, match=r"prefix:2101: its \d+ pieces and the end-of-sentence are more than the \d+"):
        decode(config)
    assert not list(tmp_path.glob("hyp*"))


def moved(run: RunDirectory, place: Path, corpus: str) -> RunDirectory:
    """A copy of a run whose manifest has another path for its corpus."""
    copy = RunDirectory(shutil.copytree(run.path, place))
    copy.manifest_file.write_text(json.dumps({**copy.read_manifest(), "corpus": corpus}))
    return copy


def test_a_run_finds_its_corpus_from_another_directory(
    small_run: RunDirectory, small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_corpus.directory, tmp_path / "project" / "data" / "small")
    run = moved(small_run, tmp_path / "project" / "runs" / "one", "data/small")
    monkeypatch.chdir(tmp_path)
    assert run_corpus(run.path).checksum == small_corpus.checksum
    monkeypatch.chdir(tmp_path / "project")
    assert run_corpus(Path("runs/one")).directory == Path("data/small")
    gone = moved(small_run, tmp_path / "two", "data/elsewhere")
    with pytest.raises(UserError, match=r"data/elsewhere: the corpus that .* name its place with --data"):
        run_corpus(gone.path)
    assert run_corpus(gone.path, "data/small").checksum == small_corpus.checksum
    gone.manifest_file.write_text(json.dumps({**gone.read_manifest(), "corpus_checksum": "other"}))
    with pytest.raises(UserError, match="data: data/small is not the corpus"):
        run_corpus(gone.path, "data/small")


def test_a_corpus_that_changed_is_refused(small_run: RunDirectory, small_corpus: Corpus, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_corpus.directory, tmp_path / "small"))
    (arrow,) = (copy / "test").glob("*.arrow")
    before = small_corpus.split("test").references(3)[0].encode()
    content = arrow.read_bytes()
    assert before in content
    arrow.write_bytes(content.replace(before, before.swapcase()))
    config = DecodeConfig(run=str(small_run.path), data=str(copy), output=str(tmp_path / "hyp"))
    with pytest.raises(UserError, match=r"small/test: changed since the corpus was prepared .*; prepare the corpus"):
        decode(config)
    corpus = run_corpus(small_run.path, str(copy))
    with pytest.raises(UserError, match="changed since"):
        corpus.split("test")
    with pytest.raises(UserError, match="changed since"):  # again
        corpus.split("test")
    assert len(corpus.split("validation")) == len(small_corpus.split("validation"))


def test_a_file_is_translated_where_the_corpus_is_not(
    small_run: RunDirectory, source_file: Path, tmp_path: Path
) -> None:
    gone = moved(small_run, tmp_path / "run", "data/elsewhere")
    decoded = decode(DecodeConfig(run=str(gone.path), input=str(source_file), output=str(tmp_path / "hyp")))
    assert decoded.signature.corpus == small_run.read_manifest()["corpus_checksum"]
    assert decoded.scores is None


def test_samples_do_not_depend_on_how_lines_arrive(small_run: RunDirectory, small_corpus: Corpus) -> None:
    translator = Translator.load(small_run.path)
    lines = [small_corpus.split("test").source_text(row) for row in range(3)]
    search = SearchConfig(samples=2)
    together = translator.translate(lines, search)
    alone = [translator.translate([line], search, first_line=place)[0] for place, line in enumerate(lines)]
    assert [[one.text for one in row] for row in together] == [[one.text for one in row] for row in alone]


def test_where_constraints_leave_no_translation_there_is_an_empty_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        writer = Writer(None, str(tmp_path / "json"), 1, stack)
        writer.write(["one", "two"], [[], [EMPTY]])
    assert capsys.readouterr().out == "\n\n"
    assert first_text([]) == ""
    assert len((tmp_path / "json").read_text().splitlines()) == 2


def test_every_option_has_a_help_of_its_own() -> None:
    for config_class in (DecodeConfig, ScoreConfig, SearchChanges):
        helps = field_help(config_class)
        named = [entry.name for entry in dataclasses.fields(config_class) if entry.name != "search"]
        assert set(named) <= set(helps)
        if config_class is not SearchChanges:
            assert len({helps[name] for name in named}) == len(named)
