"""What this machine computes with: the processor's name and those of its instruction sets that decide about speed."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nmt_ls.experiment.command_line import UserError

if TYPE_CHECKING:
    import torch

# the spellings of /proc/cpuinfo: x86 first, then ARM
TELLING_SETS = (
    *("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_fp16", "amx_int8"),
    *("asimd", "sve", "sve2", "bf16", "svebf16", "i8mm"),
)
BF16_SETS = ("avx512_bf16", "amx_bf16", "bf16", "svebf16")


@dataclass(frozen=True, kw_only=True)
class Processor:
    """`identity` tells apart processors that share a name, as virtual machines' do."""

    name: str
    identity: str
    instruction_sets: tuple[str, ...]

    @property
    def bf16_set(self) -> str | None:
        """The instruction set that multiplies in bf16 (the strongest, where there are several), or None."""
        found = [name for name in BF16_SETS if name in self.instruction_sets]
        return "amx_bf16" if "amx_bf16" in found else found[0] if found else None


@functools.cache
def this_processor() -> Processor:
    """The processor that this process runs on."""
    cpuinfo = Path("/proc/cpuinfo")
    return from_cpuinfo(cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else "")


def from_cpuinfo(text: str) -> Processor:
    """Read Linux's /proc/cpuinfo (its first processor); elsewhere `text` is empty and little is known."""
    entries: dict[str, str] = {}
    for line in text.split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        entries[key.strip()] = value.strip()
    flags = set(entries.get("flags", entries.get("Features", "")).split())
    parts = ("vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant")
    return Processor(
        name=entries.get("model name") or platform.processor() or platform.machine(),
        identity="/".join([platform.machine(), *(entries[part] for part in parts if part in entries)]),
        instruction_sets=tuple(name for name in TELLING_SETS if name in flags),
    )


def device_name(device: str | torch.device) -> str:
    """The name of what `device` stands for: the graphics card's, or the processor's."""
    if not str(device).startswith("cuda"):
        return this_processor().name  # without PyTorch, which takes seconds to load
    import torch

    return torch.cuda.get_device_name(device)


def threads_here() -> int:
    """PyTorch's threads in this process."""
    import torch

    return torch.get_num_threads()


def choose_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that a name stands for; auto is CUDA where there is one. Raises UserError where it is absent."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was asked for, but PyTorch sees no CUDA device; use device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
