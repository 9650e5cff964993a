"""Projection and smoothed cross-entropy in one, in chunks: all the logits never exist (see nmt_ls/losses.py for what).

Shapes: N rows (tokens), M of them not ignored, D width of the hidden states, V rows of the output layer;
n or m rows and v columns of a tile of logits; C = D + 2, the width of states or weights beside what is subtracted.

Gradients are computed in the forward pass, while there are logits, from exponentials of the logits less their row's
label's logit. That needs no pass for the peak: the label's own is 1, so sums cannot vanish, and that they overflow (a
negative log-likelihood above 60 nats) is seen and mended. Where products are as wide as sums (float32, float64), each
chunk of rows adds to the weight's gradient: three matrix products in all, the fewest there can be.

Where they are narrower (bfloat16), such a sum goes through memory in float32 once a chunk, and chunks that keep to the
room there is are too thin for fast products. So logits are made twice: a tile of rows and columns at a time for lse and
the gradient of hidden, then a chunk of columns at a time for the weight's, each of whose rows is one product over all
rows (or a sum of a few, over blocks of them, where chunks of all rows would be thin). What is subtracted from the
logits is part of their product: it is rounded once, and the exponential of the result can be taken where it lies.
"""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]
"""Of logits_nV, labels_n, label_mass_n: see losses_triton.softmax_gradient_in_place."""

_CHUNKS = 23  # logits, and what goes with them, exist one part in this many at a time,
_SMALLEST_CHUNK = 2**20  # but where that is fewer than this, this many (4 MiB in fp32), or calls would cost too much,
_ENOUGH_COLUMNS = 320  # of narrow logits: where all rows leave no room for as many, they are taken in blocks,
_FEWEST_BLOCK_ROWS = 256  # halved down to this
_FEWEST_ROWS = 64  # and never fewer rows (or columns), or products would be too thin
_TILES = 8  # tiles of a chunk; only one is ever in two precisions
_SMALLEST_TILE = 200_000  # elements
_WIDENED_ROWS = 512  # rows of narrow states, weights or logits that are widened at a time
_MOST_COLUMNS = 1024  # of a tile of narrow logits
_LARGEST_SUM = 1e26  # of exponentials: e^60, beyond which their products might overflow
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
        sums = problem.prior.dtype
        kernel = _kernel(hidden_ND, sums)
        work = _Work(hidden_ND, weight_VD, problem, want_weight)
        if len(problem.rows) == 0:
            wanted = [(hidden_ND, want_hidden), (weight_VD, want_weight)]
            return *problem.prior.new_zeros(2), *(torch.zeros_like(x) if want else None for x, want in wanted)
        if kernel is not None:
            by_columns = weight_VD.dtype != sums
            _by_whole_rows(work, kernel, want_hidden, want_weight and not by_columns)
        else:
            by_columns = problem.compute_dtype != sums
            _by_rows(work, want_hidden, want_weight and not by_columns)
        if want_weight and by_columns:
            _weight_gradient_by_columns(work)
        nlls_M = work.lse - work.label_logits
        losses_M = work.lse - problem.label_mass * work.label_logits - problem.prior_mass * work.prior_logits
        return losses_M.sum() * problem.scale, nlls_M.sum() * problem.scale, work.grad_hidden, work.grad_weight


