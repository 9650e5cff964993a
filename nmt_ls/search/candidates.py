"""The best continuations of all hypotheses of a sentence, exactly, without sorting K · V numbers.

Two levels: the n best numbers lie in the n chunks whose maxima are best, so one pass takes the maxima of chunks of
columns, and only the winning chunks are looked at closely. Equal numbers rank by position, lower first, at both
levels, which makes the choice unique: the same whatever the batch and the chunk.

Shapes: B sentences, K hypotheses, V vocabulary rows, C chunks a hypothesis, n candidates, N positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmt_ls.metrics.temperature import log_probs

CHUNK = 128
BLOCK = 1 << 18  # numbers whose log-probabilities are held at once: 1 MiB, so that they stay in the cache


def log_normaliser(logits_BKV: Tensor, temperature: float) -> Tensor:
    """log Σ exp(logits / T) over the vocabulary, B K: log p = logits / T − this.

    Through log_probs: PyTorch's log_softmax is one pass, and takes half the time of its logsumexp on a CPU.
    """
    rows_NV = logits_BKV.flatten(0, 1)
    blocks = [
        block.amax(-1) / temperature - log_probs(block, temperature).amax(-1)
        for block in torch.split(rows_NV, max(1, BLOCK // rows_NV.shape[1]))
    ]
    return torch.cat(blocks).view(logits_BKV.shape[:2])


def best_candidates(logits_BKV: Tensor, offsets_BK: Tensor, temperature: float, n: int) -> tuple[Tensor, Tensor]:
    """The n greatest of logits / T + offset over the K · V continuations of each sentence, best first.

    Returns their values and their positions k · V + v, both B n. −inf is ranked like any number.
    """
    vocabulary = logits_BKV.shape[2]
    maxima_BKC = _chunk_maxima(logits_BKV)
    chunks = maxima_BKC.shape[2]
    best_BN = (maxima_BKC / temperature + offsets_BK[..., None]).flatten(1)
    # ascending, so that positions within the winning chunks are in the order of positions within the sentence
    winners_BN = first_best(best_BN, min(n, best_BN.shape[1])).sort().values
    hypothesis_BN = winners_BN // chunks
    columns_BNc = (winners_BN % chunks * CHUNK)[..., None] + torch.arange(CHUNK, device=logits_BKV.device)
    positions_BN = (hypothesis_BN[..., None] * vocabulary + columns_BNc.clamp(max=vocabulary - 1)).flatten(1)
    values_BN = logits_BKV.flatten(1).gather(1, positions_BN) / temperature
    values_BN += offsets_BK.gather(1, hypothesis_BN).repeat_interleave(CHUNK, 1)
    if vocabulary % CHUNK:
        # past the last column: −inf, and a position that comes after every real one of this hypothesis
        values_BN = values_BN.masked_fill((columns_BNc >= vocabulary).flatten(1), float("-inf"))
    chosen_Bn = first_best(values_BN, n)
    return values_BN.gather(1, chosen_Bn), positions_BN.gather(1, chosen_Bn)


def _chunk_maxima(logits_BKV: Tensor) -> Tensor:
    """The maximum of each CHUNK columns, B K C; the last chunk may be narrower."""
    whole = logits_BKV.shape[2] // CHUNK * CHUNK
    maxima = []
    if whole:
        maxima.append(logits_BKV[..., :whole].view(*logits_BKV.shape[:2], -1, CHUNK).amax(-1))
    if whole < logits_BKV.shape[2]:
        maxima.append(logits_BKV[..., whole:].amax(-1, keepdim=True))
    return torch.cat(maxima, -1)


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
