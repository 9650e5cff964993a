"""Projection and smoothed cross-entropy in one, in chunks: all the logits never exist (see nmt_ls/losses.py for what).

Shapes: N rows (tokens), M of them not ignored, D width of the hidden states, V rows of the output layer;
n rows and v columns of a tile of logits, T tiles side by side.

Gradients are computed in the forward pass, while there are logits. Products of tiles that fit the caches are faster
than products of whole matrices, and there are two orders to take the tiles in:

- by rows, where products are as wide as sums (float32, float64): logits are made once, a chunk of rows at a time, and
  each chunk adds to the weight's gradient. Three matrix products in all, the fewest there can be.
- by columns, where they are narrower (bfloat16): such a sum over chunks would go through memory in float32 once a
  chunk, which takes longer than a product. Logits are made twice instead, a chunk of columns at a time: for lse, then
  for the gradients, where each row of the weight's is one product over all rows.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]
"""Of logits_nV, labels_n, label_mass_n: see losses_triton.softmax_gradient_in_place."""

_CHUNKS = 28  # logits exist one part in this many at a time,
_NARROW_CHUNKS = 44  # or in this many where room to widen them in comes on top,
_SMALLEST_CHUNK = 2**19  # but never fewer than this, or calls would cost more than work,
_FEWEST_ROWS = 64  # and never fewer rows (or columns), or products would be too thin
_TILES = 8  # tiles of a chunk; only one is ever wider than the products are
_SMALLEST_TILE = 200_000  # elements
_WIDENED_ROWS = 512  # rows of narrow states, weights or gradients that are widened at a time
_ROOMY = 100  # vocabulary over width, from where a float32 sum as large as hidden is small beside the logits
_SMALL = 1e-30  # a tile with a smaller share of a row's probability counts as having this
_LOG2_E = 1 / math.log(2)


@dataclass(frozen=True)
class Problem:
    """Everything about a fused loss but the two tensors that may need a gradient."""

    rows: Tensor  # M: which of the N
    labels: Tensor  # M
    label_mass: Tensor  # M: the `a` of the loss, in the dtype that sums are in
    prior_mass: Tensor  # M: its `b`
    prior: Tensor  # V
    scale: float  # what a mean multiplies a sum by
    compute_dtype: torch.dtype


class FusedLoss(torch.autograd.Function):
    """Makes gradients in the forward pass and hands them over in the backward pass; a second one makes them anew."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
        want_hidden, want_weight, _ = ctx.needs_input_grad
        loss, nll, *gradients = solve(hidden_ND, weight_VD, problem, want_hidden, want_weight)
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
            gradients = solve(hidden_ND, weight_VD, ctx.problem, want_hidden, want_weight)[2:]
        if grad_loss.device.type != "cpu" or grad_loss.item() != 1.0:  # elsewhere looking costs more than multiplying
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(grad_loss)
        return *gradients, None


