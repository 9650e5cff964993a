"""The MNIST networks of Section 4 (after Hinton, Vinyals & Dean 2015, section 3): two hidden layers of rectified units.

Shape suffixes: N images, C channels, H height, W width, D width of a hidden layer.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from vision_ls.models.base import ImageModel, ImageShape, ModelConfig, he_normal, last_layer


class FullyConnected(ImageModel):
    """The teacher (2 x 1200, dropout on both hidden layers) or the student (2 x 800, none); any image, flattened.

    Initialised as in He et al. (2015): see `he_normal` and `last_layer`.
    """

    def __init__(self, config: ModelConfig, classes: int, image_shape: ImageShape) -> None:
        first, second = config.layer_widths
        super().__init__(second, classes, config.dropout_probability)
        self.first = nn.Linear(math.prod(image_shape), first)
        self.second = nn.Linear(first, second)
        self.apply(he_normal)
        last_layer(self.last)

    def penultimate(self, x_NCHW: Tensor) -> Tensor:
        """The second hidden layer's activations, ND."""
        hidden_ND = self.dropout(F.relu(self.first(x_NCHW.flatten(1))))
        return F.relu(self.second(hidden_ND))
