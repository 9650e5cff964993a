"""Beam searches of the same sentences at several temperatures, together: what begins alike is computed once.

Searches at neighbouring temperatures keep mostly the same prefixes: on 100 sentences of Multi30k, beam 5, eleven
temperatures from 0.8 to 1.4 ask for the logits of 123,770 hypotheses, of which 21,532 differ. So the model sees the
distinct prefixes alone. The order of a prefix's continuations does not depend on the temperature either, so its best
ones are found once; what each temperature needs of its own is the normaliser.

Shapes: B sentences, J temperatures, R searches (a sentence at a temperature each) still going on, K hypotheses of each,
N distinct prefixes, P of their pairs with a temperature, V vocabulary rows, n candidates, T tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from nmt_ls.metrics.temperature import check_temperature
from nmt_ls.search.beam import Beams
from nmt_ls.search.candidates import BLOCK, best_candidates, first_best, log_normaliser
from nmt_ls.search.config import SearchConfig
from nmt_ls.search.hypotheses import NONE, Found, read_back
from nmt_ls.search.stepper import BOS


class PrefixStepper(Protocol):
    """A model in the middle of translating sentences: it remembers the prefixes of which it was last asked."""

    def logits(self, tokens_N: Tensor, parents_N: Tensor, sentences_N: Tensor) -> Tensor:
        """The next token's logits, N V, after each of these prefixes.

        Prefix i is the one that was number parents_N[i] at the last call, and tokens_N[i] after it; at the first call
        BOS alone, once for each of the sentences in order. sentences_N: ascending; a sentence that is missing does not
        come back. The result belongs to the caller until the next call; fp32 or float64.
        """
        ...


def shareable(config: SearchConfig) -> bool:
    """Whether beam_search_at can do what is asked: it draws no samples, and reports no alternatives."""
    return not config.samples and not config.alternatives


@torch.no_grad()
def beam_search_at(
    temperatures: Sequence[float],
    stepper: PrefixStepper,
    *,
    max_lengths_B: Tensor,
    config: SearchConfig,
    prefix_BP: Tensor | None = None,
) -> list[list[list[Found]]]:
    """For each temperature, what beam_search finds of each sentence at it (config.temperature is not read).

    Up to rounding: where the scores of two hypotheses are closer than that, either may come first.
    Raises ValueError as beam_search does, and for a config that is not shareable.
    """
    if not shareable(config):
        raise ValueError("samples and alternatives are not found at several temperatures together")
    count = len(temperatures)
    search = _SharedSearch([check_temperature(t) for t in temperatures], stepper, max_lengths_B, config, prefix_BP)
    for step in range(max(search.constraints.longest, default=0)):
        search.extend(step)
        if not search.goes_on(step):
            break
    found = read_back(search.history, search.finished)
    return [found[place::count] for place in range(count)]


class _SharedSearch(Beams):
    """Row b J + j of the whole batch is sentence b at temperature j; hypothesis k of it continues prefix nodes_RK."""

    def __init__(
        self,
        temperatures: list[float],
        stepper: PrefixStepper,
        max_lengths_B: Tensor,
        config: SearchConfig,
        prefix_BP: Tensor | None,
    ) -> None:
        count, batch, device = len(temperatures), len(max_lengths_B), max_lengths_B.device
        if prefix_BP is not None:
            prefix_BP = prefix_BP.repeat_interleave(count, 0)
        super().__init__(max_lengths_B.repeat_interleave(count), config, prefix_BP)
        self.stepper, self.count, self.vocabulary = stepper, count, 0
        self.temperatures_R1 = torch.tensor(temperatures, dtype=torch.float64, device=device).repeat(batch)[:, None]
        self.sentences_N = torch.arange(batch, device=device)
        self.parents_N, self.tokens_N = self.sentences_N, torch.full_like(self.sentences_N, BOS)
        self.nodes_RK = (self.rows_R // count)[:, None].expand(-1, config.beam)
        self.prefixes_N1T = self.tokens_N[:, None, None][..., :0]  # kept up for no_repeat_ngram only

    def extend(self, step: int) -> None:
        """Every hypothesis by one token: score, forbid, choose, record."""
        logits_NV = self.stepper.logits(self.tokens_N, self.parents_N, self.sentences_N)
        self.vocabulary = logits_NV.shape[1]
        self.normaliser_RK = self._normalisers(logits_NV)
        logits_N1V = logits_NV[:, None]
        self.constraints.apply(logits_N1V, step, self.sentences_N * self.count, self.prefixes_N1T)

        n = min(2 * self.config.beam, self.vocabulary)
        best_Nn, _, tokens_Nn = best_candidates(logits_N1V, torch.zeros_like(logits_NV[:, :1]), n)
        logits_RKn = best_Nn[self.nodes_RK] / self.temperatures_R1[..., None].to(best_Nn.dtype)
        offsets_RK = (self.log_probs_RK - self.normaliser_RK).to(best_Nn.dtype)
        # hypothesis by hypothesis, each best first: so equal numbers rank by position here too
        values_RM = (logits_RKn + offsets_RK[..., None]).flatten(1)
        chosen_Rn = first_best(values_RM, 2 * self.config.beam)
        hypotheses_Rn = chosen_Rn // n
        token_logits_Rn = logits_RKn.flatten(1).gather(1, chosen_Rn)
        self.choose(
            step,
            values_RM.gather(1, chosen_Rn),
            hypotheses_Rn,
            tokens_Nn[self.nodes_RK].flatten(1).gather(1, chosen_Rn),
            (token_logits_Rn - self.normaliser_RK.gather(1, hypotheses_Rn)).double(),
        )

    def _normalisers(self, logits_NV: Tensor) -> Tensor:
        """log Σ exp(logits / T) of each living hypothesis, R K; 0 of the others."""
        living_RK = self.log_probs_RK != NONE
        nodes_P = self.nodes_RK[living_RK]
        temperatures_P1 = self.temperatures_R1.expand_as(self.nodes_RK)[living_RK][:, None].to(logits_NV.dtype)
        rows = max(1, BLOCK // self.vocabulary)
        blocks = zip(torch.split(nodes_P, rows), torch.split(temperatures_P1, rows), strict=True)
        found = [log_normaliser((logits_NV.index_select(0, nodes) / divisors)[None])[0] for nodes, divisors in blocks]
        normaliser_RK = logits_NV.new_zeros(self.nodes_RK.shape)
        normaliser_RK[living_RK] = torch.cat(found)
        return normaliser_RK

    def goes_on(self, step: int) -> bool:
        """Settle who is done, and merge the prefixes of the others. False when none is left."""
        any_left, rows_to_keep = self.settle(step)
        if not any_left:
            return False
        living_RK = self.log_probs_RK != NONE
        keys_RK = self.nodes_RK.gather(1, self.parents_RK) * self.vocabulary + self.last_RK
        keys_RK = torch.where(living_RK, keys_RK, keys_RK[living_RK][0])  # the dead may stand anywhere
        keys_N, self.nodes_RK = torch.unique(keys_RK, return_inverse=True)  # ascending: by sentence too
        self.parents_N, self.tokens_N = keys_N // self.vocabulary, keys_N % self.vocabulary
        self.sentences_N = self.sentences_N[self.parents_N]
        if self.config.no_repeat_ngram:
            self.prefixes_N1T = torch.cat([self.prefixes_N1T[self.parents_N], self.tokens_N[:, None, None]], 2)
        if rows_to_keep is not None:
            self.keep(rows_to_keep)
        return True

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.temperatures_R1, self.nodes_RK = self.temperatures_R1[rows], self.nodes_RK[rows]
