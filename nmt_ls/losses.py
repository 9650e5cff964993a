"""Cross-entropy against smoothed labels: the plain definition, and fused with the projection, all logits never held.

Shapes: N rows (tokens), D width of the hidden states, V rows of the output layer, n rows of a chunk.

The target of a row with label y is `1 - α + α·u_y` on the label and `α·u_k` elsewhere (spread "all"), or `1 - α` on the
label and `α·u_k / (1 - u_y)` elsewhere (spread "others"), with the prior u uniform or given: Müller, Kornblith & Hinton
2019, section 1.1; Szegedy et al. 2016, section 7. Either way the target is `a` on the label plus `b` times the prior:

    loss = lse(z) − a·z_y − b·(u·z)             a + b = 1

and since z = h Wᵀ, the prior's part is b·(h·w̄) with w̄ = Σ_k u_k w_k, which needs no logits.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nmt_ls.losses_fused import FusedLoss, Problem, solve

Prior = Tensor | Literal["uniform"]
Spread = Literal["all", "others"]
Reduction = Literal["mean", "sum"]
_DISTILLED_LOGITS = (1 << 26, 1 << 22)
"""Of student and of teacher, how many exist at a time: elsewhere, and on the CPU (256 and 16 MiB in fp32)."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How labels are smoothed.

    Attributes:
        alpha: the mass taken from the label, 0 <= alpha < 1; 0 is plain cross-entropy.
        prior: where that mass goes: evenly to all classes, or in proportion to the labels' training frequencies.
        spread: whether the label itself takes its share of it ("all", the paper's) or not ("others", fairseq's).
    """

    alpha: float = 0.1
    prior: Literal["uniform", "unigram"] = "uniform"
    spread: Spread = "all"

    def __post_init__(self) -> None:
        _check_options(self.alpha, self.spread, "sum")
        if self.prior not in ("uniform", "unigram"):
            raise ValueError(f'prior must be "uniform" or "unigram", not {self.prior!r}')


def smoothed_cross_entropy(
    logits_NV: Tensor,
    targets_N: Tensor,
    alpha: float,
    prior: Prior = "uniform",
    spread: Spread = "all",
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy in nats against smoothed labels, as defined at the top of this file.

    Computed in float32 for half-precision logits, else in the dtype of the logits. Rows whose target is `ignore_index`
    add nothing; the mean is over the others, and is 0 where there are none.

    Raises:
        ValueError: alpha outside [0, 1), shapes that do not fit, targets outside the classes, a prior that is not a
            probability vector over them (values are checked on the CPU only, where that stalls nothing).
    """
    _check_options(alpha, spread, reduction)
    if logits_NV.dim() != 2 or not logits_NV.is_floating_point():
        raise ValueError(f"logits must be a floating-point matrix (rows, classes), not {_describe(logits_NV)}")
    classes = logits_NV.shape[1]
    _check_targets(targets_N, logits_NV.shape[0], classes, ignore_index)
    prior_V = _prior_vector(prior, classes, logits_NV, spread)
    kept_N = targets_N != ignore_index
    log_probs_NV = torch.log_softmax(logits_NV[kept_N], dim=-1, dtype=prior_V.dtype)
    labels_N = targets_N[kept_N].long()
    label_mass_N, prior_mass_N = _masses(prior_V[labels_N], alpha, spread)
    losses_N = -label_mass_N * log_probs_NV.gather(1, labels_N[:, None])[:, 0]
    if alpha > 0:
        losses_N = losses_N - prior_mass_N * (log_probs_NV @ prior_V)
    return losses_N.sum() / (max(len(labels_N), 1) if reduction == "mean" else 1)


def fused_smoothed_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    alpha: float,
    prior: Prior = "uniform",
    spread: Spread = "all",
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """`smoothed_cross_entropy(hidden_ND @ weight_VD.T, ...)` that never holds all the logits, forward or backward.

    See `fused_loss_and_nll`, whose first result this is.
    """
    return fused_loss_and_nll(hidden_ND, weight_VD, targets_N, alpha, prior, spread, ignore_index, reduction)[0]


