import math

import numpy as np
import pytest
import torch

from nmt_ls.metrics.sequence import correlation, empty_translation, nbest_calibration


def test_correlation_by_hand():
    result = correlation([1.0, 2.0, 3.0, 4.0], torch.tensor([1.0, 2.0, 4.0, 3.0]))
    assert result.pearson == pytest.approx(0.8)
    assert result.spearman == pytest.approx(0.8)
    curved = correlation([1.0, 2.0, 3.0], [1.0, 10.0, 1000.0])
    assert curved.spearman == pytest.approx(1.0)
    assert curved.pearson < 0.95
    assert math.isnan(correlation([1.0, 1.0], [1.0, 2.0]).pearson)


def test_correlation_equals_scipy_with_ties():
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with the dev extra")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 40).astype(float), rng.integers(0, 8, 40).astype(float)
    result = correlation(x, y)
    assert result.pearson == pytest.approx(stats.pearsonr(x, y).statistic)
    assert result.spearman == pytest.approx(stats.spearmanr(x, y).statistic)


def test_nbest_calibration_by_hand():
    log_probs = np.log([[0.3, 0.1, 0.1], [0.02, 0.02, 0.01]])
    quality = [[50.0, 40.0, 60.0], [70.0, 70.0, 10.0]]
    # shares 0.6, 0.2, 0.2 and 0.4, 0.4, 0.2; best: the third, then the first two with half a success each
    result = nbest_calibration(log_probs, quality, bins=5)
    assert result.count == 6
    assert result.ece == pytest.approx((abs(0 + 1 + 0 - 0.6) + abs(0.5 + 0.5 - 0.8) + 0.6) / 6)
    assert result.confidence == pytest.approx(1 / 3)
    assert result.accuracy == pytest.approx(1 / 3)


def test_nbest_lists_may_differ_in_length():
    log_probs, quality = [[-1.0, -2.0, -9.0], [-1.0, -1.5, -2.0]], [[1.0, 2.0, 99.0], [1.0, 2.0, 3.0]]
    mask = np.array([[True, True, False], [True, True, True]])
    found = nbest_calibration(log_probs, quality, mask)
    apart = [nbest_calibration([log_probs[0][:2]], [quality[0][:2]]), nbest_calibration([log_probs[1]], [quality[1]])]
    assert found.count == 5
    assert found.brier == pytest.approx((2 * apart[0].brier + 3 * apart[1].brier) / 5)
    log_probs[0][2] = math.nan
    assert nbest_calibration(log_probs, quality, mask).brier == pytest.approx(found.brier)


def test_a_model_that_knows_the_best_of_its_list_is_calibrated():
    rng = np.random.default_rng(1)
    shares = rng.dirichlet(np.ones(5), 20_000)
    best = (rng.random(20_000)[:, None] > np.cumsum(shares, 1)).sum(1)
    quality = (np.arange(5) == best[:, None]).astype(float)
    assert nbest_calibration(np.log(shares) - 3, quality).ece < 0.01


def test_empty_translation_by_hand():
    result = empty_translation(np.log([0.5, 0.1, 0.001]), torch.log(torch.tensor([0.2, 0.2, 0.2])))
    assert result.mean_probability == pytest.approx(0.601 / 3)
    assert result.median_probability == pytest.approx(0.1)
    assert result.preferred == pytest.approx(1 / 3)
    assert empty_translation([-math.inf], [-1.0]).mean_probability == 0


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="at least two"):
        correlation([1.0], [1.0])
    with pytest.raises(ValueError, match="scores must not hold NaN"):
        correlation([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="same shape"):
        nbest_calibration([[-1.0]], [[1.0, 2.0]])
    with pytest.raises(ValueError, match="at least one hypothesis"):
        nbest_calibration([[-1.0]], [[1.0]], [[False]])
    with pytest.raises(ValueError, match="log_probs and mask must have the same shape"):
        nbest_calibration([[-1.0]], [[1.0]], [[True, True]])
    with pytest.raises(ValueError, match="NaN or infinite"):
        nbest_calibration([[math.nan]], [[1.0]])
    with pytest.raises(ValueError, match="empty_log_probs must be at most 0"):
        empty_translation([0.5], [-1.0])
