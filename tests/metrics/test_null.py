import numpy as np
import pytest
import torch

from nmt_ls.metrics.calibration import CORRECT, PRODUCT, binned_sums, unbiased_squared_l2_from_sums
from nmt_ls.metrics.null import calibration_test, null_distribution, null_distribution_from_sums


def confidences(count, seed=0):
    return np.random.default_rng(seed).beta(4, 1, count)


def test_null_of_two_coins_by_hand():
    # two tokens of confidence 1/2 in one bin: 0, 1 or 2 right with 1/4, 1/2, 1/4, so ECE is 1/2 half of the time
    values = null_distribution([0.5, 0.5], bins=1, draws=20_000).values()
    assert set(np.round(values, 6)) == {0.0, 0.5}
    assert np.mean(values == 0.5) == pytest.approx(0.5, abs=0.015)


def test_redrawn_sums_have_the_moments_of_their_confidences():
    c = confidences(30_000)  # more than one block
    null = null_distribution(torch.tensor(c), draws=400)
    observed = binned_sums(c, c, 15)
    mean, variance = observed[1], (observed[1] - observed[3])
    error = null.sums[:, CORRECT].mean(0) - mean
    assert (np.abs(error) < 4.5 * np.sqrt(variance / 400) + 1e-9).all()
    np.testing.assert_allclose(null.sums[:, CORRECT].var(0, ddof=1)[5:], variance[5:], rtol=0.35)
    assert null.sums[:, PRODUCT].sum(1).mean() == pytest.approx((c**2).sum(), rel=0.01)
    assert (null.sums[:, PRODUCT] <= null.sums[:, CORRECT] + 1e-6).all()


def test_p_values_are_uniform_for_a_calibrated_model():
    rng = np.random.default_rng(1)
    c = confidences(400, 2)
    null = null_distribution(c, draws=999)
    for figure in (None, unbiased_squared_l2_from_sums):
        p = []
        for _ in range(500):
            sums = binned_sums(c, rng.random(400) < c, 15)
            p.append(null.p_value(float((figure or _ece)(sums)), figure) if figure else null.p_value(float(_ece(sums))))
        assert np.abs(np.sort(p) - np.linspace(0, 1, 500)).max() < 0.08  # Kolmogorov-Smirnov at 0.3%
        assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.03)


def _ece(sums):
    from nmt_ls.metrics.calibration import ece_from_sums

    return ece_from_sums(sums)


def test_overconfidence_is_found_and_calibration_is_not():
    rng = np.random.default_rng(3)
    c = confidences(5000, 4)
    good = calibration_test(c, rng.random(5000) < c)
    bad = calibration_test(c, rng.random(5000) < c - 0.05)
    assert good.p_value > 0.05
    assert good.squared_l2_p_value > 0.05
    assert good.null_mean < good.floor < good.null_mean + 4 * good.null_deviation
    assert bad.p_value == bad.squared_l2_p_value == pytest.approx(1 / 1001)
    assert bad.ece > bad.floor


def test_null_from_sums_alone_is_near_the_exact_one():
    c = confidences(20_000, 5)
    exact = null_distribution(c, draws=2000)
    rough = null_distribution_from_sums(binned_sums(c, np.zeros(20_000, bool), 15), draws=2000)
    assert rough.values().mean() == pytest.approx(exact.values().mean(), rel=0.05)
    assert rough.floor() == pytest.approx(exact.floor(), rel=0.05)
    # both unbiased figures centre on 0
    values = rough.values(unbiased_squared_l2_from_sums)
    assert abs(values.mean()) < 5 * values.std() / np.sqrt(2000)


@pytest.mark.parametrize(("a", "b"), [(3, 1), (10, 0.5), (20, 0.2)])  # the last: nearly all above 0.95
def test_more_than_a_thousand_may_be_redrawn_by_bins(a, b):
    rng = np.random.default_rng(9)
    c = rng.beta(a, b, 1001)
    correct = rng.random(1001) < c - 0.01
    exact = calibration_test(c, correct)
    by_bins = calibration_test(c, correct, exact_up_to=1000)
    assert (by_bins.ece, by_bins.unbiased_squared_l2) == (exact.ece, exact.unbiased_squared_l2)
    assert by_bins.floor != exact.floor
    assert by_bins.floor == pytest.approx(exact.floor, rel=0.05)
    assert by_bins.p_value == pytest.approx(exact.p_value, abs=0.05)
    assert calibration_test(c, correct, exact_up_to=1001) == exact


def test_accuracy_band_holds_the_accuracy_of_a_calibrated_model():
    rng = np.random.default_rng(6)
    c = confidences(3000, 7)
    low, high = null_distribution(c, draws=500).accuracy_band(0.95)
    inside = []
    for _ in range(100):
        sums = binned_sums(c, rng.random(3000) < c, 15)
        full = sums[0] > 20
        accuracy = sums[2][full] / sums[0][full]
        inside.append(((low[full] <= accuracy) & (accuracy <= high[full])).mean())
    assert 0.92 < np.mean(inside) < 0.99
    assert np.isnan(null_distribution([0.9], bins=2, draws=10).accuracy_band()[0][0])


def test_the_floor_of_the_design_note():
    # a calibrated translator of 14.5k tokens shows an ECE of about 0.009 +- 0.002
    result = calibration_test(c := np.random.default_rng(8).beta(1.2, 0.6, 14_500), c > 0.5, draws=300)
    assert 0.005 < result.null_mean < 0.013
    assert 0.001 < result.null_deviation < 0.004


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="nothing"):
        null_distribution([])
    with pytest.raises(ValueError, match="NaN"):
        null_distribution([np.nan])
    for draws in (0, -1, 2.5):
        with pytest.raises(ValueError, match=f"draws must be a whole number of at least 1, got {draws}"):
            null_distribution([0.5], draws=draws)
        with pytest.raises(ValueError, match="draws must be a whole number of at least 1"):
            null_distribution_from_sums(binned_sums(np.array([0.5]), np.array([True]), 15), draws=draws)
    with pytest.raises(ValueError, match="draws must be a whole number of at least 2"):
        calibration_test([0.5], [1], draws=1)  # one draw has no deviation


def test_a_probability_of_being_right_has_no_p_value():
    c = confidences(50)
    with pytest.raises(ValueError, match="correct must be boolean, or 0 and 1"):
        calibration_test(c, c)
    with pytest.raises(ValueError, match=r"correct must lie in \[0, 1\]"):
        calibration_test(c, np.full(50, 2))
    with pytest.raises(ValueError, match="correct must not hold NaN"):
        calibration_test(c, np.full(50, np.nan))
    assert calibration_test(c, c > 0.5) == calibration_test(c, (c > 0.5) * 1.0) == calibration_test(c, (c > 0.5) * 1)
