"""Fixtures of several files here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_studies import RECORD

from nmt_ls.experiment.study import Study, load_study


@pytest.fixture
def quick(monkeypatch):
    """One thread, and no waiting for a disk that other tests may be keeping busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def write_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Study]:
    """Writes a study file into a fresh working directory and loads it."""
    monkeypatch.chdir(tmp_path)
    Path("record.py").write_text(RECORD)

    def write(blocks: dict[str, Any], **settings: Any) -> Study:
        Path("small.yaml").write_text(
            yaml.safe_dump({"results": "results/small", "blocks": blocks, **settings}, sort_keys=False)
        )
        return load_study("small.yaml")

    return write
