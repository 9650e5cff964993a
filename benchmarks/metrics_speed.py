"""python -m benchmarks.metrics_speed: streaming ECE beside torchmetrics and netcal, on the same numbers.

confidences: N confidences with their correctness, given in chunks.
probabilities: rows of K class probabilities with labels, in chunks of several sizes.

netcal takes all at once: it has no stream. Each also as peak memory above the inputs, and each at a
tenth of the size before: what is constant memory is the same at both. Nobody checks its arguments (validate_args).
"""

from __future__ import annotations

import ctypes
import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import (
    best_gemm_rates,
    check_clock,
    describe_machine,
    print_table,
    ratio,
    take_turns,
    write_records,
)
from nmt_ls.experiment.command_line import run_command
from nmt_ls.metrics import CalibrationAccumulator

BINS = 15
AGREE = 1e-4
"""How far apart the contestants' ECEs may be: they sum in different precisions and differ on edges of bins."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
        confidences: how many, in the first table.
        rows: of probabilities, in the second.
        classes: of each of those rows.
        chunk: confidences given at a time.
        row_chunks: rows of probabilities given at a time, each a contest of its own.
        repeats: rounds, interleaved.
        threads: 0 leaves PyTorch's choice.
        clock: wall, or cpu (processor time, on a machine that others use too; needs threads 1).
        out: where the records go; empty for nowhere.
    """

    confidences: int = 10_000_000
    rows: int = 1_000_000
    classes: int = 100
    chunk: int = 1_000_000
    row_chunks: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    repeats: int = 3
    threads: int = 0
    clock: str = "wall"
    out: str = "results/speed/metrics_speed.jsonl"

    def __post_init__(self) -> None:
        check_clock(self.clock, self.threads)
        if min(self.confidences, self.rows, self.classes, self.chunk, self.repeats, *self.row_chunks) < 1:
            raise ValueError("confidences, rows, classes, chunks and repeats must be positive")


def confidences_contest(config: BenchmarkConfig) -> dict[str, Callable[[], float]]:
    """Each gives the ECE of the same confidences."""
    import netcal.metrics
    import torchmetrics.classification

    torch.manual_seed(1)
    confidences_N = torch.rand(config.confidences)
    correct_N = torch.rand(config.confidences) < confidences_N * 0.9
    labels_N = correct_N.long()

    def ours() -> float:
        total = CalibrationAccumulator(BINS)
        for c, y in zip(torch.split(confidences_N, config.chunk), torch.split(correct_N, config.chunk), strict=True):
            total.update(c, y)
        return total.compute().ece

    def torchmetrics_() -> float:
        total = torchmetrics.classification.BinaryCalibrationError(n_bins=BINS, norm="l1", validate_args=False)
        for c, y in zip(torch.split(confidences_N, config.chunk), torch.split(labels_N, config.chunk), strict=True):
            total.update(c, y)
        return float(total.compute())

    def netcal_() -> float:
        return float(netcal.metrics.ECE(BINS).measure(confidences_N.numpy(), correct_N.numpy()))

    return {"ours": ours, "torchmetrics": torchmetrics_, "netcal": netcal_}


def probabilities_contest(config: BenchmarkConfig, chunk: int) -> dict[str, Callable[[], float]]:
    """Each gives the top-label ECE of the same class probabilities."""
    import netcal.metrics
    import torchmetrics.classification

    torch.manual_seed(1)
    probabilities_NK = _softmax_in_place(torch.randn(config.rows, config.classes).mul_(2.0))
    labels_N = torch.randint(config.classes, (config.rows,))
    right_N = torch.rand(config.rows) < 0.4
    labels_N[right_N] = probabilities_NK.argmax(1)[right_N]

    def ours() -> float:
        total = CalibrationAccumulator(BINS)
        for p, y in zip(torch.split(probabilities_NK, chunk), torch.split(labels_N, chunk), strict=True):
            total.update_probabilities(p, y)
        return total.compute().ece

    def torchmetrics_() -> float:
        total = torchmetrics.classification.MulticlassCalibrationError(
            config.classes, n_bins=BINS, norm="l1", validate_args=False
        )
        for p, y in zip(torch.split(probabilities_NK, chunk), torch.split(labels_N, chunk), strict=True):
            total.update(p, y)
        return float(total.compute())

    def netcal_() -> float:
        return float(netcal.metrics.ECE(BINS).measure(probabilities_NK.numpy(), labels_N.numpy()))

    return {"ours": ours, "torchmetrics": torchmetrics_, "netcal": netcal_}


def _softmax_in_place(logits_NK: Tensor) -> Tensor:
    for block in torch.split(logits_NK, 10_000):
        block.copy_(block.softmax(1))
    return logits_NK


def contest(runs: dict[str, Callable[[], float]], repeats: int, clock: str = "wall") -> list[dict[str, Any]]:
    """A row a contestant: seconds, ratio to ours, extra memory, and the ECE, on which all have to agree."""
    values = {name: run() for name, run in runs.items()}
    assert all(abs(value - values["ours"]) < AGREE for value in values.values()), values
    seconds = take_turns(runs, repeats, clock)
    return [
        {
            "contestant": name,
            "seconds": statistics.median(seconds[name]),
            "seconds at best": min(seconds[name]),
            "time to ours": ratio(seconds[name], seconds["ours"]),
            "extra MiB": extra_memory(run) / 2**20,
            "ECE": values[name],
        }
        for name, run in runs.items()
    ]


def extra_memory(run: Callable[[], object]) -> int:
    """Bytes by which the resident memory peaks while this runs (Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    run()
    return max(0, memory("VmHWM") - before)


def memory(key: str) -> int:
    """Bytes of this process under a name of /proc/self/status (Linux): VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def main(config: BenchmarkConfig) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    products = best_gemm_rates(config.clock)
    print(describe_machine(products))
    tenth = replace(config, confidences=max(1, config.confidences // 10), rows=max(1, config.rows // 10))
    for size in (tenth, config):
        whole = f"{size.rows:,} x {size.classes} probabilities"
        tables = [(f"{size.confidences:,} confidences", size.chunk, partial(confidences_contest, size))]
        for chunk in dict.fromkeys(min(rows, size.rows) for rows in size.row_chunks):
            tables.append((whole, chunk, partial(probabilities_contest, size, chunk)))
        for title, chunk, build in tables:
            rows = contest(build(), size.repeats, size.clock)
            print_table(f"ECE of {title}, {chunk:,} at a time", rows, _COLUMNS)
            about = {"input": title, "chunk": chunk, "bins": BINS, "repeats": size.repeats, "clock": size.clock}
            named = [({**about, "contestant": row.pop("contestant")}, row) for row in rows]
            write_records(size.out, "metrics_speed", named, products)


_COLUMNS = {
    "contestant": "",
    "seconds": ".3f",
    "seconds at best": ".3f",
    "time to ours": ".1f",
    "extra MiB": ",.0f",
    "ECE": ".6f",
}


if __name__ == "__main__":
    run_command(
        main,
        BenchmarkConfig,
        program="python -m benchmarks.metrics_speed",
        description="Streaming ECE beside torchmetrics and netcal.",
    )
