"""Statistics of claims on sums whose distribution is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nmt_ls import claim_statistics
from nmt_ls.metrics.statistics import ratio_of_sums
from nmt_ls.metrics.temperature_grid import lowest_point


@pytest.mark.parametrize("seeds", [2, 3])
def test_intervals_of_few_seeds_cover(seeds: int) -> None:
    """Without noise of sentences all is due to seeds: the normal quantile would cover too seldom, Student's does."""
    rng, covered, normal, rounds = np.random.default_rng(3), 0, 0, 200
    for _ in range(rounds):
        sides = [np.ones((seeds, 3, 2)) for _ in range(2)]
        for side in sides:
            side[:, :, 0] = rng.normal(size=(seeds, 1))
        found = claim_statistics._finding(
            sides, ratio_of_sums, lambda means: means[1] - means[0], runs=[[], []], ours="", unit="",
            per_seed=[ratio_of_sums(side.sum(1)) for side in sides],
        )  # fmt: skip
        covered += found.low <= 0 <= found.high
        error = math.sqrt(sum(np.var(side[:, 0, 0], ddof=1) / seeds for side in sides))
        normal += abs(found.difference) <= 1.96 * error
        assert found.high - found.low >= 2 * 1.9 * error
    assert normal < 0.92 * rounds
    assert covered >= 0.93 * rounds


def test_sentences_alone_are_told_from_what_they_do_with_seeds() -> None:
    rng = np.random.default_rng(1)
    common, own = rng.normal(0, 1, 400), rng.normal(0, 3, (4, 400))
    for noise, expected in ((common + own, 1 / 20), (own, 0.0)):
        sums = np.stack([noise, np.ones_like(own)], -1)
        found = claim_statistics._sentence_sd([sums], ratio_of_sums, lambda means: means[0])
        assert found == pytest.approx(expected, abs=0.04)
        assert found < 1.3 / 20 + 0.02  # with four seeds held fixed, 0.09


def test_the_lowest_point_of_a_curve() -> None:
    x = np.array([1.0, 0.7, 0.8, 0.9, 1.3])
    curves = np.stack([(x - 0.86) ** 2, (x - 0.2) ** 2, (x - 2) ** 2, np.abs(x - 0.9)])
    assert lowest_point(x, curves) == pytest.approx([0.86, 0.7, 1.3, 0.9])
    assert not math.isnan(float(lowest_point(x, np.zeros((1, 5)))[0]))
