"""What a search found, and the back-pointers from which it is read at the end.

Shapes: B sentences of the whole batch, R of them still searched (rows_R says which), K hypotheses, n finished ones
kept a sentence, T steps, A alternatives a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nmt_ls.search.candidates import first_best
from nmt_ls.search.stepper import EOS

NONE = float("-inf")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A finished translation.

    ids: its tokens, without beginning-of-sentence, ending in end-of-sentence. token_log_probs: the model's
    log-probability of each at the temperature in force, nats. log_prob: their sum. score: log_prob / lp(|Y|).
    alternatives: at each position the most probable tokens and their log-probabilities, whatever was forbidden;
    None unless asked for.
    """

    ids: list[int]
    score: float
    log_prob: float
    token_log_probs: list[float]
    alternatives: list[list[tuple[int, float]]] | None = None


class History:
    """For each step and hypothesis: the token, the hypothesis that it continues, and its log-probability."""

    def __init__(self, steps: int, batch: int, width: int, alternatives: int, device: torch.device) -> None:
        self.tokens_TBK = torch.zeros((steps, batch, width), dtype=torch.int64, device=device)
        self.parents_TBK = torch.zeros_like(self.tokens_TBK)
        self.log_probs_TBK = torch.zeros_like(self.tokens_TBK, dtype=torch.float64)
        self.others_TBKA = self.tokens_TBK.new_zeros((steps, batch, width, alternatives))
        self.other_log_probs_TBKA = torch.zeros_like(self.others_TBKA, dtype=torch.float64)

    def record(self, step: int, rows_R: Tensor, tokens_RK: Tensor, parents_RK: Tensor, log_probs_RK: Tensor) -> None:
        self.tokens_TBK[step, rows_R] = tokens_RK
        self.parents_TBK[step, rows_R] = parents_RK
        self.log_probs_TBK[step, rows_R] = log_probs_RK

    def record_alternatives(self, step: int, rows_R: Tensor, logits_RKV: Tensor, normaliser_RK: Tensor) -> None:
        """The most probable tokens after each hypothesis, as the step found it; before anything is forbidden."""
        count, vocabulary = self.others_TBKA.shape[3], logits_RKV.shape[2]
        if count > vocabulary:
            raise ValueError(f"alternatives must be at most the vocabulary's size, {vocabulary}, got {count}")
        best = logits_RKV.topk(count)
        self.others_TBKA[step, rows_R] = best.indices
        self.other_log_probs_TBKA[step, rows_R] = (best.values - normaliser_RK[..., None]).double()


class Finished:
    """The n best finished hypotheses of each sentence, best first: how each ended, not how it went."""

    def __init__(self, batch: int, n: int, device: torch.device) -> None:
        self.scores_Bn = torch.full((batch, n), NONE, dtype=torch.float64, device=device)
        self.steps_Bn = torch.full((batch, n), -1, device=device)  # the step that took the end-of-sentence
        self.hypotheses_Bn = torch.zeros_like(self.steps_Bn)  # the hypothesis which that step continued
        self.log_probs_Bn = torch.zeros_like(self.scores_Bn)  # of the end-of-sentence alone
        self.counts_B = torch.zeros_like(self.steps_Bn[:, 0])  # finished in all, kept or not

    def add(self, step: int, rows_R: Tensor, scores_RK: Tensor, hypotheses_RK: Tensor, log_probs_RK: Tensor) -> None:
        """Hypotheses that ended at this step; −inf scores are none. Of equal scores the earlier stays ahead."""
        old_scores_Rn = self.scores_Bn[rows_R]
        n = old_scores_Rn.shape[1]
        scores = torch.cat([old_scores_Rn, scores_RK], 1)
        kept_Rn = first_best(scores, n)
        self.scores_Bn[rows_R] = scores.gather(1, kept_Rn)
        for field_Bn, new_RK in (
            (self.steps_Bn, torch.full_like(hypotheses_RK, step)),
            (self.hypotheses_Bn, hypotheses_RK),
            (self.log_probs_Bn, log_probs_RK),
        ):
            field_Bn[rows_R] = torch.cat([field_Bn[rows_R], new_RK], 1).gather(1, kept_Rn)
        self.counts_B[rows_R] += (scores_RK > NONE).sum(1)

    def put(self, step: int, rows_R: Tensor, scores_RK: Tensor, log_probs_RK: Tensor) -> None:
        """Hypotheses that ended at this step, each in the place of its number; −inf scores are none."""
        ends_RK = scores_RK > NONE
        self.scores_Bn[rows_R] = torch.where(ends_RK, scores_RK, self.scores_Bn[rows_R])
        self.steps_Bn[rows_R] = self.steps_Bn[rows_R].masked_fill(ends_RK, step)
        self.log_probs_Bn[rows_R] = torch.where(ends_RK, log_probs_RK, self.log_probs_Bn[rows_R])


def read_back(history: History, finished: Finished) -> list[list[Found]]:
    """Follow the back-pointers of every finished hypothesis from its end to its beginning."""
    steps_Bn = finished.steps_Bn.masked_fill(finished.scores_Bn == NONE, -1)
    hypotheses_Bn = finished.hypotheses_Bn
    ids, log_probs, others, other_log_probs = [], [], [], []
    alternatives = history.others_TBKA.shape[3]
    for step in range(int(steps_Bn.amax()) if len(steps_Bn) else -1, -1, -1):
        ends_Bn, runs_Bn = steps_Bn == step, steps_Bn > step
        ids.append(history.tokens_TBK[step].gather(1, hypotheses_Bn).masked_fill(ends_Bn, EOS))
        log_probs_Bn = history.log_probs_TBK[step].gather(1, hypotheses_Bn)
        log_probs.append(torch.where(ends_Bn, finished.log_probs_Bn, log_probs_Bn))
        parents_Bn = history.parents_TBK[step].gather(1, hypotheses_Bn)
        hypotheses_Bn = torch.where(runs_Bn, parents_Bn, hypotheses_Bn)
        if alternatives:
            pick_BnA = hypotheses_Bn[..., None].expand(-1, -1, alternatives)
            others.append(history.others_TBKA[step].gather(1, pick_BnA))
            other_log_probs.append(history.other_log_probs_TBKA[step].gather(1, pick_BnA))
    if not ids:  # nothing could be finished
        return [[] for _ in steps_Bn]
    columns = (ids, log_probs, others, other_log_probs)[: 4 if alternatives else 2]
    table = [torch.stack(steps[::-1], 2).tolist() for steps in columns]
    return [
        [
            _found(score, end + 1, *(column[sentence][slot] for column in table))
            for slot, (score, end) in enumerate(zip(scores, ends, strict=True))
            if end >= 0
        ]
        for sentence, (scores, ends) in enumerate(zip(finished.scores_Bn.tolist(), steps_Bn.tolist(), strict=True))
    ]


def _found(
    score: float,
    length: int,
    ids: list[int],
    log_probs: list[float],
    others: list[list[int]] | None = None,
    other_log_probs: list[list[float]] | None = None,
) -> Found:
    alternatives = None
    if others is not None and other_log_probs is not None:
        alternatives = [
            list(zip(tokens, values, strict=True))
            for tokens, values in zip(others[:length], other_log_probs[:length], strict=True)
        ]
    return Found(
        ids=ids[:length],
        score=score,
        log_prob=sum(log_probs[:length]),
        token_log_probs=log_probs[:length],
        alternatives=alternatives,
    )
