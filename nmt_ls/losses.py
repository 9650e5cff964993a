"""Cross-entropy against smoothed labels: the plain definition, and fused with the projection, all logits never held.

Shapes: N rows (tokens), D width of the hidden states, V rows of the output layer, n rows of a chunk.

The target of a row with label y is `1 - α + α·u_y` on the label and `α·u_k` elsewhere (spread "all"), or `1 - α` on the
label and `α·u_k / (1 - u_y)` elsewhere (spread "others"), with the prior u uniform or given: Müller, Kornblith & Hinton
2019, section 1.1; Szegedy et al. 2016, section 7. Either way the target is `a` on the label plus `b` times the prior:

    loss = lse(z) − a·z_y − b·(u·z)             a + b = 1

and since z = h Wᵀ, the prior's part is b·(h·w̄) with w̄ = Σ_k u_k w_k, which needs no logits.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Prior = Tensor | Literal["uniform"]
Spread = Literal["all", "others"]
Reduction = Literal["mean", "sum"]

_CHUNK_SHARE = 32  # a chunk of the fused loss holds one part in this many of all logits ...
_SMALLEST_CHUNK = 64  # ... but no fewer rows than this: matrix products of few rows waste the processor
_PRODUCT_ROWS = 2048  # rows of the weight gradient that are added at a time where the sum is wider than the product


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

    Logits exist for a few rows at a time. Where a gradient is wanted it is computed in the forward pass, while they do,
    so that a training step costs the three matrix products that it must. Products are in the dtype of the inputs (under
    autocast in its dtype; the weight's gradient keeps the dtype of the weight), everything else and every sum in
    float32 (float64 for float64 inputs). The negative log-likelihood carries no gradient and costs nothing.

    Raises:
        ValueError: as `smoothed_cross_entropy`, and where hidden and weight do not fit each other.
    """
    _check_options(alpha, spread, reduction)
    compute_dtype = _check_projection(hidden_ND, weight_VD)
    _check_targets(targets_N, hidden_ND.shape[0], weight_VD.shape[0], ignore_index)
    prior_V = _prior_vector(prior, weight_VD.shape[0], hidden_ND, spread)
    problem = _Problem(targets_N, prior_V, alpha, spread, ignore_index, reduction, compute_dtype)
    if torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad):
        loss, nll = _FusedLoss.apply(hidden_ND, weight_VD, problem)  # type: ignore[no-untyped-call]
        return loss, nll
    loss, nll, _, _ = _solve(hidden_ND, weight_VD, problem, False, False)
    return loss, nll


@dataclass(frozen=True)
class _Problem:
    """Everything about a fused loss but the two tensors that may need a gradient."""

    targets: Tensor  # N
    prior: Tensor  # V, in the dtype that sums are in
    alpha: float
    spread: Spread
    ignore_index: int
    reduction: Reduction
    compute_dtype: torch.dtype


