"""python -m benchmarks.smoothed_loss: what the fused smoothed loss costs beside PyTorch's own, and beside its products.

A training step of the last layer (projection, smoothed loss, gradients of hidden and weight) for each vocabulary in
each arithmetic:

    products   the three matrix products that any such step makes, into memory that is there already
    fresh      the same three products as one writes them, their results in memory of their own
    pytorch    F.linear, F.cross_entropy(label_smoothing=...), backward
    ours       fused_smoothed_cross_entropy, backward

Extra memory is the peak over a step less what was there before and the two gradients, in hundredths of the logits (one
number for each row and class, in the dtype of the products): what PyTorch allocated, and what became resident, which
counts the scratch memory of the products too and is rounded to pages.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import (
    Products,
    arithmetic_here,
    best_gemm_rates,
    check_clock,
    describe_machine,
    medium_is_fp32,
    print_table,
    ratio,
    take_turns,
    wait_for,
    write_records,
)
from benchmarks.metrics_speed import extra_memory
from benchmarks.profiles import take_apart
from nmt_ls.experiment.command_line import run_command
from nmt_ls.losses import fused_smoothed_cross_entropy

AGREE, AGREE_IN_BF16 = 1e-4, 1e-2
"""How far loss and gradients of ours and PyTorch's may lie apart, relative to PyTorch's."""
ARITHMETIC = ("fp32", "medium", "bf16", "autocast")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
        vocabularies: rows of the output layer.
        arithmetic: fp32; medium (the same by oneDNN's products); bf16 (every tensor); autocast (fp32 tensors, bf16
            products); empty for all but what this processor only emulates.
        rows: tokens of a batch.
        width: of the hidden states.
        alpha: the smoothing.
        repeats: rounds, interleaved.
        threads: 0 leaves PyTorch's choice.
        clock: wall, or cpu (processor time, on a machine that others use too; needs threads 1).
        profile: whether to take a step of ours apart.
        out: where the records go; empty for nowhere.
    """

    vocabularies: tuple[int, ...] = (8192, 32768, 131072)
    arithmetic: tuple[str, ...] = ()
    rows: int = 4096
    width: int = 256
    alpha: float = 0.1
    repeats: int = 7
    threads: int = 0
    clock: str = "wall"
    profile: bool = True
    out: str = "results/speed/smoothed_loss.jsonl"

    def __post_init__(self) -> None:
        check_clock(self.clock, self.threads)
        if wrong := sorted(set(self.arithmetic) - set(ARITHMETIC)):
            raise ValueError(f"arithmetic must be among {', '.join(ARITHMETIC)}, not {', '.join(wrong)}")
        if min(self.rows, self.width, self.repeats, *self.vocabularies) < 1:
            raise ValueError("rows, width, repeats and vocabularies must be positive")


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of hidden_ND, weight_VD, targets_N: the mean loss."""


def our_loss(alpha: float) -> Loss:
    return lambda hidden, weight, targets: fused_smoothed_cross_entropy(hidden, weight, targets, alpha)


def pytorch_loss(alpha: float) -> Loss:
    return lambda hidden, weight, targets: F.cross_entropy(F.linear(hidden, weight), targets, label_smoothing=alpha)


class LastLayer:
    """One vocabulary in one arithmetic: the tensors, and a training step with any loss of them."""

    def __init__(self, rows: int, width: int, vocabulary: int, arithmetic: str, device: str = "cpu") -> None:
        torch.manual_seed(1)
        self.device, self.autocast = device, arithmetic == "autocast"
        self.product_dtype = torch.bfloat16 if arithmetic in ("bf16", "autocast") else torch.float32
        dtype = torch.float32 if self.autocast else self.product_dtype
        self.hidden = torch.randn(rows, width).to(device, dtype).requires_grad_()
        self.weight = (torch.randn(vocabulary, width) / width**0.5).to(device, dtype).requires_grad_()
        self.targets = torch.randint(vocabulary, (rows,)).to(device)
        self.logits_bytes = rows * vocabulary * self.product_dtype.itemsize
        torch.set_float32_matmul_precision("medium" if arithmetic == "medium" else "highest")

    def step(self, loss: Loss) -> Tensor:
        """Returns the loss when all of the step is done, gradients lying in hidden and weight."""
        self.hidden.grad = self.weight.grad = None
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            value = loss(self.hidden, self.weight, self.targets)
        torch.autograd.backward(value)
        wait_for(self.device)
        return value.detach()

    def results(self, step: Callable[[], Tensor]) -> dict[str, Tensor]:
        """Loss and gradients of a step, in fp32, by name."""
        loss = step()
        assert self.hidden.grad is not None
        assert self.weight.grad is not None
        found = {"loss": loss, "hidden's gradient": self.hidden.grad, "weight's gradient": self.weight.grad}
        return {name: tensor.float() for name, tensor in found.items()}

    def extra(self, step: Callable[[], object], peak: Callable[[Callable[[], object]], int]) -> float:
        """Hundredths of the logits by which `peak` says that a step goes beyond its gradients."""
        self.hidden.grad = self.weight.grad = None
        gradients: int = self.hidden.nbytes + self.weight.nbytes
        return 100 * (peak(step) - gradients) / self.logits_bytes


def apart(found: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, float]:
    """How far each of `LastLayer.results` lies from what is right, relatively."""
    return {name: float((found[name] - right[name]).norm() / right[name].norm()) for name in right}


def agreement_limit(arithmetic: str, products: Mapping[str, Products]) -> float:
    """How far apart losses and gradients may be in this arithmetic."""
    exact = arithmetic == "fp32" or (arithmetic == "medium" and medium_is_fp32(products))
    return AGREE if exact else AGREE_IN_BF16


class Contest(LastLayer):
    """A step of each contestant."""

    def __init__(self, config: BenchmarkConfig, vocabulary: int, arithmetic: str) -> None:
        super().__init__(config.rows, config.width, vocabulary, arithmetic)
        self.alpha = config.alpha
        self.gflop = 6e-9 * config.rows * config.width * vocabulary

    def ours(self) -> Tensor:
        return self.step(our_loss(self.alpha))

    def pytorch(self) -> Tensor:
        return self.step(pytorch_loss(self.alpha))

    def check_agreement(self, limit: float) -> None:
        """AssertionError where loss or gradients of ours and PyTorch's are further apart than this, relatively."""
        for name, distance in apart(self.results(self.ours), self.results(self.pytorch)).items():
            assert distance <= limit, f"{name}: ours and PyTorch's are {distance:.1e} apart"

    def products(self) -> Callable[[], None]:
        hidden, weight = self._operands()
        logits = hidden.new_zeros(len(hidden), len(weight))
        grad_hidden, grad_weight = torch.zeros_like(hidden), torch.zeros_like(weight)

        def step() -> None:
            torch.mm(hidden, weight.T, out=logits)
            torch.mm(logits, weight, out=grad_hidden)
            torch.mm(logits.T, hidden, out=grad_weight)

        return step

    def fresh(self) -> Callable[[], tuple[Tensor, Tensor]]:
        hidden, weight = self._operands()

        def step() -> tuple[Tensor, Tensor]:
            logits = hidden @ weight.T
            return logits @ weight, logits.T @ hidden

        return step

    def _operands(self) -> tuple[Tensor, Tensor]:
        return self.hidden.detach().to(self.product_dtype), self.weight.detach().to(self.product_dtype)


