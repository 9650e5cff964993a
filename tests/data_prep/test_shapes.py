"""Embedded images: the posterior is that of the formula, and no image can come from two pairs of traits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from data_prep import shapes
from data_prep.shapes import ANGLES, CLASSES, CONTRAST, RADII, SHIFT, SIZE, STEPS, Shapes, masks, posterior

TRAITS = (np.arange(STEPS) + 0.5) / STEPS


def all_masks(place: tuple[int, int]) -> np.ndarray:
    """Every mask in one place, those of one pair of traits one after the other."""
    latents = np.array(list(itertools.product(TRAITS, TRAITS, ANGLES, RADII)))
    return masks(*latents.T, np.broadcast_to(np.array(place), (len(latents), 2)))


def test_posterior_by_hand() -> None:
    # at the prototype of "disc", whose neighbours are a third away on one trait, or on both
    near, far = (
        np.exp(-((1 / 3) ** 2) / (2 * shapes.AMBIGUITY**2)),
        np.exp(-2 * (1 / 3) ** 2 / (2 * shapes.AMBIGUITY**2)),
    )
    expected = np.full(9, near)
    expected[[0, 2, 6, 8]] = far
    middle = CLASSES.index("oval")
    expected[middle] = 1.0
    found = posterior(np.array([0.5]), np.array([0.5]))[0]
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-12)


def test_traits_can_be_read_from_any_mask() -> None:
    everything = torch.from_numpy(all_masks((0, 0)).reshape(STEPS * STEPS, -1, SIZE * SIZE)).float()
    flat = everything.flatten(0, 1)
    for trait, own in enumerate(everything):
        distances = torch.cdist(own, flat, p=float("inf")).view(len(own), STEPS * STEPS, -1)
        distances[:, trait] = 1.0
        # both images are rounded, each by half a level at most
        assert distances.min() * CONTRAST > 2.0


@pytest.mark.parametrize("place", [(0, 0), (SHIFT, SHIFT), (-SHIFT, SHIFT)])
def test_masks_are_symmetric_and_wholly_inside(place: tuple[int, int]) -> None:
    found = all_masks(place)
    border = np.concatenate([found[:, 0], found[:, -1], found[:, :, 0], found[:, :, -1]])
    assert border.max() * 255 < 0.5  # rounds to the ground's colour
    moved = np.roll(found, (-place[1], -place[0]), (1, 2))
    np.testing.assert_allclose(moved, moved[:, ::-1, ::-1], atol=2e-3)


def test_images_show_their_traits_colours_and_place() -> None:
    images, labels, posteriors = Shapes(3).sample(400)
    assert images.shape == (400, 3, SIZE, SIZE)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    ground = images[:, :, :1, :1].astype(int)
    np.testing.assert_array_equal(images[:, :, -1], np.broadcast_to(ground[:, :, 0], (400, 3, SIZE)))
    assert ((images - ground).max((1, 2, 3)) >= 0.95 * CONTRAST).all()
    np.testing.assert_allclose(posteriors.sum(1), 1.0)


def test_labels_are_drawn_from_the_posterior() -> None:
    _, labels, posteriors = Shapes(1).sample(20_000)
    counts, expected = np.bincount(labels, minlength=9), posteriors.sum(0)
    variance = (posteriors * (1 - posteriors)).sum(0)
    assert (np.abs(counts - expected) < 4.5 * np.sqrt(variance)).all()
    hits, chance = (posteriors.argmax(1) == labels).sum(), posteriors.max(1)
    assert abs(hits - chance.sum()) < 4.5 * np.sqrt((chance * (1 - chance)).sum())
    assert 0.75 < chance.mean() < 0.92  # neither trivial nor hopeless


def test_similarity_is_graded() -> None:
    _, _, posteriors = Shapes(1).sample(5_000)
    confusions = posteriors.T @ posteriors
    disc = confusions[CLASSES.index("disc")]
    assert disc[CLASSES.index("oval")] > 3 * disc[CLASSES.index("cigar")]
    assert disc[CLASSES.index("square")] > 3 * disc[CLASSES.index("bar")]


def test_seeds_splits_and_prefixes() -> None:
    first, again, other = (Shapes(seed).splits(train=50, test=20) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["train"].images, again["train"].images)
    assert (first["train"].images != other["train"].images).any()
    assert (first["train"].images[:20] != first["test"].images).any()
    generator = Shapes(0)
    assert (generator.sample(5).images != generator.sample(5).images).any()
    longer = Shapes(0).splits(train=5_000)["train"]
    np.testing.assert_array_equal(longer.images[:50], first["train"].images)
    assert len(np.unique(longer.images.reshape(5_000, -1), axis=0)) == 5_000


def test_refusals() -> None:
    with pytest.raises(ValueError, match="seed"):
        Shapes(-1)
    with pytest.raises(ValueError, match="0 images or more"):
        Shapes(0).sample(-1)
    with pytest.raises(ValueError, match="splits are train, validation, test"):
        Shapes(0).splits(extra=3)
