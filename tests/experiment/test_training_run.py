"""How a training run settles on a machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from nmt_ls.experiment.training_run import KERNELS_KEPT, settle


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
