"""What the benchmarks share: taking turns, the machine's best rate, and records.

Contestants take turns within a round, so that whatever else the machine does falls on all of them, and ratios are
medians of the ratios within a round. On a machine that others use, minima and the clock `cpu` are the steadier figures.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import fields
from importlib import metadata
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch

from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.precision import ERROR_LIMIT, ERROR_RATIO, Precision, choose_precision
from nmt_ls.experiment.records import Record, Signature, append_records, provenance
from nmt_ls.experiment.tables import format_table
from nmt_ls.int8 import int8_precision

GEMM_SHAPES = ((4096, 256, 1024), (2048, 2048, 2048))
"""Rows, inner and outer size: a product as training makes them, and one that is large in every direction."""
EMULATED = 10.0
"""GFLOP/s. Slower products are not the processor's own (bf16 where it has none): larger ones would take minutes."""
PEERS = ("transformers", "ctranslate2", "torchmetrics", "netcal", "liger-kernel", "cut-cross-entropy")
"""Packages whose versions records name beside ours."""

CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Seconds gone by; and seconds that this process computed, which say something where it has one thread only."""


_built: Callable[[], Any]
"""Of a process of `in_its_own_process`: what it runs."""


def in_its_own_process(
    stack: ExitStack, clock: str, build: Callable[..., Callable[[], Any]], *arguments: Any
) -> Callable[[], Any]:
    """What `build` returns, living and called in a process of its own, as long as the stack; in this one with the clock
    `cpu`, which sees it alone.

    For toolkits whose threads must not meet ours: a new CTranslate2 translator leaves the OpenMP that PyTorch uses too
    at the threads of one of its workers, and with two of them in one process ours lost half its speed.
    """
    if clock == "cpu":
        return build(*arguments)
    pool = stack.enter_context(get_context("spawn").Pool(1, _build, (build, arguments)))
    return functools.partial(pool.apply, _call)


def _build(build: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> None:
    global _built
    _built = build(*arguments)


def _call() -> Any:
    return _built()


def check_clock(clock: str, threads: int, device: str = "cpu") -> None:
    """ValueError unless this clock exists and fits the number of threads and the device, which must exist too."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, not {device!r}")
    if clock not in CLOCKS:
        raise ValueError(f"clock must be wall or cpu, not {clock!r}")
    if clock == "cpu" and threads != 1:
        raise ValueError("clock cpu measures one thread: it needs threads 1")
    if clock == "cpu" and device == "cuda":
        raise ValueError("clock cpu does not see what a GPU does: use wall")


def need_device(device: str) -> None:
    """UserError for a GPU that PyTorch does not see."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: PyTorch sees no CUDA device here; use --device cpu")


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


class Products(NamedTuple):
    """What matrix products in one arithmetic reach: the best rate, and the error against float64 of one product."""

    gflops: float
    error: float


def best_gemm_rates(clock: str = "wall", repeats: int = 5, device: str = "cpu") -> dict[str, Products]:
    """The best of a few products in each arithmetic, with the threads that PyTorch has now, or on a GPU.

    The error is ||found - exact|| / ||exact|| of the first shape; that of bf16 counts the rounding of its operands.
    """
    now, switch = CLOCKS[clock], torch.get_float32_matmul_precision()
    rows, inner, outer = GEMM_SHAPES[0]
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(rows, inner, generator=generator), torch.randn(inner, outer, generator=generator)
    exact = left.double() @ right.double()
    left, right = left.to(device), right.to(device)
    result: dict[str, Products] = {}
    try:
        for arithmetic, matmul, dtype in (
            ("fp32", "highest", torch.float32),
            ("medium", "medium", torch.float32),
            ("bf16", "highest", torch.bfloat16),
        ):
            torch.set_float32_matmul_precision(matmul)
            best = 0.0
            for shape in GEMM_SHAPES:
                best = max(best, _gemm_rate(shape, dtype, now, repeats, device))
                if best < EMULATED:
                    break
            found = (left.to(dtype) @ right.to(dtype)).cpu()
            result[arithmetic] = Products(best, float((found.double() - exact).norm() / exact.norm()))
    finally:
        torch.set_float32_matmul_precision(switch)
    return result


def _gemm_rate(
    shape: tuple[int, int, int], dtype: torch.dtype, now: Callable[[], float], repeats: int, device: str
) -> float:
    """GFLOP/s of the fastest of `repeats` products, after a first one."""
    rows, inner, outer = shape
    a, b = torch.randn(rows, inner).to(device, dtype), torch.randn(inner, outer).to(device, dtype)
    result, best = a @ b, 0.0
    for _ in range(repeats):
        wait_for(device)
        start = now()
        torch.mm(a, b, out=result)
        wait_for(device)
        best = max(best, 2e-9 * rows * inner * outer / (now() - start))
        if best < EMULATED:
            break
    return best


def wait_for(device: str) -> None:
    """Until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def medium_is_fp32(products: Mapping[str, Products]) -> bool:
    """Whether `medium` is as accurate as fp32 here: on some processors it computes in bf16."""
    return products["medium"].error < min(ERROR_LIMIT, ERROR_RATIO * products["fp32"].error)


