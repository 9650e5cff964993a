"""Sampling: translations drawn from the model, token by token, rather than searched for.

Shapes: B sentences of the whole batch, R of them still drawn, K samples each, V vocabulary rows, T steps.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from nmt_ls.search.candidates import first_best, log_normaliser
from nmt_ls.search.config import SearchConfig
from nmt_ls.search.constraints import Constraints
from nmt_ls.search.hypotheses import NONE, Finished, Found, History, read_back
from nmt_ls.search.length_penalty import length_penalty
from nmt_ls.search.stepper import BOS, EOS, PAD, Stepper

WORTH_COMPACTING = 0.75


@torch.no_grad()
def sample(
    stepper: Stepper,
    *,
    max_lengths_B: Tensor,
    config: SearchConfig,
    prefix_BP: Tensor | None = None,
    sentence_ids: list[int] | None = None,
) -> list[list[Found]]:
    """config.samples translations of each sentence, in the order drawn.

    Each token is drawn at config.temperature, from the top_k most probable tokens and of those from the smallest
    set with probability top_p or more. Log-probabilities and scores are the model's own at that temperature, not
    those of the narrowed choice. Lengths, prefixes and forbidden tokens are as in beam_search.

    The random numbers of a sentence come from a generator of its own, seeded by (config.seed, its id): a sentence
    gets the same translations whatever is translated beside it, and asking for more samples adds to the same ones.
    sentence_ids: default 0, 1, 2 …; pass places in the corpus where batches may be cut differently.
    """
    if config.samples < 1:
        raise ValueError("samples must be at least 1 to draw translations")
    constraints = Constraints(config, max_lengths_B, prefix_BP)
    steps, batch, device = max(constraints.longest, default=0), len(max_lengths_B), max_lengths_B.device
    uniform_BKT = _uniform_numbers(config, constraints.longest, sentence_ids).to(device)
    lengths = torch.arange(1, steps + 1, device=device)
    penalties = length_penalty(lengths, config.length_penalty_kind, config.length_penalty)
    history = History(steps, batch, config.samples, config.alternatives, device)
    finished = Finished(batch, config.samples, device)
    own_BK = torch.arange(config.samples, device=device).expand(batch, -1)  # no sample continues another
    finished.hypotheses_Bn = own_BK
    rows_R = torch.arange(batch, device=device)
    last_RK = torch.full((batch, config.samples), BOS, device=device)
    totals_RK = torch.zeros_like(last_RK, dtype=torch.float64)
    running_RK = torch.ones_like(last_RK, dtype=torch.bool)
    for step in range(steps):
        logits_RKV = stepper.logits(last_RK)
        normaliser_RK = log_normaliser(logits_RKV, config.temperature)
        if config.alternatives:
            history.record_alternatives(step, rows_R, logits_RKV, normaliser_RK, config.temperature)
        constraints.apply(logits_RKV, step, rows_R, history.tokens_TBK[:step, rows_R].permute(1, 2, 0))
        probs_RKV = (logits_RKV / config.temperature - normaliser_RK[..., None]).exp()
        last_RK = draw(narrow(probs_RKV, config.top_k, config.top_p), uniform_BKT[rows_R, :, step])
        chosen_RK = logits_RKV.gather(2, last_RK[..., None])[..., 0]
        log_probs_RK = (chosen_RK / config.temperature - normaliser_RK).double()
        totals_RK = totals_RK + log_probs_RK
        history.record(step, rows_R, last_RK, own_BK[: len(rows_R)], log_probs_RK)
        # −inf: nothing was allowed, and the sample is lost
        ends_RK = running_RK & (last_RK == EOS) & (totals_RK > NONE)
        running_RK = running_RK & (last_RK != EOS) & (totals_RK > NONE)
        for field_Bn, new_RK in (
            (finished.scores_Bn, totals_RK / penalties[step]),
            (finished.steps_Bn, torch.full_like(last_RK, step)),
            (finished.log_probs_Bn, log_probs_RK),
        ):
            field_Bn[rows_R] = torch.where(ends_RK, new_RK, field_Bn[rows_R])
        state = torch.where(normaliser_RK.isnan().any(1), 2, running_RK.any(1).long()).tolist()
        if 2 in state:
            raise ValueError(f"the model's logits are not numbers (NaN) at token {step + 1} of the translation")
        live = [row for row, runs in enumerate(state) if runs]
        if not live:
            break
        if len(live) <= WORTH_COMPACTING * len(state):
            keep = torch.tensor(live, device=device)
            stepper.keep(keep)
            rows_R, last_RK, totals_RK, running_RK = (x[keep] for x in (rows_R, last_RK, totals_RK, running_RK))
    return read_back(history, finished)


def narrow(probs_RKV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probabilities with zeros outside the top_k most probable tokens (0: all) and the top_p nucleus of those.

    The nucleus is the smallest set, taken from the most probable down, whose share of what top_k left reaches
    top_p (Holtzman et al. 2020). Of equal probabilities the lower token comes first. Not renormalised.
    """
    vocabulary = probs_RKV.shape[2]
    count = min(top_k, vocabulary) if top_k else vocabulary
    if count == vocabulary and top_p == 1:
        return probs_RKV
    rows_NV = probs_RKV.flatten(0, 1)
    order_Nk = first_best(rows_NV, count)
    sorted_Nk = rows_NV.gather(1, order_Nk)
    if top_p < 1:
        before_Nk = sorted_Nk.double().cumsum(1) - sorted_Nk
        sorted_Nk = sorted_Nk.masked_fill(before_Nk >= top_p * sorted_Nk.sum(1, keepdim=True), 0)
    return torch.zeros_like(rows_NV).scatter_(1, order_Nk, sorted_Nk).view_as(probs_RKV)


def draw(weights_RKV: Tensor, uniform_RK: Tensor) -> Tensor:
    """Tokens R K by inversion of the cumulative weights, which need not sum to 1; uniform numbers in [0, 1).

    A token of weight 0 is never drawn. Where all weights are 0, PAD.
    """
    cumulative_RKV = weights_RKV.double().cumsum(-1)
    totals_RK = cumulative_RKV[..., -1]
    # u · total may round up to total
    targets_RK = torch.minimum(uniform_RK * totals_RK, torch.nextafter(totals_RK, torch.zeros_like(totals_RK)))
    tokens_RK = torch.searchsorted(cumulative_RKV, targets_RK[..., None], right=True)[..., 0]
    return tokens_RK.masked_fill(totals_RK == 0, PAD)


def _uniform_numbers(config: SearchConfig, longest: list[int], sentence_ids: list[int] | None) -> Tensor:
    """One number in [0, 1) for each sentence, sample and step, B K T: row by row from the sentence's own generator."""
    ids = list(range(len(longest))) if sentence_ids is None else sentence_ids
    if len(ids) != len(longest):
        raise ValueError(f"sentence_ids has {len(ids)} entries for {len(longest)} sentences")
    numbers_BKT = torch.zeros((len(longest), config.samples, max(longest, default=0)), dtype=torch.float64)
    for row, (sentence, length) in enumerate(zip(ids, longest, strict=True)):
        digest = hashlib.blake2b(f"{config.seed} {sentence}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        numbers_BKT[row, :, :length] = torch.rand((config.samples, length), generator=generator, dtype=torch.float64)
    return numbers_BKT
