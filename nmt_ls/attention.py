"""Dropout and attention: what every layer of the Transformer is made of, in the forms that are fast on a CPU.

Shape suffixes: B sentences, T queries (target positions, or the beams of one step), S keys, H heads, E width of a
head, D width of the model.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AttentionForm = Literal["auto", "fused", "explicit"]

PAD = 0
"""The id of padding; the same as in nmt_ls.vocabulary, which this file does not need otherwise."""


class _ByteDropout(torch.autograd.Function):
    """Dropout whose mask costs one random byte an element instead of one random number.

    Random 64-bit words are read as bytes, and an element is kept where its byte is below a threshold: at 4096 x 128
    the mask takes 0.2 ms on one core where Bernoulli draws take 3.4.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: int) -> Tensor:
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device)
        words.random_(-(2**63), None)  # the full 64 bits: random_() alone leaves the sign bit zero
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape).lt_(threshold)
        ctx.save_for_backward(kept)
        ctx.scale = 256.0 / threshold
        return _masked(x, kept, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return _masked(gradients[0], kept, ctx.scale), None


def _masked(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    """x times the mask times the scale, in fp32: mixed types take PyTorch's slow paths."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return kept.to(x.dtype).mul_(x).mul_(scale)


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """x with each element zeroed with the given probability and the others scaled to keep the mean; x itself outside
    training or at probability 0. The result is at least fp32 (what the residual stream is summed in).

    On a CPU the probability is rounded to a multiple of 1/256 (0.1 becomes 0.1016), at least 1/256, and the scale is
    that of the rounded one. The mask comes from PyTorch's global generator, so a run resumed with its state draws the
    same masks.
    """
    if not training or probability == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, probability)
    threshold = min(max(round(256 * (1.0 - probability)), 1), 255)
    dropped: Tensor = _ByteDropout.apply(x, threshold)  # type: ignore[no-untyped-call]
    return dropped


HIDDEN = -1e9
"""What is added to the attention score of a position that must not be seen. Not minus infinity: a row in which
everything is hidden (a source of nothing but padding) must come out finite, in bf16 too."""


def padding_mask(tokens_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to attention scores so that padding is never attended to, B11S."""
    mask_BS = torch.zeros(tokens_BS.shape, dtype=dtype, device=tokens_BS.device)
    return mask_BS.masked_fill_(tokens_BS == PAD, HIDDEN)[:, None, None]


def causal_mask(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What to add to attention scores so that no position sees a later one, 11TT.

    Padding on the right needs no mask of its own then: only padded positions can see it.
    """
    return torch.full((length, length), HIDDEN, dtype=dtype, device=device).triu_(1)[None, None]


# From this length of a row on PyTorch's softmax fills whole vectors (16 numbers of fp32); below, it goes through the
# numbers one by one. Measured as below: 147,000 scores in rows of 9 took 2.7 ms there and back, by hand 0.6; in rows of
# 15 4.3 and 0.9; in rows of 16 0.4 and 0.8.
_VECTOR = 16


class _ShortSoftmax(torch.autograd.Function):
    """softmax(scores * scale + mask) over the last dimension, in the type of the mask, by operations on all rows."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, mask: Tensor, scale: float) -> Tensor:
        weights = torch.add(mask, scores, alpha=scale)
        weights.sub_(weights.amax(-1, keepdim=True)).exp_()
        weights.mul_(weights.sum(-1, keepdim=True).reciprocal_())
        ctx.save_for_backward(weights)
        ctx.scale, ctx.dtype = scale, scores.dtype
        return weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        change = grad * weights
        change.addcmul_(weights, change.sum(-1, keepdim=True), value=-1.0)
        return change.mul_(ctx.scale).to(ctx.dtype), None, None


def _masked_softmax(scores_BHTS: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(scores * scale + mask) over S, in the type of the mask."""
    if scores_BHTS.shape[-1] < _VECTOR and scores_BHTS.device.type == "cpu":
        weights_BHTS: Tensor = _ShortSoftmax.apply(scores_BHTS, mask, scale)  # type: ignore[no-untyped-call]
        return weights_BHTS
    return torch.softmax(torch.add(mask, scores_BHTS, alpha=scale), dim=-1)


# On a CPU the explicit form is faster up to this many scores a head, 256 x 256. Measured on 4,096 tokens, width 256,
# forward and backward, one thread of an AMD EPYC with AVX-512 (PyTorch 2.13): in bf16 fused took 25 times as long at
# length 16, 5 times at 128, 2.5 times at 256, 0.7 times at 512; in fp32 by oneDNN 31, 5, 1.5 and 0.5 times.
_EXPLICIT_UP_TO = 2**16


def attend(
    q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, mask: Tensor, form: AttentionForm, dropout_probability: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(E) + mask) v, BHTE (Vaswani et al. 2017, equation 1); the mask (at least fp32) broadcasts to
    BHTS, and the explicit softmax is computed in its type.

    Both forms give the same results: PyTorch's kernel (fused), and the formula written out (explicit); auto takes what
    was measured to be faster. Dropout on the weights (``dropout_probability``, 0 outside training) needs the weights
    themselves, so it is always computed in the explicit form.
    """
    if form == "auto":
        long = q_BHTE.shape[2] * k_BHSE.shape[2] > _EXPLICIT_UP_TO
        form = "fused" if long or q_BHTE.device.type != "cpu" else "explicit"
    if form == "fused" and dropout_probability == 0.0:
        return F.scaled_dot_product_attention(q_BHTE, k_BHSE, v_BHSE, attn_mask=mask.to(q_BHTE.dtype))
    scores_BHTS = torch.matmul(q_BHTE, k_BHSE.transpose(-1, -2))
    weights_BHTS = _masked_softmax(scores_BHTS, mask, 1.0 / math.sqrt(q_BHTE.shape[-1]))
    weights_BHTS = dropout(weights_BHTS, dropout_probability, training=True)
    return torch.matmul(weights_BHTS.to(v_BHSE.dtype), v_BHSE)


class _SplitHeads(torch.autograd.Function):
    """BT(PHE) -> P tensors BHTE, contiguous as the products of attention want them: one copy forward, and one backward
    (autograd of the same views would stack the gradients first and then copy again)."""

    @staticmethod
    def forward(ctx: Any, x_BTC: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
        ctx.parts = parts
        return _heads_first(x_BTC, parts, heads).contiguous().unbind(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        sentences, heads, positions, width = gradients[0].shape
        together_BTPHE = gradients[0].new_empty(sentences, positions, ctx.parts, heads, width)
        for part, gradient_BHTE in enumerate(gradients):
            together_BTPHE[:, :, part] = gradient_BHTE.transpose(1, 2)
        return together_BTPHE.flatten(2), None, None


def _heads_first(x_BTC: Tensor, parts: int, heads: int) -> Tensor:
    """A view of a fused projection as PBHTE."""
    sentences, positions, columns = x_BTC.shape
    return x_BTC.view(sentences, positions, parts, heads, columns // (parts * heads)).permute(2, 0, 3, 1, 4)


class Projection(nn.Linear):
    """A linear layer whose rows are several matrices side by side (query, key and value): one product instead of three.

    Each matrix is initialised on its own, Xavier-uniform with the given gain, and the biases at zero.
    """

    def __init__(self, inputs: int, outputs: int, parts: int = 1, gain: float = 1.0) -> None:
        super().__init__(inputs, outputs * parts)
        self.parts = parts
        for part in self.weight.chunk(parts):
            nn.init.xavier_uniform_(part, gain=gain)
        nn.init.zeros_(self.bias)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2): the parts that self- and cross-attention share."""

    def __init__(self, width: int, heads: int, dropout_probability: float, form: AttentionForm) -> None:
        super().__init__()
        self.heads = heads
        self.dropout_probability = dropout_probability
        self.form = form
        self.output = Projection(width, width)

    def split_heads(self, x_BTD: Tensor, parts: int) -> tuple[Tensor, ...]:
        """The parts of a fused projection, each BHTE; contiguous where gradients are wanted."""
        if not torch.is_grad_enabled():
            return _heads_first(x_BTD, parts, self.heads).unbind(0)
        split: tuple[Tensor, ...] = _SplitHeads.apply(x_BTD, parts, self.heads)  # type: ignore[no-untyped-call]
        return split

    def combine(self, q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, mask: Tensor) -> Tensor:
        """Attention in the type of the keys, heads side by side again, and the output projection: BTD."""
        probability = self.dropout_probability if self.training else 0.0
        mixed_BHTE = attend(q_BHTE.to(k_BHSE.dtype), k_BHSE, v_BHSE, mask, self.form, probability)
        projected: Tensor = self.output(mixed_BHTE.transpose(1, 2).flatten(2))
        return projected


# The gain of each of the three matrices of a fused projection: as if the three were one Xavier matrix of 3D x D
# (fairseq's choice, and that of torch.nn.MultiheadAttention).
_FUSED_GAIN = 1.0 / math.sqrt(2.0)


class SelfAttention(Attention):
    """Attention of a sequence to itself; query, key and value come from one product."""

    def __init__(self, width: int, heads: int, dropout_probability: float, form: AttentionForm) -> None:
        super().__init__(width, heads, dropout_probability, form)
        self.query_key_value = Projection(width, width, parts=3, gain=_FUSED_GAIN)

    def forward(self, x_BTD: Tensor, mask: Tensor) -> Tensor:
        """Each position attends to all positions that the mask allows, BTD."""
        q_BHTE, k_BHTE, v_BHTE = self.project(x_BTD)
        return self.combine(q_BHTE, k_BHTE, v_BHTE, mask)

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each BHTE."""
        q_BHTE, k_BHTE, v_BHTE = self.split_heads(self.query_key_value(x_BTD), 3)
        return q_BHTE, k_BHTE, v_BHTE


class CrossAttention(Attention):
    """Attention of the target to the encoder's states; their keys and values can be computed once and kept."""

    def __init__(self, width: int, heads: int, dropout_probability: float, form: AttentionForm) -> None:
        super().__init__(width, heads, dropout_probability, form)
        self.query = Projection(width, width, gain=_FUSED_GAIN)
        self.key_value = Projection(width, width, parts=2, gain=_FUSED_GAIN)

    def keys_values(self, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder's states, each BHSE."""
        k_BHSE, v_BHSE = self.split_heads(self.key_value(memory_BSD), 2)
        return k_BHSE, v_BHSE

    def forward(self, x_BTD: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, mask: Tensor) -> Tensor:
        """Each target position attends to all source positions that the mask allows, BTD."""
        (q_BHTE,) = self.split_heads(self.query(x_BTD), 1)
        return self.combine(q_BHTE, k_BHSE, v_BHSE, mask)
