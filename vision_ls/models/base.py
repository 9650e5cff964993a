"""What every classifier is to the rest of the package, and the configuration that names one.

Shape suffixes: N images, C channels, H height, W width, D width of the penultimate layer, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ModelName = Literal["mnist_teacher", "mnist_student", "alexnet", "resnet20", "resnet56", "inception_v4", "small_cnn"]
ImageShape = tuple[int, int, int]

# the widths and the dropout that a config leaves to the model
_WIDTHS: dict[str, tuple[int, ...]] = {
    "mnist_teacher": (1200, 1200),
    "mnist_student": (800, 800),
    "alexnet": (64, 64, 384, 192),
    "resnet20": (16, 32, 64),
    "resnet56": (16, 32, 64),
    "inception_v4": (),
    "small_cnn": (32, 64, 128),
}
_DROPOUT = {"mnist_teacher": 0.5, "inception_v4": 0.2}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which classifier.

    widths: of its layers; empty takes the model's own: mnist_teacher 1200 1200, mnist_student 800 800, alexnet 64 64
    (convolutions) 384 192 (dense), resnet20 and resnet56 16 32 64 (the stages; tensor2tensor's are 32 64 128,
    with a stem of 16 and projections; its 7x7 stem, the normalisation after its projections and its want of one before
    the mean are not built), small_cnn 32 64 128. Inception-v4's are fixed.
    dropout: share of activations dropped before the last layer, in the fully connected networks after the first hidden
    layer too; None takes the model's own: mnist_teacher 0.5, inception_v4 0.2, the others none.
    stem_stride: of a ResNet's first convolution; 2 treats 64-pixel images at the cost of 32-pixel ones.
    stem_width: of a ResNet's first convolution; 0: that of its first stage.
    shortcut: of a ResNet's blocks where a stage begins. pad: every second position, padded with zero channels, without
        parameters (He et al. 2016a); projection: a 1x1 convolution of the normalised, rectified input (tensor2tensor).
    """

    name: ModelName = "small_cnn"
    widths: tuple[int, ...] = ()
    dropout: float | None = None
    stem_stride: int = 1
    stem_width: int = 0
    shortcut: Literal["pad", "projection"] = "pad"

    def __post_init__(self) -> None:
        if self.name not in _WIDTHS:
            raise ValueError(f"name must be one of {', '.join(_WIDTHS)}, not {self.name!r}")
        own = _WIDTHS[self.name]
        if self.widths and len(self.widths) != len(own):
            takes = (
                f"takes {len(own)} ({' '.join(map(str, own))} by default)" if own else "has fixed ones: leave it out"
            )
            raise ValueError(f"widths: {self.name} {takes}, not {len(self.widths)}")
        if any(width < 1 for width in self.widths):
            raise ValueError(f"widths must be positive, not {' '.join(map(str, self.widths))}")
        if self.dropout is not None and not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), but is {self.dropout}")
        if self.stem_stride not in (1, 2):
            raise ValueError(f"stem_stride must be 1 or 2, not {self.stem_stride}")
        if self.stem_stride != 1 and not self.name.startswith("resnet"):
            raise ValueError(f"stem_stride belongs to the ResNets; {self.name} has none")
        if self.stem_width < 0:
            raise ValueError(f"stem_width must not be negative, not {self.stem_width}")
        if self.shortcut not in ("pad", "projection"):
            raise ValueError(f"shortcut must be pad or projection, not {self.shortcut!r}")
        if (self.stem_width or self.shortcut != "pad") and not self.name.startswith("resnet"):
            raise ValueError(f"stem_width and shortcut belong to the ResNets; {self.name} has none")
        first = self.layer_widths[0] if self.layer_widths else 0
        if self.shortcut == "pad" and self.stem_width > first:
            raise ValueError(
                f"stem_width ({self.stem_width}) above the first stage's ({first}) needs shortcut projection"
            )

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """The widths, the model's own where none were given."""
        return self.widths or _WIDTHS[self.name]

    @property
    def dropout_probability(self) -> float:
        """The dropout, the model's own where none was given."""
        return _DROPOUT.get(self.name, 0.0) if self.dropout is None else self.dropout


class ImageModel(nn.Module):
    """A classifier of images: `penultimate`, which a family defines, and a last linear layer over it.

    The logits are computed in fp32 (float64 for a float64 model) whatever autocast says: what calibration reads should
    not be rounded to eight bits.
    """

    def __init__(self, penultimate_width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.last = nn.Linear(penultimate_width, classes)
        self.dropout = nn.Dropout(dropout)

    def penultimate(self, x_NCHW: Tensor) -> Tensor:
        """The activations that the last layer reads, ND, before its dropout; Section 2's x."""
        raise NotImplementedError

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The logits, NK, of a batch of images in the range that the augmentation leaves them in."""
        hidden_ND = self.dropout(self.penultimate(x_NCHW))
        with torch.autocast(x_NCHW.device.type, enabled=False):
            wide_ND = hidden_ND.to(torch.promote_types(self.last.weight.dtype, torch.float32))
            return F.linear(wide_ND, self.last.weight, self.last.bias)

    @property
    def templates(self) -> Tensor:
        """The templates w_k of Section 2, KD: the rows of the last layer, without its bias and without gradient.

        The paper's w_k holds the bias as a last entry, against a constant 1 in x. In the projection that entry could
        only tilt the plane towards an axis along which no example ever moves: it would shift all examples alike and
        shorten their spread in the plane, saying nothing about them. Without it the plane lies in the space where the
        activations are, and distances on it are distances between activations.
        """
        return self.last.weight.detach()


def he_normal(module: nn.Module) -> None:
    """Weights of He et al. (2015), eq. (10): normal, variance 2 over the inputs of a unit; biases 0. For `apply`."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def last_layer(layer: nn.Linear) -> None:
    """Weights of the last layer, whose outputs no rectifier halves: normal, variance 1 over its inputs; bias 0."""
    nn.init.normal_(layer.weight, std=1.0 / math.sqrt(layer.in_features))
    nn.init.zeros_(layer.bias)


def global_mean(x_NCHW: Tensor) -> Tensor:
    """The mean over all positions, NC, accumulated and kept in fp32 (float64 for float64)."""
    return x_NCHW.mean((2, 3), dtype=torch.promote_types(x_NCHW.dtype, torch.float32))
