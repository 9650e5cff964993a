"""Decoding one token at a time after prefixes of which each is there once, however many searches follow it.

Prefixes come and go: a sentence has one at one step and twenty at the next. So all prefixes of all sentences stand in
one row, and everything but attention computes them so, without padding. Each token of a prefix has a slot of keys and
values in one buffer; a prefix is the list of its slots, and all lists are equally long.

Shape suffixes: B sentences, N prefixes, W most of one sentence, T tokens so far, S source positions, H heads, E width
of a head, D width of the model, V vocabulary; a leading 1 makes of all prefixes one sentence.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

from nmt_ls.attention import CrossAttention, SelfAttention, attend
from nmt_ls.decoder_state import OutputLayer
from nmt_ls.transformer import DecoderLayer, Memory, Transformer

_WORTH_COMPACTING = 0.75
MOST_KEPT = 1 << 27
"""Numbers of the encoder's states that are kept, 512 MiB in fp32: 10,000 sentences of 26 pieces at width 512."""


class _Slots:
    """Keys and values of every token of every prefix, in each layer, and which of them a prefix descends from."""

    def __init__(self, layers: int, heads: int, width: int, like: Tensor) -> None:
        empty_HSE = like.new_empty(heads, 0, width)
        self._buffers = [(empty_HSE, empty_HSE) for _ in range(layers)]
        self._used = 0
        self.ancestors_NT = torch.empty(0, 0, dtype=torch.int64, device=like.device)

    def open(self, parents_N: Tensor) -> None:
        """A slot for each of the next step's prefixes, which continue these."""
        held_NT = self.ancestors_NT
        if self._used + len(parents_N) > self._buffers[0][0].shape[1]:
            # what no prefix descends from is dropped, and the rest gets as much room again
            alive, held_NT = torch.unique(held_NT, return_inverse=True)
            room = 2 * (len(alive) + len(parents_N))
            self._buffers = [(_moved(k_HSE, alive, room), _moved(v_HSE, alive, room)) for k_HSE, v_HSE in self._buffers]
            self._used = len(alive)
        own_N = torch.arange(self._used, self._used + len(parents_N), device=parents_N.device)
        continued_NT = held_NT[parents_N] if held_NT.shape[1] else held_NT.new_empty(len(parents_N), 0)
        self.ancestors_NT = torch.cat([continued_NT, own_N[:, None]], 1)
        self._used += len(parents_N)

    def append(self, layer: int, k_HNE: Tensor, v_HNE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest tokens' keys and values; returns those of all tokens of each prefix, each HNTE."""
        keys_HSE, values_HSE = self._buffers[layer]
        newest = slice(self._used - k_HNE.shape[1], self._used)
        keys_HSE[:, newest], values_HSE[:, newest] = k_HNE, v_HNE
        return self._of_prefixes(keys_HSE), self._of_prefixes(values_HSE)

    def _of_prefixes(self, buffer_HSE: Tensor) -> Tensor:
        """HNTE; by index_select, which takes half the time of indexing."""
        heads, _, width = buffer_HSE.shape
        return buffer_HSE.index_select(1, self.ancestors_NT.flatten()).view(heads, *self.ancestors_NT.shape, width)


def _moved(buffer_HSE: Tensor, slots: Tensor, room: int) -> Tensor:
    """These slots alone, with room for as many in all."""
    moved_HSE = buffer_HSE.new_empty(buffer_HSE.shape[0], room, buffer_HSE.shape[2])
    moved_HSE[:, : len(slots)] = buffer_HSE[:, slots]
    return moved_HSE


class PrefixDecoder:
    """Sentences being translated from any number of distinct prefixes each: see search.shared_prefixes.PrefixStepper.

    It has the sources encoded when it is made, once for all prefixes, or takes what was made of them before.
    To be used in the autocast context (or none) in which it was made, with the model in evaluation mode.
    """

    @torch.no_grad()
    def __init__(self, model: Transformer, source_BS: Tensor, encodings: KeptEncodings | None = None) -> None:
        memory = model.encode(source_BS) if encodings is None else encodings.of(model, source_BS)
        self._model, self._layers = model, list(cast(Iterable[DecoderLayer], model.decoder_layers))
        sources = [layer.cross_attention.keys_values(memory.states) for layer in self._layers]
        self._sources = [(k.mT.contiguous().mT, v.contiguous()) for k, v in sources]
        self._mask_B11S = memory.mask
        self._places_B = torch.arange(len(source_BS), device=source_BS.device)  # where each sentence's sources are
        keys_BHSE = sources[0][0]
        self._slots = _Slots(len(self._layers), keys_BHSE.shape[1], keys_BHSE.shape[3], keys_BHSE)
        self._output = OutputLayer(model.output_weight, keys_BHSE.dtype, len(source_BS))
        self._rows, self._steps = len(source_BS), 0

    @torch.no_grad()
    def logits(self, tokens_N: Tensor, parents_N: Tensor, sentences_N: Tensor) -> Tensor:
        """Next-token logits NV, at least fp32, of prefixes that continue those of the last call."""
        self._place(sentences_N)
        self._slots.open(parents_N)
        x_1ND = self._model._embed(self._model.target_embedding, tokens_N[None], self._steps, self._steps + 1)
        self._steps += 1
        for index, layer in enumerate(self._layers):
            update_1ND = self._among_prefixes(index, layer.self_attention, layer.before(layer.self_norm, x_1ND))
            x_1ND = layer.after(layer.self_norm, x_1ND, update_1ND)
            update_1ND = self._to_sources(index, layer.cross_attention, layer.before(layer.cross_norm, x_1ND))
            x_1ND = layer.after(layer.cross_norm, x_1ND, update_1ND)
            update_1ND = layer.feed_forward(layer.before(layer.feed_forward_norm, x_1ND))
            x_1ND = layer.after(layer.feed_forward_norm, x_1ND, update_1ND)
        if len(tokens_N) > self._rows:
            self._rows = len(tokens_N) * 5 // 4
            self._output = OutputLayer(self._model.output_weight, self._sources[0][0].dtype, self._rows)
        return self._output(self._model.decoder_norm(x_1ND)[0])

    def _place(self, sentences_N: Tensor) -> None:
        """Give each prefix its place among those of its sentence, and drop the sources that are no longer needed."""
        present_B, counts_B = torch.unique_consecutive(sentences_N, return_counts=True)
        where_B = self._places_B[present_B]
        if len(present_B) <= _WORTH_COMPACTING * len(self._mask_B11S):
            self._sources = [(k[where_B], v[where_B]) for k, v in self._sources]
            self._mask_B11S = self._mask_B11S[where_B]
            where_B = torch.arange(len(present_B), device=where_B.device)
            self._places_B[present_B] = where_B
        self._widest = int(counts_B.max())
        first_N = (counts_B.cumsum(0) - counts_B).repeat_interleave(counts_B)
        self._cells_N = where_B.repeat_interleave(counts_B) * self._widest
        self._cells_N += torch.arange(len(sentences_N), device=first_N.device) - first_N

    def _among_prefixes(self, index: int, attention: SelfAttention, x_1ND: Tensor) -> Tensor:
        """Self-attention, 1ND."""
        q_1HNE, k_1HNE, v_1HNE = attention.project(x_1ND)
        k_HNTE, v_HNTE = self._slots.append(index, k_1HNE[0], v_1HNE[0])
        mask = q_1HNE.new_zeros(1, 1, 1, k_HNTE.shape[2], dtype=torch.promote_types(q_1HNE.dtype, torch.float32))
        mixed_HN1E = attend(q_1HNE[0][:, :, None], k_HNTE, v_HNTE, mask, attention.form)
        updated: Tensor = attention.output(mixed_HN1E.transpose(0, 2).flatten(2))
        return updated

    def _to_sources(self, index: int, attention: CrossAttention, x_1ND: Tensor) -> Tensor:
        """Attention of the prefixes, sentence by sentence, to their source, 1ND."""
        q_1ND = attention.query(x_1ND)
        k_BHSE, v_BHSE = self._sources[index]
        padded_CD = q_1ND.new_zeros(len(k_BHSE) * self._widest, q_1ND.shape[2])
        padded_CD[self._cells_N] = q_1ND[0]
        (q_BHWE,) = attention.split_heads(padded_CD.view(len(k_BHSE), self._widest, -1), 1)
        mixed_BHWE = attend(q_BHWE, k_BHSE, v_BHSE, self._mask_B11S, attention.form)
        updated: Tensor = attention.output(mixed_BHWE.transpose(1, 2).flatten(0, 1).flatten(1)[self._cells_N][None])
        return updated


class KeptEncodings:
    """What the encoder made of batches of sources, for whoever searches them again; beyond MOST_KEPT nothing is kept.

    Of one model that does not change, in one precision.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, bytes], Memory] = {}  # by width and content of the sources
        self._room = MOST_KEPT

    def of(self, model: Transformer, source_BS: Tensor) -> Memory:
        """The encoder's states of a batch of sources."""
        key = source_BS.shape[1], source_BS.cpu().numpy().tobytes()
        memory = self._kept.get(key)
        if memory is None:
            memory = model.encode(source_BS)
            if memory.states.numel() <= self._room:
                self._room -= memory.states.numel()
                self._kept[key] = memory
        return memory
