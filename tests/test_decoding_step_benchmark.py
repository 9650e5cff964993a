"""benchmarks.decoding_step beside another checkout; nothing here is timed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import common, decoding_step, decoding_step_worker
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import read_records

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def other_tree(tmp_path: Path) -> Path:
    """A checkout with the same code, at another place."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "nmt_ls").symlink_to(ROOT / "nmt_ls")
    return tmp_path / "other"


def test_two_checkouts_are_set_beside_each_other(
    other_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    products = {name: common.Products(100.0, 1e-7) for name in ("fp32", "medium")}
    monkeypatch.setattr(decoding_step, "best_gemm_rates", lambda: products | {"bf16": common.Products(1.0, 3e-3)})
    monkeypatch.setattr(decoding_step, "state_of", lambda tree: tree.name)
    asked, measured, real = [], {}, decoding_step.run_worker

    def worker(tree: Path, work: dict[str, Any]) -> dict[str, Any]:
        """The other tree's is started once, which takes seconds, and this one's is called here; the second round is
        given the first one's figures."""
        asked.append(tree.name)
        if tree not in measured:
            measured[tree] = decoding_step_worker.measure(tree, work) if tree == ROOT else real(tree, work)
        return measured[tree]

    monkeypatch.setattr(decoding_step, "run_worker", worker)
    monkeypatch.setattr(sys, "path", [*sys.path])  # which a worker changes
    out = tmp_path / "records.jsonl"
    config = decoding_step.BenchmarkConfig(
        before=str(other_tree),
        sizes=("tiny",),
        arithmetics=("fp32",),
        sentences=3,
        source_length=4,
        steps=3,
        repeats=2,
        runs=1,
        threads=1,
        out=str(out),
    )
    decoding_step.main(config)

    assert asked == ["other", ROOT.name, ROOT.name, "other"]
    records = read_records(out)
    found = {
        (r.signature["tree"], r.signature["measured"], r.name.removeprefix("decoding_step/")): r.value for r in records
    }
    for tree, measured in (("before", "other"), ("after", ROOT.name)):
        assert found[tree, measured, "same translations"] == 3
        assert found[tree, measured, "tokens/s"] > 0
        assert found[tree, measured, "ms in matrix products"] > 0
    assert found["before", "other", "speed-up"] == 1
    assert f"tiny, fp32, other and {ROOT.name}: a step, ms\n" in capsys.readouterr().out


def test_what_is_no_checkout_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the root of a checkout with nmt_ls/search; git worktree add makes one"):
        decoding_step.find_trees(str(tmp_path))
    (tmp_path / "nmt_ls" / "search").mkdir(parents=True)
    with pytest.raises(UserError, match="is not the root of a checkout"):  # an archive
        decoding_step.find_trees(str(tmp_path))


def test_a_search_that_fails_and_one_that_finds_something_else_are_one_line(
    other_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = decoding_step.find_trees(str(other_tree))
    with pytest.raises(UserError, match=r"the search of .* failed: KeyError: 'threads'"):
        decoding_step.run_worker(trees["before"], {})

    def worker(tree: Path, _: dict[str, object]) -> dict[str, object]:
        last = 8 if tree == other_tree else 9
        return {"seconds": [1.0], "translations": [[5, 2]] * 8 + [[7, 2], [last, 2]] * 6, "profile": []}

    monkeypatch.setattr(decoding_step, "run_worker", worker)
    asked = {"sentences": 20, "steps": 2, "arithmetic": "bf16"}
    assert [row["same translations"] for row in decoding_step.compare(trees, asked, 1)] == [20, 14]
    with pytest.raises(UserError, match="only 14 of 20 translations of the two trees are the same"):
        decoding_step.compare(trees, asked | {"arithmetic": "fp32"}, 1)


def test_bad_settings_are_refused() -> None:
    for wrong in ({"sizes": ("huge",)}, {"arithmetics": ("int8",)}, {"runs": 0}, {"threads": -1}):
        with pytest.raises(ValueError, match="must be"):
            decoding_step.BenchmarkConfig(before=".", **wrong)


def test_a_checkout_whose_search_was_changed_is_said_to_be_so(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    (tmp_path / "nmt_ls" / "experiment").mkdir(parents=True)
    (tmp_path / "nmt_ls" / "experiment" / "records.py").touch()
    (tmp_path / "nmt_ls" / "a.py").write_text("1\n")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / "records.jsonl").touch()
    commit = decoding_step.state_of(tmp_path)
    assert len(commit) == 12
    (tmp_path / "nmt_ls" / "a.py").write_text("2\n")
    assert decoding_step.state_of(tmp_path) == commit + "-dirty"
