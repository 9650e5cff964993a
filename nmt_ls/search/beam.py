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
from nmt_ls.search.stepper import BOS, EOS, Stepper

# Leaving the batch copies the caches of those who stay, so it waits until a quarter of the batch is done.
WORTH_COMPACTING = 0.75


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
    Raises ValueError for impossible lengths or prefixes, and where the model's logits are NaN.
    """
    search = _Search(stepper, max_lengths_B, config, prefix_BP)
    for step in range(max(search.constraints.longest, default=0)):
        search.advance(step)
        if not search.goes_on(step):
            break
    return read_back(search.history, search.finished)


class _Search:
    """The state of the sentences still searched: row r of its tensors is sentence rows_R[r] of the whole batch."""

    def __init__(self, stepper: Stepper, max_lengths_B: Tensor, config: SearchConfig, prefix_BP: Tensor | None) -> None:
        self.stepper, self.config = stepper, config
        self.constraints = Constraints(config, max_lengths_B, prefix_BP)
        steps = max(self.constraints.longest, default=0)
        batch, device = len(max_lengths_B), max_lengths_B.device
        lengths = torch.arange(1, steps + 2, device=device)
        self.penalties = length_penalty(lengths, config.length_penalty_kind, config.length_penalty)  # [i]: of i + 1
        self.history = History(steps, batch, config.beam, config.alternatives, device)
        self.finished = Finished(batch, config.nbest, device)
        self.rows_R = torch.arange(batch, device=device)
        self.longest_penalty_R = self.penalties[max_lengths_B - 1]
        self.last_RK = torch.full((batch, config.beam), BOS, device=device)
        self.tokens_RKT = self.last_RK[..., None][..., :0]  # kept up only where n-grams must not repeat
        # log p of each hypothesis, in float64 whatever the model's type; all begin alike, so the first one counts
        self.log_probs_RK = torch.full((batch, config.beam), NONE, dtype=torch.float64, device=device)
        self.log_probs_RK[:, 0] = 0.0

    def advance(self, step: int) -> None:
        """One token more for every hypothesis: score, forbid, choose, record."""
        beam, temperature = self.config.beam, self.config.temperature
        logits_RKV = self.stepper.logits(self.last_RK)
        normaliser_RK = log_normaliser(logits_RKV, temperature)
        if self.config.alternatives:
            self.history.record_alternatives(step, self.rows_R, logits_RKV, normaliser_RK, temperature)
        self.constraints.apply(logits_RKV, step, self.rows_R, self.tokens_RKT)

        offsets_RK = (self.log_probs_RK - normaliser_RK).to(logits_RKV.dtype)
        ranked_Rn, positions_Rn = best_candidates(logits_RKV, offsets_RK, temperature, 2 * beam)
        hypotheses_Rn, tokens_Rn = positions_Rn // logits_RKV.shape[2], positions_Rn % logits_RKV.shape[2]
        chosen_logits_Rn = logits_RKV.flatten(1).gather(1, positions_Rn)
        token_log_probs_Rn = (chosen_logits_Rn / temperature - normaliser_RK.gather(1, hypotheses_Rn)).double()
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
        self.broken_R = normaliser_RK.isnan().any(1)

    def goes_on(self, step: int) -> bool:
        """Settle who is done, hand the choice to the stepper, let the done leave; False when none is left."""
        done_R = self._done(step)
        self.log_probs_RK.masked_fill_(done_R[:, None], NONE)  # until they leave they do nothing
        state = torch.where(self.broken_R, 2, done_R.long()).tolist()  # the one synchronisation of a step
        if 2 in state:
            raise ValueError(f"the model's logits are not numbers (NaN) at token {step + 1} of the translation")
        live = [row for row, done in enumerate(state) if not done]
        if not live:
            return False
        self.stepper.reorder(self.parents_RK)
        if self.config.no_repeat_ngram:
            parents_RKT = self.parents_RK[..., None].expand(-1, -1, step)
            self.tokens_RKT = torch.cat([self.tokens_RKT.gather(1, parents_RKT), self.last_RK[..., None]], 2)
        if len(live) <= WORTH_COMPACTING * len(state):
            self._keep(torch.tensor(live, device=self.rows_R.device))
        return True

    def _done(self, step: int) -> Tensor:
        """Sentences in which no live hypothesis can, or by the early rule need, still matter."""
        best_live_R = self.log_probs_RK.amax(1)
        if self.config.stop == "early" or self.config.beam == 1:
            return (best_live_R == NONE) | (self.finished.counts_B[self.rows_R] >= self.config.beam)
        # log p only falls, and a negative number divided by lp is greatest where lp is: at the maximum length for
        # β ≥ 0, at the next length for β < 0
        bound_R = best_live_R / torch.maximum(self.longest_penalty_R, self.penalties[step + 1])
        return bound_R <= self.finished.scores_Bn[self.rows_R, -1]

    def _keep(self, live: Tensor) -> None:
        self.stepper.keep(live)
        for name in ("rows_R", "longest_penalty_R", "last_RK", "tokens_RKT", "log_probs_RK"):
            setattr(self, name, getattr(self, name)[live])
