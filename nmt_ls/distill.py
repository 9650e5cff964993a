"""python -m nmt_ls.distill: train a student on the targets of a trained translator, and say what it is worth."""

from __future__ import annotations

from dataclasses import dataclass, field

from nmt_ls.experiment.command_line import run_command
from nmt_ls.experiment.distillation import OF_STUDENTS
from nmt_ls.losses import LossConfig
from nmt_ls.train import SHORT_NAMES, main
from nmt_ls.training import TrainConfig


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainConfig):
    """A training run like any other, with a teacher, which has to be named, and labels that are not smoothed.

    Without data the student is the embedded corpus's, and its teacher one of those.
    """

    loss: LossConfig = field(default_factory=lambda: LossConfig(alpha=0.0))

    def __post_init__(self) -> None:
        self.distillation.require()
        super().__post_init__()


if __name__ == "__main__":
    run_command(
        main,
        DistillConfig,
        program="python -m nmt_ls.distill",
        description="Train a student on a teacher's next-piece probabilities, or go on with one, and score it.",
        short_names={**SHORT_NAMES, **OF_STUDENTS},
    )
