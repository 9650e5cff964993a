"""Inception-v4: Szegedy, Ioffe, Vanhoucke & Alemi (2017), section 3 and figures 3 to 9.

A module is a list of branches, each a chain of convolutions, whose results are put side by side. With 1000 classes the
network has 42.68 million parameters.

Shape suffixes: N images, C channels, H height, W width, D width of the penultimate layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_ls.models.base import ImageModel, ImageShape, ModelConfig, global_mean, he_normal, last_layer

SMALLEST = 75  # below it the last reduction has no full window
WIDTH = 1536


class Convolution(nn.Module):
    """A convolution without bias, batch normalisation (ε 0.001, as in the authors' release; of running averages 0.9 is
    kept an update, as PyTorch has it, and not as they have), a rectifier."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, *, padded: bool = True
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x_NCHW)), inplace=True)


class Branches(nn.Module):
    """Branches over the same input, their results side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return torch.cat([branch(x_NCHW) for branch in self.branches], dim=1)


class InceptionV4(ImageModel):
    """Stem, 4 modules A, a reduction, 7 modules B, a reduction, 3 modules C, the mean over positions (299 pixels: 8x8).

    The authors' padding: the stem and the reductions pad nothing, so that 299 pixels become 35, 17 and 8. Initialised
    as in He et al. (2015): see `he_normal` and `last_layer`.
    """

    def __init__(self, config: ModelConfig, classes: int, image_shape: ImageShape) -> None:
        channels, height, width = image_shape
        if min(height, width) < SMALLEST:
            raise ValueError(
                f"inception_v4 needs images of at least {SMALLEST}x{SMALLEST} pixels, not {height}x{width}"
            )
        super().__init__(WIDTH, classes, config.dropout_probability)
        self.layers = nn.Sequential(
            *_stem(channels),
            *(_module_a() for _ in range(4)),
            _reduction_a(),
            *(_module_b() for _ in range(7)),
            _reduction_b(),
            *(_module_c() for _ in range(3)),
        )
        self.apply(he_normal)
        last_layer(self.last)

    def penultimate(self, x_NCHW: Tensor) -> Tensor:
        """The mean over positions of the last module, ND with D = 1536."""
        return global_mean(self.layers(x_NCHW))


def _chain(inputs: int, *convolutions: tuple[int, tuple[int, int]]) -> nn.Sequential:
    """Padded convolutions one after the other, each given as (outputs, kernel)."""
    layers = []
    for outputs, kernel in convolutions:
        layers.append(Convolution(inputs, outputs, kernel))
        inputs = outputs
    return nn.Sequential(*layers)


def _pooled(inputs: int, outputs: int) -> nn.Sequential:
    """The mean of the neighbours that there are, then a 1x1 convolution."""
    pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return nn.Sequential(pool, Convolution(inputs, outputs, (1, 1)))


def _ended(chain: nn.Sequential, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A chain that ends in an unpadded 3x3 convolution."""
    return nn.Sequential(*chain, Convolution(inputs, outputs, (3, 3), stride, padded=False))


def _stem(channels: int) -> tuple[nn.Module, ...]:
    """Figure 3."""
    return (
        Convolution(channels, 32, (3, 3), stride=2, padded=False),
        Convolution(32, 32, (3, 3), padded=False),
        Convolution(32, 64, (3, 3)),
        Branches(nn.MaxPool2d(3, stride=2), Convolution(64, 96, (3, 3), stride=2, padded=False)),
        Branches(
            _ended(_chain(160, (64, (1, 1))), 64, 96, stride=1),
            _ended(_chain(160, (64, (1, 1)), (64, (7, 1)), (64, (1, 7))), 64, 96, stride=1),
        ),
        Branches(Convolution(192, 192, (3, 3), stride=2, padded=False), nn.MaxPool2d(3, stride=2)),
    )


def _module_a() -> Branches:
    """Figure 4: 35x35, 384 channels."""
    return Branches(
        _pooled(384, 96),
        _chain(384, (96, (1, 1))),
        _chain(384, (64, (1, 1)), (96, (3, 3))),
        _chain(384, (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
    )


def _reduction_a() -> Branches:
    """Figure 7 with k, l, m, n = 192, 224, 256, 384 (table 1): to 17x17, 1024 channels."""
    return Branches(
        nn.MaxPool2d(3, stride=2),
        Convolution(384, 384, (3, 3), stride=2, padded=False),
        _ended(_chain(384, (192, (1, 1)), (224, (3, 3))), 224, 256, stride=2),
    )


def _module_b() -> Branches:
    """Figure 5: 17x17, 1024 channels."""
    return Branches(
        _pooled(1024, 128),
        _chain(1024, (384, (1, 1))),
        _chain(1024, (192, (1, 1)), (224, (1, 7)), (256, (7, 1))),
        _chain(1024, (192, (1, 1)), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))),
    )


def _reduction_b() -> Branches:
    """Figure 8: to 8x8, 1536 channels."""
    return Branches(
        nn.MaxPool2d(3, stride=2),
        _ended(_chain(1024, (192, (1, 1))), 192, 192, stride=2),
        _ended(_chain(1024, (256, (1, 1)), (256, (1, 7)), (320, (7, 1))), 320, 320, stride=2),
    )


def _module_c() -> Branches:
    """Figure 6: 8x8, 1536 channels."""
    return Branches(
        _pooled(1536, 256),
        _chain(1536, (256, (1, 1))),
        nn.Sequential(*_chain(1536, (384, (1, 1))), _cross(384)),
        nn.Sequential(*_chain(1536, (384, (1, 1)), (448, (1, 3)), (512, (3, 1))), _cross(512)),
    )


def _cross(inputs: int) -> Branches:
    return Branches(Convolution(inputs, 256, (1, 3)), Convolution(inputs, 256, (3, 1)))
