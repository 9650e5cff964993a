"""Post-hoc calibrators: fitted on one split, applied to another.

Each remembers the name of the split that it was fitted on and refuses to be applied to the same one, since a figure
measured where the calibrator was fitted flatters it; `same_split=True` says that this is meant.

Shapes: N tokens or examples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from nmt_ls.metrics.calibration import checked_pair
from nmt_ls.metrics.inputs import FloatArray, as_array, check_unit_interval, mean_of_ties
from nmt_ls.metrics.temperature import as_tensor, check_logits, fit_temperature, log_probs, logit_chunks

_STEPS = 500  # of L-BFGS, at most
_NEAR_OPTIMUM = 1e-6  # nats


def _check_split(fitted_on: str, split: str, same_split: bool) -> None:
    if split == fitted_on and not same_split:
        raise ValueError(
            f"this calibrator was fitted on the {split} split: apply it to another, or pass same_split=True"
            " and say so beside the figure"
        )


@dataclass(frozen=True, kw_only=True)
class TemperatureScaling:
    """One temperature for all logits (Guo et al. 2017)."""

    temperature: float
    fitted_on: str

    @classmethod
    def fit(
        cls,
        logits_NK: Any,
        targets_N: Any,
        *,
        split: str,
        by: Literal["nll", "ece"] = "nll",
        ignore_index: int = -100,
    ) -> Self:
        """Fit by NLL or by ECE: see `fit_temperature`, also for what is refused."""
        return cls(temperature=fit_temperature(logits_NK, targets_N, by, ignore_index=ignore_index), fitted_on=split)

    def apply(self, logits: Any, *, split: str, same_split: bool = False) -> Tensor:
        """Calibrated log-probabilities, nats: a tensor of the shape of the logits, which are numpy or torch.

        Raises ValueError for what `log_probs` refuses.
        """
        _check_split(self.fitted_on, split, same_split)
        return log_probs(logits, self.temperature)


@dataclass(frozen=True, kw_only=True)
class VectorScaling:
    """A scale and a shift for each class: log softmax(scale * z + shift) (Guo et al. 2017, Section 4.2)."""

    scale_K: Tensor
    shift_K: Tensor
    fitted_on: str

    @classmethod
    def fit(
        cls, logits_NK: Any, targets_N: Any, *, split: str, penalty: float = 1e-4, ignore_index: int = -100
    ) -> Self:
        """Minimise the mean NLL plus penalty * (|scale - 1|^2 + |shift|^2), a convex problem, by L-BFGS.

        Without a penalty the shift of a class that the split never shows has no finite optimum. Starts from the
        fitted temperature. A masked class (logit -inf) has probability 0 in its rows whatever its scale and shift;
        those of a class masked everywhere follow from the penalty alone.

        Raises ValueError for what `fit_temperature` refuses, for a target that is a masked class, and where L-BFGS
        ends more than 1e-6 nats above the minimum.
        """
        logits_NK, targets_N = check_logits(logits_NK, targets_N, ignore_index)
        if not penalty >= 0:
            raise ValueError(f"penalty must be at least 0, got {penalty}")
        keep_N = targets_N != ignore_index
        logits_NK, targets_N = logits_NK[keep_N], targets_N[keep_N]
        masked_N = logits_NK.gather(1, targets_N[:, None]).isneginf().squeeze(1)
        if bool(masked_N.any()):
            row = int(keep_N.nonzero()[masked_N][0])
            raise ValueError(f"a target must not be a masked class (logit -inf): that of row {row} is")
        start = 1.0 / fit_temperature(logits_NK, targets_N)
        scale_K, shift_K = _vector_optimum(logits_NK, targets_N, start, penalty)
        return cls(scale_K=scale_K, shift_K=shift_K, fitted_on=split)

    def apply(self, logits: Any, *, split: str, same_split: bool = False) -> Tensor:
        """Calibrated log-probabilities, nats, [..., K]; fp32, or float64 for float64 logits.

        Raises ValueError for what `log_probs` refuses.
        """
        _check_split(self.fitted_on, split, same_split)
        logits = as_tensor(logits, "logits")
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        return log_probs(_scaled(logits.to(dtype), self.scale_K.to(dtype), self.shift_K.to(dtype)))


def _scaled(logits: Tensor, scale_K: Tensor, shift_K: Tensor) -> Tensor:
    """scale * z + shift, but -inf where z is: a scale of 0 would make NaN of it, and one below 0 +inf."""
    masked = logits.isneginf()
    if not bool(masked.any()):
        return scale_K * logits + shift_K
    # filled before the product too, since the gradient of the scale is the logit
    return (scale_K * logits.masked_fill(masked, 0.0) + shift_K).masked_fill(masked, -torch.inf)


def _vector_optimum(logits_NK: Tensor, targets_N: Tensor, start: float, penalty: float) -> tuple[Tensor, Tensor]:
    """Scales and shifts [K] of least penalised NLL; ValueError where L-BFGS does not come near it."""
    parameters_2K = torch.zeros(2, logits_NK.shape[1], dtype=torch.float64, device=logits_NK.device)
    parameters_2K[0] = start
    parameters_2K.requires_grad_()
    identity_2K = torch.zeros_like(parameters_2K)
    identity_2K[0] = 1.0
    # by torch's own tolerance_change, 1e-9, it stops up to 1e-4 nats too early
    optimizer = torch.optim.LBFGS(
        [parameters_2K], max_iter=_STEPS, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = penalty * (parameters_2K - identity_2K).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        for z_NK, y_N in logit_chunks(logits_NK, targets_N):
            log_p = torch.log_softmax(_scaled(z_NK.double(), *parameters_2K), -1)
            part = -log_p.gather(1, y_N[:, None]).sum() / targets_N.numel()
            part.backward()  # type: ignore[no-untyped-call]
            loss = loss.detach() + part.detach()
        return loss

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    objective()
    # a function of curvature at least 2 * penalty lies at most this far above its minimum; without a penalty that
    # bound is infinite, and the one of a small penalty shows as well whether the descent has come to rest
    gradient = parameters_2K.grad
    assert gradient is not None
    excess = float(gradient.square().sum()) / (4 * max(penalty, 1e-4))
    if not excess <= _NEAR_OPTIMUM:
        raise ValueError(
            f"vector scaling did not converge: after {_STEPS} steps its NLL may be {excess:.1g} nats above the "
            f"minimum; take a penalty above {penalty:g}, or more rows than {targets_N.numel()}"
        )
    scale_K, shift_K = parameters_2K.detach()
    return scale_K, shift_K


@dataclass(frozen=True, kw_only=True)
class IsotonicCalibration:
    """The rising step function from confidence to accuracy that fits best (Zadrozny & Elkan 2002).

    For top-label confidences: it corrects how sure a prediction is, and leaves the prediction as it is. Between the
    steps it is linear, beyond the outermost confidences of the fitted split constant.
    """

    confidences: FloatArray  # rising: where each step begins and ends
    accuracies: FloatArray
    fitted_on: str

    @classmethod
    def fit(cls, confidences: Any, correct: Any, *, split: str) -> Self:
        """Least squares under monotonicity, by pooling adjacent violators. Inputs as for ECE."""
        c, y = checked_pair(confidences, correct)
        check_unit_interval(c, "confidences")
        check_unit_interval(y, "correct")
        if c.size == 0:
            raise ValueError("there are no confidences to fit an isotonic calibrator to")
        values, means, counts = mean_of_ties(c, y)
        fitted = pool_adjacent_violators(means, counts.astype(np.float64))
        # only the ends of each step matter to interpolation
        changes = np.flatnonzero(np.diff(fitted) != 0)
        ends = np.unique(np.concatenate([[0], changes, changes + 1, [len(values) - 1]]))
        return cls(confidences=values[ends], accuracies=fitted[ends], fitted_on=split)

    def apply(self, confidences: Any, *, split: str, same_split: bool = False) -> FloatArray:
        """Calibrated confidences, float64, of the same shape."""
        _check_split(self.fitted_on, split, same_split)
        c = as_array(confidences, "confidences")
        check_unit_interval(c, "confidences")
        return np.asarray(np.interp(c, self.confidences, self.accuracies))


def pool_adjacent_violators(values: FloatArray, weights: FloatArray) -> FloatArray:
    """The rising sequence nearest to `values` in weighted least squares; linear time."""
    means: list[float] = []
    masses: list[float] = []
    sizes: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        size = 1
        while means and means[-1] >= value:
            mass = masses.pop()
            value = (means.pop() * mass + value * weight) / (mass + weight)
            weight += mass
            size += sizes.pop()
        means.append(value)
        masses.append(weight)
        sizes.append(size)
    return np.repeat(np.asarray(means), sizes)
