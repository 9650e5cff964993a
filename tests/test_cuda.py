"""What runs on a GPU gives what it gives on the CPU; skipped where PyTorch sees none."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from small_classifiers import small_training
from small_runs import small_config
from test_losses_fused import make, plain, relative_errors, solved
from torch import Tensor

from benchmarks import beam_search as beam_search_benchmark
from nmt_ls import losses_fused
from nmt_ls.corpus import Corpus
from nmt_ls.experiment.engine import EngineConfig
from nmt_ls.experiment.penalty import L2Config
from nmt_ls.experiment.precision import Precision, choose_precision
from nmt_ls.losses import fused_smoothed_cross_entropy
from nmt_ls.metrics.temperature_grid import temperature_grid_statistics
from nmt_ls.search import SearchConfig
from nmt_ls.training import train as train_translator
from nmt_ls.translator import Translator
from vision_ls.augment import Augmentation, AugmentConfig
from vision_ls.data import EmbeddedSizes, embedded_images
from vision_ls.runs import Classifier
from vision_ls.training import train as train_classifier

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")


@pytest.mark.parametrize("way", ["kernel", "chunks"])
@pytest.mark.parametrize("spread", ["all", "others"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize(("rows", "classes"), [(40, 90), (700, 9001)])
def test_fused_loss(monkeypatch: pytest.MonkeyPatch, way: str, spread: str, kind: str, rows: int, classes: int) -> None:
    """Against the reference in float64 on the CPU: by the Triton kernel, and by the chunks of PyTorch."""
    if way == "chunks":
        monkeypatch.setattr(losses_fused, "_kernel", lambda *_: None)
    monkeypatch.setattr(losses_fused, "_SMALLEST_CHUNK", 1)
    hidden, weight, targets, prior = make(rows, classes, 64)
    hidden /= 4
    expected = solved(plain, hidden, weight, targets, 0.1, prior, spread)
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    given = hidden.to("cuda", dtype), weight.to("cuda", dtype), targets.cuda(), 0.1, prior.cuda(), spread
    with torch.autocast("cuda", torch.bfloat16, enabled=kind == "autocast"):
        found = solved(fused_smoothed_cross_entropy, *given)
    tolerance = 1e-6 if kind == "float32" else 2**-7  # a logit less its shift is rounded to 8 bits
    errors = relative_errors(tuple(part.cpu() for part in found), expected)
    for name, error in zip(("loss", "hidden", "weight"), errors, strict=True):
        assert error < (min(tolerance, 1e-3) if name == "loss" else tolerance), (name, error)


def test_forced_beam_search_gives_the_same_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beam_search_benchmark, "VOCABULARIES", {"tiny": 200})
    config = beam_search_benchmark.BenchmarkConfig(device="cuda", sizes=("tiny",), sentences=5, steps=6, profile=False)
    model = beam_search_benchmark.build_model("tiny").cuda()
    source_BS = beam_search_benchmark.build_sources(config, "tiny").cuda()
    for arithmetic in ("fp32", "bf16"):
        assert beam_search_benchmark.search_forced(model, source_BS, config, arithmetic) == [6] * 5


@pytest.fixture(scope="module")
def run(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped half-way on the GPU and went on there."""
    out = tmp_path_factory.mktemp("cuda") / "run"

    def trained(updates: int) -> None:
        engine = EngineConfig(max_updates=updates, validate_every=30, average_last=2, log_every=10)
        train_translator(small_config(small_corpus, out, device="cuda", precision="bf16", engine=engine))

    trained(30)
    trained(60)
    return out


def test_precision_is_measured() -> None:
    chosen = choose_precision("auto", "cuda")
    assert chosen.matmul == "highest"  # TF32 does not count as fp32
    assert set(chosen.measured) >= {"highest_rate", "medium_rate", "highest_error"}


