"""The training loop, for any model that is given batches, a loss and a validation function.

Exact resume is its central promise: a run that was stopped or killed and started again ends, on the same processor with
the same threads, with the same weights, optimiser state, random numbers and metrics (but for times), bit for bit. (On
a GPU up to what its kernels leave open: some add up in no fixed order.)
So all of a run's state is in `last/`, written in one piece, and everything else on the disk follows from it: on resume
the lines of metrics.jsonl after its step are cut, and best/ and the snapshots are brought into line (run_checkpoints).
Nothing depends on max_updates, so a run that ended and was given more equals one that had as many from the start, but
for the validation at the first end, if that lay between two of the regular ones, and for schedules that need to know.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TextIO

import torch
from torch import Tensor, nn

from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.distributed import Team, add_gradients
from nmt_ls.experiment.precision import Precision
from nmt_ls.experiment.progress import Progress, TensorBoard, describe, require_tensorboard
from nmt_ls.experiment.random_state import random_state, seed_everything, set_random_state
from nmt_ls.experiment.run_checkpoints import RunCheckpoints
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.experiment.schedule import OptimizerConfig, ScheduleConfig, learning_rate
from nmt_ls.experiment.signals import Interrupted, StopSignals
from nmt_ls.experiment.training_state import NonFiniteError, NonFiniteGuard, StepLoss, TrainingState, Window

__all__ = ["Engine", "EngineConfig", "FitResult", "NonFiniteError", "StepLoss"]

# entries of a manifest (records.provenance) on which the last bits of a sum depend
_BEARS_ON_BITS = ("versions.torch", "threads", "processes", "device", "processor")
_HIGHER_IS_BETTER = ("accuracy", "bleu", "chrf")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How long to train and how often to look.

    An update takes `accumulation` batches (fewer at the end of an epoch; several processes share them) and clips the
    norm of its gradient to `clip_norm` (0: never). Validation comes every `validate_every` updates and at the end; with
    it `last/` is written, and every `checkpoint_every` updates besides (0: not besides). `patience` validations in a
    row without a better `monitor` end the run (0: never). `mode` says which way is better; auto: up for names that end
    in accuracy, bleu or chrf. `averaged/` is the mean of the weights of the last `average_last` validations (0: none).
    """

    max_updates: int = 1000
    accumulation: int = 1
    clip_norm: float = 0.0
    validate_every: int = 200
    checkpoint_every: int = 0
    log_every: int = 50
    patience: int = 0
    monitor: str = "nll"
    mode: Literal["auto", "min", "max"] = "auto"
    average_last: int = 5
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("max_updates", "accumulation", "validate_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("clip_norm", "checkpoint_every", "patience", "average_last"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.monitor == "loss" or "smooth" in self.monitor:
            raise ValueError(
                f"monitor must be a figure on hard labels, such as nll or accuracy, not {self.monitor}: "
                "the smoothed loss of one alpha says nothing beside that of another"
            )

    @property
    def higher_is_better(self) -> bool:
        """Whether the monitored figure is to rise."""
        return self.mode == "max" or (self.mode == "auto" and self.monitor.lower().endswith(_HIGHER_IS_BETTER))


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """How training ended. `best` and `latest` are validation figures with their "step"; empty if there was none.

    `stopped_by` "signal" leaves the run unfinished: the caller should leave too, with status 128 + `signal`, and write
    no summary.
    """

    update: int
    epoch: int
    stopped_by: Literal["max_updates", "patience", "signal"]
    signal: int = 0
    best: dict[str, float] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class Engine:
    """Trains `model`; see `fit`.

    batches(epoch): the batches of an epoch (counted from 1) as a sequence that may build them lazily; a pure function
        of the epoch, so that a resume can begin in the middle.
    loss(model, batch): sums over the batch, see StepLoss; moves the batch to the model's device. Runs under the
        precision's autocast.
    validate(model): figures by name, `config.monitor` among them. Runs in eval mode, without gradients, and without
        autocast; what it draws from the global random number generators is given back afterwards.
    run: an open RunDirectory. unit: what StepLoss.count counts, for the progress display, which goes to `stream`
        (standard error if None).
    seed: of dropout and whatever else draws global random numbers while training.
    team: the processes that share the batches of an update, this one their leader; left out, it is alone.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        batches: Callable[[int], Sequence[Any]],
        loss: Callable[[nn.Module, Any], StepLoss],
        validate: Callable[[nn.Module], Mapping[str, float]],
        optimizer: torch.optim.Optimizer,
        optimizer_config: OptimizerConfig,
        schedule_config: ScheduleConfig,
        config: EngineConfig,
        run: RunDirectory,
        precision: Precision,
        seed: int,
        unit: str = "examples",
        stream: TextIO | None = None,
        team: Team | None = None,
    ) -> None:
        if config.tensorboard:
            require_tensorboard()
        self.model, self.config, self.run = model, config, run
        self._batches, self._loss, self._validation = batches, loss, validate
        self._optimizer, self._peak = optimizer, optimizer_config.learning_rate
        self._schedule = schedule_config.resolved(config.max_updates)
        self._precision, self._seed, self._unit, self._stream = precision, seed, unit, stream
        self._team = team or Team()
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._device = self._parameters[0].device
        self._state = TrainingState()
        self._window = Window(self._device)
        self._guard = NonFiniteGuard(self._device)
        self._epoch: tuple[int, Sequence[Any]] | None = None
        self._checkpoints = RunCheckpoints(run.checkpoints)
        self._clock: float | None = None  # when the present stretch of training began; None: between two

    def fit(self) -> FitResult:
        """Train until max_updates, until patience is spent, or until SIGINT or SIGTERM (saves, and returns).

        Goes on from `last/` where the run has one. Leaves the last weights in the model.

        Raises NonFiniteError (a UserError) at a NaN or an infinity in the loss, the gradient norm or the monitored
        figure, with the checkpoints as they were.
        """
        self._precision.apply()
        self._start()
        state, config = self._state, self.config
        self._progress = Progress(state.update, config.max_updates, self._unit, self._stream)
        self._board = TensorBoard(self.run.tensorboard, state.update) if config.tensorboard else None
        if state.update:
            self._progress.say(f"resumed at step {state.update}")
            self._mention_changes()
        self._began = time.perf_counter()
        self._seconds_before = state.seconds
        try:
            with StopSignals() as signals:
                stopped_by = self._train(signals)
                if self._checkpoints.saved != state.update:
                    self._save_last()
                if stopped_by != "signal":
                    self._checkpoints.average(state)
                if signals.received is not None:
                    stopped_by = "signal"
                self._progress.say(self._farewell(stopped_by, signals))
        finally:
            self._progress.close()
            if self._board is not None:
                self._board.close()
        return FitResult(
            update=state.update,
            epoch=state.epoch,
            stopped_by=stopped_by,
            signal=int(signals.received or 0),
            best=dict(state.best),
            latest=dict(state.latest),
            seconds=self._elapsed(),
        )

    def _train(self, signals: StopSignals) -> Literal["max_updates", "patience", "signal"]:
        state, config = self._state, self.config
        while True:
            ended = state.update >= config.max_updates
            due = ended or (state.update > 0 and state.update % config.validate_every == 0)
            if due and state.validated < state.update:
                self._validate(signals)
            elif self._checkpoint_due():
                self._save_last()
            if signals.received is not None:
                return "signal"
            if ended:
                return "max_updates"
            if config.patience and state.since_best >= config.patience:
                return "patience"
            self._update()
            self._progress.advance()
            if state.update % config.log_every == 0:
                self._log()

    def _checkpoint_due(self) -> bool:
        every, update = self.config.checkpoint_every, self._state.update
        return every > 0 and update > 0 and update % every == 0 and self._checkpoints.saved != update

    def _update(self) -> None:
        """One update from the next `accumulation` batches of the epoch."""
        state, optimizer = self._state, self._optimizer
        if self._clock is None:
            self._clock = time.perf_counter()
        batches = self._batches_of(state.epoch)
        indices = range(state.index, min(state.index + self.config.accumulation, len(batches)))
        ours = self._team.share(self.model, state.update, state.epoch, indices)
        losses = add_gradients(self.model, self._loss, (batches[index] for index in ours), self._precision)
        losses = self._team.collect(self.model, losses, indices)
        for loss in losses:
            self._window.add_batch(loss)
        norm = self._scale_gradients(sum(loss.count for loss in losses))
        self._guard.watch([loss.total for loss in losses], norm, state)
        self._window.add_update(norm)
        rate = learning_rate(self._schedule, self._peak, state.update + 1)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.update += 1
        state.index = indices.stop
        if state.index == len(batches):
            state.epoch, state.index = state.epoch + 1, 0

    def _batches_of(self, epoch: int) -> Sequence[Any]:
        if self._epoch is None or self._epoch[0] != epoch:
            batches = self._batches(epoch)
            if len(batches) == 0:
                raise UserError(f"epoch {epoch} has no batches: the training data are empty, or all too long")
            self._epoch = (epoch, batches)
        return self._epoch[1]

    def _scale_gradients(self, count: int) -> Tensor:
        """Turn the summed gradients into their clipped mean with one multiplication; the norm of the mean, unclipped.

        The mean is g/n, clipped by min(1, c/|g/n|): together g · min(1/n, c/|g|).
        """
        if count < 1:
            at = self._state
            raise UserError(f"update {at.update + 1} (batch {at.index} of epoch {at.epoch}) has nothing to learn from")
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.config.clip_norm:
            torch._foreach_mul_(gradients, (self.config.clip_norm / norm).clamp(max=1 / count))
        else:
            torch._foreach_mul_(gradients, 1 / count)
        return norm / count

    def _log(self) -> None:
        self._guard.drain()
        self._pause()
        state = self._state
        epoch = state.epoch if state.index else state.epoch - 1
        figures, self._window = self._window.figures(), Window(self._device)
        rate, norm = figures.pop("rate"), figures.pop("grad_norm")
        lr = self._optimizer.param_groups[0]["lr"]
        line = {"step": state.update, "split": "train", "epoch": epoch, **figures, "lr": lr, "grad_norm": norm}
        line |= {"rate": rate, "elapsed": self._elapsed()}
        self._write(line)
        self._progress.figures(line)

    def _validate(self, signals: StopSignals) -> None:
        """Validate, and save what follows from it; a signal meanwhile throws the validation away, to be made again."""
        self._guard.drain()
        self._pause()
        state, config = self._state, self.config
        figures = self._figures(signals)
        if figures is None:
            return
        if config.monitor not in figures:
            raise UserError(f"engine.monitor: validation gives no {config.monitor}, only {', '.join(figures)}")
        value = figures[config.monitor]
        if not abs(value) < float("inf"):
            raise NonFiniteError(
                f"{config.monitor} in validation is {value} at update {state.update}; nothing was saved over: "
                "lower optimizer.learning_rate, lengthen schedule.warmup_updates, or set engine.clip_norm"
            )
        line = {"step": state.update, "split": "validation", **figures, "elapsed": self._elapsed()}
        self._write(line)
        better = state.validated_with(figures, config.monitor, config.higher_is_better, config.average_last)
        self._save_last()
        self._checkpoints.derive(state)
        best = "the best so far" if better else f"best {state.best[config.monitor]:.4g} at {state.best['step']}"
        self._progress.say(f"validation at update {state.update}: {describe(figures)} ({config.monitor}: {best})")

    def _figures(self, signals: StopSignals) -> dict[str, float] | None:
        """What validation says; None if a signal cut it short. Leaves random numbers and modes as they were."""
        modes = [(module, module.training) for module in self.model.modules()]
        numbers = random_state(self._device)
        self.model.eval()
        try:
            with signals.interruptible(), torch.no_grad():
                return {name: float(value) for name, value in self._validation(self.model).items()}
        except Interrupted:
            return None
        finally:
            for module, mode in modes:
                module.training = mode
            set_random_state(numbers, self._device)

    def _farewell(self, stopped_by: str, signals: StopSignals) -> str:
        state, monitor = self._state, self.config.monitor
        if signals.received is not None:
            where = f"saved in {self._checkpoints.last}; the same command goes on from there"
            return f"stopped by {signals.received.name} at update {state.update}, {where}"
        best = f"best {monitor} {state.best[monitor]:.4g} at update {state.best['step']}"
        why = f": {state.since_best} validations without a better one" if stopped_by == "patience" else ""
        return f"trained to update {state.update}; {best}{why}"

    def _mention_changes(self) -> None:
        """Say what may make the rest of this run differ, in the last bits, from what it would have been."""
        for key, (was, now) in self.run.changes.items():
            if was is not None and key.endswith(_BEARS_ON_BITS):
                self._progress.say(f"note: begun with {key} {was}, resumed with {now}: not bit for bit the same run")

    def _start(self) -> None:
        """Take up the state in last/, or begin; and clear away what a killed session wrote after it."""
        found = self._checkpoints.load_last()
        if found is None:
            seed_everything(self._seed)
        else:
            self._take_up(*found)
            self._checkpoints.derive(self._state)
        self._optimizer.zero_grad(set_to_none=True)
        self.model.train()
        self.run.cut_metrics(self._state.update, self._state.validated)

    def _take_up(self, weights: dict[str, Tensor], content: dict[str, Any]) -> None:
        was, now = content["total_updates"], self._schedule.total_updates
        if self._schedule.needs_total and was != now:
            raise UserError(
                f"engine.max_updates: the {self._schedule.kind} schedule of {self.run.path} ends at update {was} "
                f"and cannot be stretched to {now}; begin another run"
            )
        try:
            self.model.load_state_dict(weights)
            self._optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            why = " ".join(str(error).split())
            raise UserError(f"{self._checkpoints.last}: not of this model ({why})") from None
        self._state = TrainingState(**content["state"])
        self._window.restore(content["window"])
        set_random_state(content["random"], self._device)

    def _save_last(self) -> None:
        """Write last/: the moment at which updates become part of the run's past."""
        self._guard.drain()
        self._pause()
        self._state.seconds = self._elapsed()
        content = {
            "step": self._state.update,
            "state": self._state.to_dict(),
            "window": self._window.to_dict(),
            "optimizer": self._optimizer.state_dict(),
            "random": random_state(self._device),
            "total_updates": self._schedule.total_updates,
        }
        self.run.sync_metrics()
        self._checkpoints.save_last(self.model.state_dict(), content)

    def _write(self, line: Mapping[str, Any]) -> None:
        self.run.append_metrics(line)
        if self._board is not None:
            self._board.write(line)

    def _elapsed(self) -> float:
        return self._seconds_before + time.perf_counter() - self._began

    def _pause(self) -> None:
        """Close the present stretch of training time; the next update opens another."""
        if self._clock is not None:
            self._window.add_seconds(time.perf_counter() - self._clock)
            self._clock = None
