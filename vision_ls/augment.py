"""Augmentation of whole batches on the device: no image is touched by itself.

Random numbers come from PyTorch's global CPU generator, whose state a checkpoint holds: a resumed run draws the same.
Without changes of brightness and contrast an image has few outcomes, which `Augmentation.views` enumerates: 162 for a
crop after a padding of 4 and a flip, 25 for a shift by up to 2 (a padding of 2).

Shape suffixes: B images, C channels, H and W pixels of what is given, h and w of what comes out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ls.data import ImageData


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to images, in this order; only `crop` (its middle) and `normalise` also where none is trained on.

    pad: black pixels added on each side, 4 for CIFAR's random crop, 2 for a shift by up to 2.
    crop: side of the square cut out at random; 0: as large as the image was before it was padded.
    flip: left and right are exchanged every other time.
    brightness: an amount up to this is added to all pixels (0 to 255), or taken from them.
    contrast: each channel's distance from its mean is multiplied by a factor between these two.
    normalise: by the training pixels' mean and deviation of each channel (data), by each image's own, over all
        channels (image; TensorFlow's per_image_standardization, whose deviation is never less than 1/√pixels),
        or to 0 to 1 (none).
    """

    pad: int = 0
    crop: int = 0
    flip: bool = False
    brightness: float = 0.0
    contrast: tuple[float, float] = (1.0, 1.0)
    normalise: Literal["data", "image", "none"] = "data"

    def __post_init__(self) -> None:
        for key in ("pad", "crop", "brightness"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, not {getattr(self, key)}")
        low, high = self.contrast
        if not 0 <= low <= high:
            raise ValueError(f"contrast must be two factors, the lower first, not {low} and {high}")

    @property
    def enumerable(self) -> bool:
        """Whether an image has finitely many outcomes."""
        return self.brightness == 0 and self.contrast == (1.0, 1.0)


class Augmentation:
    """The augmentation of one data set's images.

    output_shape: channels, height and width of what it gives.
    """

    def __init__(self, config: AugmentConfig, data: ImageData) -> None:
        """Raises ValueError for a crop that is larger than the padded image."""
        channels, height, width = data.image_shape
        self.config = config
        self._height, self._width = config.crop or height, config.crop or width
        self.output_shape = (channels, self._height, self._width)
        self._places = (height + 2 * config.pad - self._height + 1, width + 2 * config.pad - self._width + 1)
        if min(self._places) < 1:
            raise ValueError(
                f"augment.crop: {config.crop} pixels cannot be cut from {width} x {height} padded by {config.pad}"
            )
        mean_C, std_C = torch.tensor(data.mean, dtype=torch.float64), torch.tensor(data.std, dtype=torch.float64)
        self._scale_C11 = (1 / (255 * std_C)).float()[:, None, None]
        self._offset_C11 = (-mean_C / std_C).float()[:, None, None]

    @property
    def outcomes(self) -> int:
        """How many outcomes an image has, all equally likely. Raises ValueError where they cannot be counted."""
        if not self.config.enumerable:
            raise ValueError("augment.brightness and augment.contrast have no countable outcomes: leave them out")
        return self._places[0] * self._places[1] * (2 if self.config.flip else 1)

    @property
    def fixed(self) -> bool:
        """Whether training always shows an image as evaluation does."""
        return self.config.enumerable and self.outcomes == 1

    def train(self, images_BCHW: Tensor) -> Tensor:
        """A random outcome of each image, normalised: float32 BChw, channels last."""
        batch = len(images_BCHW)
        top_B, left_B = (torch.randint(places, (batch,)) if places > 1 else None for places in self._places)
        images = self._padded(images_BCHW)
        if top_B is not None or left_B is not None:
            zero_B = torch.zeros(batch, dtype=torch.int64)
            images = self._cut(images, zero_B if top_B is None else top_B, zero_B if left_B is None else left_B)
        if self.config.flip:
            flipped_B = (torch.rand(batch) < 0.5).to(images.device, non_blocking=True)
            images = torch.where(flipped_B[:, None, None, None], images.flip(3), images)
        pixels = _as_float(images)
        if self.config.brightness:
            amounts_B = (2 * torch.rand(batch) - 1) * self.config.brightness
            pixels = pixels + amounts_B.to(pixels.device, non_blocking=True)[:, None, None, None]
        low, high = self.config.contrast
        if (low, high) != (1.0, 1.0):
            factors_B = (low + (high - low) * torch.rand(batch)).to(pixels.device, non_blocking=True)[
                :, None, None, None
            ]
            means_BC11 = pixels.mean((2, 3), keepdim=True)
            pixels = (pixels - means_BC11) * factors_B + means_BC11
        return self._normalised(pixels)

    def evaluate(self, images_BCHW: Tensor) -> Tensor:
        """The middle of each image, normalised: float32 BChw, channels last."""
        top, left = (images_BCHW.shape[2] - self._height) // 2, (images_BCHW.shape[3] - self._width) // 2
        if top < 0 or left < 0:  # a crop of more than the image: of its padding too
            images_BCHW = self._padded(images_BCHW)
            top, left = top + self.config.pad, left + self.config.pad
        return self._normalised(_as_float(images_BCHW[:, :, top : top + self._height, left : left + self._width]))

    def views(self, images_BCHW: Tensor) -> Iterator[Tensor]:
        """Every outcome of the images, one after the other, each as `train` gives it. Raises ValueError: `outcomes`."""
        assert self.outcomes
        images = self._padded(images_BCHW)
        for top in range(self._places[0]):
            for left in range(self._places[1]):
                cut = images[:, :, top : top + self._height, left : left + self._width]
                for view in (cut, cut.flip(3)) if self.config.flip else (cut,):
                    yield self._normalised(_as_float(view))

    def _padded(self, images_BCHW: Tensor) -> Tensor:
        pad = self.config.pad
        return F.pad(images_BCHW, (pad, pad, pad, pad)) if pad else images_BCHW

    def _cut(self, images_BCHW: Tensor, top_B: Tensor, left_B: Tensor) -> Tensor:
        windows = images_BCHW.unfold(2, self._height, 1).unfold(3, self._width, 1)
        device = images_BCHW.device
        rows_B = torch.arange(len(images_BCHW), device=device)
        return windows[rows_B, :, top_B.to(device, non_blocking=True), left_B.to(device, non_blocking=True)]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Scale and offset, which move to a device once: each copy there would wait for it to finish its work."""
        if self._scale_C11.device != device:
            self._scale_C11, self._offset_C11 = self._scale_C11.to(device), self._offset_C11.to(device)
        return self._scale_C11, self._offset_C11

    def _normalised(self, pixels: Tensor) -> Tensor:
        if self.config.normalise == "data":
            scale_C11, offset_C11 = self._on(pixels.device)
            return pixels * scale_C11 + offset_C11
        if self.config.normalise == "image":
            deviations, means = torch.std_mean(pixels, (1, 2, 3), correction=0, keepdim=True)
            return (pixels - means) / deviations.clamp_min(pixels[0].numel() ** -0.5)
        return pixels / 255


def _as_float(images_BCHW: Tensor) -> Tensor:
    return images_BCHW.to(torch.float32, memory_format=torch.channels_last)