def allocated(step: Callable[[], object]) -> int:
    """The most bytes that PyTorch held at a time during a step, of those that it allocated in it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    assert profile.profiler is not None
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, size in changes:
        held += size
        peak = max(peak, held)
    return peak


def measure(config: BenchmarkConfig, vocabulary: int, arithmetic: str, limit: float) -> dict[str, float]:
    """Median milliseconds, medians of the ratios within a round, the products' rate, extra memory, ours by kinds.

    AssertionError where ours and PyTorch's compute what is further than `limit` apart.
    """
    contest = Contest(config, vocabulary, arithmetic)
    contest.check_agreement(limit)
    contestants: dict[str, Callable[[], object]] = {
        "products": contest.products(),
        "fresh": contest.fresh(),
        "pytorch": contest.pytorch,
        "ours": contest.ours,
    }
    seconds = take_turns(contestants, config.repeats, config.clock)
    contestants.clear()  # some hold logits
    kinds = take_apart(contest.ours, 1) if config.profile else []
    return {
        **{f"{name} ms": 1e3 * statistics.median(values) for name, values in seconds.items()},
        "ours/products": ratio(seconds["ours"], seconds["products"]),
        "ours/fresh": ratio(seconds["ours"], seconds["fresh"]),
        "pytorch/ours": ratio(seconds["pytorch"], seconds["ours"]),
        "products GFLOP/s": contest.gflop / min(seconds["products"]),
        "ours allocated %": contest.extra(contest.ours, allocated),
        "ours resident %": contest.extra(contest.ours, extra_memory),
        "pytorch allocated %": contest.extra(contest.pytorch, allocated),
        **{f"{_PROFILE}{row['kind']}": row["ms"] for row in kinds},
    }


def main(config: BenchmarkConfig) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    products = best_gemm_rates(config.clock)
    print(describe_machine(products), flush=True)
    about: dict[str, Any] = {
        "tokens": config.rows,
        "width": config.width,
        "alpha": config.alpha,
        "repeats": config.repeats,
        "clock": config.clock,
    }
    for arithmetic in arithmetic_here(config.arithmetic, ARITHMETIC, products):
        limit = agreement_limit(arithmetic, products)
        rows = [
            {"vocabulary": vocabulary, **measure(config, vocabulary, arithmetic, limit)}
            for vocabulary in config.vocabularies
        ]
        print_table(f"{arithmetic}: {config.rows:,} rows of width {config.width}", rows, _COLUMNS)
        if config.profile:
            kinds = [key for key in rows[0] if key.startswith(_PROFILE)]
            print_table(f"{arithmetic}: a step of ours", rows, {"vocabulary": ",d", **dict.fromkeys(kinds, ".1f")})
        named = [({"vocabulary": row.pop("vocabulary"), "precision": arithmetic}, row) for row in rows]
        write_records(config.out, "smoothed_loss", named, products, **about)


_PROFILE = "ours ms in "
_COLUMNS = {
    "vocabulary": ",d",
    "products ms": ".0f",
    "fresh ms": ".0f",
    "pytorch ms": ".0f",
    "ours ms": ".0f",
    "ours/products": ".2f",
    "ours/fresh": ".2f",
    "pytorch/ours": ".2f",
    "products GFLOP/s": ".0f",
    "ours allocated %": ".1f",
    "ours resident %": ".1f",
    "pytorch allocated %": ".0f",
}


if __name__ == "__main__":
    run_command(
        main,
        BenchmarkConfig,
        program="python -m benchmarks.smoothed_loss",
        description="Time and memory of the fused smoothed loss, beside PyTorch's and beside its matrix products.",
    )
