"""The checkpoints of one run: last/, and what follows from it (best/, the snapshots, averaged/).

last/ is written first and in one piece, and says which update was the best and which are to be averaged. If a kill
comes before these are on the disk too, they are written on resume: their weights are those of last/.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nmt_ls.experiment.checkpoint import (
    average_weights,
    checkpoint_exists,
    link_checkpoint,
    load_checkpoint,
    load_state,
    remove_checkpoint,
    save_checkpoint,
    tidy_checkpoint,
)
from nmt_ls.experiment.training_state import TrainingState


class RunCheckpoints:
    """The directories last, best, averaged and snapshots/STEP under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.last, self.best, self.averaged = folder / "last", folder / "best", folder / "averaged"
        self.snapshots = folder / "snapshots"
        self.saved: int | None = None  # the update that last/ holds, once this session has loaded or written it

    def load_last(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Weights and state of last/; None if there is none. Clears up after a session that was killed."""
        for directory in (self.last, self.best, self.averaged):
            tidy_checkpoint(directory)
        if not checkpoint_exists(self.last):
            return None
        weights, content = load_checkpoint(self.last)
        self.saved = int(content["step"])
        return weights, content

    def save_last(self, weights: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        """Write last/; `content` has its "step"."""
        save_checkpoint(self.last, weights, content)
        self.saved = int(content["step"])

    def derive(self, state: TrainingState) -> None:
        """Bring best/ and the snapshots into line with last/, which holds `state`."""
        step = state.update
        newest = {"step": step, "figures": state.latest}
        if state.best.get("step") == step and not (
            checkpoint_exists(self.best) and load_state(self.best)["step"] == step
        ):
            link_checkpoint(self.last, self.best, newest)
        if step in state.snapshots and not checkpoint_exists(self.snapshots / str(step)):
            link_checkpoint(self.last, self.snapshots / str(step), newest)
        kept = {str(step) for step in state.snapshots}
        for path in list(self.snapshots.iterdir()) if self.snapshots.is_dir() else ():
            if path.name not in kept:
                remove_checkpoint(path)

    def average(self, state: TrainingState) -> None:
        """Write averaged/, the mean of the weights of the snapshots."""
        if state.snapshots:
            weights = average_weights([self.snapshots / str(step) for step in state.snapshots])
            save_checkpoint(self.averaged, weights, {"step": state.update, "averaged": list(state.snapshots)})
