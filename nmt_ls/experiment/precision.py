"""Which arithmetic pays on this processor.

Three candidates for the matrix products that fill a training step: fp32 as PyTorch computes it by default ("highest"),
fp32 by the other kernels that `torch.set_float32_matmul_precision("medium")` switches to (oneDNN: on some processors
twice as fast at the same accuracy, on others really bf16, and TF32 on CUDA: hence the error is measured too), and bf16
under autocast. What is measured is cached in the user's cache directory; what is chosen goes into the run's manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch.nn.functional import linear

from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.processor import device_name, this_processor
from nmt_ls.experiment.run_directory import atomic_write

Requested = Literal["auto", "fp32", "bf16"]
Kind = Literal["fp32", "bf16", "int8"]
Matmul = Literal["highest", "high", "medium"]

# a training step's product: tokens x width -> feed-forward width, forward and both backward products
TOKENS, WIDTH, OUTPUTS = 512, 256, 1024
REPEATS = 4

MEDIUM_GAIN = 1.2  # a switch that gains less than this is not worth a difference from the default
BF16_GAIN = 1.3  # below, the accuracy that bf16 costs buys too little
ERROR_RATIO, ERROR_LIMIT = 4.0, 1e-5  # what still counts as fp32: against the default's error, and absolutely


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The arithmetic of a run; a resumed run takes it from the manifest."""

    kind: Kind = "fp32"
    matmul: Matmul = "highest"
    reason: str = "fp32, the default"
    measured: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be fp32, bf16 or int8, not {self.kind!r}")
        if self.matmul not in get_args(Matmul):
            raise ValueError(f"matmul must be highest, high or medium, not {self.matmul!r}")

    def apply(self) -> None:
        """Set PyTorch's process-wide switches for fp32: of matrix products, and of cuDNN's convolutions, which are in
        TF32 by default."""
        torch.set_float32_matmul_precision(self.matmul)
        torch.backends.cudnn.allow_tf32 = self.matmul != "highest"

    def autocast(self, device_type: str = "cpu") -> contextlib.AbstractContextManager[Any]:
        """The context for forward passes: bf16 autocast, or none in fp32.

        int8 is a decoder's alone (nmt_ls.int8): all else computes in bf16 then, where the processor has it.
        """
        if self.kind == "bf16" or (self.kind == "int8" and this_processor().bf16_set):
            return torch.autocast(device_type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    @property
    def of_likelihood(self) -> Precision:
        """The same in fp32, in which likelihood and calibration are always computed."""
        return replace(self, kind="fp32")

    def label(self) -> str:
        """For signatures: int8 by AVX2 alone gives other figures than int8 elsewhere."""
        bits = self.measured.get("weight_bits", 8)
        return f"{self.kind}/{self.matmul}" + ("" if bits == 8 else f", weights of {bits:g} bits")

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {"kind": self.kind, "matmul": self.matmul, "reason": self.reason, "measured": dict(self.measured)}

    @classmethod
    def from_manifest(cls, entry: Mapping[str, Any]) -> Self:
        """What `to_dict` gave.

        Raises:
            UserError: the entry is not one of ours.
        """
        try:
            return cls(**{name: entry[name] for name in ("kind", "matmul", "reason", "measured")})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the manifest's precision entry is damaged: {error!r}") from None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Rates in GFLOP/s (on a CPU: of one core) and relative errors against float64; bf16 is None where not tried."""

    highest_rate: float
    medium_rate: float
    bf16_rate: float | None
    highest_error: float
    medium_error: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not (isinstance(value, float) and math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number, not {value!r}")


def choose_precision(requested: str = "auto", device: str | torch.device = "cpu") -> Precision:
    """The arithmetic for `device`: of its best kind for "auto", of the kind asked for with "fp32" and "bf16".

    Measures for a few milliseconds, once per processor, PyTorch version and number of threads. The CUDA branch follows
    PyTorch's documentation and has not run on hardware. Other devices are given plain fp32 unless asked otherwise.

    Raises:
        ValueError: `requested` is none of the three.
    """
    if requested not in get_args(Requested):
        raise ValueError(f"precision must be auto, fp32 or bf16, not {requested!r}")
    device = torch.device(device)
    bf16_by = _bf16_by(device)
    measured = _measured(device, with_bf16=bf16_by is not None) if device.type in ("cpu", "cuda") else None
    precision = decide(requested, measured, bf16_by=bf16_by, name=device_name(device))
    if precision.kind == "bf16" and bf16_by is None:
        warnings.warn(f"{device_name(device)} has no bf16 instructions: bf16 will be slow here", stacklevel=2)
    return precision


def decide(requested: str, measured: Measured | None, *, bf16_by: str | None, name: str) -> Precision:
    """The choice as a pure function of what was measured; `bf16_by` names the instructions for bf16, None for none."""
    if measured is None:
        kind: Kind = "bf16" if requested == "bf16" else "fp32"
        return Precision(kind=kind, reason=f"{kind}, {'as asked' if requested == kind else 'unmeasured'}, on {name}")
    accurate = measured.medium_error < min(ERROR_LIMIT, ERROR_RATIO * measured.highest_error)
    medium_gain = measured.medium_rate / measured.highest_rate
    medium = accurate and medium_gain >= MEDIUM_GAIN
    fp32_rate = measured.medium_rate if medium else measured.highest_rate
    gain = (measured.bf16_rate or 0.0) / fp32_rate
    kind = "bf16" if requested == "bf16" or (requested == "auto" and gain >= BF16_GAIN) else "fp32"
    if requested != "auto":
        why = f"as asked, on {name}"
    elif measured.bf16_rate is None:
        why = f"as {name} has no bf16 instructions"
    else:
        why = f"as {name} ({bf16_by}) multiplies {gain:.1f} times as fast in bf16 ({measured.bf16_rate:.0f} GFLOP/s)"
    if medium:
        kernels = f"by the medium kernels, {medium_gain:.1f} times the default's rate at relative error"
        kernels += f" {measured.medium_error:.0e}"
    elif medium_gain >= MEDIUM_GAIN:
        kernels = f"by the default kernels (the medium ones are faster, but err by {measured.medium_error:.0e})"
    else:
        kernels = "by the default kernels"
    return Precision(
        kind=kind,
        matmul="medium" if medium else "highest",
        reason=f"{kind}, {why}; fp32 products at {fp32_rate:.0f} GFLOP/s {kernels}",
        measured={key: float(f"{value:.4g}") for key, value in asdict(measured).items() if value is not None},
    )


def measure(device: torch.device, *, with_bf16: bool) -> Measured:
    """Rates and errors of the candidates on `device`; global switches, threads and random state are left as they were.

    On a CPU one thread is measured, by its own processor time: on a machine that others use too, several threads wait
    for whichever was interrupted, and what is measured is the scheduler.
    """
    random = torch.Generator(device).manual_seed(0)
    x_ND, w_FD, grad_NF = (
        torch.randn(shape, generator=random, device=device)
        for shape in ((TOKENS, WIDTH), (OUTPUTS, WIDTH), (TOKENS, OUTPUTS))
    )
    x_ND.requires_grad_()
    w_FD.requires_grad_()

    def step(matmul: str, bf16: bool) -> tuple[torch.Tensor, ...]:
        torch.set_float32_matmul_precision(matmul)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            y_NF = linear(x_ND, w_FD)
        return y_NF, *torch.autograd.grad(y_NF, (x_ND, w_FD), grad_NF.to(y_NF.dtype))

    candidates = {"highest": ("highest", False), "medium": ("medium", False)}
    if with_bf16:
        candidates["bf16"] = ("highest", True)
    with _alone(device), torch.enable_grad():
        seconds = dict.fromkeys(candidates, math.inf)
        results = {name: step(*how) for name, how in candidates.items()}  # and the kernels are warm
        for _ in range(REPEATS):  # by turns: whatever else the machine does falls on all of them
            for name, how in candidates.items():
                start = _clock(device)
                step(*how)
                seconds[name] = min(seconds[name], _clock(device) - start)
    x, w, grad = x_ND.detach().double(), w_FD.detach().double(), grad_NF.double()
    exact = (x @ w.T, grad @ w, grad.T @ x)
    rates = {name: 6e-9 * TOKENS * WIDTH * OUTPUTS / taken for name, taken in seconds.items()}
    return Measured(
        highest_rate=rates["highest"],
        medium_rate=rates["medium"],
        bf16_rate=rates.get("bf16"),
        highest_error=_error(results["highest"], exact),
        medium_error=_error(results["medium"], exact),
    )


@contextlib.contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    switch, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_float32_matmul_precision(switch)
        torch.set_num_threads(threads)


def _clock(device: torch.device) -> float:
    if device.type == "cpu":
        return time.thread_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _error(found: tuple[torch.Tensor, ...], exact: tuple[torch.Tensor, ...]) -> float:
    """The largest of the products' relative errors (Frobenius norm)."""
    pairs = zip(found, exact, strict=True)
    return max(float((ours.detach().double() - true).norm() / true.norm()) for ours, true in pairs)


def _bf16_by(device: torch.device) -> str | None:
    """What multiplies in bf16 on `device`, or None."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"compute capability {major}.{minor}" if major >= 8 else None
    return this_processor().bf16_set if device.type == "cpu" else None


def _measured(device: torch.device, *, with_bf16: bool) -> Measured:
    """From the cache, or measured and cached. A cache that cannot be read or written costs only the measurement."""
    machine = {
        "device": device.type,
        "name": device_name(device),
        "processor": this_processor().identity,
        "instruction_sets": list(this_processor().instruction_sets),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "shape": [TOKENS, WIDTH, OUTPUTS],
    }
    key = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:16]
    file = _cache_directory() / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        cached = json.loads(file.read_text(encoding="utf-8"))
        if cached["machine"] == machine and (cached["measured"]["bf16_rate"] is not None) == with_bf16:
            return Measured(**cached["measured"])
    measured = measure(device, with_bf16=with_bf16)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps({"machine": machine, "measured": asdict(measured)}, indent=1) + "\n")
    return measured


def _cache_directory() -> Path:
    """`$XDG_CACHE_HOME/nmt_ls/precision`, by default below ~/.cache; a relative XDG_CACHE_HOME is to be ignored."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        base = named if named.is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        base = Path(tempfile.gettempdir())
    return base / "nmt_ls" / "precision"
