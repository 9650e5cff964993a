"""Where a training run stands, apart from weights, optimiser and random numbers: all that a resume needs besides."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nmt_ls.experiment.command_line import UserError


class NonFiniteError(UserError):
    """A NaN or an infinity in the loss, the gradient or a validation figure: training cannot go on."""


class StepLoss(NamedTuple):
    """What a loss function says of one batch.

    `total` is a scalar, the SUM over the batch's examples (tokens, pictures), to be differentiated; `count` how many
    they were. `extras` are further scalar sums without gradient, logged divided by count.
    """

    total: Tensor
    count: int  # type: ignore[assignment]  # a tuple has a method of this name
    extras: Mapping[str, Tensor] = {}


@dataclass(kw_only=True)
class TrainingState:
    """The position of a run, and what early stopping and averaging remember."""

    update: int = 0
    epoch: int = 1
    index: int = 0  # of the next batch in the epoch
    validated: int = 0  # the update of the last validation
    best: dict[str, float] = field(default_factory=dict)  # the figures of the best validation, and its "step"
    latest: dict[str, float] = field(default_factory=dict)  # of the last one
    since_best: int = 0  # validations
    snapshots: list[int] = field(default_factory=list)  # updates whose weights will be averaged
    seconds: float = 0.0  # of wall time, over all sessions

    def validated_with(self, figures: dict[str, float], monitor: str, higher_is_better: bool, keep: int) -> bool:
        """Take in the figures of a validation at the present update; whether they are the best so far."""
        self.latest, self.validated = {"step": self.update, **figures}, self.update
        sign = 1 if higher_is_better else -1
        better = not self.best or sign * figures[monitor] > sign * self.best[monitor]
        if better:
            self.best, self.since_best = dict(self.latest), 0
        else:
            self.since_best += 1
        self.snapshots = [*self.snapshots, self.update][-keep:] if keep else []
        return better

    def to_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return dataclasses.asdict(self)


class Window:
    """Sums since the last training line. They stay on the device until `line` reads them: no waiting in between."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._updates = 0
        self._seconds = 0.0

    def add_batch(self, loss: StepLoss) -> None:
        """Take in one batch."""
        self._add("loss", loss.total)
        for name, value in loss.extras.items():
            self._add(name, value)
        self._count += loss.count

    def add_update(self, norm: Tensor) -> None:
        """Take in one update's gradient norm."""
        self._add("grad_norm", norm)
        self._updates += 1

    def add_seconds(self, seconds: float) -> None:
        """Time spent on training, validation and checkpoints left out."""
        self._seconds += seconds

    def figures(self) -> dict[str, float]:
        """Means: of the loss and extras per count, of the gradient norm per update; and the rate in counts a second."""
        figures = {}
        names = list(self._sums)
        values = torch.stack(list(self._sums.values())).tolist()
        for name, value in zip(names, values, strict=True):
            figures[name] = value / (self._updates if name == "grad_norm" else self._count)
        figures["rate"] = self._count / self._seconds if self._seconds else 0.0
        return figures

    def to_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        sums = {name: value.clone() for name, value in self._sums.items()}
        return {"sums": sums, "count": self._count, "updates": self._updates, "seconds": self._seconds}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_dict`."""
        self._sums = {name: value.to(self._device) for name, value in state["sums"].items()}
        self._count, self._updates, self._seconds = state["count"], state["updates"], state["seconds"]

    def _add(self, name: str, value: Tensor) -> None:
        total = self._sums.get(name)
        if total is None:
            total = self._sums[name] = torch.zeros((), dtype=torch.float64, device=self._device)
        total.add_(value.detach())


class NonFiniteGuard:
    """Looks at the losses and the gradient norm of every update.

    On a CPU before the update is made. On CUDA one update late, when the numbers have reached the host by themselves,
    so that the host never waits for the device; `drain` catches up, and comes before anything is saved.
    """

    def __init__(self, device: torch.device) -> None:
        self._late = device.type == "cuda"
        self._pending: tuple[Tensor, torch.cuda.Event, TrainingState] | None = None

    def watch(self, losses: Sequence[Tensor], norm: Tensor, at: TrainingState) -> None:
        """`at`: the state before the update; losses of the batches at.index, at.index + 1, …"""
        values = torch.stack([*losses, norm])
        if not self._late:
            _look(values.tolist(), at)
            return
        self.drain()
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        self._pending = (host, arrived, dataclasses.replace(at))

    def drain(self) -> None:
        """Look at what has not been looked at yet."""
        if self._pending is not None:
            (host, arrived, at), self._pending = self._pending, None
            arrived.synchronize()
            _look(host.tolist(), at)


def _look(values: list[float], at: TrainingState) -> None:
    if all(map(math.isfinite, values)):
        return
    *losses, norm = values
    for position, loss in enumerate(losses):
        if not math.isfinite(loss):
            what, where = f"the loss is {loss}", f"batch {at.index + position}"
            break
    else:
        last = at.index + len(losses) - 1
        what = f"the gradient norm is {norm}"
        where = f"batch {at.index}" if last == at.index else f"batches {at.index} to {last}"
    raise NonFiniteError(
        f"{what} in update {at.update + 1} ({where} of epoch {at.epoch}); nothing was saved over: "
        "lower optimizer.learning_rate, lengthen schedule.warmup_updates, or set engine.clip_norm"
    )
