"""python -m benchmarks.image_training: training images a second of the classifiers, by arithmetic, layout, compilation.

A step is what training does by a recipe of configs/vision: rows gathered, its augmentation, forward pass, smoothed loss
and penalty, backward pass, norm of the gradient, its optimiser. Contestants take turns; the share of augmentation
stands beside.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import (
    arithmetic_here,
    best_gemm_rates,
    check_clock,
    describe_machine,
    print_table,
    ratio,
    take_turns,
    write_records,
)
from nmt_ls.experiment.command_line import parse, run_command
from nmt_ls.experiment.precision import Precision
from nmt_ls.experiment.schedule import build_optimizer
from nmt_ls.experiment.training_run import keep_freed_memory
from vision_ls.data import ImageData, ImageSplit
from vision_ls.models import ImageModel
from vision_ls.train_config import TrainConfig, new_model
from vision_ls.training import ClassificationTask, compiled

CONTESTANTS = tuple(
    f"{arithmetic}{way}" for way in ("", "-contiguous", "-compiled") for arithmetic in ("fp32", "medium", "bf16")
)
DEFAULT = (*CONTESTANTS[:6], "bf16-compiled")
PROGRAM = "python -m benchmarks.image_training"
PLAIN = "fp32-contiguous"
"""What PyTorch does unless asked otherwise: the rates' ratios are to it."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
        recipes: training configurations, each on random images of ten classes, with smoothing 0.1.
        side: of the images, in pixels, before augmentation; three channels.
        contestants: fp32 (PyTorch's default kernels), medium (fp32 by oneDNN's) or bf16; channels last but for
            -contiguous; -compiled by TorchInductor, as `vision_ls.train --compile true` does. Empty for all but two
            compiled ones, without bf16 where it is emulated.
        batch_size: images of a step, in place of the recipe's.
        steps: of a round.
        repeats: rounds, interleaved.
        threads: 0 leaves PyTorch's choice.
        clock: wall, or cpu (processor time, on a machine that others use too; needs threads 1).
        out: where the records go; empty for nowhere.
    """

    recipes: tuple[str, ...] = (
        "configs/vision/cifar10-resnet20.yaml",
        "configs/vision/cifar10-resnet56.yaml",
        "configs/vision/cifar10-alexnet.yaml",
    )
    side: int = 32
    contestants: tuple[str, ...] = ()
    batch_size: int = 128
    steps: int = 2
    repeats: int = 3
    threads: int = 0
    clock: str = "wall"
    out: str = "results/speed/image_training.jsonl"

    def __post_init__(self) -> None:
        check_clock(self.clock, self.threads)
        if wrong := sorted(set(self.contestants) - set(CONTESTANTS)):
            raise ValueError(f"contestants must be among {', '.join(CONTESTANTS)}, not {', '.join(wrong)}")
        if min(self.side, self.batch_size, self.steps, self.repeats) < 1:
            raise ValueError("side, batch_size, steps and repeats must be positive")


class Contiguous(nn.Module):
    """A model that is given images in PyTorch's default layout."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_NCHW: Tensor) -> Any:
        return self.model(x_NCHW.contiguous())


def noise(side: int, images: int) -> ImageData:
    """Images that cost as much as any others."""
    pixels = torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8)
    split = ImageSplit(pixels, torch.arange(images) % 10)
    return ImageData(
        place="noise", source="noise", classes=[str(k) for k in range(10)], image_shape=(3, side, side),
        mean=[0.5] * 3, std=[0.25] * 3, checksum="", remarks=[], read=lambda _: split,
    )  # fmt: skip


def step_of(task: ClassificationTask, contestant: str, batches: list[Tensor]) -> Callable[[], None]:
    """A round of training steps."""
    arithmetic, _, way = contestant.partition("-")
    model: Any = compiled(task.model) if way == "compiled" else task.model
    if way == "contiguous":
        model = Contiguous(task.model.to(memory_format=torch.contiguous_format))  # type: ignore[call-overload]
    optimizer = build_optimizer(task.model, task.config.optimizer)
    parameters = list(task.model.parameters())

    def run() -> None:
        torch.set_float32_matmul_precision("medium" if arithmetic == "medium" else "highest")
        task.model.train()
        for rows_B in batches:
            with torch.autocast("cpu", dtype=torch.bfloat16) if arithmetic == "bf16" else nullcontext():
                loss = task.loss(model, rows_B)
            loss.total.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def read_recipe(path: str, batch_size: int) -> TrainConfig:
    """The configuration of a training run, with smoothing 0.1."""
    argv = ["--config", path, "--loss.alpha", "0.1", "--batch_size", str(batch_size)]
    return parse(TrainConfig, argv, program=PROGRAM, description="")


def measure(trained: TrainConfig, config: BenchmarkConfig, data: ImageData) -> list[dict[str, Any]]:
    """A row a contestant: images a second, the ratio to PyTorch's defaults, the share of its time in augmentation."""
    batches = list(torch.split(torch.arange(config.steps * config.batch_size), config.batch_size))

    def task() -> ClassificationTask:
        model: ImageModel = new_model(trained, data)
        return ClassificationTask(trained, data, model, Precision(), torch.device("cpu"))

    images = data.split("train").images_NCHW
    augmentation = task().augmentation
    contestants: dict[str, Callable[[], object]] = {
        contestant: step_of(task(), contestant, batches) for contestant in config.contestants
    }
    contestants["augmentation"] = lambda: [augmentation.train(images[rows_B]) for rows_B in batches]
    seconds = take_turns(contestants, config.repeats, config.clock)
    augmenting = seconds.pop("augmentation")
    count = config.steps * config.batch_size
    rows = []
    for contestant, taken in seconds.items():
        row: dict[str, Any] = {"model": trained.model.name, "contestant": contestant, "images/s": count / median(taken)}
        row["images/s at best"] = count / min(taken)
        if PLAIN in seconds:
            row[f"to {PLAIN}"] = ratio(seconds[PLAIN], taken)
        row["share of augmentation"] = ratio(augmenting, taken)
        rows.append(row)
    return rows


def main(config: BenchmarkConfig) -> None:
    """Measure, print, record."""
    keep_freed_memory()  # as training does; for all contestants
    if config.threads:
        torch.set_num_threads(config.threads)
    switch = torch.get_float32_matmul_precision()
    products = best_gemm_rates(config.clock)
    print(describe_machine(products))
    config = replace(config, contestants=arithmetic_here(config.contestants, DEFAULT, products))
    data = noise(config.side, config.steps * config.batch_size)
    recipes = [read_recipe(path, config.batch_size) for path in config.recipes]
    rows = [row for recipe in recipes for row in measure(recipe, config, data)]
    torch.set_float32_matmul_precision(switch)
    columns = {"images/s": ",.0f", "images/s at best": ",.0f", f"to {PLAIN}": ".2f", "share of augmentation": ".3f"}
    print_table("training images a second", rows, {"model": "", "contestant": ""} | columns)
    named = [({"model": row.pop("model"), "contestant": row.pop("contestant")}, row) for row in rows]
    write_records(
        config.out,
        "image_training",
        named,
        products,
        recipes=list(config.recipes),
        side=config.side,
        batch_size=config.batch_size,
        steps=config.steps,
        repeats=config.repeats,
        clock=config.clock,
    )


if __name__ == "__main__":
    run_command(
        main,
        BenchmarkConfig,
        program=PROGRAM,
        description="Measure training images a second of the classifiers, by arithmetic, layout and compilation.",
    )
