"""Temperature: the one function that turns logits into log-probabilities, and the temperature fitted to data.

Search, scoring and calibration all call `log_probs`, so that a temperature means the same thing everywhere:
logits are divided by T (Section 3 of the paper multiplies them by a scalar, which is 1/T).

Shapes: N tokens or examples, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nmt_ls.metrics.inputs import as_array

Chunks = Callable[[], Iterable[tuple[Any, Any]]]

# Logits are upcast and exponentiated a slab at a time, whatever N and K are. On a processor slabs that stay in the
# second-level cache take half the time of large ones; an accelerator wants them large.
CHUNK_ELEMENTS = 1 << 17
ACCELERATOR_CHUNK_ELEMENTS = 1 << 25


def check_temperature(temperature: float) -> float:
    """The temperature as a float; ValueError unless it is finite and positive."""
    value = float(temperature)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"temperature must be a finite number above 0, got {temperature!r}")
    return value


def log_probs(logits: Any, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) over the last dimension, nats: a tensor of the shape of the logits.

    Logits are numpy or torch; fp32 and float64 keep their type, all others (fp16, bf16) are computed and returned in
    fp32. At temperature 1 the result is exactly `log_softmax(logits)`. A masked class (-inf) keeps -inf.

    Raises ValueError for a temperature that is not finite and positive, and for logits without a softmax (NaN, +inf, a
    row only -inf). What is NaN in the result is then the temperature's fault: one so small that logits / temperature
    overflows.
    """
    logits = as_tensor(logits, "logits")
    result = unchecked_log_probs(logits, temperature)
    # a row without a softmax is NaN throughout, so one column shows it; only then are the logits read again
    # (of an accelerator this waits for the result)
    if bool(result[..., :1].isnan().any()):
        rows_NK = logits.reshape(-1, logits.shape[-1])
        check_rows(rows_NK, torch.ones(len(rows_NK), dtype=torch.bool, device=rows_NK.device))
    return result


def unchecked_log_probs(logits: Tensor, temperature: float) -> Tensor:
    """`log_probs` whose rows are all NaN where the logits have no softmax: for those who look at them later."""
    temperature = check_temperature(temperature)
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    return F.log_softmax(logits, dim=-1)


def fit_temperature(
    logits_NK: Any,
    targets_N: Any,
    by: Literal["nll", "ece"] = "nll",
    *,
    bins: int = 15,
    ignore_index: int = -100,
) -> float:
    """The temperature that makes these logits best calibrated: Guo et al. 2017, Section 4.2.

    by="nll": the exact minimiser of the negative log-likelihood, which is convex in 1/T (safeguarded Newton).
    by="ece": the minimiser of the equal-width ECE over `bins` bins. It is neither convex nor continuous, so a grid
    even in 1/T, from T = 0.24 to 8, is searched and then refined twice around its best point.
    Logits and targets are numpy or torch; rows whose target is `ignore_index` are left out. Raises ValueError where no
    finite temperature is best: by="ece", where the best of the grid is its first or last.
    """
    logits_NK, targets_N = check_logits(logits_NK, targets_N, ignore_index)
    return fit_temperature_to_chunks(
        lambda: logit_chunks(logits_NK, targets_N), by, bins=bins, ignore_index=ignore_index
    )


def fit_temperature_to_chunks(
    chunks: Chunks, by: Literal["nll", "ece"] = "nll", *, bins: int = 15, ignore_index: int = -100
) -> float:
    """`fit_temperature` for more than memory holds: `chunks()` yields (logits_NK, targets_N) anew each call."""

    def kept() -> Iterator[tuple[Tensor, Tensor]]:
        for logits, targets in chunks():
            logits_NK, targets_N = as_tensor(logits, "logits"), as_tensor(targets, "targets")
            keep_N = targets_N != ignore_index
            if bool(keep_N.all()):
                yield logits_NK, targets_N
            elif bool(keep_N.any()):
                yield logits_NK[keep_N], targets_N[keep_N]

    if by == "nll":
        return 1.0 / _nll_optimum(kept)
    if by == "ece":
        return _ece_optimum(kept, bins)
    raise ValueError(f"by must be 'nll' or 'ece', got {by!r}")


