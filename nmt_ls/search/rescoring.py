"""Teacher-forced rescoring: the log-probability of every token of a given translation.

Shapes: B sentences, S source pieces, T target tokens, D model width, N tokens that are not padding, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from nmt_ls.metrics.temperature import log_probs
from nmt_ls.search.stepper import PAD

CHUNK_LOGITS = 1 << 22  # logits held at once: 16 MiB in fp32, whatever batch and vocabulary


class TranslationModel(Protocol):
    """What rescoring asks of a translator: penultimate activations, and logits from them."""

    def __call__(self, source_BS: Tensor, target_in_BT: Tensor) -> Tensor:
        """Activations, B T D."""
        ...

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits N V of activations N D, fp32 or float64."""
        ...


@torch.no_grad()
def rescore(
    model: TranslationModel,
    source_BS: Tensor,
    target_in_BT: Tensor,
    target_out_BT: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """log p(target_out | source, target_in) of each token, nats, B T; 0 at padding.

    target_in is target_out moved right behind a beginning-of-sentence; all are right-padded. The model should be in
    evaluation mode. Equals the token_log_probs that search reports for the same translation at this temperature, up
    to rounding. Raises ValueError for a temperature that is not above 0.
    """
    real_BT = target_out_BT != PAD
    hidden_ND = model(source_BS, target_in_BT)[real_BT]
    targets_N = target_out_BT[real_BT]
    chunks, start, size = [], 0, 1
    while start < len(targets_N):
        logits_NV = model.logits(hidden_ND[start : start + size])
        chunk_N1 = targets_N[start : start + size, None]
        chunks.append(log_probs(logits_NV, temperature).gather(1, chunk_N1)[:, 0])
        start += size
        size = max(1, CHUNK_LOGITS // logits_NV.shape[1])  # the first token told the size of the vocabulary
    result_BT = hidden_ND.new_zeros(target_out_BT.shape, dtype=chunks[0].dtype if chunks else hidden_ND.dtype)
    if chunks:
        result_BT[real_BT] = torch.cat(chunks)
    return result_BT