class _Work:
    """What the passes over the logits read and fill."""

    lse: Tensor  # M
    label_logits: Tensor  # M
    prior_logits: Tensor  # M

    def __init__(self, hidden_ND: Tensor, weight_VD: Tensor, problem: Problem, want_weight: bool) -> None:
        self.problem, self.dtype, self.compute_dtype = problem, problem.prior.dtype, problem.compute_dtype
        self.hidden, self.weight = hidden_ND, weight_VD
        self.grad_hidden: Tensor | None = None
        self.grad_weight: Tensor | None = None
        if want_weight:
            self.grad_weight = torch.empty_like(weight_VD, memory_format=torch.contiguous_format)
        self.mean_weight = _mean_weight(weight_VD, problem.prior)  # D
        self.lse, self.label_logits, self.prior_logits = problem.prior.new_empty(3, len(problem.rows))
        self.prior_gradient = torch.zeros_like(self.mean_weight)  # Σ_m b_m h_m
        for part in _slices(len(problem.rows), _WIDENED_ROWS):
            hidden_nD = self.hidden_of(part).to(self.dtype)
            self.prior_logits[part] = hidden_nD @ self.mean_weight
            self.prior_gradient += problem.prior_mass[part] @ hidden_nD

    def hidden_of(self, part: slice) -> Tensor:
        """The hidden states of some of the M rows, ready for products."""
        return self.kept_hidden(part).to(self.compute_dtype)

    def kept_hidden(self, part: slice) -> Tensor:
        """The same in their own precision."""
        all_kept = len(self.problem.rows) == len(self.hidden)
        hidden_nD: Tensor = self.hidden[part] if all_kept else self.hidden[self.problem.rows[part]]
        return hidden_nD

    def keep_grad_hidden(self, chunk: slice, grad_nD: Tensor) -> None:
        """Puts it into the gradient of hidden, which does not reach the rows that are ignored."""
        if self.grad_hidden is None:
            self.grad_hidden = torch.zeros_like(self.hidden, memory_format=torch.contiguous_format)
        if len(self.problem.rows) == len(self.hidden):
            self.grad_hidden[chunk] = grad_nD
        else:
            self.grad_hidden[self.problem.rows[chunk]] = grad_nD.to(self.hidden.dtype)

    def at_label(self, part: slice) -> Tensor:
        """The gradient by the label's logit, but for the prior's part."""
        return (self.label_logits[part] - self.lse[part]).exp() - self.problem.label_mass[part]


def _by_rows(work: _Work, with_hidden: bool, with_weight: bool) -> None:
    """lse, label logits and gradients, n rows at a time; a gradient of the weight has to be as wide as sums."""
    problem, tiles = work.problem, _Tiles(work)
    grad_weight_VD = work.grad_weight if with_weight else None
    if grad_weight_VD is not None:
        torch.outer(problem.prior, work.prior_gradient * -problem.scale, out=grad_weight_VD)
    for chunk in _slices(len(problem.rows), tiles.rows):
        _one_chunk(chunk, work, tiles, with_hidden, grad_weight_VD)


def _one_chunk(chunk: slice, work: _Work, tiles: "_Tiles", with_hidden: bool, grad_weight_VD: Tensor | None) -> None:
    """`_by_rows` for one chunk: a function of its own, so that what it allocates is gone before the next."""
    problem = work.problem
    hidden_nD, labels_n = work.hidden_of(chunk), problem.labels[chunk]
    label_weight_nD = work.weight[labels_n].to(work.compute_dtype)
    label_logits_n = (label_weight_nD.to(work.dtype) * hidden_nD).sum(1)
    tiles.look_at(labels_n)
    shift_n, total_n, grad_nD = tiles.fill(hidden_nD, label_logits_n, with_hidden)
    if not (total_n < _LARGEST_SUM).all():
        shift_n, total_n, grad_nD = tiles.fill(hidden_nD, tiles.peaks(hidden_nD), with_hidden)
    work.label_logits[chunk], work.lse[chunk] = label_logits_n, shift_n + total_n.log()
    at_label_n = work.at_label(chunk)
    if grad_nD is not None:
        grad_nD.div_(total_n[:, None]).addcmul_(label_weight_nD.to(work.dtype), at_label_n[:, None])
        grad_nD.addr_(problem.prior_mass[chunk], work.mean_weight, alpha=-1).mul_(problem.scale)
        work.keep_grad_hidden(chunk, grad_nD)
    if grad_weight_VD is not None:
        tiles.add_to(grad_weight_VD, hidden_nD * (problem.scale / total_n)[:, None], at_label_n * total_n)