def rows_at_once(logits_NK: Tensor) -> int:
    """How many rows make a slab."""
    elements = CHUNK_ELEMENTS if logits_NK.device.type == "cpu" else ACCELERATOR_CHUNK_ELEMENTS
    return max(1, elements // max(logits_NK.shape[1], 1))


def logit_chunks(logits_NK: Tensor, targets_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Slabs of rows."""
    rows = rows_at_once(logits_NK)
    for start in range(0, logits_NK.shape[0], rows):
        yield logits_NK[start : start + rows], targets_N[start : start + rows]


def as_tensor(values: Any, name: str) -> Tensor:
    """A torch tensor as it is; an array or a list as a tensor, of the same memory where torch can share it."""
    if isinstance(values, Tensor):
        return values
    # torch cannot share memory that is not to be written, or that runs backwards
    return torch.from_numpy(np.require(as_array(values, name), requirements=["C", "W"]))


def check_logits(logits: Any, targets: Any, ignore_index: int = -100) -> tuple[Tensor, Tensor]:
    """Logits [N, K], of a floating-point type, and targets [N], int64 and on the device of the logits: both tensors.

    ValueError unless those are their shapes, with at least one row, and every target is a class or `ignore_index`.
    """
    logits_NK, targets_N = as_tensor(logits, "logits"), as_tensor(targets, "targets")
    if logits_NK.ndim != 2 or targets_N.ndim != 1 or logits_NK.shape[0] != targets_N.shape[0]:
        raise ValueError(
            f"logits must be [N, K] and targets [N], got {tuple(logits_NK.shape)} and {tuple(targets_N.shape)}"
        )
    if logits_NK.numel() == 0:
        raise ValueError(f"logits must hold at least one row and one class, got {tuple(logits_NK.shape)}")
    if targets_N.is_floating_point() or targets_N.dtype == torch.bool:
        raise ValueError(f"targets must be whole numbers, got {targets_N.dtype}")
    if not logits_NK.is_floating_point():
        logits_NK = logits_NK.float()
    targets_N = targets_N.to(logits_NK.device, torch.int64)
    # both ends at once: an accelerator is waited for once
    low, high = torch.stack(targets_N.masked_fill(targets_N == ignore_index, 0).aminmax()).tolist()
    if low < 0 or high >= logits_NK.shape[1]:
        raise ValueError(f"targets must lie in [0, {logits_NK.shape[1] - 1}] or be {ignore_index}, got {low} to {high}")
    return logits_NK, targets_N


def check_rows(logits_NK: Tensor, kept_N: Tensor) -> None:
    """ValueError, naming the first, if a kept row has NaN, +inf, or nothing above -inf: such a row has no softmax.

    It reads all logits: for when a figure of theirs has come out as NaN.
    """
    bad_N = kept_N & ~logits_NK.amax(-1).isfinite()
    if bool(bad_N.any()):
        row = int(bad_N.nonzero()[0])
        raise ValueError(f"logits must not hold NaN or +inf, nor a row only -inf: row {row} does")


def _upcast(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _nll_slopes(chunks: Chunks, inverse: float) -> tuple[float, float]:
    """First and second derivative in 1/T of the summed NLL: sum of E_p[z] - z_y, and sum of Var_p[z]."""
    slope = curvature = 0.0
    rows = 0
    for logits_NK, targets_N in chunks():
        z_NK = _upcast(logits_NK)
        # a masked class (-inf) has no probability at any temperature, and must not make 0 * inf
        d_NK = (z_NK - z_NK.amax(-1, keepdim=True)).clamp_min(torch.finfo(torch.float32).min / 1e6)
        target_N = d_NK.gather(1, targets_N[:, None]).squeeze(1)
        weight_NK = (d_NK * inverse).exp_()
        total_N = weight_NK.sum(-1)
        mean_N = weight_NK.mul_(d_NK).sum(-1) / total_N
        variance_N = weight_NK.mul_(d_NK).sum(-1) / total_N - mean_N.square()
        slope += float((mean_N.double() - target_N.double()).sum())
        curvature += float(variance_N.double().sum())
        rows += z_NK.shape[0]
    if rows == 0:
        raise ValueError("every target is ignored: there are no rows to fit a temperature to")
    if not math.isfinite(slope):
        raise ValueError("the logits hold NaN or infinite values: no temperature can be fitted")
    return slope, curvature


def _nll_optimum(chunks: Chunks, low: float = 1e-6, high: float = 1e6) -> float:
    """1/T at the minimum of the NLL: Newton steps, kept inside a bracket on the sign of the slope."""
    inverse = 1.0
    for _ in range(200):
        slope, curvature = _nll_slopes(chunks, inverse)
        if slope > 0:
            high = inverse
        elif slope < 0:
            low = inverse
        else:
            return inverse
        step = inverse - slope / curvature if curvature > 0 else math.nan
        # a step out of the bracket is replaced by the geometric mean, since 1/T spans decades
        following = step if low < step < high else math.sqrt(low * high)
        if following <= 1e-5:
            raise ValueError("no finite temperature minimises the NLL: the logits tell less than a uniform guess")
        if following >= 1e5:
            raise ValueError(
                "no temperature above 0 minimises the NLL: every target is already the most probable class"
            )
        # Newton doubles its digits a step, and fp32 sums hold no more than this
        if abs(following - inverse) <= 1e-7 * inverse or high - low <= 1e-12 * high:
            return following
        inverse = following
    return inverse


def _ece_optimum(chunks: Chunks, bins: int) -> float:
    from nmt_ls.metrics.temperature_grid import TemperatureGrid, inverse_temperature_grid

    inverses = inverse_temperature_grid(0.125, 4.125, 65)
    for refinement in range(3):
        grid = TemperatureGrid(inverses, bins)
        for logits_NK, targets_N in chunks():
            grid.update(logits_NK, targets_N)
        # of equal errors the temperature nearest 1 is the least surprising
        best = min(grid.compute(), key=lambda point: (point.calibration.ece, abs(math.log(point.temperature))))
        step = inverses[1] - inverses[0]
        centre = best.inverse_temperature
        if refinement == 0 and centre in (inverses[0], inverses[-1]):
            raise ValueError(
                f"no temperature from {1 / inverses[-1]:.2g} to {1 / inverses[0]:.2g} minimises the ECE: the best of "
                f"those tried, {best.temperature:.2g}, is the last, and a better one may lie beyond"
            )
        inverses = inverse_temperature_grid(max(centre - step, 0.125), centre + step, 33)
    return best.temperature
