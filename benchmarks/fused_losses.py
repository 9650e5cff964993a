"""python -m benchmarks.fused_losses: the fused smoothed loss beside the fused losses of others, on a CPU or a GPU.

A training step of the last layer (projection, smoothed loss, gradients of hidden and weight), as in `smoothed_loss`:

    ours       fused_smoothed_cross_entropy
    pytorch    F.linear and F.cross_entropy(label_smoothing=...)
    compiled   the same two under torch.compile
    chunked    F.linear_cross_entropy of PyTorch 2.13, in chunks of its own choice (alpha 0 only)
    liger      Liger's LigerFusedLinearCrossEntropyLoss (`pip install liger-kernel`; on a GPU)
    cce        Apple's cut cross-entropy (`pip install cut-cross-entropy`; on a GPU, in bf16,
               alpha 0 only)

Memory is what was allocated at the peak of a step beyond inputs and gradients, in hundredths of the logits. Whoever is
not installed, cannot compute the case, or whose loss or gradients are not PyTorch's, is left out, with the reason. On a
GPU nothing here has run yet.
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import (
    arithmetic_here,
    best_gemm_rates,
    check_clock,
    describe_machine,
    need_device,
    print_table,
    ratio,
    take_turns,
    write_records,
)
from benchmarks.smoothed_loss import (
    ARITHMETIC,
    LastLayer,
    Loss,
    agreement_limit,
    allocated,
    apart,
    our_loss,
    pytorch_loss,
)
from nmt_ls.experiment.command_line import run_command


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
        device: cpu or cuda.
        vocabularies: rows of the output layer.
        arithmetic: as in smoothed_loss; medium only where it is named.
        rows: tokens of a batch.
        width: of the hidden states.
        alpha: the smoothing.
        contestants: which beside ours and pytorch, by name; empty for all that can.
        repeats: rounds, interleaved.
        threads: 0 leaves PyTorch's choice.
        clock: wall, or cpu (processor time of one thread; not on a GPU).
        out: where the records go; empty for nowhere.
    """

    device: str = "cpu"
    vocabularies: tuple[int, ...] = (8192, 32768)
    arithmetic: tuple[str, ...] = ()
    rows: int = 4096
    width: int = 256
    alpha: float = 0.1
    contestants: tuple[str, ...] = ()
    repeats: int = 5
    threads: int = 0
    clock: str = "wall"
    out: str = "results/speed/fused_losses.jsonl"

    def __post_init__(self) -> None:
        check_clock(self.clock, self.threads, self.device)
        if wrong := sorted(set(self.arithmetic) - set(ARITHMETIC)):
            raise ValueError(f"arithmetic must be among {', '.join(ARITHMETIC)}, not {', '.join(wrong)}")
        if wrong := sorted(set(self.contestants) - set(CONTESTANTS)):
            raise ValueError(f"contestants must be among {', '.join(CONTESTANTS)}, not {', '.join(wrong)}")
        if min(self.rows, self.width, self.repeats, *self.vocabularies) < 1:
            raise ValueError("rows, width, repeats and vocabularies must be positive")


class UnableError(Exception):
    """Why a contestant is left out."""


def _compiled(alpha: float) -> Loss:
    compiled: Loss = torch.compile(pytorch_loss(alpha), dynamic=False)
    return compiled


def _chunked(alpha: float) -> Loss:
    if alpha:
        raise UnableError(_UNSMOOTHED)
    if not hasattr(F, "linear_cross_entropy"):
        raise UnableError("PyTorch before 2.13 has none")
    options = torch.nn.LinearCrossEntropyOptions()
    loss = F.linear_cross_entropy
    return lambda hidden, weight, targets: loss(hidden, weight, targets, options=options)


def _liger(alpha: float) -> Loss:
    _need_package("liger_kernel")
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(label_smoothing=alpha)
    return lambda hidden, weight, targets: loss(weight, hidden, targets)


def _cce(alpha: float) -> Loss:
    if alpha:
        raise UnableError(_UNSMOOTHED)
    _need_package("cut_cross_entropy")
    from cut_cross_entropy import linear_cross_entropy

    return lambda hidden, weight, targets: linear_cross_entropy(hidden, weight, targets)


