"""The Transformer encoder-decoder of Vaswani et al. (2017), "Attention Is All You Need".

Shape suffixes: B sentences, S source positions, T target positions, D width of the model, H heads, E width of a head,
V rows of the output layer, K beams.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmt_ls.attention import (
    PAD,
    CrossAttention,
    Projection,
    SelfAttention,
    causal_mask,
    dropout,
    padding_mask,
)
from nmt_ls.decoder_state import DecoderState, KVCache, OutputLayer

# encoder layers, decoder layers, width, feed-forward width, heads
_PRESETS = {
    "mini": (2, 2, 128, 512, 4),
    "tiny": (4, 4, 128, 256, 4),
    "small": (3, 3, 256, 1024, 4),
    "base": (6, 6, 512, 2048, 8),
    "big": (6, 6, 1024, 4096, 16),
}
_SIZES = ("encoder_layers", "decoder_layers", "width", "feed_forward", "heads")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The shape of a Transformer. A size of 0 is taken from the preset, a vocabulary of 0 from the corpus.

    preset: mini and tiny (2+2 and 4+4 layers, width 128), small (3+3, 256), base and big (6+6, 512 and 1024: Vaswani
    et al., table 3).
    norm: layer normalisation before each sub-layer (pre) or after its residual sum (post, as in the paper).
    share_embeddings: all (source, target and output layer), target (target and output layer), or none.
    attention: PyTorch's kernel (fused) or softmax written out (explicit); the results are the same. auto: explicit
    on a CPU up to 256 x 256 scores, where it is faster, and fused otherwise.
    """

    preset: Literal["mini", "tiny", "small", "base", "big"] = "tiny"
    source_vocabulary: int = 0
    target_vocabulary: int = 0
    encoder_layers: int = 0
    decoder_layers: int = 0
    width: int = 0
    feed_forward: int = 0
    heads: int = 0
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    norm: Literal["pre", "post"] = "pre"
    activation: Literal["relu", "gelu"] = "relu"
    share_embeddings: Literal["all", "target", "none"] = "all"
    attention: Literal["auto", "fused", "explicit"] = "auto"

    def __post_init__(self) -> None:
        for key, allowed in (
            ("preset", tuple(_PRESETS)),
            ("norm", ("pre", "post")),
            ("activation", ("relu", "gelu")),
            ("share_embeddings", ("all", "target", "none")),
            ("attention", ("auto", "fused", "explicit")),
        ):
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} must be one of {', '.join(allowed)}, not {getattr(self, key)!r}")
        for key in ("source_vocabulary", "target_vocabulary", *_SIZES):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, but is {getattr(self, key)}")
        sizes = self._sizes()
        if sizes["width"] % sizes["heads"] != 0 or sizes["width"] % 2 != 0:
            raise ValueError(f"width must be even and a multiple of heads ({sizes['heads']}), but is {sizes['width']}")
        for key in ("dropout", "attention_dropout", "activation_dropout"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise ValueError(f"{key} must lie in [0, 1), but is {getattr(self, key)}")
        if self.share_embeddings == "all" and self.source_vocabulary != self.target_vocabulary:
            raise ValueError(
                f"share_embeddings=all needs one joint vocabulary, but source_vocabulary is {self.source_vocabulary} "
                f"and target_vocabulary {self.target_vocabulary}: prepare a joint one, or use share_embeddings=target"
            )

    def sized(self) -> "TransformerConfig":
        """The same shape with the preset's sizes written out."""
        sizes: dict[str, Any] = dict(self._sizes())
        return replace(self, **sizes)

    @property
    def said_sizes(self) -> str:
        """Layers of encoder and decoder and their widths, in words."""
        sizes = self._sizes()
        layers = f"{sizes['encoder_layers']}+{sizes['decoder_layers']} layers"
        return f"{layers} of {sizes['width']} and {sizes['feed_forward']}"

    def _sizes(self) -> dict[str, int]:
        preset = zip(_SIZES, _PRESETS[self.preset], strict=True)
        return {key: getattr(self, key) or size for key, size in preset}


class Memory(NamedTuple):
    """What the encoder made of a batch of sources: states BSD, and the additive mask B11S that hides padding."""

    states: Tensor
    mask: Tensor


def sinusoids(positions: int, width: int) -> Tensor:
    """Position embeddings, positions x width: the sines of width/2 wavelengths, then their cosines.

    Wavelengths run from 2 pi to 10000 x 2 pi (Vaswani et al. 2017, section 3.5, in the layout of tensor2tensor and
    fairseq, where sines and cosines are halves and do not alternate).
    """
    half = width // 2
    rates_D = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(10000.0) / max(half - 1, 1)))
    angles_TD = torch.arange(positions, dtype=torch.float64)[:, None] * rates_D
    return torch.cat((angles_TD.sin(), angles_TD.cos()), dim=1).float()


