"""How a training run settles on a machine, is taken up again, and is followed by other processes."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.experiment.training_run import KERNELS_KEPT, Outcome, follow, settle, train_in


@pytest.mark.parametrize("wanted", [None, "7"])
def test_kernels_are_kept_as_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str | None
) -> None:
    name, usual = KERNELS_KEPT
    monkeypatch.setenv(name, wanted or "")
    if wanted is None:
        monkeypatch.delenv(name)
    begun, precision = settle(tmp_path / "new", threads=0, precision="fp32", device=torch.device("cpu"))
    assert (begun, precision.kind) == ({}, "fp32")
    assert os.environ[name] == (wanted or usual)


def test_a_resume_says_that_it_keeps_its_threads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"

    def go(threads: int) -> str:
        manifest = {"threads": 2}
        train_in(path, {"threads": threads}, manifest, lambda run: Outcome(run=run, summary={}), defaults={})
        return capsys.readouterr().err

    said = f"{path}: goes on with 2 threads, as it was begun\n"
    assert [go(2), go(2), go(0), go(3)] == ["", "", "", said]
    RunDirectory(path).write_summary({})
    assert go(3) == ""


def test_a_follower_with_other_data_leaves() -> None:
    followed = list[int]()

    def take_part(_: object, *, seed: int, **__: object) -> None:
        followed.append(seed)

    def greet(checksum: str) -> Any:
        greeting = {"seed": 7, "manifest": {"threads": torch.get_num_threads(), "corpus_checksum": checksum}}
        return SimpleNamespace(rank=1, runs=lambda: iter([greeting]), follow=take_part)

    def build(seed: int, _: dict[str, Any]) -> Any:
        return SimpleNamespace(checksum="a" * 64, model=None, batches=None, loss=None, precision=None, seed=seed)

    follow(greet("a" * 64), build)
    assert followed == [7]
    with pytest.raises(UserError, match=r"process 1: its data have checksum a{12}…, .* leads b{12}…; have"):
        follow(greet("b" * 64), build)
    assert followed == [7]