def _need_package(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise UnableError("not installed")


DEFAULT_ARITHMETIC = ("fp32", "bf16", "autocast")
CONTESTANTS: Mapping[str, Callable[[float], Loss]] = {
    "ours": our_loss,
    "pytorch": pytorch_loss,
    "compiled": _compiled,
    "chunked": _chunked,
    "liger": _liger,
    "cce": _cce,
}
"""By name: what builds the loss of a given alpha, or raises UnableError with the reason why there is none."""
_UNSMOOTHED = "it has no smoothing (--alpha 0)"
_ON_A_GPU = ("liger", "cce")
_IN_BF16 = ("cce",)


class Contest(LastLayer):
    """Steps of the losses that can compute one vocabulary in one arithmetic."""

    def __init__(self, config: BenchmarkConfig, vocabulary: int, arithmetic: str) -> None:
        super().__init__(config.rows, config.width, vocabulary, arithmetic, config.device)
        self.losses: dict[str, Loss] = {}
        self.left_out: dict[str, str] = {}
        for name in dict.fromkeys(("ours", "pytorch", *(config.contestants or CONTESTANTS))):
            try:
                if name in _ON_A_GPU and self.device == "cpu":
                    raise UnableError("on a GPU only")
                if name in _IN_BF16 and self.product_dtype != torch.bfloat16:
                    raise UnableError("in bf16 only")
                self.losses[name] = CONTESTANTS[name](config.alpha)
            except UnableError as reason:
                self.left_out[name] = str(reason)

    def step_of(self, name: str) -> Callable[[], Tensor]:
        """The step of a contestant."""
        return functools.partial(self.step, self.losses[name])

    def check_agreement(self, limit: float) -> None:
        """Leaves out who fails, and whose loss or gradients are further than this from PyTorch's, relatively.

        Raises what ours or PyTorch's raises; AssertionError where ours are further.
        """
        right = self.results(self.step_of("pytorch"))
        for name in list(self.losses):
            try:
                self._compare(name, right, limit)
            except UnableError as reason:
                if name == "ours":
                    raise AssertionError(f"ours: {reason}") from None
                self.left_out[name] = str(reason)
                del self.losses[name]

    def _compare(self, name: str, right: Mapping[str, Tensor], limit: float) -> None:
        try:
            found = self.results(self.step_of(name))
        except Exception as error:  # of another's code, whatever it is
            if name in ("ours", "pytorch"):
                raise
            raise UnableError(f"it fails: {type(error).__name__}: {' '.join(str(error).split())[:100]}") from None
        distances = apart(found, right)
        worst = max(distances, key=lambda what: distances[what])
        if not distances[worst] <= limit:
            raise UnableError(f"its {worst} is {distances[worst]:.1e} from PyTorch's")


def allocated_on_gpu(step: Callable[[], object]) -> int:
    """As `allocated`, on a GPU."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return int(torch.cuda.max_memory_allocated()) - int(before)


def measure(config: BenchmarkConfig, vocabulary: int, arithmetic: str, limit: float) -> list[dict[str, Any]]:
    """A row a contestant: median milliseconds, times to ours (medians of the ratios within a round), memory.

    AssertionError where ours and PyTorch's compute what is further than `limit` apart.
    """
    contest = Contest(config, vocabulary, arithmetic)
    contest.check_agreement(limit)
    for name, reason in contest.left_out.items():
        print(f"{arithmetic}, {vocabulary:,}: without {name}: {reason}", flush=True)
    steps = {name: contest.step_of(name) for name in contest.losses}
    peak = allocated if config.device == "cpu" else allocated_on_gpu
    seconds = take_turns(steps, config.repeats, config.clock)
    return [
        {
            "vocabulary": vocabulary,
            "contestant": name,
            "ms": 1e3 * statistics.median(seconds[name]),
            "time to ours": ratio(seconds[name], seconds["ours"]),
            "allocated %": contest.extra(step, peak),
        }
        for name, step in steps.items()
    ]


def main(config: BenchmarkConfig) -> None:
    need_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    products = best_gemm_rates(config.clock, device=config.device)
    print(describe_machine(products, config.device), flush=True)
    about: dict[str, Any] = {
        "device": config.device,
        "tokens": config.rows,
        "width": config.width,
        "alpha": config.alpha,
        "repeats": config.repeats,
        "clock": config.clock,
    }
    for arithmetic in arithmetic_here(config.arithmetic, DEFAULT_ARITHMETIC, products):
        limit = agreement_limit(arithmetic, products)
        rows = [row for size in config.vocabularies for row in measure(config, size, arithmetic, limit)]
        print_table(f"{arithmetic}: {config.rows:,} rows of width {config.width}, alpha {config.alpha}", rows, _COLUMNS)
        named = [({key: row.pop(key) for key in ("vocabulary", "contestant")}, row) for row in rows]
        write_records(config.out, "fused_losses", named, products, **about, precision=arithmetic)


_COLUMNS = {"vocabulary": ",d", "contestant": "", "ms": ".1f", "time to ours": ".2f", "allocated %": ".1f"}


if __name__ == "__main__":
    run_command(
        main,
        BenchmarkConfig,
        program="python -m benchmarks.fused_losses",
        description="The fused smoothed loss beside the fused losses of others.",
    )
