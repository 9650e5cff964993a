"""The best continuations of all hypotheses of a sentence, exactly, without sorting K · V numbers.

Two levels: the n best numbers lie in the n chunks whose maxima are best, so one pass takes the maxima of chunks of
columns, and only the winning chunks are looked at closely. Equal numbers rank by position, lower first, at both
levels, which makes the choice unique: the same whatever the batch and the chunk.

Shapes: B sentences, K hypotheses, V vocabulary rows, c columns a chunk, w winning chunks, n candidates,
N chunks or numbers ranked, one after the other.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 128
BLOCK = 1 << 18  # numbers whose powers are held at once: 1 MiB, so that they stay in the cache
LOG2_E = math.log2(math.e)


def log_normaliser(logits_BKV: Tensor) -> Tensor:
    """log Σ exp(logits) over the vocabulary, B K: a token's log-probability is its logit minus this.

    On a CPU by powers of two, which PyTorch computes in a quarter of the time of exponentials, and without the maximum:
    the greatest of the first logits mostly keeps the sum in range, and where it does not the sum is infinite.
    """
    rows_NV = logits_BKV.flatten(0, 1)
    if rows_NV.device.type != "cpu" or not len(rows_NV):
        return rows_NV.logsumexp(1).view(logits_BKV.shape[:2])
    shifts_N1 = rows_NV[:, :CHUNK].amax(1, keepdim=True).mul_(-LOG2_E)
    count = max(1, BLOCK // rows_NV.shape[1])
    # rows apart, so that each begins a vector of its own and is rounded the same whatever stands beside it
    powers_NV = rows_NV.new_empty(count, rows_NV.shape[1] + 16)[:, : rows_NV.shape[1]]
    sums_N = torch.cat(
        [
            torch.add(shifts_n1, block_nV, alpha=LOG2_E, out=powers_NV[: len(block_nV)]).exp2_().sum(1)
            for shifts_n1, block_nV in zip(torch.split(shifts_N1, count), torch.split(rows_NV, count), strict=True)
        ]
    )
    found_N = sums_N.log().sub_(shifts_N1[:, 0], alpha=1 / LOG2_E)
    return (found_N if sums_N.isfinite().all() else rows_NV.logsumexp(1)).view(logits_BKV.shape[:2])


def best_candidates(logits_BKV: Tensor, offsets_BK: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The n ≤ K · V greatest of logits + offset over the continuations of each sentence, best first.

    Returns their values, hypotheses and tokens, each B n. Which continuations −inf values belong to is left open.
    """
    batch, beams, vocabulary = logits_BKV.shape
    width = chunk_width(vocabulary)
    padded_BKV = F.pad(logits_BKV, (0, -vocabulary % width), value=float("-inf")) if vocabulary % width else logits_BKV
    chunks_BNc = padded_BKV.reshape(batch, -1, width)
    each = chunks_BNc.shape[1] // beams
    best_BN = (chunks_BNc.amax(-1).view(batch, beams, each) + offsets_BK[..., None]).flatten(1)
    # ascending, so that equal values in different chunks are met in the order of their positions
    winners_Bw = first_best(best_BN, min(n, best_BN.shape[1])).sort().values
    offsets_Bw = offsets_BK.gather(1, winners_Bw // each)
    rows_B1 = torch.arange(batch, device=logits_BKV.device)[:, None]
    values_BN = (chunks_BNc[rows_B1, winners_Bw] + offsets_Bw[..., None]).flatten(1)
    chosen_Bn = first_best(values_BN, n)
    chunks_Bn = winners_Bw.gather(1, chosen_Bn // width)
    tokens_Bn = (chunks_Bn % each * width + chosen_Bn % width).clamp(max=vocabulary - 1)
    return values_BN.gather(1, chosen_Bn), chunks_Bn // each, tokens_Bn


@cache
def chunk_width(vocabulary: int) -> int:
    """About 128. A divisor of the vocabulary where there is one, for padding copies the logits; and little more than
    a multiple of 64, for PyTorch takes maxima of 64 columns at a time and of the remainder one by one."""
    if vocabulary <= 2 * CHUNK:
        return vocabulary
    widths = range(CHUNK // 2, 2 * CHUNK + 1)
    return min(widths, key=lambda width: (vocabulary % width != 0, width % 64, abs(width - CHUNK)))


def first_best(values_BN: Tensor, n: int) -> Tensor:
    """Positions of the n greatest values of each row, best first; of equal values the lower position first."""
    if values_BN.dtype != torch.float32:
        return values_BN.sort(dim=1, descending=True, stable=True).indices[:, :n]
    # topk leaves the order of equal values open, and a stable sort takes 30 times as long: so value and position
    # are packed into one integer. Flipping the other bits of negative floats makes them sort like integers.
    bits_BN = (values_BN + 0.0).view(torch.int32).long()  # + 0.0: no negative zero
    bits_BN ^= (bits_BN >> 63) & 0x7FFFFFFF
    last = values_BN.shape[1] - 1
    keys_BN = (bits_BN << 32) | torch.arange(last, -1, -1, device=values_BN.device)
    return last - (keys_BN.topk(n, dim=1).values & 0xFFFFFFFF)
