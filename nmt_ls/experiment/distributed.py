"""Several processes that share the batches of every update: `torchrun --nproc_per_node 2 -m nmt_ls.train …`.

The first process leads: it alone has the run's directory, the optimiser, validation and the messages. The others
follow. Before an update they are given the weights and the numbers of its batches, of which each takes every n-th;
afterwards the sums of their gradients, losses and counts are added to the leader's. So the configuration alone says
what an update is (`engine.accumulation` batches, however many processes share them), and nothing of a follower needs to
be saved: its random numbers are a function of seed, rank and update. Gloo on CPUs, NCCL between GPUs.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.precision import Precision
from nmt_ls.experiment.random_state import seed_everything
from nmt_ls.experiment.training_state import StepLoss

_LEADER = 0
_PATIENCE = timedelta(days=2)  # followers wait while the leader validates; that it has ended they see at once
_MOST_EXTRAS = 8


class Team:
    """The processes of a training command; alone (the default) there is one, and nothing is ever sent.

    A context manager: leaving it closes what `join` opened, and the leader's leaving sends the followers away first.
    Left in the midst of an update, by an error of the model or the machine, it lets them see for themselves that the
    leader has gone.

    Attributes:
        rank: which process this is, from 0. size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size = rank, size
        self._device = device or torch.device("cpu")
        self._dismissed = size == 1
        self._amid = False  # in an update, where the followers would not hear a word

    @classmethod
    def join(cls, device: torch.device) -> Self:
        """Join the processes that torchrun started with this one, or be alone.

        On CUDA each takes the GPU of its number on its machine. Raises UserError where there are fewer GPUs.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if device.type == "cuda":
            number = int(os.environ["LOCAL_RANK"])
            if number >= torch.cuda.device_count():
                raise UserError(
                    f"torchrun: {number + 1} or more processes, but {torch.cuda.device_count()} GPUs; start as many "
                    "processes as there are GPUs (--nproc_per_node)"
                )
            torch.cuda.set_device(number)
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=_PATIENCE)
        return cls(dist.get_rank(), size, device)

    @property
    def leads(self) -> bool:
        """Whether this process has the run's directory and the messages."""
        return self.rank == _LEADER

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if self.leads and not self._dismissed and not self._amid:
                self._dismissed = True
                self._announce("dismissed")
                self._meet()
        except UserError:
            if error is None:
                raise
        finally:
            self._close()

    def _close(self) -> None:
        """Let the group go: one still open when Python ends may abort the process, with all its work done.

        Not between GPUs that never parted in order: NCCL would wait there for those that have gone.
        """
        if self.size > 1 and dist.is_initialized() and (self._dismissed or self._device.type == "cpu"):
            dist.destroy_process_group()

    # the leader's side

    def start(self, greeting: Mapping[str, Any], accumulation: int) -> None:
        """Have the followers take up a run: `greeting` is what they need to know of it.

        Raises UserError where an update has too few batches to share.
        """
        if accumulation % self.size:
            raise UserError(
                f"engine.accumulation: {self.size} processes cannot share the {accumulation} batches of an update; "
                f"make it a multiple of {self.size} (and the batches smaller by as much)"
            )
        self._announce("run", dict(greeting))

    def share(self, model: nn.Module, update: int, epoch: int, indices: range) -> range:
        """Give the followers the weights and batches of an update (counted from 0); those batches that are our own."""
        if self.size > 1:
            self._amid = True
            self._announce("update", (update, epoch, indices.start, indices.stop))
            with _together(self):
                dist.broadcast(_flat(_trained(model)), _LEADER)
        return indices[:: self.size]

    def collect(self, model: nn.Module, losses: list[StepLoss], indices: range) -> list[StepLoss]:
        """Add the followers' gradients to ours; the losses of all the update's batches, in their order."""
        if self.size > 1:
            losses = self._collect(_trained(model), losses, indices)
            self._amid = False
        return losses

    def finish(self) -> None:
        """End the run that `start` began; another may follow."""
        self._announce("finished")

    # a follower's side

    def runs(self) -> Iterator[dict[str, Any]]:
        """The greetings of the leader's runs, one after another, until it sends the team away."""
        # an interrupt is the leader's to answer: it will save, and then say that all is over
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        while not self._dismissed:
            word, value = self._hear()
            if word == "run":
                yield value

    def follow(
        self,
        model: nn.Module,
        *,
        batches: Callable[[int], Sequence[Any]],
        loss: Callable[[nn.Module, Any], StepLoss],
        precision: Precision,
        seed: int,
    ) -> None:
        """Take a share in the updates of one run; arguments as the leader's Engine has them."""
        precision.apply()
        model.train()
        parameters = _trained(model)
        held: tuple[int, Sequence[Any]] | None = None
        while True:
            word, value = self._hear()
            if word != "update":
                return
            update, epoch, start, stop = value
            flat = torch.empty(sum(p.numel() for p in parameters), device=self._device, dtype=parameters[0].dtype)
            with _together(self):
                dist.broadcast(flat, _LEADER)
            _spread(flat, [p.data for p in parameters])
            if held is None or held[0] != epoch:
                held = epoch, batches(epoch)
            seed_everything(random.Random(f"{seed} {self.rank} {update}").getrandbits(62))
            indices = range(start, stop)
            ours = (held[1][index] for index in indices[self.rank :: self.size])
            losses = add_gradients(model, loss, ours, precision)
            self._collect(parameters, losses, indices)
            for parameter in parameters:
                parameter.grad = None

    # both sides

    def _announce(self, word: str, value: Any = None) -> None:
        if self.size > 1:
            with _together(self):
                dist.broadcast_object_list([(word, value)], _LEADER, device=torch.device("cpu"))

    def _meet(self) -> None:
        """Wait for all: a leader that left at once would break off its own last word."""
        with _together(self):
            dist.all_reduce(torch.zeros(1))

    def _hear(self) -> tuple[str, Any]:
        heard: list[Any] = [None]
        with _together(self):
            dist.broadcast_object_list(heard, _LEADER, device=torch.device("cpu"))
        word, value = heard[0]
        if word == "dismissed":
            self._dismissed = True
            self._meet()
        return word, value

    def _collect(self, parameters: Sequence[nn.Parameter], losses: list[StepLoss], indices: range) -> list[StepLoss]:
        """Sum gradients into the leader's, and gather a row of figures for each batch of the update."""
        figures = torch.zeros(len(indices), 2 + _MOST_EXTRAS, dtype=torch.float64, device=self._device)
        for row, loss in zip(range(self.rank, len(indices), self.size), losses, strict=True):
            values = [loss.total, torch.tensor(loss.count, device=self._device), *loss.extras.values()]
            figures[row, : len(values)] = torch.stack([value.detach().double() for value in values])
        gradients = _flat([p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters])
        with _together(self):
            dist.reduce(gradients, _LEADER)
            dist.reduce(figures, _LEADER)
        if not self.leads:
            return losses
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        _spread(gradients, [p.grad for p in parameters if p.grad is not None])
        counts = figures[:, 1].tolist()  # the host waits here for the device, as it does not when alone
        names = list(losses[0].extras)
        return [
            StepLoss(row[0], int(count), dict(zip(names, row[2:], strict=False)))
            for row, count in zip(figures.unbind(), counts, strict=True)
        ]


def add_gradients(
    model: nn.Module, loss: Callable[[nn.Module, Any], StepLoss], batches: Iterable[Any], precision: Precision
) -> list[StepLoss]:
    """Add the gradient of each batch's summed loss to the parameters'; the losses, detached."""
    device = next(model.parameters()).device
    losses = []
    for batch in batches:
        with precision.autocast(device.type):
            found = loss(model, batch)
        found.total.backward()  # type: ignore[no-untyped-call]
        losses.append(StepLoss(found.total.detach(), found.count, found.extras))
    return losses


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _spread(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """The reverse of `_flat`, into the tensors."""
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)])


@contextmanager
def _together(team: Team) -> Iterator[None]:
    """Where processes meet: what fails there is that one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        why = " ".join(str(error).split())[:120]
        raise UserError(
            f"process {team.rank} of {team.size} lost another one ({why}); its own message may stand above; the same "
            "command goes on from the last checkpoint"
        ) from None
