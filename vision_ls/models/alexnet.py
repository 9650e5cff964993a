"""The AlexNet-like network for CIFAR-10 of TensorFlow's image tutorial: two convolutions, two dense layers.

Architecture, initial weights and constants of the normalisation are the tutorial's (tensorflow/models,
tutorials/image/cifar10); at 24x24 and 10 classes it has 1,068,298 parameters and 18.5 million multiply-adds (19.5,
the tutorial says).

Shape suffixes: N images, C channels, H height, W width, D width of a dense layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_ls.models.base import ImageModel, ImageShape, ModelConfig

RADIUS, ALPHA, BETA = 4, 0.001 / 9.0, 0.75
ROWS = 2048  # half a MiB at 64 channels in fp32
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
        # the rectifier and the pool change places: the same result, on a quarter of the positions
        x_NCHW = local_response_norm(F.relu(_pool(self.conv1(x_NCHW))))
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

    α = 0.001/9 and β = 0.75. The scale is computed in fp32 (float64 for float64); the result has the dtype of `x_NCHW`.
    """
    y_NCHW: Tensor = _LocalResponseNorm.apply(x_NCHW)  # type: ignore[no-untyped-call]
    return y_NCHW


class _LocalResponseNorm(torch.autograd.Function):
    """With t = 1 + α·S(x²) and S the sum over a window: y = x·t^-β, dx = g·t^-β − 2αβ·x·S(g·x·t^(-β-1)).

    S is a product with a banded matrix of ones, over rows of channels: all that a channels-last tensor consists of,
    where PyTorch's own function goes by way of a three-dimensional pool. On a CPU some rows are taken at a time, so
    that the fp32 intermediates stay in the cache.
    """

    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor) -> Tensor:
        ctx.save_for_backward(x_NCHW)
        x_RC, band_CC = _rows(x_NCHW), _band(x_NCHW)
        y_RC = torch.empty_like(x_RC)
        for x, y in zip(_pieces(x_RC), _pieces(y_RC), strict=True):
            y.copy_(_power(_scale(x, band_CC)).mul_(x))
        return _images(y_RC, x_NCHW)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x_NCHW,) = ctx.saved_tensors
        x_RC, g_RC, band_CC = _rows(x_NCHW), _rows(gradients[0]), _band(x_NCHW)
        dx_RC = torch.empty_like(x_RC)
        for x, g, dx in zip(_pieces(x_RC), _pieces(g_RC), _pieces(dx_RC), strict=True):
            t = _scale(x, band_CC)
            direct = _power(t).mul_(g)
            sums = (direct * x).div_(t).to(x.dtype) @ band_CC
            dx.copy_(direct.add_(sums.mul_(x), alpha=-2 * ALPHA * BETA))
        return _images(dx_RC, x_NCHW)


def _rows(x_NCHW: Tensor) -> Tensor:
    """One row a position."""
    return x_NCHW.permute(0, 2, 3, 1).reshape(-1, x_NCHW.shape[1])


def _images(x_RC: Tensor, like_NCHW: Tensor) -> Tensor:
    images, channels, height, width = like_NCHW.shape
    return x_RC.view(images, height, width, channels).permute(0, 3, 1, 2)


def _pieces(x_RC: Tensor) -> tuple[Tensor, ...]:
    return torch.split(x_RC, ROWS if x_RC.device.type == "cpu" else max(len(x_RC), 1))


def _band(x_NCHW: Tensor) -> Tensor:
    channels = x_NCHW.shape[1]
    ones_CC = torch.ones(channels, channels, dtype=x_NCHW.dtype, device=x_NCHW.device)
    return ones_CC.triu_(-RADIUS).tril_(RADIUS)


def _scale(x_RC: Tensor, band_CC: Tensor) -> Tensor:
    """t. The sums may be rounded to the dtype of x, being small beside the 1; from there on it is fp32."""
    with torch.autocast(x_RC.device.type, enabled=False):
        sums_RC = x_RC.square() @ band_CC
    return sums_RC.to(torch.promote_types(x_RC.dtype, torch.float32)).mul_(ALPHA).add_(1.0)


def _power(t: Tensor) -> Tensor:
    """t^-0.75 by square roots, several times as fast as a general power."""
    return t.sqrt().mul_(t).rsqrt_()
