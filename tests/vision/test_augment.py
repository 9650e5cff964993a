"""Augmentation: every outcome is one of those enumerated, by hand where small, and drawn from PyTorch's generator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vision_ls.augment import Augmentation, AugmentConfig
from vision_ls.data import ImageData, ImageSplit


def data_of(shape: tuple[int, int, int], mean: float = 0.0, std: float = 1 / 255) -> ImageData:
    """Images of which only the shape matters; by default normalising leaves bytes as they are."""

    def nothing(name: str) -> ImageSplit:
        raise AssertionError(name)

    channels = shape[0]
    return ImageData(
        place="made", source="made", classes=("a", "b"), image_shape=shape, mean=[mean] * channels,
        std=[std] * channels, checksum="", remarks=[], read=nothing,
    )  # fmt: skip


def images(batch: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_nothing_asked_nothing_done() -> None:
    augmentation = Augmentation(AugmentConfig(), data_of((3, 5, 5)))
    batch = images(2, 3, 5, 5)
    before = torch.get_rng_state()
    torch.testing.assert_close(augmentation.train(batch), batch.float(), rtol=0, atol=1e-4)
    torch.testing.assert_close(augmentation.evaluate(batch), batch.float(), rtol=0, atol=1e-4)
    assert torch.equal(torch.get_rng_state(), before)
    assert augmentation.outcomes == 1
    assert augmentation.train(batch).is_contiguous(memory_format=torch.channels_last)


def test_padded_crop_and_flip_by_hand() -> None:
    augmentation = Augmentation(AugmentConfig(pad=1, flip=True), data_of((1, 2, 2)))
    batch = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    views = [view[0, 0].round().int().tolist() for view in augmentation.views(batch)]
    assert len(views) == augmentation.outcomes == 18
    assert views[0] == [[0, 0], [0, 1]]  # moved down and right
    assert views[1] == [[0, 0], [1, 0]]
    assert views[8] == [[1, 2], [3, 4]]
    assert views[9] == [[2, 1], [4, 3]]
    assert views[16] == [[4, 0], [0, 0]]


@pytest.mark.parametrize(
    ("config", "shape", "outcomes"),
    [
        (AugmentConfig(pad=4, flip=True), (3, 32, 32), 162),
        (AugmentConfig(pad=2), (1, 28, 28), 25),
        (AugmentConfig(crop=24, flip=True), (3, 32, 32), 162),
    ],
)
def test_outcomes_of_the_recipes(config: AugmentConfig, shape: tuple[int, int, int], outcomes: int) -> None:
    augmentation = Augmentation(config, data_of(shape))
    assert augmentation.outcomes == outcomes
    assert sum(1 for _ in augmentation.views(images(1, *shape))) == outcomes


def test_random_outcomes_are_those_enumerated_and_all_come() -> None:
    augmentation = Augmentation(AugmentConfig(pad=1, flip=True), data_of((3, 4, 4)))
    image = images(1, 3, 4, 4)
    views = torch.cat(list(augmentation.views(image)))
    torch.manual_seed(0)
    drawn = augmentation.train(image.expand(600, -1, -1, -1))
    same = (drawn[:, None] - views[None]).abs().amax((2, 3, 4)) < 1e-3
    assert (same.sum(1) == 1).all()
    counts = same.sum(0)
    assert counts.min() > 0
    assert ((counts - 600 / 18) ** 2 / (600 / 18)).sum() < 40.8  # chi squared, 17 degrees of freedom, 0.1%


def test_the_generator_decides() -> None:
    augmentation = Augmentation(
        AugmentConfig(crop=24, flip=True, brightness=63, contrast=(0.2, 1.8), normalise="image"), data_of((3, 32, 32))
    )
    batch = images(16, 3, 32, 32)
    torch.manual_seed(3)
    first, other = augmentation.train(batch), augmentation.train(batch)
    torch.manual_seed(3)
    assert torch.equal(augmentation.train(batch), first)
    assert not torch.equal(first, other)
    assert first.shape == (16, *augmentation.output_shape) == (16, 3, 24, 24)
    with pytest.raises(ValueError, match="no countable outcomes"):
        _ = augmentation.outcomes


def test_evaluation_takes_the_middle() -> None:
    batch = images(2, 3, 8, 8)
    cropped = Augmentation(AugmentConfig(crop=4, flip=True), data_of((3, 8, 8))).evaluate(batch)
    torch.testing.assert_close(cropped, batch[:, :, 2:6, 2:6].float(), rtol=0, atol=1e-4)
    padded = Augmentation(AugmentConfig(pad=2, crop=10), data_of((3, 8, 8))).evaluate(batch)
    torch.testing.assert_close(padded[:, :, 1:9, 1:9], batch.float(), rtol=0, atol=1e-4)
    assert padded[:, :, 0].abs().max() < 1e-4


def test_brightness_and_contrast() -> None:
    batch = images(500, 3, 4, 4)
    torch.manual_seed(0)
    brighter = Augmentation(AugmentConfig(brightness=50), data_of((3, 4, 4))).train(batch) - batch
    amounts = brighter.mean((1, 2, 3))
    assert (brighter - amounts[:, None, None, None]).abs().max() < 1e-3
    assert amounts.abs().max() <= 50
    assert amounts.min() < -40 < 40 < amounts.max()
    contrasted = Augmentation(AugmentConfig(contrast=(0.5, 1.5)), data_of((3, 4, 4))).train(batch)
    means = batch.float().mean((2, 3), keepdim=True)
    torch.testing.assert_close(contrasted.mean((2, 3), keepdim=True), means, rtol=0, atol=1e-3)
    factors = (contrasted - means).norm(dim=(2, 3)) / (batch - means).norm(dim=(2, 3))
    assert (factors.amax(1) - factors.amin(1)).max() < 1e-3  # one factor an image, for all channels
    assert 0.5 <= factors.min() < 0.6
    assert 1.4 < factors.max() <= 1.5


def test_normalisation() -> None:
    batch = images(4, 3, 6, 6)
    by_data = Augmentation(AugmentConfig(), data_of((3, 6, 6), mean=0.5, std=0.25)).evaluate(batch)
    torch.testing.assert_close(by_data, (batch / 255 - 0.5) / 0.25, rtol=1e-4, atol=1e-4)
    own = Augmentation(AugmentConfig(normalise="image"), data_of((3, 6, 6))).evaluate(batch)
    torch.testing.assert_close(own.mean((1, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(own.std((1, 2, 3), correction=0), torch.ones(4), rtol=0, atol=1e-4)
    flat = torch.full((1, 3, 6, 6), 9, dtype=torch.uint8)
    assert Augmentation(AugmentConfig(normalise="image"), data_of((3, 6, 6))).evaluate(flat).abs().max() < 1e-3
    plain = Augmentation(AugmentConfig(normalise="none"), data_of((3, 6, 6))).evaluate(batch)
    torch.testing.assert_close(plain, batch / 255)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"augment\.crop: 11 pixels cannot be cut"):
        Augmentation(AugmentConfig(crop=11, pad=1), data_of((3, 8, 8)))
    with pytest.raises(ValueError, match="pad must not be negative"):
        AugmentConfig(pad=-1)
    with pytest.raises(ValueError, match="the lower first"):
        AugmentConfig(contrast=(1.5, 0.5))