def arithmetic_here(
    named: tuple[str, ...], everything: tuple[str, ...], products: Mapping[str, Products]
) -> tuple[str, ...]:
    """Those named (arithmetics, or contestants called after theirs: `ours-bf16-2x1`); where none is, everything but
    bf16 and autocast on a processor that emulates their products."""
    if named or products["bf16"].gflops >= EMULATED:
        return named or everything
    here = tuple(name for name in everything if not {"bf16", "autocast"} & set(name.split("-")))
    left_out = ", ".join(name for name in everything if name not in here)
    print(f"without {left_out}: this processor emulates bf16 products, which takes very long; name them to have them")
    return here


@functools.cache
def precision_of(arithmetic: str, device: str = "cpu") -> Precision:
    """What ours computes with under this name: of bf16 and int8, what the commands take here when asked for it.

    Raises UserError for int8 on a processor without instructions for it.
    """
    match arithmetic:
        case "fp32":
            return Precision()
        case "medium":
            return Precision(matmul="medium")
        case "int8":
            return int8_precision(device)
        case _:
            return choose_precision("bf16", device)


def describe_machine(products: Mapping[str, Products], device: str = "cpu") -> str:
    """Two lines: the processor and its threads, or the GPU; the best rate and the error of each arithmetic."""
    origin = provenance(device)
    sets = ", ".join(origin["instruction_sets"])
    reached = ", ".join(f"{name} {each.gflops:.0f} (error {each.error:.0e})" for name, each in products.items())
    counts = "counts as fp32" if medium_is_fp32(products) else "does NOT count as fp32: its error is larger"
    processor = f"{origin['processor']} ({sets}), {origin['threads']} threads"
    return f"{processor if device == 'cpu' else origin['device']}\nbest products, GFLOP/s: {reached}; medium {counts}"


def peer_versions() -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in PEERS:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


_SIGNATURE_FIELDS = {field.name for field in fields(Signature)} - {"extras"}


def write_records(
    path: str,
    benchmark: str,
    rows: Iterable[tuple[Mapping[str, Any], Mapping[str, float]]],
    products: Mapping[str, Products] | None = None,
    device: str = "cpu",
    **recipe: Any,
) -> None:
    """Append the figures of each row under `benchmark/figure`; a row is (what it is about, its figures).

    The signature names the device, the processor, its instruction sets, the load when it was written, the peers'
    versions, what matrix products reached in the same run (None where nothing was timed), and `recipe`. An empty path
    writes nothing.
    """
    if not path:
        return
    origin = provenance(device)
    machine = {
        "processor": origin["processor"],
        "instruction_sets": origin["instruction_sets"],
        "load": round(os.getloadavg()[0], 2),
        "time": origin["time"],
        "versions": {**origin["versions"], **peer_versions()},
    }
    if products is not None:
        machine |= {f"gemm_gflops_{name}": each.gflops for name, each in products.items()}
        machine |= {f"gemm_error_{name}": each.error for name, each in products.items()}
        machine["medium_is_fp32"] = medium_is_fp32(products)
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