class _Tiles:
    """The exponentials of n rows of logits less a shift a row, as contiguous tiles of v columns (the last narrower).

    All of them are kept, or, where they are narrower than sums, one at a time.
    """

    def __init__(self, work: _Work) -> None:
        rows, (vocabulary, width) = len(work.problem.rows), work.weight.shape
        self.dtype, self.narrow = work.dtype, work.compute_dtype != work.dtype
        if self.narrow:  # beside a tile there is its copy in the dtype of sums, and some that are as large as hidden
            self.rows, columns = _halve(
                min(_WIDENED_ROWS, rows),
                _FEWEST_ROWS,
                lambda some: _fitting(rows * vocabulary, 3 * some + width, beside=5 * some * width),
            )
            self.width = min(columns, _MOST_COLUMNS, vocabulary)
        else:
            self.rows = min(_fitting(rows * vocabulary, vocabulary), rows)
            self.width = _tile(vocabulary, self.rows)
        self.weights = torch.split(work.weight, self.width)
        self.columns = [len(weight_vD) for weight_vD in self.weights]
        room = self.rows * (self.width if self.narrow else vocabulary)
        self.room = work.hidden.new_empty(room, dtype=work.compute_dtype)
        self.weight_room = self.room.new_ones(self.width, width + 2) if self.narrow else None
        self.tiles: list[Tensor] = []
        self.order = self.places = self.room  # of the labels, tile by tile
        self.labels: list[int] = []  # in each tile

    def look_at(self, labels_n: Tensor) -> None:
        """Lays out tiles for as many rows, and finds the labels' places in them."""
        rows = len(labels_n)
        if not self.tiles or len(self.tiles[0]) != rows:
            begins = [0 if self.narrow else rows * self.width * tile for tile in range(len(self.columns))]
            sizes = [rows * columns for columns in self.columns]
            self.tiles = [
                self.room[begin : begin + size].view(rows, -1) for begin, size in zip(begins, sizes, strict=True)
            ]
        tile_n, column_n = labels_n // self.width, labels_n % self.width
        self.order = tile_n.argsort(stable=True)
        width_n = torch.where(tile_n == len(self.columns) - 1, self.columns[-1], self.width)
        row_n = torch.arange(rows, device=labels_n.device)
        self.places = (row_n * width_n + column_n)[self.order]
        self.labels = torch.bincount(tile_n, minlength=len(self.columns)).tolist()

    def fill(self, hidden_nD: Tensor, shift_n: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Fills the tiles, with 0 in the labels' places.

        Returns the shift as the products saw it, total_n (labels included), and what the tiles times the weight are.
        """
        factor_nC = hidden_nD
        if self.narrow:
            factor_nC = self.room.new_empty(len(hidden_nD), hidden_nD.shape[1] + 2)
            shift_n = _with_shift(hidden_nD, shift_n, factor_nC)
        exponent_n1 = shift_n[:, None] * -_LOG2_E
        total_n = torch.zeros_like(shift_n)
        grad_nD = shift_n.new_zeros(hidden_nD.shape) if with_gradient else None
        places_of_tile = torch.split(self.places, self.labels)
        for tile_nv, weight_vD, places in zip(self.tiles, self.weights, places_of_tile, strict=True):
            if self.weight_room is None:
                torch.mm(factor_nC, weight_vD.T, out=tile_nv)
                _exp_in_place(tile_nv, exponent_n1)
            else:  # the shift is in the product: it is rounded once, and there is no tile in two precisions
                weight_vC = self.weight_room[: len(weight_vD)]
                weight_vD = weight_vC[:, :-2].copy_(weight_vD)
                torch.addmm(tile_nv, factor_nC, weight_vC.T, beta=0, alpha=_LOG2_E, out=tile_nv).exp2_()
            total_n += tile_nv.sum(1, dtype=self.dtype)
            tile_nv.view(-1).index_fill_(0, places, 0)
            if grad_nD is not None and self.narrow:
                grad_nD.add_(torch.mm(tile_nv, weight_vD))
            elif grad_nD is not None:
                grad_nD.addmm_(tile_nv, weight_vD)
        return shift_n, total_n, grad_nD

    def peaks(self, hidden_nD: Tensor) -> Tensor:
        """The largest logit of each row."""
        peaks = [torch.mm(hidden_nD, weight_vD.to(hidden_nD.dtype).T).amax(1) for weight_vD in self.weights]
        return torch.stack(peaks).amax(0).to(self.dtype)

    def add_to(self, grad_VD: Tensor, factor_nD: Tensor, at_label_n: Tensor) -> None:
        """Adds the tiles, with these values in the labels' places, transposed, times a factor."""
        values, places = (torch.split(x, self.labels) for x in (at_label_n[self.order], self.places))
        grads = torch.split(grad_VD, self.width)
        for tile_nv, grad_vD, place, value in zip(self.tiles, grads, places, values, strict=True):
            tile_nv.view(-1).index_copy_(0, place, value)
            grad_vD.addmm_(tile_nv.T, factor_nD)


def _with_shift(hidden_nD: Tensor, shift_n: Tensor, shifted_nC: Tensor) -> Tensor:
    """Fills in the states with two columns more, of which a weight with two ones more makes logits less the shift.

    The shift is split into what their dtype can say and what is left over; returns their sum.
    """
    shifted_nC[:, :-2] = hidden_nD
    shifted_nC[:, -2] = -shift_n
    shifted_nC[:, -1] = -(shift_n + shifted_nC[:, -2])
    return -shifted_nC[:, -2:].to(shift_n.dtype).sum(1)


def _by_whole_rows(work: _Work, kernel: Kernel, with_hidden: bool, with_weight: bool) -> None:
    """`_by_rows` for a GPU, where one kernel takes the softmax of whole rows and makes it their gradient."""
    problem = work.problem
    weight_VD = work.weight.to(work.compute_dtype)
    chunk_rows = _fitting(len(problem.rows) * len(weight_VD), len(weight_VD))
    room = weight_VD.new_empty(min(chunk_rows, len(problem.rows)), len(weight_VD))
    grad_weight_VD = work.grad_weight if with_weight else None
    if grad_weight_VD is not None:
        torch.outer(problem.prior, work.prior_gradient * -problem.scale, out=grad_weight_VD)
    for chunk in _slices(len(problem.rows), chunk_rows):
        hidden_nD = work.hidden_of(chunk)
        logits_nV = torch.mm(hidden_nD, weight_VD.T, out=room[: len(hidden_nD)])
        work.lse[chunk], work.label_logits[chunk] = kernel(
            logits_nV, problem.labels[chunk], problem.label_mass[chunk], with_hidden or with_weight
        )
        if with_hidden:
            grad_nD = torch.mm(logits_nV, weight_VD).to(work.dtype)
            grad_nD.addr_(problem.prior_mass[chunk], work.mean_weight, alpha=-1).mul_(problem.scale)
            work.keep_grad_hidden(chunk, grad_nD)
        if grad_weight_VD is not None:
            grad_weight_VD.add_(torch.mm(logits_nV.T, hidden_nD), alpha=problem.scale)


def _kernel(hidden_ND: Tensor, sums: torch.dtype) -> Kernel | None:
    """The Triton kernel, where it can run."""
    if not hidden_ND.is_cuda or sums != torch.float32 or importlib.util.find_spec("triton") is None:
        return None
    from nmt_ls.losses_triton import softmax_gradient_in_place

    return softmax_gradient_in_place


def _weight_gradient_by_columns(work: _Work) -> None:
    """The gradient of the weight from lse and the label logits, v columns at a time, of a block of m rows at a time."""
    problem, rows, (vocabulary, width) = work.problem, len(work.problem.rows), work.weight.shape
    assert work.grad_weight is not None
    logits, threads = rows * vocabulary, 0 if work.hidden.is_cuda else torch.get_num_threads()

    def columns_beside(rows: int) -> int:  # a thread's scratch in products is some half of a factor and of the result
        scratch = threads * rows * width // 2
        return _fitting(logits, rows + (5 + threads) * width, beside=rows * (width + 2) + scratch)

    fewest = rows if work.hidden.is_cuda else _FEWEST_BLOCK_ROWS  # small tiles would be too many launches
    block, chunk_columns = _halve(rows, fewest, columns_beside)
    chunk_columns = min(chunk_columns, vocabulary)
    blocks = _slices(rows, block)
    kept_mC = work.weight.new_empty(block, width + 2, dtype=work.compute_dtype)
    room, ones_v2 = kept_mC.new_empty(block * chunk_columns), kept_mC.new_ones(chunk_columns, 2)
    at_label_M = work.at_label(slice(None)).to(room.dtype)
    for columns in _slices(vocabulary, chunk_columns):
        weight_vC = torch.cat((work.weight[columns].to(room.dtype), ones_v2[: columns.stop - columns.start]), 1)
        grad_vD = torch.outer(problem.prior[columns], -work.prior_gradient)
        for part in blocks:
            shifted_mC = kept_mC[: part.stop - part.start]
            if len(blocks) > 1 or columns.start == 0:
                _with_shift(work.kept_hidden(part), work.lse[part], shifted_mC)
            tile_mv = room[: len(shifted_mC) * len(weight_vC)].view(len(shifted_mC), -1)
            torch.addmm(tile_mv, shifted_mC, weight_vC.T, beta=0, alpha=_LOG2_E, out=tile_mv).exp2_()
            inside_m, places = _label_places(problem.labels[part], columns)
            tile_mv[places] = torch.where(inside_m, at_label_M[part], tile_mv[places])  # now the gradient by the logits
            grad_vD += torch.mm(tile_mv.T, shifted_mC[:, :width])
        work.grad_weight[columns] = grad_vD.mul_(problem.scale)


def _label_places(labels_M: Tensor, columns: slice) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Whether each row's label is among the columns, and an index for it there (for some other column if it is not)."""
    offsets_M = labels_M - columns.start
    within_M = offsets_M.clamp(0, columns.stop - columns.start - 1)
    return offsets_M == within_M, (torch.arange(len(labels_M), device=labels_M.device), within_M)


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


def _fitting(logits: int, each: int, beside: int = 0) -> int:
    """How many rows or columns, which take `each` elements, are worked on at a time, where `beside` are taken."""
    share = logits / _CHUNKS
    room = share - beside if share > _SMALLEST_CHUNK else _SMALLEST_CHUNK  # of few logits nothing is worth saving
    return int(max(room / each, _FEWEST_ROWS)) // 16 * 16


def _halve(rows: int, fewest: int, columns_beside: Callable[[int], int]) -> tuple[int, int]:
    """How many rows and columns at a time: rows are halved until there is room for columns enough beside them."""
    while columns_beside(rows) < _ENOUGH_COLUMNS and rows > fewest:
        rows = math.ceil(rows / 2)
    return rows, columns_beside(rows)


def _tile(vocabulary: int, rows: int) -> int:
    """How many columns, each of so many rows, make a tile of a chunk."""
    tile = max(vocabulary / _TILES, _SMALLEST_TILE / max(rows, 1))
    return min(vocabulary, math.ceil(tile / 64) * 64)


def _slices(length: int, step: int) -> list[slice]:
    """`range(length)` in slices of `step`, the last perhaps shorter."""
    return [slice(begin, min(begin + step, length)) for begin in range(0, length, max(step, 1))]