def fused_loss_and_nll(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    alpha: float,
    prior: Prior = "uniform",
    spread: Spread = "all",
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor]:
    """The smoothed loss of a projection, and beside it the negative log-likelihood of the hard labels, both in nats.

    Only a few logits exist at a time, in the forward pass, where gradients are computed too if any are wanted. Products
    are in the dtype of the inputs (under autocast in its dtype; gradients keep the dtypes of what they belong to), all
    else in float32 (float64 for float64 inputs). The negative log-likelihood carries no gradient and costs nothing.

    Raises:
        ValueError: as `smoothed_cross_entropy`, and where hidden and weight do not fit each other.
    """
    _check_options(alpha, spread, reduction)
    compute_dtype = _check_projection(hidden_ND, weight_VD)
    _check_targets(targets_N, hidden_ND.shape[0], weight_VD.shape[0], ignore_index)
    prior_V = _prior_vector(prior, weight_VD.shape[0], hidden_ND, spread)
    rows_M = torch.nonzero(targets_N != ignore_index)[:, 0]
    labels_M = targets_N[rows_M].long()
    label_mass_M, prior_mass_M = _masses(prior_V[labels_M], alpha, spread)
    scale = 1 / max(len(rows_M), 1) if reduction == "mean" else 1.0
    problem = Problem(rows_M, labels_M, label_mass_M, prior_mass_M, prior_V, scale, compute_dtype)
    if torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad):
        loss, nll = FusedLoss.apply(hidden_ND, weight_VD, problem)  # type: ignore[no-untyped-call]
        return loss, nll
    loss, nll, _, _ = solve(hidden_ND, weight_VD, problem, False, False)
    return loss, nll


def distillation_loss(
    student_logits_NK: Tensor,
    teacher_logits_NK: Tensor,
    targets_N: Tensor,
    beta: float,
    teacher_temperature: float,
    student_temperature: float | None = None,
    squared_temperature_factor: bool = False,
) -> Tensor:
    """Mean of (1 - β)·H(y, p(T_s)) + β·H(p_teacher(T_t), p(T_s)) in nats: Müller et al. 2019, section 4.

    There the student is at the teacher's temperature, which is the default; `student_temperature=1` is a common other
    choice. The labels' term, of which nothing is left at the paper's β = 1, is at the student's temperature too. The
    second term's gradient shrinks with 1/(T_t·T_s); the factor undoes that (T² where they are equal: Hinton et al.
    2015, section 2). No gradient reaches the teacher. Computed in float32, or float64 for float64.

    Raises:
        ValueError: beta outside [0, 1], a temperature that is not positive, shapes that do not fit each other.
    """
    student_temperature = teacher_temperature if student_temperature is None else student_temperature
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], not {beta}")
    if not (0 < teacher_temperature < math.inf and 0 < student_temperature < math.inf):
        raise ValueError(f"temperatures must be positive, not {teacher_temperature} and {student_temperature}")
    if student_logits_NK.dim() != 2 or student_logits_NK.shape != teacher_logits_NK.shape:
        shapes = f"{_describe(student_logits_NK)} and {_describe(teacher_logits_NK)}"
        raise ValueError(f"the logits of student and teacher must be matrices of one shape, not {shapes}")
    _check_targets(targets_N, len(student_logits_NK), student_logits_NK.shape[1], ignore_index=None)
    dtype = torch.float64 if student_logits_NK.dtype == torch.float64 else torch.float32
    log_probs_NK = torch.log_softmax(student_logits_NK.to(dtype) / student_temperature, 1)
    teacher_NK = torch.softmax(teacher_logits_NK.detach().to(dtype) / teacher_temperature, 1)
    hard = -log_probs_NK.gather(1, targets_N.long()[:, None]).mean()
    soft = -(teacher_NK * log_probs_NK).sum(1).mean()
    factor = teacher_temperature * student_temperature if squared_temperature_factor else 1.0
    return (1 - beta) * hard + beta * factor * soft


