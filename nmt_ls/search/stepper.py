"""What search asks of a model, and the special symbols it knows.

Shapes: B sentences still in the batch, K hypotheses of each, V vocabulary rows.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from nmt_ls.vocabulary import BOS, EOS, PAD, UNK

__all__ = ["BOS", "EOS", "PAD", "UNK", "Stepper"]


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
