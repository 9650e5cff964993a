"""NLL and calibration at many temperatures from one pass over the logits.

Everything that the temperatures share is computed once: the maximum, the most probable class, whether it is right.
What is left is the normaliser S(b) = sum_k exp(b * (z_k - max z)) at each inverse temperature b. On a grid even in b
it needs only two exponentials a logit, exp(b_0 d) and exp(step * d), since each next power is a product of the last
one; the relative error grows with the number of products, to about 1e-6 in fp32 over 20. Any other grid is computed
directly, one exponential a temperature.

Shapes: N tokens, M those kept, K classes, J inverse temperatures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from nmt_ls.metrics.calibration import Calibration, CalibrationAccumulator
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.temperature import check_logits, check_rows, check_temperature, rows_at_once


class GridStatistics(NamedTuple):
    """Per token and inverse temperature; tokens whose target is ignored are dropped, as in `token_statistics`."""

    log_probs: Tensor  # [J, M] of the target, nats
    confidences: Tensor  # [J, M] probability of the most probable class
    correct: Tensor  # [M] bool: the most probable class, the same at every temperature, is the target
    kept: Tensor  # [N] bool


def inverse_temperature_grid(first: float, last: float, count: int) -> list[float]:
    """`count` inverse temperatures, evenly spaced from `first` to `last`."""
    if count < 1 or (count == 1 and first != last):
        raise ValueError(f"an inverse-temperature grid from {first} to {last} needs at least 2 points, got {count}")
    step = (last - first) / max(count - 1, 1)
    return [check_temperature(first + step * index) for index in range(count)]


def temperature_grid_statistics(
    logits_NK: Any, targets_N: Any, inverse_temperatures: Sequence[float], ignore_index: int = -100
) -> GridStatistics:
    """Target log-probability and confidence of every token at every inverse temperature 1/T.

    Logits and targets are numpy or torch; fp16 and bf16 logits are computed in fp32. Raises ValueError for inverse
    temperatures that are not finite and positive, and for what `token_statistics` refuses.
    """
    logits_NK, targets_N = check_logits(logits_NK, targets_N, ignore_index)
    inverse_J = [check_temperature(value) for value in inverse_temperatures]
    if not inverse_J:
        raise ValueError("inverse_temperatures must hold at least one value")
    kept_N = targets_N != ignore_index
    whole = bool(kept_N.all())
    logits_MK, targets_M = (logits_NK, targets_N) if whole else (logits_NK[kept_N], targets_N[kept_N])
    rows, count, device = rows_at_once(logits_MK), logits_MK.shape[0], logits_MK.device
    dtype = torch.float64 if logits_MK.dtype == torch.float64 else torch.float32
    totals_JM = torch.empty(len(inverse_J), count, dtype=dtype, device=device)
    target_M = torch.empty(count, dtype=dtype, device=device)
    correct_M = torch.empty(count, dtype=torch.bool, device=device)
    for start in range(0, count, rows):
        block = slice(start, start + rows)
        z_RK, y_R = logits_MK[block].to(dtype), targets_M[block, None]
        predicted_R = _argmax(z_RK)
        d_RK = z_RK - z_RK.gather(1, predicted_R)
        target_M[block] = d_RK.gather(1, y_R).squeeze(1)
        correct_M[block] = (predicted_R == y_R).squeeze(1)
        _normalisers(d_RK, inverse_J, totals_JM[:, block])
    if bool(totals_JM.isnan().any()):
        check_rows(logits_NK, kept_N)
    inverse_J1 = torch.tensor(inverse_J, dtype=dtype, device=device)[:, None]
    return GridStatistics(inverse_J1 * target_M - totals_JM.log(), 1.0 / totals_JM, correct_M, kept_N)


def _argmax(z_RK: Tensor) -> Tensor:
    """First index of each row's maximum, [R, 1]; numpy's is vectorised, and torch's on the CPU is not."""
    if z_RK.device.type == "cpu":
        return torch.from_numpy(z_RK.detach().numpy().argmax(1))[:, None]
    return z_RK.argmax(1, keepdim=True)


