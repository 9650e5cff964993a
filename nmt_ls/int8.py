"""Decoding in int8: the decoder's products with weights rounded to 8 bits (or 7) once, and activations row by row.

Weights have a scale an output row and activations a scale a row (a hypothesis), so that what is computed of one
hypothesis does not depend on the others in its batch. Sums are exact in int32; all else (normalisation, softmax,
residual sums, logits) is fp32, but for the products of attention: their keys and values are of the encoder's type.
The encoder, which runs once a sentence, is not rounded; of a narrow model the output layer alone is, and the others
compute as the autocast context says.

Processors that multiply bytes into 32 bits get weights of 8 bits. With AVX2 alone oneDNN adds two products in 16 bits
first, which clip at 32,767; with weights of 7 bits no such sum is above 255 * 63 * 2 = 32,130, so they stay exact.

Shape suffixes: B sentences, S source positions, R rows, D inputs, N outputs.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from nmt_ls.attention import Projection
from nmt_ls.decoder_state import DecoderState
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.precision import Precision, choose_precision
from nmt_ls.experiment.processor import device_name, this_processor
from nmt_ls.transformer import Transformer

INT8_SETS = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Instruction sets that multiply bytes into 32 bits."""
SEVEN_BIT_SETS = ("avx2",)
"""Those that add two products in 16 bits: there weights have 7 bits."""
_ZERO = 128  # oneDNN's fast kernels want unsigned activations: 0 is stored as this

_LAYERS_FROM = 256
"""Width of the model from which its layers are rounded too: in a narrower one rounding costs more than it gains."""
_OUTPUT_BLOCK = 1024
"""Rows of the output layer computed at once: what comes of them stays in the cache until it is scaled."""


def weight_levels() -> int | None:
    """The largest integer that a weight is rounded to on this processor: 127, or 63; None where it has no int8."""
    sets = set(this_processor().instruction_sets)
    return 127 if sets & set(INT8_SETS) else 63 if sets & set(SEVEN_BIT_SETS) else None


def has_int8() -> bool:
    """Whether this processor multiplies bytes."""
    return weight_levels() is not None


def int8_precision(device: str | torch.device = "cpu") -> Precision:
    """Decoding in int8; the encoder computes in bf16 where the processor has it.

    Raises UserError where the device is not a CPU with int8 instructions.
    """
    if torch.device(device).type != "cpu" or not has_int8():
        sets = ", ".join(INT8_SETS + SEVEN_BIT_SETS)
        raise UserError(
            f"precision: int8 needs a CPU with one of {sets}, not {device_name(torch.device(device))}; take auto"
        )
    bits = 8 if weight_levels() == 127 else 7
    why = f"int8 in the decoder (weights of {bits} bits), as asked"
    return replace(choose_precision("fp32", device), kind="int8", reason=why, measured={"weight_bits": bits})


class Int8Weight:
    """A weight NxD as bytes with one scale a row, symmetric by the largest magnitude, in oneDNN's layout.

    AssertionError on a processor without int8, which `int8_precision` tells users.
    """

    def __init__(self, weight_ND: Tensor) -> None:
        levels = weight_levels()
        assert levels is not None, "this processor has no int8"
        weight_ND = weight_ND.detach().float()
        self.scales_N = _scales(weight_ND, levels)[:, 0]
        rounded_ND = (weight_ND / self.scales_N[:, None]).round_().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(rounded_ND, None)
        self._zeros_N = torch.zeros(len(weight_ND), dtype=torch.int64)

    def product(self, bytes_RD: Tensor) -> Tensor:
        """Rounded activations times the weight, RN; to be multiplied by the scales of the activations."""
        y_RN: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(bytes_RD, 1.0, _ZERO, self._packed, self.scales_N, self._zeros_N, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        return y_RN


def rounded(x_RD: Tensor) -> tuple[Tensor, Tensor]:
    """Activations as bytes, RD, and what a byte of each row is worth, R1."""
    scales_R1 = _scales(x_RD, 127)
    # by way of signed bytes: PyTorch converts to unsigned ones five times as slowly
    return (x_RD / scales_R1).round_().to(torch.int8).view(torch.uint8).bitwise_xor_(_ZERO), scales_R1


class Int8Linear(nn.Module):
    """A linear layer, ... x D -> ... x N, fp32 outside."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight, self._bias_N = Int8Weight(linear.weight), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        bytes_RD, scales_R1 = rounded(x.flatten(0, -2).float())
        y_RN = torch.addcmul(self._bias_N, self._weight.product(bytes_RD), scales_R1)
        return y_RN.view(*x.shape[:-1], y_RN.shape[1])


class Int8Output:
    """The output layer, block by block, into a buffer made once: see OutputLayer."""

    def __init__(self, weight_VD: Tensor) -> None:
        self._blocks = [Int8Weight(block) for block in torch.split(weight_VD, _OUTPUT_BLOCK)]
        self._buffer = torch.empty(0, len(weight_VD))

    def __call__(self, hidden_RD: Tensor) -> Tensor:
        """RV, fp32; overwritten by the next call, whichever batch makes it."""
        if len(hidden_RD) > len(self._buffer):
            with torch.inference_mode(False):  # a later batch may be decoded outside it
                self._buffer = torch.empty(len(hidden_RD), self._buffer.shape[1])
        logits_RV = self._buffer[: len(hidden_RD)]
        bytes_RD, scales_R1 = rounded(hidden_RD.float())
        for block, columns in zip(self._blocks, torch.split(logits_RV, _OUTPUT_BLOCK, 1), strict=True):
            torch.mul(block.product(bytes_RD), scales_R1, out=columns)
        return logits_RV


def _scales(x_RD: Tensor, levels: int) -> Tensor:
    """What one level of each row is worth, R1: the largest magnitude has `levels` of them."""
    return x_RD.abs().amax(1, keepdim=True).div_(levels).clamp_(min=torch.finfo(torch.float32).tiny)


class Int8Decoder:
    """What starts decoding in int8; made once from a model on a CPU, with whose other weights it works."""

    def __init__(self, model: Transformer) -> None:
        # a copy of the modules that shares their weights
        self._model = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
        self._layers_too = model.config.width >= _LAYERS_FROM
        for layer in self._model.decoder_layers if self._layers_too else ():
            for module in list(layer.modules()):
                for name, child in list(module.named_children()):
                    if isinstance(child, Projection) and name != "key_value":  # key_value reads the encoder's states
                        setattr(module, name, Int8Linear(child))
        self._output = Int8Output(model.output_weight)

    @torch.no_grad()
    def start(self, source_BS: Tensor, beams: int, max_steps: int) -> DecoderState:
        """As Transformer.start does, in the autocast context in which it is called."""
        cache = self._model.start_cache(source_BS, beams, max_steps)
        return (_Int8State if self._layers_too else DecoderState)(self._model, cache, self._output)


class _Int8State(DecoderState):
    """What the rounded layers leave to others is in fp32."""

    def logits(self, last_tokens_BK: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().logits(last_tokens_BK)