def solve(
    hidden_ND: Tensor, weight_VD: Tensor, problem: Problem, want_hidden: bool, want_weight: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Loss, hard-label NLL, and the gradients that are wanted of hidden and weight."""
    with torch.no_grad(), torch.autocast(hidden_ND.device.type, enabled=False):
        sums, narrow = problem.prior.dtype, problem.compute_dtype != problem.prior.dtype
        kernel = _kernel(hidden_ND, sums)
        work = _Work(hidden_ND, weight_VD, problem, want_weight, by_columns=narrow and kernel is None)
        if len(problem.rows) == 0:
            return *problem.prior.new_zeros(2), torch.zeros_like(hidden_ND), torch.zeros_like(weight_VD)
        if kernel is not None:
            _by_whole_rows(work, kernel, want_hidden, want_weight and weight_VD.dtype == sums)
            _gradients_by_columns(work, False, want_weight and weight_VD.dtype != sums)
        elif not narrow:
            _by_rows(work, want_hidden, want_weight)
        elif not want_hidden or hidden_ND.dtype == sums or len(weight_VD) >= _ROOMY * weight_VD.shape[1]:
            _lse_by_columns(work)
            _gradients_by_columns(work, want_hidden, want_weight)
        else:
            _by_rows(work, want_hidden, False)
            _gradients_by_columns(work, False, want_weight)
        nlls_M = work.lse - work.label_logits
        losses_M = work.lse - problem.label_mass * work.label_logits - problem.prior_mass * work.prior_logits
        return losses_M.sum() * problem.scale, nlls_M.sum() * problem.scale, work.grad_hidden, work.grad_weight


class _Work:
    """What the passes over the logits read and fill."""

    lse: Tensor  # M
    label_logits: Tensor  # M
    prior_logits: Tensor  # M

    def __init__(
        self, hidden_ND: Tensor, weight_VD: Tensor, problem: Problem, want_weight: bool, by_columns: bool
    ) -> None:
        self.problem, self.dtype, self.hidden = problem, problem.prior.dtype, hidden_ND
        self.grad_hidden: Tensor | None = None
        self.grad_weight: Tensor | None = None
        if want_weight:
            self.grad_weight = torch.empty_like(weight_VD, memory_format=torch.contiguous_format)
        self.weight = _compute_copy(weight_VD, problem.compute_dtype, self.grad_weight if by_columns else None)
        self.mean_weight = _mean_weight(weight_VD, problem.prior)  # D
        self.lse, self.label_logits, self.prior_logits = problem.prior.new_empty(3, len(problem.rows))
        self.prior_gradient = torch.zeros_like(self.mean_weight)  # Σ_m b_m h_m
        for part in _slices(len(problem.rows), _WIDENED_ROWS):
            hidden_nD = self.hidden_of(part).to(self.dtype)
            self.prior_logits[part] = hidden_nD @ self.mean_weight
            self.prior_gradient += problem.prior_mass[part] @ hidden_nD

    def hidden_of(self, part: slice) -> Tensor:
        """The hidden states of some of the M rows, ready for products."""
        all_kept = len(self.problem.rows) == len(self.hidden)
        hidden_nD: Tensor = self.hidden[part] if all_kept else self.hidden[self.problem.rows[part]]
        return hidden_nD.to(self.weight.dtype)

    def keep_grad_hidden(self, grad_MD: Tensor) -> None:
        """Makes it the gradient of hidden: no gradient reaches the rows that are ignored."""
        if len(grad_MD) == len(self.hidden):
            self.grad_hidden = grad_MD.to(self.hidden.dtype)
        else:
            self.grad_hidden = torch.zeros_like(self.hidden)
            self.grad_hidden[self.problem.rows] = grad_MD.to(self.hidden.dtype)

    def at_label(self, part: slice) -> Tensor:
        """The gradient by the label's logit, but for the prior's part."""
        return (self.label_logits[part] - self.lse[part]).exp() - self.problem.label_mass[part]


def _by_rows(work: _Work, with_hidden: bool, with_weight: bool) -> None:
    """lse, label logits and gradients, n rows at a time; a gradient of the weight has to be as wide as sums."""
    problem, vocabulary = work.problem, len(work.weight)
    chunks = _CHUNKS if work.weight.dtype == work.dtype else _NARROW_CHUNKS
    chunk_rows = min(_chunk(len(problem.rows), vocabulary, chunks), len(problem.rows))
    tiles = _Tiles(chunk_rows, vocabulary, work.weight)
    grad_MD = work.hidden.new_empty(len(problem.rows), work.hidden.shape[1]) if with_hidden else None
    grad_weight_VD = work.grad_weight if with_weight else None
    if grad_weight_VD is not None:
        torch.outer(problem.prior, work.prior_gradient * -problem.scale, out=grad_weight_VD)
    for chunk in _slices(len(problem.rows), chunk_rows):
        hidden_nD = work.hidden_of(chunk)
        label_tile_n, place_n = tiles.places(problem.labels[chunk])
        shares_Tn = _exponentials(work, chunk, hidden_nD, tiles, place_n)
        if not with_hidden and not with_weight:
            continue
        # tiles times shares are the gradient by the logits, but for the prior's part: that is a product of two vectors
        label_shares_n = shares_Tn.gather(0, label_tile_n[None])[0]
        tiles.room[place_n] = (work.at_label(chunk) / label_shares_n).to(tiles.room.dtype)
        grad_nD = torch.outer(-problem.prior_mass[chunk], work.mean_weight)
        for (columns, tile_nv), share_n in zip(tiles.of(len(hidden_nD)), shares_Tn, strict=True):
            if with_hidden:
                grad_nD.addcmul_(torch.mm(tile_nv, work.weight[columns]).to(work.dtype), share_n[:, None])
            if grad_weight_VD is not None:
                grad_weight_VD[columns].addmm_(tile_nv.T, hidden_nD * (share_n * problem.scale)[:, None])
        if grad_MD is not None:
            grad_MD[chunk] = grad_nD.mul_(problem.scale)
    if grad_MD is not None:
        work.keep_grad_hidden(grad_MD)


def _exponentials(work: _Work, chunk: slice, hidden_nD: Tensor, tiles: "_Tiles", place_n: Tensor) -> Tensor:
    """Fills the tiles with exp(logit - its row's peak in the tile), and the chunk's lse and label logits.

    Returns shares_Tn, which times a tile's row is the probabilities there.
    """
    for columns, tile_nv in tiles.of(len(hidden_nD)):
        torch.mm(hidden_nD, work.weight[columns].T, out=tile_nv)
    work.label_logits[chunk] = tiles.room[place_n]
    peaks, totals, widened = [], [], _Widened(work.dtype)
    for _, tile_nv in tiles.of(len(hidden_nD)):
        wide_nv = widened.of(tile_nv)
        peaks_n1 = wide_nv.amax(1, keepdim=True)
        _exp_in_place(wide_nv, peaks_n1 * -_LOG2_E)
        peaks.append(peaks_n1[:, 0])
        totals.append(wide_nv.sum(1))
        if wide_nv is not tile_nv:
            tile_nv.copy_(wide_nv)
    peaks_Tn = torch.stack(peaks)
    lse_n = torch.logsumexp(peaks_Tn + torch.stack(totals).log(), 0)
    work.lse[chunk] = lse_n
    return (peaks_Tn - lse_n).exp().clamp(min=_SMALL)


class _Tiles:
    """Room for n rows of logits, kept as contiguous tiles of v columns (the last may be narrower)."""

    def __init__(self, rows: int, vocabulary: int, like: Tensor) -> None:
        self.vocabulary = vocabulary
        self.width = _tile(vocabulary, rows)
        self.room = like.new_empty(rows * vocabulary)

    def of(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Columns and tile_nv of each tile, for n = `rows`."""
        for columns in _slices(self.vocabulary, self.width):
            yield columns, self.room[rows * columns.start : rows * columns.stop].view(rows, -1)

    def places(self, labels_n: Tensor) -> tuple[Tensor, Tensor]:
        """Of each row's label: the number of the tile, and where it is in the room."""
        tile_n = labels_n // self.width
        begin_n = tile_n * self.width
        width_n = (self.vocabulary - begin_n).clamp(max=self.width)
        row_n = torch.arange(len(labels_n), device=labels_n.device)
        return tile_n, len(labels_n) * begin_n + row_n * width_n + labels_n - begin_n


def _by_whole_rows(work: _Work, kernel: Kernel, with_hidden: bool, with_weight: bool) -> None:
    """`_by_rows` for a GPU, where one kernel takes the softmax of whole rows and makes it their gradient."""
    problem = work.problem
    chunk_rows = _chunk(len(problem.rows), len(work.weight), _CHUNKS)
    room = work.weight.new_empty(min(chunk_rows, len(problem.rows)), len(work.weight))
    grad_MD = work.hidden.new_empty(len(problem.rows), work.hidden.shape[1]) if with_hidden else None
    grad_weight_VD = work.grad_weight if with_weight else None
    if grad_weight_VD is not None:
        torch.outer(problem.prior, work.prior_gradient * -problem.scale, out=grad_weight_VD)
    for chunk in _slices(len(problem.rows), chunk_rows):
        hidden_nD = work.hidden_of(chunk)
        logits_nV = torch.mm(hidden_nD, work.weight.T, out=room[: len(hidden_nD)])
        work.lse[chunk], work.label_logits[chunk] = kernel(
            logits_nV, problem.labels[chunk], problem.label_mass[chunk], with_hidden or with_weight
        )
        if grad_MD is not None:
            grad_nD = torch.mm(logits_nV, work.weight).to(work.dtype)
            grad_MD[chunk] = grad_nD.addr_(problem.prior_mass[chunk], work.mean_weight, alpha=-1).mul_(problem.scale)
        if grad_weight_VD is not None:
            grad_weight_VD.add_(torch.mm(logits_nV.T, hidden_nD), alpha=problem.scale)
    if grad_MD is not None:
        work.keep_grad_hidden(grad_MD)


def _kernel(hidden_ND: Tensor, sums: torch.dtype) -> Kernel | None:
    """The Triton kernel, where it can run."""
    if not hidden_ND.is_cuda or sums != torch.float32 or importlib.util.find_spec("triton") is None:
        return None
    from nmt_ls.losses_triton import softmax_gradient_in_place

    return softmax_gradient_in_place


def _lse_by_columns(work: _Work) -> None:
    """lse and label logits, v columns of all rows at a time."""
    labels_M, lse_M, widened = work.problem.labels, work.lse.fill_(-math.inf), _Widened(work.dtype)
    for columns, logits_Mv in _logits_by_columns(work.hidden_of(slice(None)), work.weight):
        inside_M, places = _label_places(labels_M, columns)
        work.label_logits = torch.where(inside_M, logits_Mv[places].to(work.dtype), work.label_logits)
        for part in _slices(len(logits_Mv), _tile(*logits_Mv.shape)):
            wide_mv, lse_m = widened.of(logits_Mv[part]), lse_M[part]
            peaks_m1 = wide_mv.amax(1, keepdim=True)
            sums_m = _exp_in_place(wide_mv, peaks_m1 * -_LOG2_E).sum(1)
            torch.logaddexp(lse_m, sums_m.log_().add_(peaks_m1[:, 0]), out=lse_m)


def _gradients_by_columns(work: _Work, with_hidden: bool, with_weight: bool) -> None:
    """Gradients from lse and the label logits, v columns of all rows at a time.

    Rows of the weight's gradient are written from the first to the last, each after the weight is last read there.
    """
    if not with_hidden and not with_weight:
        return
    problem = work.problem
    at_label_M = work.at_label(slice(None)).to(work.weight.dtype)
    grad_MD = torch.outer(-problem.prior_mass, work.mean_weight) if with_hidden else None
    grad_weight_VD = work.grad_weight if with_weight else None
    hidden_MD, shift_M1, widened = work.hidden_of(slice(None)), work.lse[:, None] * -_LOG2_E, _Widened(work.dtype)
    for columns, logits_Mv in _logits_by_columns(hidden_MD, work.weight):
        for part in _slices(len(logits_Mv), _tile(*logits_Mv.shape)):
            logits_Mv[part] = _exp_in_place(widened.of(logits_Mv[part]), shift_M1[part])
        inside_M, places = _label_places(problem.labels, columns)
        logits_Mv[places] = torch.where(inside_M, at_label_M, logits_Mv[places])  # now the gradient by the logits
        if grad_MD is not None:
            for part in _slices(len(grad_MD), _WIDENED_ROWS):
                grad_MD[part].add_(torch.mm(logits_Mv[part], work.weight[columns]))
        if grad_weight_VD is not None:
            grad_vD = torch.mm(logits_Mv.T, hidden_MD).to(work.dtype)
            grad_vD.addr_(problem.prior[columns], work.prior_gradient, alpha=-1)
            grad_weight_VD[columns] = grad_vD.mul_(problem.scale)
            del grad_vD  # before the next logits are made
    if grad_MD is not None:
        work.keep_grad_hidden(grad_MD.mul_(problem.scale))


def _logits_by_columns(hidden_MD: Tensor, weight_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Columns and logits_Mv, in the same memory each time."""
    rows, vocabulary = len(hidden_MD), len(weight_VD)
    chunk_columns = min(_chunk(vocabulary, rows, _NARROW_CHUNKS), vocabulary)
    room = hidden_MD.new_empty(rows * chunk_columns)
    for columns in _slices(vocabulary, chunk_columns):
        logits_Mv = room[: rows * (columns.stop - columns.start)].view(rows, -1)
        yield columns, torch.mm(hidden_MD, weight_VD[columns].T, out=logits_Mv)


def _label_places(labels_M: Tensor, columns: slice) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Whether each row's label is among the columns, and an index for it there (for some other column if it is not)."""
    offsets_M = labels_M - columns.start
    within_M = offsets_M.clamp(0, columns.stop - columns.start - 1)
    return offsets_M == within_M, (torch.arange(len(labels_M), device=labels_M.device), within_M)


class _Widened:
    """Tiles in the dtype that sums are in: themselves where they are so already, else copies in one place for all."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.room: Tensor | None = None

    def of(self, tile: Tensor) -> Tensor:
        if tile.dtype == self.dtype:
            return tile
        if self.room is None or len(self.room) < tile.numel():
            self.room = tile.new_empty(tile.numel(), dtype=self.dtype)
        return self.room[: tile.numel()].view_as(tile).copy_(tile)


def _exp_in_place(matrix: Tensor, shift_n1: Tensor) -> Tensor:
    """exp(matrix + shift · ln 2), by powers of two, which take a third of the time."""
    return torch.add(shift_n1, matrix, alpha=_LOG2_E, out=matrix).exp2_()


def _mean_weight(weight_VD: Tensor, prior_V: Tensor) -> Tensor:
    """w̄_D = Σ_k u_k w_k."""
    if weight_VD.dtype == prior_V.dtype:
        return prior_V @ weight_VD
    total_D = prior_V.new_zeros(weight_VD.shape[1])
    for begin in range(0, len(weight_VD), _WIDENED_ROWS):
        part = slice(begin, begin + _WIDENED_ROWS)
        total_D += prior_V[part] @ weight_VD[part].to(prior_V.dtype)
    return total_D


def _compute_copy(weight_VD: Tensor, dtype: torch.dtype, room_VD: Tensor | None) -> Tensor:
    """The weight in `dtype`; a narrower copy is laid into the second half of `room_VD`, so that it takes no memory."""
    if weight_VD.dtype == dtype or room_VD is None or room_VD.dtype.itemsize != 2 * dtype.itemsize:
        return weight_VD.to(dtype)
    return room_VD.view(-1).view(dtype)[weight_VD.numel() :].view_as(weight_VD).copy_(weight_VD)


def _chunk(length: int, other: int, chunks: int) -> int:
    """How many of `length` rows, each of `other` elements, are worked on at a time."""
    rows = max(length // chunks, _SMALLEST_CHUNK // max(other, 1), _FEWEST_ROWS)
    return math.ceil(rows / 16) * 16


def _tile(length: int, other: int) -> int:
    """How many of a chunk's `length` columns or rows, each of `other` elements, make a tile."""
    tile = max(length / _TILES, _SMALLEST_TILE / max(other, 1))
    return min(length, math.ceil(tile / 64) * 64)


def _slices(length: int, step: int) -> list[slice]:
    """`range(length)` in slices of `step`, the last perhaps shorter."""
    return [slice(begin, min(begin + step, length)) for begin in range(0, length, max(step, 1))]
