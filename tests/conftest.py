"""A small corpus and a small trained run, made once a session, that the tests of commands share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side: a thread each, and each command that they start
    os.environ["OMP_NUM_THREADS"] = "1"

import torch
from small_runs import small_config

from nmt_ls.corpus import Corpus
from nmt_ls.embedded import EmbeddedSizes, prepare_embedded
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.training import train

SIZES = EmbeddedSizes(train=400, validation=30, test=20, vocabulary=600)


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A few hundred pairs of the embedded corpus."""
    return prepare_embedded(tmp_path_factory.mktemp("corpus") / "small", 0, SIZES)


@pytest.fixture(scope="session")
def small_run(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run on the small corpus: it has learnt little, but its files are those of any run."""
    outcome = train(small_config(small_corpus, tmp_path_factory.mktemp("runs") / "small"))
    assert outcome.summary is not None
    return outcome.run


@pytest.fixture
def tiny_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that none reaches the rate below which a processor counts as emulating them: that is left out."""
    from benchmarks import common

    monkeypatch.setattr(common, "GEMM_SHAPES", ((64, 8, 8), (4, 4, 4)))
    monkeypatch.setattr(common, "EMULATED", 0.0)


@pytest.fixture(autouse=True)
def _one_process_wide_state() -> Iterator[None]:
    """Tests leave PyTorch's switches as they found them."""
    matmul, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    convolutions = torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets that NMT_LS_DATA names; tests that need it are skipped without."""
    folder = os.environ.get("NMT_LS_DATA")
    if not folder:
        pytest.skip("NMT_LS_DATA does not name a folder with real data sets (README.md, Development)")
    return Path(folder)
