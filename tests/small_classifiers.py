"""Settings of classifiers that take a second to train."""

from __future__ import annotations

from pathlib import Path

from nmt_ls.experiment.engine import EngineConfig
from nmt_ls.experiment.schedule import OptimizerConfig, ScheduleConfig
from nmt_ls.losses import LossConfig
from vision_ls.augment import AugmentConfig
from vision_ls.data import EmbeddedSizes
from vision_ls.models import ModelConfig
from vision_ls.train_config import TrainConfig


def small_training(out: Path, **changes: object) -> TrainConfig:
    """Settings with which a run takes a second."""
    settings: dict[str, object] = {
        "out": str(out),
        "precision": "fp32",
        "batch_size": 32,
        "embedded": EmbeddedSizes(train=96, validation=40, test=60),
        "loss": LossConfig(alpha=0.1),
        "model": ModelConfig(widths=(8, 8, 8)),
        "augment": AugmentConfig(pad=1, flip=True),
        "optimizer": OptimizerConfig(kind="sgd", learning_rate=0.05, momentum=0.9, nesterov=True),
        "schedule": ScheduleConfig(kind="steps", milestones=(8,)),
        "engine": EngineConfig(max_updates=12, validate_every=4, log_every=2, monitor="accuracy", average_last=0),
    }
    if changes.get("data"):
        del settings["embedded"]
    return TrainConfig(**{**settings, **changes})  # type: ignore[arg-type]
