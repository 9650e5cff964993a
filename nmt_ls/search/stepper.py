"""What search asks of a model, the special symbols it knows, and who stays in the batch.

Shapes: B sentences still in the batch, K hypotheses of each, V vocabulary rows.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from nmt_ls.vocabulary import BOS, EOS, PAD, UNK

__all__ = ["BOS", "EOS", "PAD", "UNK", "Stepper", "rows_left"]

# Leaving the batch copies the caches of those who stay, so the finished leave when they are a quarter of it.
WORTH_COMPACTING = 0.75


class Stepper(Protocol):
    """A model in the middle of translating B sentences, K hypotheses each: it remembers their prefixes."""

    def logits(self, last_tokens_BK: Tensor) -> Tensor:
        """Append the tokens chosen last (first: BOS) and give the next token's logits, B K V.

        The result belongs to the caller, who may overwrite it; fp32 or float64.
        """
        ...

    def reorder(self, parents_BK: Tensor) -> None:
        """Hypothesis k of sentence b now continues what was hypothesis parents[b, k] of the same sentence."""
        ...

    def keep(self, rows_B: Tensor) -> None:
        """Only these sentences stay, in this order: row numbers of the present batch, ascending."""
        ...


def rows_left(done_B: Tensor, normaliser_BK: Tensor, step: int) -> tuple[bool, Tensor | None]:
    """Whether any sentence is left, and which rows to keep, where it is time to drop the others.

    This is the one synchronisation with the device in a step. ValueError where the model's logits were NaN or +∞.
    """
    state = torch.where((~normaliser_BK.isfinite()).any(1), 2, done_B.long()).tolist()
    if 2 in state:
        raise ValueError(f"the model's logits are not numbers (NaN or infinite) at token {step + 1} of the translation")
    left = [row for row, done in enumerate(state) if not done]
    if left and len(left) <= WORTH_COMPACTING * len(state):
        return True, torch.tensor(left, device=done_B.device)
    return bool(left), None
