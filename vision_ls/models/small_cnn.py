"""A network for the embedded shapes: three convolutions, a few seconds an epoch on a laptop's processor.

Shape suffixes: N images, C channels, H height, W width, D width of the penultimate layer.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vision_ls.models.base import ImageModel, ImageShape, ModelConfig, global_mean, he_normal, last_layer


class SmallCNN(ImageModel):
    """3x3 convolutions with batch normalisation and a rectifier, the second and third of stride 2; then the mean.

    Initialised as in He et al. (2015): see `he_normal` and `last_layer`.
    """

    def __init__(self, config: ModelConfig, classes: int, image_shape: ImageShape) -> None:
        first, second, third = config.layer_widths
        super().__init__(third, classes, config.dropout_probability)
        widths = (image_shape[0], first, second, third)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 3, stride=1 if i == 0 else 2, padding=1, bias=False) for i in range(3)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.apply(he_normal)
        last_layer(self.last)

    def penultimate(self, x_NCHW: Tensor) -> Tensor:
        """The mean over positions of the third layer's activations, ND."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x_NCHW = F.relu(norm(convolution(x_NCHW)))
        return global_mean(x_NCHW)
