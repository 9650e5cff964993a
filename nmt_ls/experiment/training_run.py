"""A training run round the engine, whatever is trained: machine settled, directory opened, summary written."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.distributed import Team
from nmt_ls.experiment.engine import Engine, EngineConfig, StepLoss
from nmt_ls.experiment.precision import Precision, choose_precision
from nmt_ls.experiment.run_directory import RunDirectory, begun_manifest
from nmt_ls.experiment.schedule import OptimizerConfig, ScheduleConfig, build_optimizer


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How training ended: the run, its summary (None where a signal stopped it first), the signal, and what was new."""

    run: RunDirectory
    summary: dict[str, Any] | None
    signal: int = 0
    already_finished: bool = False


class TrainingConfig(Protocol):
    """What of a package's configuration the engine is given."""

    @property
    def seed(self) -> int: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def schedule(self) -> ScheduleConfig: ...
    @property
    def engine(self) -> EngineConfig: ...


class Task(Protocol):
    """What a package trains; batches, loss and validate as `Engine` describes them, checksum of the data."""

    @property
    def config(self) -> TrainingConfig: ...
    @property
    def model(self) -> nn.Module: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def checksum(self) -> str: ...
    def batches(self, epoch: int, /) -> Sequence[Any]: ...
    def loss(self, model: nn.Module, batch: Any, /) -> StepLoss: ...
    def validate(self, model: nn.Module, /) -> dict[str, float]: ...


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KERNELS_KEPT = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def bound_kernel_cache() -> None:
    """Keep few of oneDNN's compiled kernels, unless the environment says how many.

    By default it keeps 1,024, each with memory of its own, and batches of many shapes fill them: a third of what a
    translator's training took. To be called before the first product of matrices, where the library reads it.
    """
    os.environ.setdefault(*KERNELS_KEPT)


def keep_freed_memory() -> None:
    """Have the C library keep freed memory rather than hand it back and get it again, page by page, zeroed.

    For training by batches of one shape, which asks for the same large pieces at every step: a fifth of a compiled
    ResNet's time, a twentieth otherwise. With batches of many shapes memory would grow. glibc only; nothing elsewhere.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(parameter, 1 << 30)


def settle(
    path: Path, *, threads: int, precision: Literal["auto", "fp32", "bf16"], device: torch.device
) -> tuple[dict[str, Any], Precision]:
    """The manifest of a run that was begun at `path` (empty for a new one), and the arithmetic of training.

    Threads (0 leaves PyTorch's choice; set process-wide) and precision are the begun run's, so that it goes on alike.
    """
    bound_kernel_cache()
    begun = begun_manifest(path)
    if threads := int(begun.get("threads", 0)) or threads:
        torch.set_num_threads(threads)
    return begun, Precision.from_manifest(begun["precision"]) if begun else choose_precision(precision, device)


def follow(team: Team, build: Callable[[int, dict[str, Any]], Task]) -> None:
    """A follower's part in a training command: a share in each of the leader's runs, until it sends the team away.

    build(seed, manifest): the task of the leader's run of that seed and manifest.

    Raises UserError where the data here are others than the leader's.
    """
    bound_kernel_cache()
    for greeting in team.runs():
        manifest = greeting["manifest"]
        torch.set_num_threads(manifest["threads"])
        task = build(greeting["seed"], manifest)
        if task.checksum != manifest["corpus_checksum"]:
            raise UserError(
                f"process {team.rank}: its data have checksum {task.checksum[:12]}…, those of the process that leads "
                f"{manifest['corpus_checksum'][:12]}…; have the same data on every machine"
            )
        team.follow(task.model, batches=task.batches, loss=task.loss, precision=task.precision, seed=greeting["seed"])


def train_in(
    path: Path,
    config: Mapping[str, Any],
    manifest: Mapping[str, Any],
    work: Callable[[RunDirectory], Outcome],
    *,
    defaults: Mapping[str, Any],
    must_match: Sequence[str] = ("corpus_checksum",),
) -> Outcome:
    """Do the work in a run's directory, opened for it, or leave a finished run alone.

    defaults, must_match: of the configuration and of the manifest, see RunDirectory.open.

    Raises UserError where the directory does not fit; a new one in which the work raises it is forgotten.
    """
    run, state = RunDirectory.open(
        path, dict(config), dict(manifest), must_match=must_match, may_differ=("threads",), defaults=defaults
    )
    with run:
        if state == "finished":
            return Outcome(run=run, summary=run.read_summary(), already_finished=True)
        if state == "resume":
            _mention_threads(run, asked=config.get("threads", 0))
        try:
            return work(run)
        except UserError:
            if state == "new":
                run.forget()
            raise


def _mention_threads(run: RunDirectory, asked: int) -> None:
    kept = run.read_manifest().get("threads", asked)
    if asked and asked != kept:
        print(f"{run.path}: goes on with {kept} threads, as it was begun", file=sys.stderr)


def fit_and_summarise(
    task: Task, run: RunDirectory, summarise: Callable[[], dict[str, Any]], *, unit: str, team: Team
) -> Outcome:
    """Train to the end, or until a signal; then finish the run with what `summarise` says of its checkpoints.

    unit: what is counted, for the progress display.

    Raises UserError as Engine.fit, and where the team cannot share an update's batches.
    """
    config, model = task.config, task.model
    team.start({"seed": config.seed, "manifest": run.read_manifest()}, config.engine.accumulation)
    engine = Engine(
        model,
        batches=task.batches,
        loss=task.loss,
        validate=task.validate,
        optimizer=build_optimizer(model, config.optimizer),
        optimizer_config=config.optimizer,
        schedule_config=config.schedule,
        config=config.engine,
        run=run,
        precision=task.precision,
        seed=config.seed,
        unit=unit,
        team=team,
    )
    result = engine.fit()
    team.finish()
    if result.stopped_by == "signal":
        return Outcome(run=run, summary=None, signal=result.signal)
    summary = {
        **summarise(),
        "updates": result.update,
        "stopped_by": result.stopped_by,
        "training_seconds": round(result.seconds, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    run.write_summary(summary)
    return Outcome(run=run, summary=summary)
