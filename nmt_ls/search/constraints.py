"""What may not be generated: special symbols, an early end, a repeated n-gram, anything but the forced prefix.

A forbidden token's logit becomes −inf after the normaliser was taken, so the others keep the model's own
log-probabilities. Only the constraints in use cost anything.

Shapes: B sentences still in the batch, K hypotheses, V vocabulary rows, P prefix tokens, T tokens so far.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmt_ls.search.config import SearchConfig
from nmt_ls.search.stepper import BOS, EOS, PAD, UNK

FREE = -1
FORBIDDEN = float("-inf")


class Constraints:
    """The constraints of one search.

    Forced tokens (a prefix, and the end-of-sentence at the maximum length) override all others: a prefix may
    contain the unknown symbol or repeat an n-gram.
    """

    def __init__(self, config: SearchConfig, max_lengths_B: Tensor, prefix_BP: Tensor | None) -> None:
        """max_lengths_B: int64. prefix_BP: int64, right-padded with PAD; ValueError if no translation could have it."""
        self.config = config
        self.longest = max_lengths_B.tolist()
        _check_lengths(self.longest, config)
        self.forced: dict[int, Tensor] = {}  # step -> the token each sentence of the whole batch must take, or FREE
        if prefix_BP is not None:
            _check_prefix(prefix_BP, self.longest)
            for step, tokens_B in enumerate(prefix_BP.unbind(1)):
                self.forced[step] = tokens_B.masked_fill(tokens_B == PAD, FREE)
        for length in sorted(set(self.longest)):
            free_B = torch.full_like(max_lengths_B, FREE)
            self.forced[length - 1] = self.forced.get(length - 1, free_B).masked_fill(max_lengths_B == length, EOS)

    def apply(self, logits_BKV: Tensor, step: int, rows_B: Tensor, tokens_BKT: Tensor | None) -> None:
        """Forbid in place. rows_B: these sentences' places in the whole batch. tokens_BKT: for no_repeat_ngram."""
        tokens_BK = None
        if step in self.forced:
            tokens_BK = self.forced[step][rows_B][:, None].expand(logits_BKV.shape[:2])
            forced_logits_BK1 = logits_BKV.gather(2, tokens_BK.clamp(min=0)[..., None])
        logits_BKV[..., PAD] = FORBIDDEN
        logits_BKV[..., BOS] = FORBIDDEN
        if not self.config.allow_unknown:
            logits_BKV[..., UNK] = FORBIDDEN
        if step + 1 < self.config.min_length:
            logits_BKV[..., EOS] = FORBIDDEN
        if self.config.no_repeat_ngram and tokens_BKT is not None:
            _forbid_repeats(logits_BKV, tokens_BKT, self.config.no_repeat_ngram)
        if tokens_BK is not None:
            logits_BKV.masked_fill_((tokens_BK != FREE)[..., None], FORBIDDEN)
            # PAD stands for "nothing to restore": it is forbidden anyway
            restored_BK1 = forced_logits_BK1.masked_fill((tokens_BK == FREE)[..., None], FORBIDDEN)
            logits_BKV.scatter_(2, tokens_BK.masked_fill(tokens_BK == FREE, PAD)[..., None], restored_BK1)


def _forbid_repeats(logits_BKV: Tensor, tokens_BKT: Tensor, order: int) -> None:
    """Forbid every token that would complete an n-gram which the hypothesis already contains."""
    if tokens_BKT.shape[2] < order:
        return
    windows_BKWn = tokens_BKT.unfold(2, order, 1)
    context_BK1n = tokens_BKT[:, :, None, tokens_BKT.shape[2] - (order - 1) :]
    matches_BKW = (windows_BKWn[..., :-1] == context_BK1n).all(-1)
    completions_BKW = torch.where(matches_BKW, windows_BKWn[..., -1], PAD)
    logits_BKV.scatter_(2, completions_BKW, FORBIDDEN)


def _check_lengths(longest: list[int], config: SearchConfig) -> None:
    for sentence, length in enumerate(longest):
        if length < config.min_length:
            raise ValueError(
                f"sentence {sentence}: its maximum length {length} is below min_length ({config.min_length}); "
                "lengths count the end-of-sentence"
            )


def _check_prefix(prefix_BP: Tensor, longest: list[int]) -> None:
    if prefix_BP.shape[0] != len(longest):
        raise ValueError(f"prefix_BP has {prefix_BP.shape[0]} rows for {len(longest)} sentences")
    for sentence, (tokens, length) in enumerate(zip(prefix_BP.tolist(), longest, strict=True)):
        count = sum(token != PAD for token in tokens)
        if any(token != PAD for token in tokens[count:]) or BOS in tokens or EOS in tokens:
            raise ValueError(
                f"sentence {sentence}: a forced prefix holds neither beginning- nor end-of-sentence, "
                "and padding only after it"
            )
        if count >= length:
            raise ValueError(
                f"sentence {sentence}: a forced prefix of {count} tokens leaves no room for the end-of-sentence "
                f"within the maximum length {length}"
            )
