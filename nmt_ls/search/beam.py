"""Beam search, batched: all sentences advance together, and finished ones leave the batch.

Each step ranks the K · V continuations of a sentence and looks at the 2K best: an end-of-sentence among the first K
finishes a hypothesis, and the first K others live on. Since each hypothesis has one end-of-sentence, K others there
are. Everything a sentence needs is in tensors (back-pointers, finished scores), so no step loops over sentences,
and the one question put to the device a step is: who is done?

Shapes: B sentences of the whole batch, R of them still in it, K hypotheses each, V vocabulary rows, n = 2K
candidates, P prefix tokens, T tokens so far.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmt_ls.search.candidates import best_candidates, log_normaliser
from nmt_ls.search.config import SearchConfig
from nmt_ls.search.constraints import Constraints
from nmt_ls.search.hypotheses import NONE, Finished, Found, History, read_back
from nmt_ls.search.length_penalty import length_penalty
from nmt_ls.search.stepper import BOS, EOS, Stepper, rows_left


@torch.no_grad()
def beam_search(
    stepper: Stepper, *, max_lengths_B: Tensor, config: SearchConfig, prefix_BP: Tensor | None = None
) -> list[list[Found]]:
    """The n best translations of each sentence, best first, with scores log p / lp(|Y|).

    stepper: holds config.width hypotheses a sentence; its state is used up.
    max_lengths_B: int64, on the model's device: the longest translation of each sentence, end-of-sentence counted;
        hypotheses that get there end, at the true log-probability of the end-of-sentence.
    prefix_BP: int64, right-padded: tokens with which the translations must begin; they count in score and length.
    Padding and beginning-of-sentence are never generated. A sentence has fewer than n translations, even none,
    where the constraints leave no more. With one beam the search is greedy: the first end-of-sentence ends it.
    Raises ValueError for impossible lengths or prefixes, and where the model's logits are NaN or +∞.
    """
    search = _Search(stepper, max_lengths_B, config, prefix_BP)
    for step in range(max(search.constraints.longest, default=0)):
        search.extend(step)
        if not search.goes_on(step):
            break
    return read_back(search.history, search.finished)


class Beams:
    """The sentences still searched, whatever their candidates come from: row r of these tensors is sentence rows_R[r]
    of the whole batch."""

    def __init__(self, max_lengths_B: Tensor, config: SearchConfig, prefix_BP: Tensor | None) -> None:
        self.config = config
        self.constraints = Constraints(config, max_lengths_B, prefix_BP)
        steps = max(self.constraints.longest, default=0)
        batch, device = len(max_lengths_B), max_lengths_B.device
        self.history = History(steps, batch, config.beam, config.alternatives, device)
        self.finished = Finished(batch, config.nbest, device)
        lengths = torch.arange(1, steps + 2, device=device)
        self.penalties = length_penalty(lengths, config.length_penalty_kind, config.length_penalty)  # [i]: of i + 1
        self.rows_R = torch.arange(batch, device=device)
        self.longest_penalty_R = self.penalties[max_lengths_B - 1]
        self.last_RK = torch.full((batch, config.beam), BOS, device=device)
        self.parents_RK = torch.zeros_like(self.last_RK)
        # log p of each hypothesis, float64 whatever the model's type; all begin alike, so the first one counts
        self.log_probs_RK = torch.full((batch, config.beam), NONE, dtype=torch.float64, device=device)
        self.log_probs_RK[:, 0] = 0.0
        self.normaliser_RK = torch.zeros_like(self.log_probs_RK)

    def choose(
        self, step: int, ranked_Rn: Tensor, hypotheses_Rn: Tensor, tokens_Rn: Tensor, token_log_probs_Rn: Tensor
    ) -> None:
        """End and continue hypotheses by the best candidates: what ranks them, which hypothesis, which token."""
        beam = self.config.beam
        totals_Rn = self.log_probs_RK.gather(1, hypotheses_Rn) + token_log_probs_Rn
        totals_Rn.masked_fill_(ranked_Rn == NONE, NONE)

        ends_Rn = tokens_Rn == EOS
        scores_RK = (totals_Rn / self.penalties[step]).masked_fill(~ends_Rn, NONE)[:, :beam]
        self.finished.add(step, self.rows_R, scores_RK, hypotheses_Rn[:, :beam], token_log_probs_Rn[:, :beam])

        live_RK = ends_Rn.byte().argsort(dim=1, stable=True)[:, :beam]
        self.last_RK = tokens_Rn.gather(1, live_RK)
        self.parents_RK = hypotheses_Rn.gather(1, live_RK)
        self.log_probs_RK = totals_Rn.gather(1, live_RK)
        self.history.record(step, self.rows_R, self.last_RK, self.parents_RK, token_log_probs_Rn.gather(1, live_RK))

    def settle(self, step: int) -> tuple[bool, Tensor | None]:
        """Who is done finds nothing more; whether any sentence is left, and which rows to keep, if not all."""
        done_R = self._done(step)
        left = rows_left(done_R, self.normaliser_RK, step)
        self.log_probs_RK.masked_fill_(done_R[:, None], NONE)
        return left

    def _done(self, step: int) -> Tensor:
        """Sentences whose n best can no longer change; by the early rule, those with enough finished."""
        best_live_R = self.log_probs_RK.amax(1)
        if self.config.stop == "early" or self.config.beam == 1:
            return (best_live_R == NONE) | (self.finished.counts_B[self.rows_R] >= self.config.beam)
        # log p only falls, and a negative number divided by lp is greatest where lp is: at the maximum length for
        # β ≥ 0, at the next length for β < 0
        bound_R = best_live_R / torch.maximum(self.longest_penalty_R, self.penalties[step + 1])
        return bound_R <= self.finished.scores_Bn[self.rows_R, -1]

    def keep(self, rows: Tensor) -> None:
        """Only these rows stay."""
        self.rows_R, self.longest_penalty_R = self.rows_R[rows], self.longest_penalty_R[rows]
        self.last_RK, self.log_probs_RK = self.last_RK[rows], self.log_probs_RK[rows]


class _Search(Beams):
    """Every hypothesis has logits of its own."""

    def __init__(self, stepper: Stepper, max_lengths_B: Tensor, config: SearchConfig, prefix_BP: Tensor | None) -> None:
        super().__init__(max_lengths_B, config, prefix_BP)
        self.stepper = stepper
        self.tokens_RKT = torch.zeros_like(self.last_RK)[..., None][..., :0]  # kept up for no_repeat_ngram only

    def extend(self, step: int) -> None:
        """Every hypothesis by one token: score, forbid, choose, record."""
        logits_RKV = self.stepper.logits(self.last_RK)
        if self.config.temperature != 1:
            logits_RKV /= self.config.temperature  # in place: new memory of this size costs more than the division
        self.normaliser_RK = log_normaliser(logits_RKV)
        if self.config.alternatives:
            self.history.record_alternatives(step, self.rows_R, logits_RKV, self.normaliser_RK)
        self.constraints.apply(logits_RKV, step, self.rows_R, self.tokens_RKT)

        offsets_RK = (self.log_probs_RK - self.normaliser_RK).to(logits_RKV.dtype)
        ranked_Rn, hypotheses_Rn, tokens_Rn = best_candidates(logits_RKV, offsets_RK, 2 * self.config.beam)
        chosen_Rn = logits_RKV.flatten(1).gather(1, hypotheses_Rn * logits_RKV.shape[2] + tokens_Rn)
        token_log_probs_Rn = (chosen_Rn - self.normaliser_RK.gather(1, hypotheses_Rn)).double()
        self.choose(step, ranked_Rn, hypotheses_Rn, tokens_Rn, token_log_probs_Rn)

    def goes_on(self, step: int) -> bool:
        """Settle who is done, tell the stepper what was chosen, let the done leave. False when none is left."""
        any_left, rows_to_keep = self.settle(step)
        if not any_left:
            return False
        self.stepper.reorder(self.parents_RK)
        if self.config.no_repeat_ngram:
            parents_RKT = self.parents_RK[..., None].expand(-1, -1, step)
            self.tokens_RKT = torch.cat([self.tokens_RKT.gather(1, parents_RKT), self.last_RK[..., None]], 2)
        if rows_to_keep is not None:
            self.keep(rows_to_keep)
        return True

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.stepper.keep(rows)
        self.tokens_RKT = self.tokens_RKT[rows]
