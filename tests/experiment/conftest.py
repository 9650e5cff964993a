import os

import pytest
import torch


@pytest.fixture
def quick(monkeypatch):
    """One thread, and no waiting for a disk that other tests may be keeping busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    yield
    torch.set_num_threads(before)
