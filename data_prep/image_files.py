"""Encoded images decoded to unsigned bytes, all of one shape.

Shapes: C channels, H and W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from nmt_ls.experiment.command_line import UserError

SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
GREYSCALE_MODES = ("1", "L", "LA", "La", *SIXTEEN_BITS)
THIRTY_TWO_BITS = ("I", "F")


class Picture(NamedTuple):
    """An encoded image: `cell` has its "bytes", or the "path" of its file; `where` names it in messages."""

    where: str
    cell: Mapping[str, Any]


class Decoder:
    """Decodes images to bytes [C, H, W].

    size, resize: see `data_prep.images.ImagesConfig`. channels: "1", "3", or "auto", settled by the first images.
    The first image decides the shape; one of another shape is a fault.
    """

    def __init__(self, size: int, resize: int, channels: str) -> None:
        self._size, self._resize = size, resize or size
        self.channels = 0 if channels == "auto" else int(channels)
        self.shape: tuple[int, int, int] | None = None

    def settle(self, pictures: Sequence[Picture]) -> None:
        """Settle channels and shape by these images, the first to be decoded, unless they are settled."""
        if not self.channels:
            self.channels = 1 if all(_open(picture).mode in GREYSCALE_MODES for picture in pictures) else 3
        if self.shape is None:
            height, width = self._pixels(pictures[0])[0].shape[1:]
            self.shape = (self.channels, height, width)

    def decode(self, picture: Picture) -> tuple[NDArray[np.uint8], bool]:
        """The image, and whether it is greyscale.

        Raises UserError for one that is damaged, of another shape, or of 32 bits a pixel.
        """
        pixels, greyscale = self._pixels(picture)
        if pixels.shape != self.shape:
            assert self.shape is not None
            raise UserError(
                f"{picture.where}: {_extent(pixels.shape)} pixels where the first image has {_extent(self.shape)}; "
                "bring all to one size with --size"
            )
        return pixels, greyscale

    def _pixels(self, picture: Picture) -> tuple[NDArray[np.uint8], bool]:
        image = _open(picture)
        if image.mode in THIRTY_TWO_BITS:
            raise UserError(
                f"{picture.where}: 32 bits a pixel, and nothing says which values are black and white; "
                "save it with 8 bits"
            )
        greyscale = image.mode in GREYSCALE_MODES
        if self.channels == 1 and not greyscale:
            raise UserError(
                f"{picture.where}: in colour, where the images are to have one channel; prepare with --channels 3"
            )
        try:
            image = _eight_bits(image).convert("L" if self.channels == 1 else "RGB")
            image = _cropped(image, self._size, self._resize)
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{picture.where}: does not decode ({error}); mend or remove it") from None
        pixels = np.asarray(image, dtype=np.uint8)
        return (pixels[None] if self.channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))), greyscale


def _open(picture: Picture) -> Image.Image:
    """The image with its header read. Raises UserError where it is missing or no image."""
    content, path = picture.cell.get("bytes"), picture.cell.get("path")
    try:
        if content is None:
            if path is None:
                raise UserError(f"{picture.where}: the image is missing; mend or remove the row")
            content = Path(path).read_bytes()
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise UserError(
            f"{picture.where}: does not decode (not an image in a known format); mend or remove it"
        ) from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{picture.where}: does not decode ({error}); mend or remove it") from None


def _eight_bits(image: Image.Image) -> Image.Image:
    """One of 16 bits scaled to 8 (Pillow's own conversion cuts everything above 255 off); others as they are."""
    if image.mode not in SIXTEEN_BITS:
        return image
    return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))


def _cropped(image: Image.Image, size: int, resize: int) -> Image.Image:
    """The middle square of `size` pixels once the shorter side has `resize`; 0: the image as it is."""
    if not size:
        return image
    width, height = image.size
    scale = resize / min(width, height)
    if scale != 1:
        width, height = max(resize, round(width * scale)), max(resize, round(height * scale))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _extent(shape: tuple[int, ...]) -> str:
    return f"{shape[2]} x {shape[1]}"
