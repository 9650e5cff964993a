"""Decoding one token at a time: what search drives, and the cache of keys and values behind it.

Shape suffixes: B sentences, K beams, S slots of the cache or source positions, T steps, L layers, H heads, E width of
a head, D width of the model, V vocabulary.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from nmt_ls.attention import HIDDEN

if TYPE_CHECKING:
    from nmt_ls.transformer import Transformer


_BLOCK = 8
"""Steps by which the cache grows. Products read its buffers whole (a hidden slot counts for nothing), because on a CPU
they take twice as long on a part of a larger buffer."""


class KVCache:
    """Keys and values of everything that has been read: the source once a sentence, the target once a hypothesis.

    All hypotheses of a sentence write to one buffer: at step t beam k owns slot t K + k, for ever. A hypothesis is the
    set of slots that it descends from, which is a row of the mask (0 for an ancestor, HIDDEN for any other slot, used
    or not). So when hypotheses are reordered only that small mask is, and no key or value is moved.
    """

    def __init__(
        self, sources: list[tuple[Tensor, Tensor]], source_mask_B11S: Tensor, beams: int, max_steps: int
    ) -> None:
        self.beams = beams
        self.max_steps = max_steps
        self.steps = 0
        self.source_mask = source_mask_B11S
        # keys transposed: so their product with few queries takes two thirds of the time
        self._sources = [(k.mT.contiguous(), v.contiguous()) for k, v in sources]
        sentences, heads, _, head_width = sources[0][0].shape
        empty_BHSE = sources[0][0].new_empty(sentences, heads, 0, head_width)
        self._targets = [(empty_BHSE, empty_BHSE) for _ in sources]
        self._ancestry_BKS = source_mask_B11S.new_empty(sentences, beams, 0)

    def mask(self) -> Tensor:
        """The additive mask of self-attention over all slots, B1KS."""
        return self._ancestry_BKS[:, None]

    def source(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the source in one layer, each BHSE."""
        keys_BHES, values_BHSE = self._sources[layer]
        return keys_BHES.mT, values_BHSE

    def advance(self) -> None:
        """Open the slots of the next step: each hypothesis is its own ancestor there."""
        if self.steps == self.max_steps:
            raise ValueError(f"the cache holds {self.max_steps} steps: start with a larger max_steps")
        if self.steps % _BLOCK == 0:
            slots = min(_BLOCK, self.max_steps - self.steps) * self.beams
            self._targets = [(F.pad(k, (0, 0, 0, slots)), F.pad(v, (0, 0, 0, slots))) for k, v in self._targets]
            self._ancestry_BKS = F.pad(self._ancestry_BKS, (0, slots), value=HIDDEN)
        first = self.steps * self.beams
        self._ancestry_BKS[:, :, first : first + self.beams].diagonal(dim1=1, dim2=2).zero_()
        self.steps += 1

    def append(self, layer: int, k_BHKE: Tensor, v_BHKE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest step's keys and values of one layer; returns those of all slots, each BHSE."""
        newest = slice((self.steps - 1) * self.beams, self.steps * self.beams)
        keys_BHSE, values_BHSE = self._targets[layer]
        keys_BHSE[:, :, newest] = k_BHKE
        values_BHSE[:, :, newest] = v_BHKE
        return keys_BHSE, values_BHSE

    def reorder(self, parents_BK: Tensor) -> None:
        """Beam k of each sentence now continues what was beam ``parents_BK[b, k]``."""
        self._ancestry_BKS = self._ancestry_BKS.gather(1, parents_BK[:, :, None].expand_as(self._ancestry_BKS))

    def keep(self, rows_B: Tensor) -> None:
        """Only these sentences stay, in this order."""
        self._sources = [(k[rows_B], v[rows_B]) for k, v in self._sources]
        self._targets = [(k[rows_B], v[rows_B]) for k, v in self._targets]
        self.source_mask = self.source_mask[rows_B]
        self._ancestry_BKS = self._ancestry_BKS[rows_B]


class OutputLayer:
    """The output product of decoding, into buffers made once: new ones of this size are handed back to the operating
    system and paged in again at every step, which took a third of the step."""

    def __init__(self, weight_VD: Tensor, dtype: torch.dtype, rows: int) -> None:
        self._weight_VD = weight_VD.to(dtype)
        self._narrow_RV = self._weight_VD.new_empty(rows, len(weight_VD))
        wide = torch.promote_types(dtype, torch.float32)
        self._wide_RV = self._narrow_RV if wide == dtype else torch.empty_like(self._narrow_RV, dtype=wide)

    def __call__(self, hidden_RD: Tensor) -> Tensor:
        """RV, at least fp32; overwritten by the next call."""
        rows = len(hidden_RD)
        narrow_RV, wide_RV = self._narrow_RV[:rows], self._wide_RV[:rows]
        torch.mm(hidden_RD.to(self._weight_VD.dtype), self._weight_VD.t(), out=narrow_RV)
        return wide_RV if wide_RV.dtype == narrow_RV.dtype else wide_RV.copy_(narrow_RV)


class DecoderState:
    """A batch of sentences being translated, ``beams`` hypotheses each; made by ``Transformer.start``.

    Drive it so: ``logits`` with the tokens chosen last (beginning-of-sentence at first) gives the next token's logits;
    ``reorder`` says which hypothesis each of the chosen tokens continues; ``keep`` drops finished sentences.
    All in the autocast context (or none) in which it was started, with the model in evaluation mode.
    """

    def __init__(self, model: "Transformer", cache: KVCache, output: Callable[[Tensor], Tensor]) -> None:
        self._model = model
        self._cache = cache
        self._output = output

    @torch.no_grad()
    def logits(self, last_tokens_BK: Tensor) -> Tensor:
        """Feed each hypothesis its newest token; returns the logits of the token after it, BKV, at least fp32.

        They may be changed in place, and are overwritten by the next call.
        """
        hidden_BKD = self._model.step(last_tokens_BK, self._cache)
        logits_RV = self._output(hidden_BKD.flatten(0, 1))
        return logits_RV.view(*last_tokens_BK.shape, logits_RV.shape[1])

    def reorder(self, parents_BK: Tensor) -> None:
        """Beam k of each sentence now continues beam ``parents_BK[b, k]``; nothing but a mask is copied."""
        self._cache.reorder(parents_BK)

    def keep(self, rows_B: Tensor) -> None:
        """Only these sentences stay in the batch, in this order."""
        self._cache.keep(rows_B)