def projected_distillation_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    teacher_hidden_NE: Tensor,
    teacher_weight_VE: Tensor,
    targets_N: Tensor,
    beta: float,
    teacher_temperature: float,
    student_temperature: float | None = None,
    squared_temperature_factor: bool = False,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:
    """The sum of `distillation_loss` over rows, of two projections, and beside it the hard-label NLL at temperature 1.

    Rows whose target is `ignore_index` add nothing. The logits of a few rows exist at a time, of student and teacher,
    and are made again in the backward pass. Products are in the dtype of the inputs, or in autocast's. The
    negative log-likelihood carries no gradient, nor does anything of the teacher. E is the teacher's width.

    Raises:
        ValueError: as `distillation_loss`, and where hidden and weight do not fit each other.
    """
    for hidden, weight in ((hidden_ND, weight_VD), (teacher_hidden_NE, teacher_weight_VE)):
        _check_projection(hidden, weight)
    _check_targets(targets_N, len(hidden_ND), len(weight_VD), ignore_index)
    if (ours := len(hidden_ND)) != (theirs := len(teacher_hidden_NE)):
        raise ValueError(f"hidden has {ours} rows of the student's, but {theirs} of the teacher's")
    rows_M = torch.nonzero(targets_N != ignore_index)[:, 0]
    hidden_MD, teacher_ME, targets_M = hidden_ND[rows_M], teacher_hidden_NE[rows_M].detach(), targets_N[rows_M]
    teacher_weight_VE = teacher_weight_VE.detach()

    def of_chunk(hidden_mD: Tensor, weight_VD: Tensor, teacher_mE: Tensor, targets_m: Tensor) -> tuple[Tensor, Tensor]:
        logits_mV = hidden_mD @ weight_VD.T
        mean = distillation_loss(
            logits_mV,
            teacher_mE @ teacher_weight_VE.T,
            targets_m,
            beta,
            teacher_temperature,
            student_temperature,
            squared_temperature_factor,
        )
        nll = F.cross_entropy(logits_mV.detach().to(mean.dtype), targets_m.long(), reduction="sum")
        return mean * len(targets_m), nll

    dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
    total = hidden_ND[:0].sum(dtype=dtype) + weight_VD[:0].sum(dtype=dtype)  # 0, and has a gradient
    nll = total.detach()
    count = max(_DISTILLED_LOGITS[hidden_ND.device.type == "cpu"] // len(weight_VD), 1)
    for start in range(0, len(rows_M), count):
        part = slice(start, start + count)
        chunk = (hidden_MD[part], weight_VD, teacher_ME[part], targets_M[part])
        losses = checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False)
        total, nll = total + losses[0], nll + losses[1]
    return total, nll


def smoothness_index(logits_NK: Tensor, labels_N: Tensor, temperature: float = 1.0) -> float:
    """γ = E[Σ_k (1 − y_k) p_k(T) · K/(K − 1)]: the mass on wrong classes, as the α that would put as much there.

    Müller et al. 2019, section 4. Targets smoothed with α have γ = α; what is uniform has γ = 1. Computed in float64.
    """
    wrong_N = 1 - torch.softmax(logits_NK.double() / temperature, 1).gather(1, labels_N[:, None])[:, 0]
    classes = logits_NK.shape[1]
    return float(wrong_N.mean()) * classes / (classes - 1)