class FeedForward(nn.Module):
    """Two linear layers with an activation between (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.inner = Projection(config.width, config.feed_forward)
        self.outer = Projection(config.feed_forward, config.width)
        self.activation = F.relu if config.activation == "relu" else F.gelu
        self.dropout_probability = config.activation_dropout

    def forward(self, x_BTD: Tensor) -> Tensor:
        inner_BTF = dropout(self.activation(self.inner(x_BTD)), self.dropout_probability, self.training)
        outer_BTD: Tensor = self.outer(inner_BTF)
        return outer_BTD


class Layer(nn.Module):
    """What the layers of encoder and decoder share: how a sub-layer is joined to the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.dropout_probability = config.dropout
        self.self_norm = nn.LayerNorm(config.width)
        self.self_attention = SelfAttention(config.width, config.heads, config.attention_dropout, config.attention)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config)

    def before(self, norm: nn.LayerNorm, x_BTD: Tensor) -> Tensor:
        """What a sub-layer reads."""
        return norm(x_BTD) if self.pre_norm else x_BTD

    def after(self, norm: nn.LayerNorm, x_BTD: Tensor, update_BTD: Tensor) -> Tensor:
        """The residual stream with a sub-layer's result added."""
        x_BTD = x_BTD + dropout(update_BTD, self.dropout_probability, self.training)
        return x_BTD if self.pre_norm else norm(x_BTD)


class EncoderLayer(Layer):
    """Self-attention and feed-forward."""

    def forward(self, x_BSD: Tensor, mask_B11S: Tensor) -> Tensor:
        update_BSD = self.self_attention(self.before(self.self_norm, x_BSD), mask_B11S)
        x_BSD = self.after(self.self_norm, x_BSD, update_BSD)
        update_BSD = self.feed_forward(self.before(self.feed_forward_norm, x_BSD))
        return self.after(self.feed_forward_norm, x_BSD, update_BSD)


