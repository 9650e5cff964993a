"""Which arithmetic pays on this processor.

Three candidates for the matrix products that fill a training step: fp32 as PyTorch computes it by default ("highest"),
fp32 through the other kernel library that `torch.set_float32_matmul_precision("medium")` switches to (on some CPUs
twice as fast at the same accuracy, on others really bf16 or TF32: so its error is measured too), and bf16 under
autocast.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch

Kind = Literal["fp32", "bf16"]
Matmul = Literal["highest", "high", "medium"]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The arithmetic of a run, recorded in its manifest."""

    kind: Kind = "fp32"
    matmul: Matmul = "highest"
    reason: str = "the default"
    measured: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in ("fp32", "bf16"):
            raise ValueError(f"precision.kind is fp32 or bf16, not {self.kind!r}")
        if self.matmul not in ("highest", "high", "medium"):
            raise ValueError(f"precision.matmul is highest, high or medium, not {self.matmul!r}")

    def apply(self) -> None:
        """Set PyTorch's process-wide switch for fp32 matrix products."""
        torch.set_float32_matmul_precision(self.matmul)

    def autocast(self, device_type: str = "cpu") -> contextlib.AbstractContextManager[Any]:
        """The context in which forward passes run: bf16 autocast, or nothing in fp32."""
        if self.kind == "bf16":
            return torch.autocast(device_type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def to_dict(self) -> dict[str, Any]:
        """For the run's manifest."""
        return {"kind": self.kind, "matmul": self.matmul, "reason": self.reason, "measured": dict(self.measured)}

    @classmethod
    def from_manifest(cls, entry: Mapping[str, Any]) -> Self:
        """The precision that a run was started with; `entry` is what `to_dict` gave."""
        return cls(kind=entry["kind"], matmul=entry["matmul"], reason=entry["reason"], measured=dict(entry["measured"]))


def choose_precision(requested: str = "auto", device: str | torch.device = "cpu") -> Precision:
    """Measure the candidates on `device` for a few milliseconds and choose; "fp32" and "bf16" force the kind."""
    device = torch.device(device)
    rates: dict[str, float] = {}
    a, b = torch.randn(1024, 512, device=device), torch.randn(512, 1024, device=device)
    before = torch.get_float32_matmul_precision()
    for name, kind, matmul in (("fp32", "fp32", "highest"), ("medium", "fp32", "medium"), ("bf16", "bf16", "highest")):
        torch.set_float32_matmul_precision(matmul)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=kind == "bf16"):
            times = []
            for _ in range(5):
                start = time.perf_counter()
                product = a @ b
                float(product[0, 0])
                times.append(time.perf_counter() - start)
        rates[name] = 2 * 1024 * 512 * 1024 / min(times) / 1e9
        if name == "medium":
            error = float((product.double() - a.double() @ b.double()).abs().max() / product.abs().max())
    torch.set_float32_matmul_precision(before)
    medium = rates["medium"] > 1.2 * rates["fp32"] and error < 1e-5
    fp32_rate = rates["medium"] if medium else rates["fp32"]
    faster = requested == "auto" and rates["bf16"] > 1.5 * fp32_rate
    chosen: Kind = "bf16" if requested == "bf16" or faster else "fp32"
    reason = f"{chosen} on {device.type}: " + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items())
    return Precision(kind=chosen, matmul="medium" if medium else "highest", reason=reason, measured=rates)
