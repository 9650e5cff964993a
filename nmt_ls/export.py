"""python -m nmt_ls.export: a run as a CTranslate2 model, for serving: the same translations without PyTorch.

The temperature goes into the model: dividing the logits by T is multiplying gain and bias of the normalisation before
the output layer by 1/T, which leaves the embeddings tied.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from nmt_ls.decoding import find_run, search_config
from nmt_ls.experiment.checkpoint import CheckpointName
from nmt_ls.experiment.command_line import UserError, run_command
from nmt_ls.experiment.staging import staging_directory
from nmt_ls.metrics.temperature import check_temperature
from nmt_ls.search import SearchConfig
from nmt_ls.transformer import DecoderLayer, EncoderLayer, Layer, Transformer, sinusoids
from nmt_ls.translator import Translator
from nmt_ls.vocabulary import BOS, EOS, UNK, Vocabulary, save_vocabularies

POSITIONS = 2560
"""Longest source or translation: what 1,024 source pieces (where decode truncates) can give by default, and more."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Which run to export, and where to.

    run: a run's directory; left out, the newest finished one under runs/.
    out: the directory to make; it must not be there already, or be empty.
    temperature: a number, or fitted: the one of lowest NLL on the run's validation split.
    quantization: how the weights are stored (CTranslate2 can also convert them when it loads the model).
    """

    run: str | None = None
    out: str
    checkpoint: CheckpointName = "best"
    temperature: float | Literal["fitted"] = 1.0
    quantization: Literal["float32", "float16", "bfloat16", "int8"] = "float32"

    def __post_init__(self) -> None:
        if not self.out:
            raise ValueError("out has to be given: the directory to make")
        if self.temperature != "fitted":
            check_temperature(self.temperature)


def export(config: ExportConfig) -> Path:
    """Write the model and the run's vocabularies; returns the directory.

    Raises UserError where CTranslate2 is not installed, the run cannot be read, or the directory is taken.
    """
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out: {out} exists; choose another place, or remove it")
    specs()
    run = find_run(config.run)
    translator = Translator.load(run, config.checkpoint)
    temperature = search_config(config.temperature, SearchConfig(), run, translator).temperature
    with staging_directory(out) as staging:
        save(
            translator.model,
            translator.source_vocabulary,
            translator.target_vocabulary,
            staging.path,
            temperature=temperature,
            quantization=config.quantization,
        )
        if not staging.publish():
            raise UserError(f"out: {out} was made by another process meanwhile; choose another place")
    return out


def save(
    model: Transformer,
    source_vocabulary: Vocabulary,
    target_vocabulary: Vocabulary,
    directory: Path,
    *,
    temperature: float = 1.0,
    quantization: str = "float32",
) -> None:
    """Write a model with its vocabularies into a directory that is there."""
    pieces = [vocabulary.pieces(range(vocabulary.size)) for vocabulary in (source_vocabulary, target_vocabulary)]
    spec = transformer_spec(model, *pieces, temperature=temperature)
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(directory))
    save_vocabularies(source_vocabulary, target_vocabulary, directory)


def specs() -> Any:
    """CTranslate2's model specifications. Raises UserError where it is not installed."""
    try:
        return importlib.import_module("ctranslate2.specs")
    except ImportError:
        raise UserError("ctranslate2 is not installed: pip install 'nmt-ls[export]'") from None


def transformer_spec(
    model: Transformer, source_pieces: Sequence[str], target_pieces: Sequence[str], *, temperature: float = 1.0
) -> Any:
    """The model as a ctranslate2.specs.TransformerSpec that adds end-of-sentence to sources by itself."""
    common = importlib.import_module(f"{specs().__name__}.common_spec")
    config = model.config
    spec = specs().TransformerSpec.from_config(
        (config.encoder_layers, config.decoder_layers),
        config.heads,
        pre_norm=config.norm == "pre",
        activation=common.Activation.RELU if config.activation == "relu" else common.Activation.GELU,
    )
    positions = _array(sinusoids(POSITIONS, config.width))
    spec.encoder.embeddings[0].weight = _array(model.source_embedding.weight)
    spec.decoder.embeddings.weight = _array(model.target_embedding.weight)
    spec.decoder.projection.weight = _array(model.output_weight)
    for side in (spec.encoder, spec.decoder):
        side.scale_embeddings = True  # by the square root of the width
        side.position_encodings.encodings = positions
    for target, encoder_layer in zip(spec.encoder.layer, model.encoder_layers, strict=True):
        _fill_layer(target, cast(EncoderLayer, encoder_layer))
    for target, decoder_layer in zip(spec.decoder.layer, model.decoder_layers, strict=True):
        _fill_decoder_layer(target, cast(DecoderLayer, decoder_layer))
    if config.norm == "pre":
        _fill_norm(spec.encoder.layer_norm, cast(nn.LayerNorm, model.encoder_norm))
        _fill_norm(spec.decoder.layer_norm, cast(nn.LayerNorm, model.decoder_norm))
    last_norm = spec.decoder.layer_norm if config.norm == "pre" else spec.decoder.layer[-1].ffn.layer_norm
    last_norm.gamma = last_norm.gamma / temperature
    last_norm.beta = last_norm.beta / temperature
    spec.register_source_vocabulary(list(source_pieces))
    spec.register_target_vocabulary(list(target_pieces))
    spec.config.unk_token, spec.config.bos_token, spec.config.eos_token = (target_pieces[i] for i in (UNK, BOS, EOS))
    spec.config.decoder_start_token = target_pieces[BOS]
    spec.config.add_source_eos = True
    return spec


def _fill_layer(target: Any, layer: Layer) -> None:
    """What layers of encoder and decoder have in common."""
    attention = layer.self_attention
    _fill_norm(target.self_attention.layer_norm, layer.self_norm)
    _fill_linear(target.self_attention.linear[0], attention.query_key_value)
    _fill_linear(target.self_attention.linear[1], attention.output)
    _fill_norm(target.ffn.layer_norm, layer.feed_forward_norm)
    _fill_linear(target.ffn.linear_0, layer.feed_forward.inner)
    _fill_linear(target.ffn.linear_1, layer.feed_forward.outer)


def _fill_decoder_layer(target: Any, layer: DecoderLayer) -> None:
    _fill_layer(target, layer)
    attention = layer.cross_attention
    _fill_norm(target.attention.layer_norm, layer.cross_norm)
    _fill_linear(target.attention.linear[0], attention.query)
    _fill_linear(target.attention.linear[1], attention.key_value)
    _fill_linear(target.attention.linear[2], attention.output)


def _fill_norm(target: Any, norm: nn.LayerNorm) -> None:
    target.gamma, target.beta = _array(norm.weight), _array(norm.bias)


def _fill_linear(target: Any, linear: nn.Linear) -> None:
    target.weight, target.bias = _array(linear.weight), _array(linear.bias)


def _array(tensor: Tensor) -> Any:
    return tensor.detach().to("cpu", torch.float32).numpy()


def main(config: ExportConfig) -> None:
    out = export(config)
    print(f"wrote {out}: ctranslate2.Translator({str(out)!r}) takes lists of the pieces of its SentencePiece model")
    print("sources need no end-of-sentence; score as here with length_penalty=1 (average)", file=sys.stderr)


if __name__ == "__main__":
    run_command(
        main,
        ExportConfig,
        program="python -m nmt_ls.export",
        description="A run as a CTranslate2 model.",
    )
