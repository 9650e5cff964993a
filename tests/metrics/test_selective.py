import itertools

import numpy as np
import pytest
import torch

from nmt_ls.metrics.selective import risk_coverage


def test_curve_by_hand():
    result = risk_coverage(torch.tensor([0.9, 0.2, 0.7, 0.5]), [1, 0, 0, 1])
    assert result.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert result.risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert result.aurc == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    # the best ranking has both right ones first: 0, 0, 1/3, 1/2
    assert result.excess_aurc == pytest.approx((1 / 2) / 4)
    assert result.coverage_at(0.4) == 0.75
    assert result.coverage_at(0.0) == 0.25


def test_equal_confidences_count_as_every_order():
    confidences, losses = [0.9, 0.5, 0.5, 0.5, 0.1], [1, 0, 1, 1, 0]
    curves = []
    for order in itertools.permutations([1, 2, 3]):
        ranked = np.array([losses[i] for i in (0, *order, 4)])
        curves.append(np.cumsum(ranked) / np.arange(1, 6))
    result = risk_coverage(confidences, 1 - np.array(losses))
    np.testing.assert_allclose(result.risk, np.mean(curves, 0))


def test_a_perfect_ranking_has_no_excess_and_log_probabilities_rank_too():
    quality = np.linspace(0, 1, 50)
    result = risk_coverage(np.log(quality + 0.01), quality)
    assert result.excess_aurc == pytest.approx(0, abs=1e-12)
    assert risk_coverage(-quality, quality).excess_aurc > 0.2
    assert result.coverage_at(-1.0) == 0


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="nothing"):
        risk_coverage([], [])
    with pytest.raises(ValueError, match="NaN"):
        risk_coverage([np.nan], [1])
    with pytest.raises(ValueError, match="correct must lie"):
        risk_coverage([0.5], [2.0])