class DecoderLayer(Layer):
    """Self-attention, attention to the source, and feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.cross_norm = nn.LayerNorm(config.width)
        self.cross_attention = CrossAttention(config.width, config.heads, config.attention_dropout, config.attention)

    def forward(self, x_BTD: Tensor, mask_11TT: Tensor, memory: Memory) -> Tensor:
        update_BTD = self.self_attention(self.before(self.self_norm, x_BTD), mask_11TT)
        x_BTD = self.after(self.self_norm, x_BTD, update_BTD)
        k_BHSE, v_BHSE = self.cross_attention.keys_values(memory.states)
        return self.finish(x_BTD, k_BHSE, v_BHSE, memory.mask)

    def step(self, x_BKD: Tensor, layer: int, cache: KVCache) -> Tensor:
        """One target position of K hypotheses a sentence, whose past (and source) is in the cache."""
        q_BHKE, k_BHKE, v_BHKE = self.self_attention.project(self.before(self.self_norm, x_BKD))
        keys_BHSE, values_BHSE = cache.append(layer, k_BHKE, v_BHKE)
        update_BKD = self.self_attention.combine(q_BHKE, keys_BHSE, values_BHSE, cache.mask())
        x_BKD = self.after(self.self_norm, x_BKD, update_BKD)
        return self.finish(x_BKD, *cache.source(layer), cache.source_mask)

    def finish(self, x_BTD: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, mask_B11S: Tensor) -> Tensor:
        """What follows self-attention."""
        update_BTD = self.cross_attention(self.before(self.cross_norm, x_BTD), k_BHSE, v_BHSE, mask_B11S)
        x_BTD = self.after(self.cross_norm, x_BTD, update_BTD)
        update_BTD = self.feed_forward(self.before(self.feed_forward_norm, x_BTD))
        return self.after(self.feed_forward_norm, x_BTD, update_BTD)


class Transformer(nn.Module):
    """Encoder, decoder and embeddings; the output layer is ``output_weight`` without bias, applied by the loss (which
    never makes all logits at once), by ``logits``, or by ``DecoderState``."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        for key in ("source_vocabulary", "target_vocabulary"):
            if getattr(config, key) == 0:
                raise ValueError(f"{key} is 0: set it to the size of the corpus's vocabulary")
        self.config = config = config.sized()
        self.source_embedding = _embedding(config.source_vocabulary, config.width)
        shared = config.share_embeddings
        self.target_embedding = (
            self.source_embedding if shared == "all" else _embedding(config.target_vocabulary, config.width)
        )
        tied = self.target_embedding.weight
        self.output_weight = (
            nn.Parameter(torch.randn_like(tied) / math.sqrt(config.width)) if shared == "none" else tied
        )
        self.encoder_layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.decoder_layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        pre_norm = config.norm == "pre"  # after post-norm layers there is nothing left to normalise
        self.encoder_norm = nn.LayerNorm(config.width) if pre_norm else nn.Identity()
        self.decoder_norm = nn.LayerNorm(config.width) if pre_norm else nn.Identity()
        self.register_buffer("positions_TD", sinusoids(512, config.width), persistent=False)
        self.positions_TD: Tensor

    def forward(self, source_BS: Tensor, target_in_BT: Tensor) -> Tensor:
        """The activations before the output layer (after the final norm) at every target position, BTD.

        Both are right-padded with 0; ``target_in_BT`` starts with the beginning-of-sentence symbol, and position t
        is what predicts the token that follows it.
        """
        memory = self.encode(source_BS)
        x_BTD = self._embed(self.target_embedding, target_in_BT, 0, target_in_BT.shape[1])
        mask_11TT = causal_mask(target_in_BT.shape[1], x_BTD.dtype, x_BTD.device)
        for layer in self.decoder_layers:
            x_BTD = layer(x_BTD, mask_11TT, memory)
        hidden_BTD: Tensor = self.decoder_norm(x_BTD)
        return hidden_BTD

    def encode(self, source_BS: Tensor) -> Memory:
        """The encoder's states of sources that end with end-of-sentence and are right-padded with 0."""
        x_BSD = self._embed(self.source_embedding, source_BS, 0, source_BS.shape[1])
        mask_B11S = padding_mask(source_BS, x_BSD.dtype)
        for layer in self.encoder_layers:
            x_BSD = layer(x_BSD, mask_B11S)
        return Memory(self.encoder_norm(x_BSD), mask_B11S)

    @torch.no_grad()
    def start(self, source_BS: Tensor, beams: int, max_steps: int) -> DecoderState:
        """Encode sources, and stand ready to extend ``beams`` hypotheses of each by at most ``max_steps`` tokens."""
        cache = self.start_cache(source_BS, beams, max_steps)
        output = OutputLayer(self.output_weight, cache.source(0)[0].dtype, len(source_BS) * beams)
        return DecoderState(self, cache, output)

    def start_cache(self, source_BS: Tensor, beams: int, max_steps: int) -> KVCache:
        """What ``step`` reads: the encoded sources, and room for ``max_steps``."""
        memory = self.encode(source_BS)
        layers = cast(Iterable[DecoderLayer], self.decoder_layers)
        sources = [layer.cross_attention.keys_values(memory.states) for layer in layers]
        return KVCache(sources, memory.mask, beams, max_steps)

    def step(self, tokens_BK: Tensor, cache: KVCache) -> Tensor:
        """The activations before the output layer, BKD, of K hypotheses a sentence whose past is in the cache, given
        their newest tokens."""
        x_BKD = self._embed(self.target_embedding, tokens_BK, cache.steps, cache.steps + 1)
        cache.advance()
        for index, layer in enumerate(cast(Iterable[DecoderLayer], self.decoder_layers)):
            x_BKD = layer.step(x_BKD, index, cache)
        hidden_BKD: Tensor = self.decoder_norm(x_BKD)
        return hidden_BKD

    def logits(self, hidden: Tensor) -> Tensor:
        """The output layer, ... x D -> ... x V, in fp32 (float64 for a float64 model), whatever autocast says."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(torch.promote_types(self.output_weight.dtype, torch.float32)), self.output_weight)

    def _embed(self, embedding: nn.Embedding, tokens_BT: Tensor, start: int, end: int) -> Tensor:
        """Embeddings scaled by sqrt(D), plus the sinusoids of positions start to end, with dropout."""
        if end > self.positions_TD.shape[0]:
            with torch.inference_mode(False):  # the table may serve training later
                self.positions_TD = sinusoids(2 * end, self.config.width).to(self.positions_TD)
        positions_TD = self.positions_TD[start:end]
        x_BTD = torch.add(positions_TD, embedding(tokens_BT), alpha=math.sqrt(self.config.width))
        return dropout(x_BTD, self.config.dropout, self.training)

    def extra_repr(self) -> str:
        return f"{sum(p.numel() for p in self.parameters()):,} parameters"


def _embedding(rows: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(rows, width, padding_idx=PAD)
    nn.init.normal_(embedding.weight, std=1.0 / math.sqrt(width))
    with torch.no_grad():
        embedding.weight[PAD].zero_()
    return embedding