def test_convolutions_in_fp32_are_not_in_tf32() -> None:
    Precision().apply()
    random = torch.Generator().manual_seed(0)
    x, w = torch.randn(8, 64, 16, 16, generator=random), torch.randn(64, 64, 3, 3, generator=random)
    exact = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
    found = torch.nn.functional.conv2d(x.cuda(), w.cuda(), padding=1).double().cpu()
    assert float((found - exact).norm() / exact.norm()) < 1e-5


def lines_of(corpus: Corpus, count: int) -> list[str]:
    """Sources of the test split."""
    return [corpus.split("test").source_text(row) for row in range(count)]


SEARCHES = [
    SearchConfig(beam=4, nbest=2),
    SearchConfig(beam=3, temperature=1.5, no_repeat_ngram=2, alternatives=2),
    SearchConfig(samples=3, temperature=0.7),
]


@pytest.mark.parametrize("search", SEARCHES)
def test_translations(run: Path, small_corpus: Corpus, search: SearchConfig) -> None:
    """In fp32: the same log-probabilities, and mostly the same translations (near ties may turn)."""
    lines = lines_of(small_corpus, 12)
    there, here = (Translator.load(run, "last", device).translate(lines, search) for device in ("cuda", "cpu"))
    alike = 0
    for a, b in zip(there, here, strict=True):
        alike += [t.text for t in a] == [t.text for t in b]
        if not search.samples:
            torch.testing.assert_close([t.score for t in a], [t.score for t in b], rtol=1e-3, atol=1e-3)
    assert alike >= 10


def test_several_temperatures_together(run: Path, small_corpus: Corpus) -> None:
    lines, temperatures = lines_of(small_corpus, 8), (0.8, 1.0, 1.3)
    translator = Translator.load(run, "last", "cuda")
    together = translator.translate_at(temperatures, lines, SearchConfig(beam=3))
    for temperature, found in zip(temperatures, together, strict=True):
        alone = translator.translate(lines, SearchConfig(beam=3, temperature=temperature))
        for a, b in zip(found, alone, strict=True):
            torch.testing.assert_close(a[0].score, b[0].score, rtol=1e-3, atol=1e-3)


def test_grid_of_temperatures() -> None:
    torch.manual_seed(1)
    logits_NK, targets_N = torch.randn(50, 300) * 3, torch.randint(300, (50,))
    inverse = torch.linspace(0.5, 1.5, 5).tolist()
    here = temperature_grid_statistics(logits_NK, targets_N, inverse)
    there = temperature_grid_statistics(logits_NK.cuda(), targets_N.cuda(), inverse)
    torch.testing.assert_close([part.cpu() for part in there], list(here), rtol=1e-4, atol=1e-5)


def test_augmentation_draws_the_same() -> None:
    data = embedded_images(EmbeddedSizes(train=30, validation=5, test=5))
    images = data.split("train").images_NCHW
    config = AugmentConfig(pad=2, crop=12, flip=True, brightness=20, contrast=(0.5, 1.5), normalise="data")

    def augmented(device: str) -> Tensor:
        torch.manual_seed(3)
        return Augmentation(config, data).train(images.to(device)).cpu()

    torch.testing.assert_close(augmented("cuda"), augmented("cpu"), rtol=1e-5, atol=1e-5)


def test_classifiers(tmp_path: Path) -> None:
    """Trained in bf16 on the GPU, stopped and gone on with; its logits are those of the CPU."""
    l2, out = L2Config(weight=1e-4, layers=("all",)), tmp_path / "run"
    for updates in (4, 12):
        engine = EngineConfig(
            max_updates=updates, validate_every=4, log_every=2, monitor="accuracy", average_last=0, clip_norm=1.0
        )
        outcome = train_classifier(small_training(out, device="cuda", precision="bf16", l2=l2, engine=engine))
    assert outcome.summary is not None

    def logits(device: Literal["cpu", "cuda"]) -> Tensor:
        classifier = Classifier.open(out, "last", device=device)
        return classifier.outputs(classifier.images("test"), "test").cpu()

    torch.testing.assert_close(logits("cuda"), logits("cpu"), rtol=1e-3, atol=1e-3)
