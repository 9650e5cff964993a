"""A small regression with dropout, batch normalisation and batches of unequal sizes, for the tests of the engine.

Also a program: `python toy_regression.py RUN '{"max_updates": 40}'` trains it in a directory.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from nmt_ls.experiment.checkpoint import load_checkpoint
from nmt_ls.experiment.engine import Engine, EngineConfig, FitResult, StepLoss
from nmt_ls.experiment.precision import Precision
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.experiment.schedule import OptimizerConfig, ScheduleConfig, build_optimizer

BATCHES = 7  # an epoch
TRUTH = torch.linspace(-1, 1, 6)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 16), nn.ReLU()
        )
        self.output = nn.Linear(16, 1)
        self.again = self.layers[4]  # tied: one layer under two names

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.again(self.layers(x))).squeeze(-1)


def batches(epoch: int) -> Sequence[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(epoch)
    result = []
    for i in range(BATCHES):
        x = torch.randn(4 + (i * 3) % 5, 6, generator=generator)
        result.append((x, x @ TRUTH + 0.1 * torch.randn(len(x), generator=generator)))
    return result


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> StepLoss:
    x, y = batch
    error = model(x).float() - y
    return StepLoss(error.square().sum(), len(y), {"absolute": error.detach().abs().sum()})


def validate(model: nn.Module) -> dict[str, float]:
    assert not model.training
    torch.rand(3)  # a validation that draws random numbers must not disturb training
    x, y = batches(0)[0]
    error = model(x) - y
    return {"nll": float(error.square().mean()), "accuracy": float((error.abs() < 1).float().mean())}


def make_engine(run: RunDirectory, *, kind: str = "fp32", schedule: ScheduleConfig | None = None, **options) -> Engine:
    """`options`: fields of EngineConfig, and replacements for the engine's own arguments."""
    torch.manual_seed(5)
    model = options.pop("model", None) or Toy()
    optimizer_config = options.pop("optimizer_config", OptimizerConfig(learning_rate=0.02))
    names = {field.name for field in dataclasses.fields(EngineConfig)}
    settings = {"max_updates": 20, "validate_every": 5, "log_every": 3}
    settings |= {name: options.pop(name) for name in list(options) if name in names}
    arguments = {
        "batches": batches,
        "loss": loss,
        "validate": validate,
        "optimizer": build_optimizer(model, optimizer_config),
        "optimizer_config": optimizer_config,
        "schedule_config": schedule or ScheduleConfig(warmup_updates=4),
        "config": EngineConfig(**settings),
        "run": run,
        "precision": Precision(kind=kind, matmul="highest"),
        "seed": 1,
        "stream": io.StringIO(),
    }
    return Engine(model, **(arguments | options))


def train(path: Path, **options) -> FitResult:
    config = {"engine": {"max_updates": options.get("max_updates", 20)}}
    run, _ = RunDirectory.open(path, config, {})
    with run:
        return make_engine(run, **options).fit()


def same(a, b, where="") -> None:
    """Equal to the last bit, all the way down."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), where
        assert a.numpy().tobytes() == b.numpy().tobytes(), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, optimiser, random numbers, position, best, averaged and metrics; all but times."""
    for name in ("last", "best", "averaged"):
        weights_a, state_a = load_checkpoint(a / "checkpoints" / name)
        weights_b, state_b = load_checkpoint(b / "checkpoints" / name)
        for state in (state_a, state_b):
            state.get("state", {}).pop("seconds", None)
            state.get("window", {}).pop("seconds", None)
        same(weights_a, weights_b, name)
        same(state_a, state_b, name)
    same(*([p.name for p in sorted((run / "checkpoints" / "snapshots").iterdir())] for run in (a, b)))
    lines_a, lines_b = (RunDirectory(run).read_metrics() for run in (a, b))
    for line in lines_a + lines_b:
        line.pop("elapsed")
        line.pop("rate", None)
    same(lines_a, lines_b, "metrics.jsonl")


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), stream=sys.stdout, **json.loads(sys.argv[2]))
