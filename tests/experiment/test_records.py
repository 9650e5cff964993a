"""Records and provenance, and the tables they are printed in."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from nmt_ls.experiment import records
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import (
    Record,
    Signature,
    append_new_records,
    append_records,
    provenance,
    read_records,
    records_of,
    store_records,
)
from nmt_ls.experiment.tables import format_table
from nmt_ls.metrics.plots import new_figure


def record(name: str = "nll", value: float = 1.5, **signature: Any) -> Record:
    return Record(name=name, value=value, signature=signature, command="python -m nmt_ls.score")


def test_records_come_back_as_they_went(tmp_path: Path) -> None:
    file = tmp_path / "results" / "study" / "records.jsonl"
    first = [record(value=0.1 + 0.2, alpha=0.1), record("bleu", 40, split="tëst", versions={"torch": "2"})]
    append_records(file, first)
    append_records(file, [record("ece", -1e-300)])
    append_records(file, [])
    assert read_records(file) == [*first, record("ece", -1e-300)]
    assert len(file.read_text().splitlines()) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1.5", None, True])
def test_a_figure_has_to_be_a_finite_number(value: Any) -> None:
    with pytest.raises(ValueError, match=r"record nll: .* is not a finite number"):
        record(value=value)


def test_a_record_needs_a_name() -> None:
    with pytest.raises(ValueError, match="needs a name"):
        record(name="")


@pytest.mark.parametrize("poison", [math.nan, object()])
def test_nothing_is_written_of_a_refused_batch(poison: Any, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    with pytest.raises(ValueError, match="record bleu: "):
        append_records(file, [record(), record("bleu", temperature=poison)])
    assert not file.exists()


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[1]",
        b'{"name": "nll", "value": 1.0}',
        b'{"name": "nll", "value": NaN, "signature": {}, "command": "c"}',
        b'{"name": "nll", "value": 1.0, "signature": {"temperature": Infinity}, "command": "c"}',
        b'{"name": "nll", "value": 1.0, "signature": [], "command": "c"}',
        b'{"name": "nll", "value": 1.0, "signature": {}, "command": "c", "more": 1}',
        b'{"name": "\xff", "value": 1.0, "signature": {}, "command": "c"}',
    ],
)
def test_a_bad_line_is_named(line: bytes, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    append_records(file, [record()])
    file.write_bytes(file.read_bytes() + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=f"^{re.escape(str(file))}, line 3: not a record: ") as caught:
        read_records(file)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("; remove the line")


@pytest.mark.parametrize("before", [[], [record("ece")]], ids=["alone", "after another"])
@pytest.mark.parametrize("length", [1, 1 << 17])
def test_a_line_torn_by_a_crash_was_never_a_record(before: list[Record], length: int, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    append_records(file, before)
    with file.open("a") as handle:
        handle.write('{"name": "nll", "command": "' + "x" * length)
    assert read_records(file) == before
    append_records(file, [])
    append_records(file, [record(), record("bleu")])
    assert read_records(file) == [*before, record(), record("bleu")]
    assert len(file.read_text().splitlines()) == len(before) + 2


def test_a_record_that_an_editor_left_without_its_newline_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    append_records(file, [record(), record("bleu")])
    file.write_text(file.read_text().rstrip("\n"))
    assert read_records(file) == [record(), record("bleu")]
    append_records(file, [record("ece")])
    assert read_records(file) == [record(), record("bleu"), record("ece")]


def test_where_the_disk_is_full_nothing_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "records.jsonl"
    append_records(file, [record()])
    write = os.write

    def full(handle: int, content: Any) -> int:
        if len(content) > 5:
            return write(handle, content[:-5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    advice = r"cannot be written \(No space left on device\); make room, then give the same command again"
    with pytest.raises(UserError, match=f"^{re.escape(str(file))}: {advice}$"):
        append_records(file, [record("bleu"), record("ece")])
    monkeypatch.undo()
    assert read_records(file) == [record()]
    assert file.read_bytes().endswith(b"\n")


def _append_many(file: Path, name: str) -> None:
    for value in range(0, 50, 2):
        append_records(file, [record(name, value + more, padding="x" * 5000) for more in range(2)])


def test_writers_side_by_side_do_not_mix_lines(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    writers = [context.Process(target=_append_many, args=(file, name)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = read_records(file)
    for name in ("a", "b"):
        assert [entry.value for entry in found if entry.name == name] == list(range(50))


def test_a_signature_leaves_out_what_does_not_apply() -> None:
    signature = Signature(alpha=0.0, seed=3, extras={"augmentation": "flip"})
    assert signature.to_dict() == {"alpha": 0.0, "seed": 3, "augmentation": "flip"}
    assert str(signature) == "alpha:0.0|seed:3|augmentation:flip"
    with pytest.raises(ValueError, match="extras may not hold beam"):
        Signature(extras={"beam": 5})


def test_a_signature_takes_the_machine_from_provenance() -> None:
    origin = {
        "commit": "abc",
        "dirty": True,
        "versions": {"torch": "2.13"},
        "device": "cpu (X)",
        "threads": 2,
        "time": "now",
    }
    assert Signature.of(origin, beam=5).to_dict() == {
        "beam": 5,
        "commit": "abc-dirty",
        "versions": {"torch": "2.13"},
        "device": "cpu (X)",
        "threads": 2,
    }
    assert Signature.of({**origin, "dirty": False}).commit == "abc"
    assert "commit" not in Signature.of({**origin, "commit": None, "dirty": None}).to_dict()


def test_provenance_says_where_a_figure_comes_from() -> None:
    found = json.loads(json.dumps(provenance("cpu"), allow_nan=False))
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(found["versions"]) == {"python", "torch", "numpy", "sacrebleu", "sentencepiece"}
    assert found["threads"] == torch.get_num_threads()
    assert found["device"] == f"cpu ({found['processor']})"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["time"])


@pytest.mark.parametrize(
    ("module", "argv", "expected"),
    [
        (
            "nmt_ls.train",
            ["/x/train.py", "--ls", "0.1", "--name", "a b"],
            "python -m nmt_ls.train --ls 0.1 --name 'a b'",
        ),
        ("package.__main__", ["/x/package/__main__.py"], "python -m package"),
        (None, ["script.py", "x"], "python script.py x"),
    ],
)
def test_the_command_can_be_typed_again(
    module: str | None, argv: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = ModuleType("__main__")
    main.__spec__ = None if module is None else ModuleSpec(module, None)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", argv)
    assert records.command() == expected


def test_commit_and_dirtiness(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        run = ["git", "-C", str(tmp_path), *author, *arguments]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()

    package = tmp_path / "package"
    for file in (package / "records.py", tmp_path / "results" / "table.csv", tmp_path / "README.md"):
        file.parent.mkdir(exist_ok=True)
        file.write_text("1")
    assert records.commit_of(package) == (None, None)
    git("init", "-q")
    git("add", "README.md", "results")
    git("commit", "-q", "-m", "one")
    assert records.commit_of(package) == (None, None)  # this checkout is somebody else's: ours is not part of it
    git("add", "package")
    git("commit", "-q", "-m", "two")
    assert records.commit_of(package) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "results" / "table.csv").write_text("2")
    (tmp_path / "untracked").write_text("2")
    assert records.commit_of(package)[1] is False
    (tmp_path / "README.md").write_text("2")
    assert records.commit_of(package)[1] is True


def test_the_commit_is_that_of_the_code_that_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    commits = iter([("that which was loaded", False), ("a later one", True)])
    monkeypatch.setattr(records, "commit_of", lambda: next(commits))
    records.own_commit.cache_clear()
    try:
        assert [provenance(threads=1)["commit"] for _ in range(2)] == ["that which was loaded"] * 2
        assert provenance(threads=1)["dirty"] is False
    finally:
        records.own_commit.cache_clear()


def test_no_git_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert records.commit_of() == (None, None)


def test_tables_are_aligned() -> None:
    rows = [
        {"run": "hard", "nll": 1.23456, "beam": 5, "bleu": 40},
        {"run": "ls", "nll": np.float32(12.5), "beam": None, "bleu": 41.026},
    ]
    assert format_table(rows, {"run": "", "nll": "", "beam": "", "bleu": ".2f", "ece": ""}).splitlines() == [
        "run     nll  beam   bleu  ece",
        "----  -----  ----  -----  ---",
        "hard  1.235     5  40.00",
        "ls     12.5        41.03",
    ]
    assert format_table([], ["a", "bc"]) == "a  bc\n-  --"
    assert format_table([{"a": True, "b": 1234567}], ["b", "a"]).splitlines()[-1] == "1234567  True"


def test_what_is_there_is_not_appended_again(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    first = Record(name="nll", value=1.5, signature={"alpha": 0.1, "seed": 1}, command="a")
    again = replace(first, signature={"seed": 1, "alpha": 0.1}, command="b")
    others = [replace(first, value=1.25), replace(first, name="ece"), replace(first, signature={"alpha": 0.1})]
    assert append_new_records(path, [first]) == 1
    assert append_new_records(path, [again, *others]) == 3
    assert read_records(path) == [first, *others]


def test_figures_and_diagrams_are_stored_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"ece": 0.1, "bleu": 40.0, "correlation": math.nan}
    found = records_of(values, {"alpha": 0.1}, {"bleu": {"sacrebleu": "tok:13a"}})
    assert [(each.name, each.signature) for each in found] == [
        ("ece", {"alpha": 0.1}), ("bleu", {"alpha": 0.1, "sacrebleu": "tok:13a"})
    ]  # fmt: skip
    store_records(tmp_path, found[:1], {"empty": new_figure(1, 1)})
    store_records(tmp_path, found, {})
    assert read_records(tmp_path / "records.jsonl") == found
    said = capsys.readouterr().err.splitlines()
    file, folder = tmp_path / "records.jsonl", tmp_path / "figures"
    assert said == [
        f"added 1 records to {file}", f"wrote {folder / 'empty.png'}", f"wrote {folder / 'empty.svg'}",
        f"added 1 records to {file} (1 were there)",
    ]  # fmt: skip
