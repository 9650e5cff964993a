"""Sampling: translations drawn from the model, token by token, rather than searched for.

Shapes: B sentences of the whole batch, R of them still drawn, K samples each, V vocabulary rows, T steps.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

from nmt_ls.search.candidates import best_candidates, log_normaliser
from nmt_ls.search.config import SearchConfig
from nmt_ls.search.constraints import Constraints
from nmt_ls.search.hypotheses import NONE, Finished, Found, History, read_back
from nmt_ls.search.length_penalty import length_penalty
from nmt_ls.search.stepper import BOS, EOS, PAD, Stepper, rows_left


@torch.no_grad()
def sample(
    stepper: Stepper,
    *,
    max_lengths_B: Tensor,
    config: SearchConfig,
    prefix_BP: Tensor | None = None,
    sentence_ids_B: Tensor | None = None,
) -> list[list[Found]]:
    """config.samples translations of each sentence, in the order drawn.

    Each token is drawn at config.temperature, from the top_k most probable tokens and of those from the smallest
    set with probability top_p or more. Log-probabilities and scores are the model's own at that temperature, not
    those of the narrowed choice. Lengths, prefixes and forbidden tokens are as in beam_search.

    The random numbers of a sentence come from a generator of its own, seeded by (config.seed, its id): a sentence
    gets the same translations whatever is translated beside it, and asking for more samples adds to the same ones.
    sentence_ids_B: default 0, 1, 2 …; pass places in the corpus where batches may be cut differently.
    """
    if config.samples < 1:
        raise ValueError("samples must be at least 1 to draw translations")
    constraints = Constraints(config, max_lengths_B, prefix_BP)
    steps, batch, device = max(constraints.longest, default=0), len(max_lengths_B), max_lengths_B.device
    uniform_BKT = _uniform_numbers(config, constraints.longest, sentence_ids_B).to(device)
    lengths = torch.arange(1, steps + 1, device=device)
    penalties = length_penalty(lengths, config.length_penalty_kind, config.length_penalty)
    history = History(steps, batch, config.samples, config.alternatives, device)
    finished = Finished(batch, config.samples, device)
    own_BK = torch.arange(config.samples, device=device).expand(batch, -1)  # no sample continues another
    finished.hypotheses_Bn = own_BK
    rows_R = torch.arange(batch, device=device)
    last_RK = torch.full((batch, config.samples), BOS, device=device)
    totals_RK = torch.zeros_like(last_RK, dtype=torch.float64)  # log p of what is drawn so far; −inf: nothing goes on
    for step in range(steps):
        logits_RKV = stepper.logits(last_RK)
        if config.temperature != 1:
            logits_RKV /= config.temperature
        normaliser_RK = log_normaliser(logits_RKV)
        if config.alternatives:
            history.record_alternatives(step, rows_R, logits_RKV, normaliser_RK)
        constraints.apply(logits_RKV, step, rows_R, history.tokens_TBK[:step, rows_R].permute(1, 2, 0))
        last_RK = _draw_next(logits_RKV, uniform_BKT[rows_R, :, step], config)
        log_probs_RK = (logits_RKV.gather(2, last_RK[..., None])[..., 0] - normaliser_RK).double()
        history.record(step, rows_R, last_RK, own_BK[: len(rows_R)], log_probs_RK)
        totals_RK = totals_RK + log_probs_RK
        ends_RK = last_RK == EOS
        finished.put(step, rows_R, (totals_RK / penalties[step]).masked_fill(~ends_RK, NONE), log_probs_RK)
        totals_RK = totals_RK.masked_fill(ends_RK, NONE)
        any_left, keep = rows_left((totals_RK == NONE).all(1), normaliser_RK, step)
        if not any_left:
            break
        if keep is not None:
            stepper.keep(keep)
            rows_R, last_RK, totals_RK = rows_R[keep], last_RK[keep], totals_RK[keep]
    return read_back(history, finished)


def _draw_next(logits_RKV: Tensor, uniform_RK: Tensor, config: SearchConfig) -> Tensor:
    """Tokens R K drawn from softmax(logits), narrowed as configured; −inf logits are never drawn."""
    greatest_RK1 = logits_RKV.amax(-1, keepdim=True).clamp(min=torch.finfo(logits_RKV.dtype).min)
    return draw(narrow((logits_RKV - greatest_RK1).exp(), config.top_k, config.top_p), uniform_RK)


def narrow(weights_RKV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Weights with zeros outside the top_k most probable tokens (0: all) and the top_p nucleus of those.

    The nucleus is the smallest set, taken from the most probable down, whose share of what top_k left reaches
    top_p (Holtzman et al. 2020). Of equal weights the lower token comes first.
    """
    vocabulary = weights_RKV.shape[2]
    count = min(top_k, vocabulary) if top_k else vocabulary
    if count == vocabulary and top_p == 1:
        return weights_RKV
    rows_NV = weights_RKV.flatten(0, 1)
    sorted_Nk, _, order_Nk = best_candidates(rows_NV[:, None], torch.zeros_like(rows_NV[:, :1]), count)
    if top_p < 1:
        up_to_Nk = sorted_Nk.double().cumsum(1)
        before_Nk = F.pad(up_to_Nk[:, :-1], (1, 0))
        sorted_Nk = sorted_Nk.masked_fill(before_Nk >= top_p * up_to_Nk[:, -1:], 0)
    return torch.zeros_like(rows_NV).scatter_(1, order_Nk, sorted_Nk).view_as(weights_RKV)


def draw(weights_RKV: Tensor, uniform_RK: Tensor) -> Tensor:
    """Tokens R K by inversion of the cumulative weights, which need not sum to 1; uniform numbers in [0, 1).

    A token of weight 0 is never drawn. Where all weights are 0, PAD.
    """
    cumulative_RKV = weights_RKV.double().cumsum(-1)
    totals_RK = cumulative_RKV[..., -1]
    targets_RK1 = (uniform_RK * totals_RK)[..., None]  # below the total, for u ≤ 1 - 2^-53
    tokens_RK = torch.searchsorted(cumulative_RKV, targets_RK1, right=True)[..., 0]
    return tokens_RK.masked_fill(totals_RK == 0, PAD)


def _uniform_numbers(config: SearchConfig, longest: list[int], sentence_ids_B: Tensor | None) -> Tensor:
    """One number in [0, 1) for each sentence, sample and step, B K T: row by row from the sentence's own generator."""
    ids = list(range(len(longest))) if sentence_ids_B is None else sentence_ids_B.tolist()
    if len(ids) != len(longest):
        raise ValueError(f"sentence_ids_B has {len(ids)} entries for {len(longest)} sentences")
    numbers_BKT = torch.zeros((len(longest), config.samples, max(longest, default=0)), dtype=torch.float64)
    for row, (sentence, length) in enumerate(zip(ids, longest, strict=True)):
        digest = hashlib.blake2b(f"{config.seed} {sentence}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        numbers_BKT[row, :, :length] = torch.rand((config.samples, length), generator=generator, dtype=torch.float64)
    return numbers_BKT
