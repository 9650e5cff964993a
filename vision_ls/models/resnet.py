"""Residual networks for CIFAR, 6n+2 layers: He et al. (2016a), section 4.2, with pre-activation (He et al. 2016b).

Shape suffixes: N images, C channels, H height, W width, D width of the penultimate layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from vision_ls.models.base import ImageModel, ImageShape, ModelConfig, global_mean, he_normal, last_layer

_BLOCKS_A_STAGE = {"resnet20": 3, "resnet56": 9}


class Block(nn.Module):
    """Normalise, rectify, 3x3 convolution, twice; added to the input (He et al. 2016b, figure 1b).

    Where a stage begins, the input is taken at every second position and padded with zero channels: the parameter-free
    shortcut A of He et al. (2016a), which their counts for CIFAR assume. Or (projected) a 1x1 convolution of what the
    first convolution reads takes its place, in the first stage too.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, projected: bool = False) -> None:
        super().__init__()
        self.projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if projected else None
        self.stride, self.new_channels = stride, outputs - inputs
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = _convolution(inputs, outputs, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = _convolution(outputs, outputs, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        active_NCHW = F.relu(self.norm1(x_NCHW), inplace=True)
        update_NCHW: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active_NCHW)), inplace=True))
        return update_NCHW + (self._padded(x_NCHW) if self.projection is None else self.projection(active_NCHW))

    def _padded(self, x_NCHW: Tensor) -> Tensor:
        if self.stride > 1:  # a pool of one, since the gradient of a slice is not channels-last
            x_NCHW = F.avg_pool2d(x_NCHW, 1, self.stride)
        return F.pad(x_NCHW, (0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else x_NCHW


class ResNet(ImageModel):
    """A 3x3 convolution, three stages of blocks that halve the sides twice, normalise, rectify, mean over positions.

    ResNet-56 has 0.85 million parameters at widths 16 32 64 and 10 classes (He et al. 2016a, table 6). Initialised as
    in He et al. (2015): see `he_normal` and `last_layer`; batch normalisation with ε 1e-5 and averages that forget a
    tenth a step.
    """

    def __init__(self, config: ModelConfig, classes: int, image_shape: ImageShape) -> None:
        widths = config.layer_widths
        if any(later < earlier for earlier, later in itertools.pairwise(widths)):
            raise ValueError(f"widths of {config.name} must not fall from stage to stage, but are {widths}")
        super().__init__(widths[-1], classes, config.dropout_probability)
        stem_width = config.stem_width or widths[0]
        self.stem = _convolution(image_shape[0], stem_width, config.stem_stride)
        projected = config.shortcut == "projection"
        self.blocks = nn.ModuleList(_blocks(stem_width, widths, _BLOCKS_A_STAGE[config.name], projected))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.apply(he_normal)
        last_layer(self.last)

    def penultimate(self, x_NCHW: Tensor) -> Tensor:
        """The mean over positions of the last stage's activations, ND."""
        x_NCHW = self.stem(x_NCHW)
        for block in self.blocks:
            x_NCHW = block(x_NCHW)
        return global_mean(F.relu(self.norm(x_NCHW), inplace=True))


def _blocks(stem_width: int, widths: tuple[int, ...], each: int, projected: bool) -> Iterator[Block]:
    inputs = stem_width
    for stage, outputs in enumerate(widths):
        for index in range(each):
            begins = index == 0
            yield Block(inputs, outputs, stride=2 if stage > 0 and begins else 1, projected=projected and begins)
            inputs = outputs


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
