"""Settings of runs that take a second, for the tests of whatever needs a run."""

from __future__ import annotations

from pathlib import Path

from nmt_ls.corpus import Corpus
from nmt_ls.experiment.engine import EngineConfig
from nmt_ls.experiment.schedule import OptimizerConfig, ScheduleConfig
from nmt_ls.losses import LossConfig
from nmt_ls.search import SearchConfig
from nmt_ls.training import TrainConfig
from nmt_ls.transformer import TransformerConfig


def small_config(corpus: Corpus, out: Path, **changes: object) -> TrainConfig:
    """Settings with which a run takes a second."""
    settings: dict[str, object] = {
        "data": str(corpus.directory),
        "out": str(out),
        "precision": "fp32",
        "max_tokens": 800,
        "validation_sentences": 8,
        "loss": LossConfig(alpha=0.1),
        "model": TransformerConfig(width=32, feed_forward=64, heads=2, encoder_layers=1, decoder_layers=1),
        "optimizer": OptimizerConfig(learning_rate=5e-3),
        "schedule": ScheduleConfig(warmup_updates=20),
        "engine": EngineConfig(max_updates=60, validate_every=30, average_last=2, log_every=10),
        "search": SearchConfig(beam=2),
    }
    return TrainConfig(**{**settings, **changes})  # type: ignore[arg-type]


def brief_config(corpus: Corpus, out: Path, **changes: object) -> TrainConfig:
    """The same where nobody reads the translations: one checkpoint is scored, and greedily."""
    return small_config(corpus, out, **{"checkpoints": ("last",), "search": SearchConfig(beam=1), **changes})