class _FusedLoss(torch.autograd.Function):
    """Makes gradients in the forward pass and hands them over in the backward pass; a second one makes them anew."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, problem: _Problem) -> tuple[Tensor, Tensor]:
        want_hidden, want_weight, _ = ctx.needs_input_grad
        loss, nll, *gradients = _solve(hidden_ND, weight_VD, problem, want_hidden, want_weight)
        ctx.save_for_backward(hidden_ND, weight_VD)
        ctx.problem, ctx.gradients = problem, gradients
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        gradients = ctx.gradients
        ctx.gradients = None  # they are scaled in place, and the caller may keep them as its own
        if gradients is None:
            hidden_ND, weight_VD = ctx.saved_tensors
            want_hidden, want_weight, _ = ctx.needs_input_grad
            gradients = _solve(hidden_ND, weight_VD, ctx.problem, want_hidden, want_weight)[2:]
        if grad_loss.device.type != "cpu" or grad_loss.item() != 1.0:  # elsewhere looking costs more than multiplying
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(grad_loss.to(gradient.dtype))
        return *gradients, None


@torch.no_grad()
def _solve(
    hidden_ND: Tensor, weight_VD: Tensor, problem: _Problem, want_hidden: bool, want_weight: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Loss, hard-label NLL, and the gradients that are wanted of hidden and weight."""
    with torch.autocast(hidden_ND.device.type, enabled=False):
        prior_V, dtype = problem.prior, problem.prior.dtype
        rows_N = torch.nonzero(problem.targets != problem.ignore_index)[:, 0]
        labels_N = problem.targets[rows_N].long()
        scale = 1.0 / max(len(rows_N), 1) if problem.reduction == "mean" else 1.0
        label_mass_N, prior_mass_N = _masses(prior_V[labels_N], problem.alpha, problem.spread)
        mean_weight_D = prior_V @ weight_VD.to(dtype)
        compute_VD = weight_VD.to(problem.compute_dtype)
        sums = torch.zeros(2, dtype=dtype, device=hidden_ND.device)
        grad_hidden_ND = torch.zeros_like(hidden_ND) if want_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=dtype) if want_weight else None
        rows_of_chunk = max(_SMALLEST_CHUNK, len(rows_N) // _CHUNK_SHARE)
        for begin in range(0, len(rows_N), rows_of_chunk):
            chunk = slice(begin, begin + rows_of_chunk)
            hidden_nD = hidden_ND[rows_N[chunk]].to(problem.compute_dtype)
            labels_n1, label_mass_n = labels_N[chunk, None], label_mass_N[chunk]
            logits_nV = torch.mm(hidden_nD, compute_VD.T).to(dtype)
            label_logits_n = logits_nV.gather(1, labels_n1)[:, 0]
            peaks_n1 = logits_nV.amax(1, keepdim=True)
            exps_nV = logits_nV.sub_(peaks_n1).exp_()
            totals_n1 = exps_nV.sum(1, keepdim=True)
            lse_n = (peaks_n1 + totals_n1.log())[:, 0]
            prior_logits_n = hidden_nD.to(dtype) @ mean_weight_D
            sums[0] += (lse_n - label_mass_n * label_logits_n - prior_mass_N[chunk] * prior_logits_n).sum()
            sums[1] += (lse_n - label_logits_n).sum()
            if grad_hidden_ND is None and grad_weight_VD is None:
                continue
            grad_logits_nV = exps_nV.div_(totals_n1)
            grad_logits_nV.scatter_add_(1, labels_n1, -label_mass_n[:, None])
            grad_logits_nV = grad_logits_nV.to(problem.compute_dtype)
            if grad_hidden_ND is not None:
                grad_hidden_nD = torch.mm(grad_logits_nV, compute_VD).to(dtype)
                grad_hidden_nD -= prior_mass_N[chunk, None] * mean_weight_D
                grad_hidden_ND[rows_N[chunk]] = (grad_hidden_nD * scale).to(hidden_ND.dtype)
            if grad_weight_VD is not None:
                _add_product(grad_weight_VD, grad_logits_nV, hidden_nD)
                grad_weight_VD.addr_(prior_V, prior_mass_N[chunk] @ hidden_nD.to(dtype), alpha=-1)
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.mul_(scale).to(weight_VD.dtype)
        loss, nll = sums * scale
        return loss, nll.clone(), grad_hidden_ND, grad_weight_VD


def _add_product(total_VD: Tensor, grad_logits_nV: Tensor, hidden_nD: Tensor) -> None:
    """`total_VD += grad_logits_nVᵀ hidden_nD`, where the total may be wider than the product's dtype."""
    if total_VD.dtype == hidden_nD.dtype:
        total_VD.addmm_(grad_logits_nV.T, hidden_nD)
        return
    for begin in range(0, len(total_VD), _PRODUCT_ROWS):
        block = slice(begin, begin + _PRODUCT_ROWS)
        total_VD[block] += torch.mm(grad_logits_nV[:, block].T, hidden_nD)


def _masses(label_prior_N: Tensor, alpha: float, spread: Spread) -> tuple[Tensor, Tensor]:
    """The target of a row as `a` on its label plus `b` times the prior: a_N and b_N."""
    if spread == "all":
        return torch.full_like(label_prior_N, 1 - alpha), torch.full_like(label_prior_N, alpha)
    prior_mass_N = alpha / (1 - label_prior_N)
    return 1 - prior_mass_N, prior_mass_N + 0 * label_prior_N


def _prior_vector(prior: Prior, classes: int, like: Tensor, spread: Spread) -> Tensor:
    """The prior in the dtype that the loss accumulates in, on the device of `like`."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
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


def _check_targets(targets_N: Tensor, rows: int, classes: int, ignore_index: int) -> None:
    if targets_N.shape != (rows,) or targets_N.is_floating_point() or targets_N.dtype == torch.bool:
        raise ValueError(f"targets must be a vector of {rows} integers, not {_describe(targets_N)}")
    if targets_N.device.type == "cpu":
        wrong_N = ((targets_N < 0) | (targets_N >= classes)) & (targets_N != ignore_index)
        if wrong_N.any():
            row, label = int(wrong_N.nonzero()[0]), int(targets_N[wrong_N][0])
            raise ValueError(f"targets must lie in [0, {classes}) or be {ignore_index}: row {row} is {label}")


def _check_projection(hidden_ND: Tensor, weight_VD: Tensor) -> torch.dtype:
    """The dtype of the matrix products."""
    for name, tensor in (("hidden", hidden_ND), ("weight", weight_VD)):
        if tensor.dim() != 2 or not tensor.is_floating_point():
            raise ValueError(f"{name} must be a floating-point matrix, not {_describe(tensor)}")
    if hidden_ND.shape[1] != weight_VD.shape[1]:
        raise ValueError(f"hidden has width {hidden_ND.shape[1]}, but weight has width {weight_VD.shape[1]}")
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device) and torch.float64 not in (hidden_ND.dtype, weight_VD.dtype):
        return torch.get_autocast_dtype(device)
    if hidden_ND.dtype != weight_VD.dtype:
        raise ValueError(f"hidden is {hidden_ND.dtype} but weight {weight_VD.dtype}: cast one, or use torch.autocast")
    return hidden_ND.dtype


def _describe(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
