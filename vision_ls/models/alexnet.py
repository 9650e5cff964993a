"""The AlexNet-like network for CIFAR-10 of TensorFlow's image tutorial: two convolutions, two dense layers.

Architecture, initial weights and constants of the normalisation are the tutorial's (tensorflow/models,
tutorials/image/cifar10); at 24x24 and 10 classes it has 1,068,298 parameters and 19.5 million multiply-adds.

Shape suffixes: N images, C channels, H height, W width, D width of a dense layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_ls.models.base import ImageModel, ImageShape, ModelConfig

RADIUS, ALPHA, BETA = 4, 0.001 / 9.0, 0.75
SMALLEST = 12  # below it the second pool has nothing left to choose from


class AlexNet(ImageModel):
    """5x5 convolution, pool, normalisation; 5x5 convolution, normalisation, pool; dense, dense; the last layer.

    Initial weights are normal, cut off at two standard deviations: 0.05 for convolutions, 0.04 for dense layers, the
    inverse of its inputs for the last; biases are 0 (first convolution, last layer) or 0.1.
    """

    def __init__(self, config: ModelConfig, classes: int, image_shape: ImageShape) -> None:
        channels, height, width = image_shape
        if min(height, width) < SMALLEST:
            raise ValueError(f"alexnet needs images of at least {SMALLEST}x{SMALLEST} pixels, not {height}x{width}")
        first, second, third, fourth = config.layer_widths
        super().__init__(fourth, classes, config.dropout_probability)
        self.conv1 = nn.Conv2d(channels, first, 5, padding=2)
        self.conv2 = nn.Conv2d(first, second, 5, padding=2)
        self.dense3 = nn.Linear(second * _quarter(height) * _quarter(width), third)
        self.dense4 = nn.Linear(third, fourth)
        for layer, deviation, bias in (
            (self.conv1, 0.05, 0.0),
            (self.conv2, 0.05, 0.1),
            (self.dense3, 0.04, 0.1),
            (self.dense4, 0.04, 0.1),
            (self.last, 1.0 / fourth, 0.0),
        ):
            nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
            nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]

    def penultimate(self, x_NCHW: Tensor) -> Tensor:
        """The second dense layer's activations, ND."""
        x_NCHW = local_response_norm(_pool(F.relu(self.conv1(x_NCHW))))
        x_NCHW = _pool(local_response_norm(F.relu(self.conv2(x_NCHW))))
        return F.relu(self.dense4(F.relu(self.dense3(x_NCHW.flatten(1)))))


def _pool(x_NCHW: Tensor) -> Tensor:
    """3x3/2 with TensorFlow's SAME padding: over even sides the last window hangs over, over odd ones both do."""
    return F.max_pool2d(x_NCHW, 3, stride=2, padding=(x_NCHW.shape[2] % 2, x_NCHW.shape[3] % 2), ceil_mode=True)


def _quarter(size: int) -> int:
    """What two pools leave of a side."""
    half = (size + 1) // 2
    return (half + 1) // 2


def local_response_norm(x_NCHW: Tensor) -> Tensor:
    """y_c = x_c (1 + α Σ_{|j-c| ≤ 4} x_j²)^-β over neighbouring channels (Krizhevsky et al. 2012, section 3.3).

    α = 0.001/9 and β = 0.75. The sums are products with a banded matrix of ones: over the innermost axis of a
    channels-last tensor that is one matrix product, where PyTorch's own goes by way of a three-dimensional pool.
    Computed in fp32 (float64 for float64), returned in the dtype of `x_NCHW`.
    """
    y_NCHW: Tensor = _LocalResponseNorm.apply(x_NCHW)  # type: ignore[no-untyped-call]
    return y_NCHW


class _LocalResponseNorm(torch.autograd.Function):
    """With t = 1 + α·S(x²) and S the sum over a window: y = x·t^-β, dx = g·t^-β − 2αβ·x·S(g·x·t^(-β-1))."""

    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor) -> Tensor:
        x_NHWC = x_NCHW.permute(0, 2, 3, 1)
        wide_NHWC = x_NHWC.to(torch.promote_types(x_NHWC.dtype, torch.float32))
        t_NHWC = _window_sums(wide_NHWC.square()).mul_(ALPHA).add_(1.0)
        ctx.save_for_backward(x_NHWC, t_NHWC)
        return (wide_NHWC * _power(t_NHWC)).to(x_NHWC.dtype).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x_NHWC, t_NHWC = ctx.saved_tensors
        wide_NHWC = x_NHWC.to(t_NHWC.dtype)
        direct_NHWC = gradients[0].permute(0, 2, 3, 1) * _power(t_NHWC)
        sums_NHWC = _window_sums(direct_NHWC * wide_NHWC / t_NHWC)
        gradient_NHWC = direct_NHWC.addcmul_(wide_NHWC, sums_NHWC, value=-2 * ALPHA * BETA)
        return gradient_NHWC.to(x_NHWC.dtype).permute(0, 3, 1, 2)


def _window_sums(x_NHWC: Tensor) -> Tensor:
    channels = x_NHWC.shape[-1]
    ones_CC = torch.ones(channels, channels, dtype=x_NHWC.dtype, device=x_NHWC.device)
    with torch.autocast(x_NHWC.device.type, enabled=False):
        return x_NHWC @ ones_CC.triu(-RADIUS).tril(RADIUS)


def _power(t: Tensor) -> Tensor:
    """t^-0.75 by square roots, several times as fast as a general power."""
    return (t * t.sqrt()).rsqrt_()