def _masses(label_prior_N: Tensor, alpha: float, spread: Spread) -> tuple[Tensor, Tensor]:
    """The target of a row as `a` on its label plus `b` times the prior: a_N and b_N."""
    if spread == "all":
        return torch.full_like(label_prior_N, 1 - alpha), torch.full_like(label_prior_N, alpha)
    prior_mass_N = alpha / (1 - label_prior_N)
    return 1 - prior_mass_N, prior_mass_N


def _prior_vector(prior: Prior, classes: int, like: Tensor, spread: Spread) -> Tensor:
    """The prior in the dtype that the loss accumulates in, on the device of `like`."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if spread == "others" and classes < 2:
        raise ValueError('spread "others" needs at least two classes')
    if isinstance(prior, str):
        if prior != "uniform":
            raise ValueError(f'prior must be "uniform" or a probability vector of length {classes}, not {prior!r}')
        return torch.full((classes,), 1 / classes, dtype=dtype, device=like.device)
    if not isinstance(prior, Tensor) or prior.shape != (classes,) or not prior.is_floating_point():
        raise ValueError(f"prior must be a floating-point vector of length {classes}, not {_describe(prior)}")
    if prior.device.type == "cpu":
        total = prior.sum(dtype=torch.float64).item()
        if not abs(total - 1) < 1e-3 or prior.min() < 0:
            raise ValueError(f"prior must be probabilities: these sum to {total:.6g}, the least is {prior.min():.3g}")
        if spread == "others" and prior.max() == 1:
            raise ValueError('with spread "others" the prior must leave mass to more than one class')
    return (prior / prior.sum()).to(device=like.device, dtype=dtype)


def _check_options(alpha: float, spread: str, reduction: str) -> None:
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must be at least 0 and below 1, not {alpha}")
    if spread not in ("all", "others"):
        raise ValueError(f'spread must be "all" or "others", not {spread!r}')
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum", not {reduction!r}')


def _check_targets(targets_N: Tensor, rows: int, classes: int, ignore_index: int | None) -> None:
    if targets_N.shape != (rows,) or targets_N.is_floating_point() or targets_N.dtype == torch.bool:
        raise ValueError(f"targets must be a vector of {rows} integers, not {_describe(targets_N)}")
    if targets_N.device.type == "cpu":
        wrong_N = (targets_N < 0) | (targets_N >= classes)
        if ignore_index is not None:
            wrong_N &= targets_N != ignore_index
        if wrong_N.any():
            row, label = int(wrong_N.nonzero()[0]), int(targets_N[wrong_N][0])
            also = "" if ignore_index is None else f" or be {ignore_index}"
            raise ValueError(f"targets must lie in [0, {classes}){also}: row {row} is {label}")


def _check_projection(hidden_ND: Tensor, weight_VD: Tensor) -> torch.dtype:
    """The dtype of the matrix products."""
    for name, tensor in (("hidden", hidden_ND), ("weight", weight_VD)):
        if tensor.dim() != 2 or not tensor.is_floating_point():
            raise ValueError(f"{name} must be a floating-point matrix, not {_describe(tensor)}")
    if not len(weight_VD):
        raise ValueError(f"weight must have a row for each class, not {_describe(weight_VD)}")
    if hidden_ND.shape[1] != weight_VD.shape[1]:
        raise ValueError(f"hidden has width {hidden_ND.shape[1]}, but weight has width {weight_VD.shape[1]}")
    device = hidden_ND.device.type
    dtype = hidden_ND.dtype
    if torch.is_autocast_enabled(device) and torch.float64 not in (hidden_ND.dtype, weight_VD.dtype):
        dtype = torch.get_autocast_dtype(device)
    elif hidden_ND.dtype != weight_VD.dtype:
        raise ValueError(f"hidden is {hidden_ND.dtype} but weight {weight_VD.dtype}: cast one, or use torch.autocast")
    if torch.float16 in (dtype, hidden_ND.dtype, weight_VD.dtype):
        raise ValueError("gradients of the size that these are vanish in torch.float16: use bfloat16 or float32")
    return dtype


def _describe(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