def _normalisers(d_RK: Tensor, inverse_J: Sequence[float], out_JR: Tensor) -> None:
    """out[j] = sum_k exp(inverse[j] * d[:, k])."""
    count = len(inverse_J)
    step = (inverse_J[-1] - inverse_J[0]) / max(count - 1, 1)
    even = all(math.isclose(b, inverse_J[0] + j * step, rel_tol=1e-9) for j, b in enumerate(inverse_J))
    power_RK = (d_RK * inverse_J[0]).exp_()
    torch.sum(power_RK, dim=1, out=out_JR[0])
    if count > 2 and even:
        factor_RK = (d_RK * step).exp_()
        for j in range(1, count):
            torch.sum(power_RK.mul_(factor_RK), dim=1, out=out_JR[j])
    else:
        for j in range(1, count):
            torch.sum(torch.mul(d_RK, inverse_J[j], out=power_RK).exp_(), dim=1, out=out_JR[j])


@dataclass(frozen=True, kw_only=True)
class GridPoint:
    """Figures at one temperature."""

    temperature: float
    inverse_temperature: float
    nll: float  # nats a token
    calibration: Calibration


class TemperatureGrid:
    """NLL and calibration at every temperature of a grid, from a stream of logits; constant memory, mergeable."""

    def __init__(self, inverse_temperatures: Sequence[float], bins: int = 15) -> None:
        self.inverse_temperatures = [check_temperature(value) for value in inverse_temperatures]
        self.calibrations = [CalibrationAccumulator(bins) for _ in self.inverse_temperatures]
        self.nll_sums = [0.0] * len(self.inverse_temperatures)
        self.tokens = 0

    def update(self, logits_NK: Any, targets_N: Any, ignore_index: int = -100) -> Self:
        """Add tokens; those whose target is `ignore_index` are left out."""
        return self.add(temperature_grid_statistics(logits_NK, targets_N, self.inverse_temperatures, ignore_index))

    def add(self, statistics: GridStatistics) -> Self:
        """Add tokens whose statistics at the same inverse temperatures are known already."""
        self.tokens += statistics.correct.numel()
        for j, calibration in enumerate(self.calibrations):
            self.nll_sums[j] -= float(statistics.log_probs[j].double().sum())
            calibration.update(statistics.confidences[j], statistics.correct)
        return self

    def merge(self, other: TemperatureGrid) -> Self:
        """Add what another grid of the same inverse temperatures and bins has seen."""
        if other.inverse_temperatures != self.inverse_temperatures:
            raise ValueError("cannot merge grids of different inverse temperatures")
        self.tokens += other.tokens
        for j, calibration in enumerate(self.calibrations):
            calibration.merge(other.calibrations[j])
            self.nll_sums[j] += other.nll_sums[j]
        return self

    def compute(self) -> list[GridPoint]:
        """The figures at each temperature, in the order given. Raises ValueError if nothing was added."""
        if self.tokens == 0:
            raise ValueError("a temperature grid of nothing: no tokens were given (or all were ignored)")
        return [
            GridPoint(
                temperature=1.0 / inverse,
                inverse_temperature=inverse,
                nll=nll_sum / self.tokens,
                calibration=calibration.compute(),
            )
            for inverse, nll_sum, calibration in zip(
                self.inverse_temperatures, self.nll_sums, self.calibrations, strict=True
            )
        ]


def lowest_point(at_J: FloatArray, values_RJ: FloatArray) -> FloatArray:
    """Where each of R curves is lowest, [R]: the vertex of the parabola through the lowest of its values and the two
    beside it, or the first or last point where that is the lowest. At least three points, in any order."""
    order = np.argsort(at_J)
    x, y = at_J[order], values_RJ[..., order]
    lowest = y.argmin(-1)
    middle = np.clip(lowest, 1, len(x) - 2)
    rows = np.arange(len(y))
    (x0, x1, x2), (y0, y1, y2) = (
        (x[middle - 1], x[middle], x[middle + 1]),
        (y[rows, middle - 1], y[rows, middle], y[rows, middle + 1]),
    )
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (right - left) / (x2 - x0)
    slope = left + curvature * (x1 - x0)  # of the parabola at x1
    vertex = x1 - np.divide(slope, 2 * curvature, out=np.zeros_like(slope), where=curvature > 0)
    inside = (lowest == middle) & (curvature > 0)
    return np.asarray(np.where(inside, np.clip(vertex, x0, x2), x[lowest]))
