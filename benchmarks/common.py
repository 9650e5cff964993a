"""What the benchmarks share: taking turns, the machine's best rate, and records.

Contestants take turns within a round, so that whatever else the machine does falls on all of them, and ratios are
medians of the ratios within a round. On a machine that others use, minima and the clock `cpu` are the steadier figures.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch

from nmt_ls.experiment.records import Record, Signature, append_records, provenance
from nmt_ls.experiment.tables import format_table

GEMM_SHAPES = ((4096, 256, 1024), (2048, 2048, 2048))
"""Rows, inner and outer size: a product as training makes them, and one that is large in every direction."""


CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Seconds gone by; and seconds that this process computed, which say something where it has one thread only."""


def check_clock(clock: str, threads: int) -> None:
    """ValueError unless this clock exists and fits the number of threads."""
    if clock not in CLOCKS:
        raise ValueError(f"clock must be wall or cpu, not {clock!r}")
    if clock == "cpu" and threads != 1:
        raise ValueError("clock cpu measures one thread: it needs threads 1")


def take_turns(
    contestants: Mapping[str, Callable[[], object]], repeats: int, clock: str = "wall"
) -> dict[str, list[float]]:
    """Seconds of each contestant in each of `repeats` rounds, after a first one that is not counted."""
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            start = now()
            run()
            if turn:
                seconds[name].append(now() - start)
    return seconds


def ratio(of: list[float], to: list[float]) -> float:
    """The median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


def best_gemm_rates(clock: str = "wall", repeats: int = 5) -> dict[str, float]:
    """GFLOP/s of the best of a few products, in each arithmetic, with the threads that PyTorch has now."""
    now, switch = CLOCKS[clock], torch.get_float32_matmul_precision()
    rates: dict[str, float] = {}
    try:
        for arithmetic, matmul, dtype in (
            ("fp32", "highest", torch.float32),
            ("medium", "medium", torch.float32),
            ("bf16", "highest", torch.bfloat16),
        ):
            torch.set_float32_matmul_precision(matmul)
            best = 0.0
            for rows, inner, outer in GEMM_SHAPES:
                a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, outer).to(dtype)
                result = a @ b
                for _ in range(repeats):
                    start = now()
                    torch.mm(a, b, out=result)
                    best = max(best, 2e-9 * rows * inner * outer / (now() - start))
            rates[arithmetic] = best
    finally:
        torch.set_float32_matmul_precision(switch)
    return rates


def describe_machine(rates: Mapping[str, float]) -> str:
    """One line on the processor, its threads and its best rates."""
    origin = provenance()
    sets = ", ".join(origin["instruction_sets"])
    products = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    return f"{origin['processor']} ({sets}), {origin['threads']} threads; best products, GFLOP/s: {products}"


_SIGNATURE_FIELDS = {field.name for field in fields(Signature)} - {"extras"}


def write_records(
    path: str, benchmark: str, rows: Iterable[tuple[Mapping[str, Any], Mapping[str, float]]], **recipe: Any
) -> None:
    """Append the figures of each row under `benchmark/figure`; a row is (what it is about, its figures).

    The signature names the processor, its instruction sets, the load when it was written, and `recipe`. An empty path
    writes nothing.
    """
    if not path:
        return
    origin = provenance()
    machine = {
        "processor": origin["processor"],
        "instruction_sets": origin["instruction_sets"],
        "load": round(os.getloadavg()[0], 2),
        "time": origin["time"],
    }
    records = []
    for about, figures in rows:
        told = {**machine, **recipe, **about}
        named = {key: told.pop(key) for key in _SIGNATURE_FIELDS & told.keys()}
        signature = Signature.of(origin, **named, extras=told).to_dict()
        records += [
            Record(name=f"{benchmark}/{name}", value=value, signature=signature, command=origin["command"])
            for name, value in figures.items()
        ]
    append_records(path, records)


def print_table(title: str, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """A titled table, and an empty line."""
    print(f"{title}\n{format_table(rows, columns)}\n", flush=True)
