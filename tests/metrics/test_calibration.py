import math
import multiprocessing
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmt_ls.metrics import CalibrationAccumulator, calibration_figures, expected_calibration_error
from nmt_ls.metrics.adaptive import ClasswiseAccumulator
from nmt_ls.metrics.calibration import (
    CORRECT,
    COUNT,
    bin_indices,
    binned_sums,
    debiased_l1_from_sums,
    ece_from_sums,
    folded_normal_mean,
    unbiased_squared_l2_from_sums,
)


def plain_ece(confidences, correct, bins):
    """The definition, word for word: right edges closed, 0 in the first bin, empty bins skipped."""
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = [i for i, c in enumerate(confidences) if low < c <= high or (b == 0 and c == 0)]
        if inside:
            gap = sum(correct[i] for i in inside) / len(inside) - sum(confidences[i] for i in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(gap)
    return total


def calibrated(count, seed):
    rng = np.random.default_rng(seed)
    confidences = rng.beta(2, 1, count)
    return confidences, rng.random(count) < confidences


def of_five_classes(count):
    rng = np.random.default_rng(10)
    return rng.dirichlet(np.full(5, 0.6), count), rng.integers(0, 5, count)


def test_ece_by_hand():
    # bins of width 1/2: {0.2 wrong, 0.4 right}, {0.9 right, 0.8 right, 0.7 wrong}
    confidences, correct = [0.2, 0.4, 0.9, 0.8, 0.7], [0, 1, 1, 1, 0]
    expected = 2 / 5 * abs(1 / 2 - 0.3) + 3 / 5 * abs(2 / 3 - 0.8)
    assert expected_calibration_error(confidences, correct, bins=2) == pytest.approx(expected)
    result = CalibrationAccumulator(2).update(confidences, correct).compute()
    assert result.mce == pytest.approx(0.2)
    assert result.over_confidence == pytest.approx(3 / 5 * (0.8 - 2 / 3))
    assert result.under_confidence == pytest.approx(2 / 5 * 0.2)
    assert result.accuracy == pytest.approx(0.6)
    assert result.confidence == pytest.approx(0.6)
    assert result.reliability == pytest.approx(2 / 5 * 0.2**2 + 3 / 5 * (0.8 - 2 / 3) ** 2)
    assert result.signed_gap == pytest.approx(result.under_confidence - result.over_confidence, abs=1e-12)
    assert result.figures()["ece"] == result.ece
    assert not hasattr(result, "squared_l2")  # one name, one meaning: the recorded one is the unbiased
    assert result.figures()["squared_l2"] == result.unbiased_squared_l2
    assert all(isinstance(value, int | float) for value in result.figures().values())


def test_confidence_of_exactly_one_falls_in_the_last_bin_and_zero_in_the_first():
    result = CalibrationAccumulator(15).update([1.0, 1.0, 0.0], [True, False, False]).compute()
    assert result.bin_counts.tolist() == [1] + [0] * 13 + [2]
    assert result.ece == pytest.approx(2 / 3 * 0.5)


@pytest.mark.parametrize("bins", [1, 7, 10, 15, 20, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_edges_belong_to_the_bin_below_however_they_are_computed(bins, dtype):
    k = np.arange(bins + 1)
    expected = np.maximum(k - 1, 0)
    for edges in (k / bins, 1 - (1 - k / bins), np.cumsum(np.full(bins + 1, 1 / bins)) - 1 / bins):
        assert (bin_indices(np.clip(edges, 0, 1).astype(dtype), bins) == expected).all()
    above = (k[:-1] / bins + 1e-6).astype(dtype)
    assert (bin_indices(above, bins) == k[:-1]).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
def test_ece_equals_its_definition(pairs, bins):
    confidences = [c / 3000 for c, _ in pairs]
    correct = [y for _, y in pairs]
    # the definition in exact fractions, since 1/bins has no exact float
    found = binned_sums(np.array(confidences), np.array(correct), bins)[COUNT]
    exact = [max(-(-c * bins // 3000) - 1, 0) for c, _ in pairs]
    assert found.tolist() == np.bincount(exact, minlength=bins).tolist()
    if all(c * bins % 3000 for c, _ in pairs):
        assert expected_calibration_error(confidences, correct, bins) == pytest.approx(
            plain_ece(confidences, correct, bins), abs=1e-12
        )


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_numpy_and_torch_agree(dtype):
    confidences, correct = calibrated(1000, 0)
    tensor = torch.tensor(confidences).to(getattr(torch, dtype))
    expected = expected_calibration_error(tensor.double().numpy(), correct)
    assert expected_calibration_error(tensor, torch.tensor(correct)) == pytest.approx(expected, abs=1e-6)
    assert expected_calibration_error(tensor.view(10, 100), correct.reshape(10, 100).astype(int)) == pytest.approx(
        expected, abs=1e-6
    )


def test_streaming_and_merging_equal_one_pass():
    confidences, correct = calibrated(100_000, 1)
    whole = CalibrationAccumulator(15).update(confidences, correct).compute()
    parts = [CalibrationAccumulator(15) for _ in range(3)]
    for index in range(10):
        parts[index % 3].update(confidences[index::10], correct[index::10])
    merged = parts[0].merge(parts[1]).merge(parts[2]).compute()
    for name in ("ece", "mce", "debiased_l1", "unbiased_squared_l2", "brier", "resolution"):
        assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=1e-9), name
    with pytest.raises(ValueError, match="10 bins into 15"):
        parts[0].merge(CalibrationAccumulator(10))


def test_masked_positions_do_not_count():
    confidences, correct = calibrated(600, 2)
    mask = np.arange(600) % 3 > 0
    spoiled = np.where(mask, confidences, np.nan).reshape(20, 30)  # even where a pad's confidence is nonsense
    found = CalibrationAccumulator().update(spoiled, correct.reshape(20, 30), mask.reshape(20, 30)).compute()
    assert found.ece == pytest.approx(expected_calibration_error(confidences[mask], correct[mask]))
    assert found.count == 400


def test_fractional_correctness_equals_its_expectation():
    # a token that is right with probability 0.3 counts like three right tokens of ten
    fractional = CalibrationAccumulator(5).update([0.5, 0.9], [0.3, 1.0]).compute()
    counted = CalibrationAccumulator(5).update([0.5] * 10 + [0.9] * 10, [1] * 3 + [0] * 7 + [1] * 10).compute()
    assert fractional.ece == pytest.approx(counted.ece)
    assert fractional.accuracy == pytest.approx(counted.accuracy)
    boolean = CalibrationAccumulator(5).update([0.5, 0.9], [False, True])
    as_float = CalibrationAccumulator(5).update([0.5, 0.9], [0.0, 1.0])
    np.testing.assert_allclose(boolean.sums, as_float.sums)


def test_probabilities_reduce_to_the_top_label():
    rng = np.random.default_rng(3)
    probabilities = rng.dirichlet(np.ones(7), 100_000)  # several chunks, summed by several threads
    targets = rng.integers(0, 7, len(probabilities))
    mask = rng.random(len(probabilities)) < 0.8
    found = CalibrationAccumulator().update_probabilities(torch.tensor(probabilities), targets, mask)
    expected = CalibrationAccumulator().update(probabilities.max(1), probabilities.argmax(1) == targets, mask)
    np.testing.assert_allclose(found.sums, expected.sums)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_large_batches_are_summed_in_a_forked_process_too():
    """The threads that sum the parts of a batch do not survive a fork: a child has to make its own."""
    probabilities_NK = np.full((300_000, 2), 0.5, dtype=np.float32)
    targets_N = np.zeros(300_000, dtype=np.int64)

    def total():
        return CalibrationAccumulator().update_probabilities(probabilities_NK, targets_N).compute().accuracy

    assert total() == 1.0
    child = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(total() != 1.0))
    child.start()
    child.join(60)
    if child.exitcode is None:
        child.kill()
    assert child.exitcode == 0


def test_brier_score_and_its_split():
    confidences, correct = calibrated(5000, 4)
    result = CalibrationAccumulator(15).update(confidences, correct).compute()
    assert result.brier == pytest.approx(np.mean((confidences - correct) ** 2))
    parts = result.reliability - result.resolution + result.uncertainty + result.within_bin
    assert parts == pytest.approx(result.brier)
    # with one confidence a bin the split is exact: nothing is left within the bins
    rounded = np.round(confidences * 15) / 15
    assert CalibrationAccumulator(15).update(rounded, correct).compute().within_bin == pytest.approx(0, abs=1e-12)


def test_unbiased_squared_l2_by_hand():
    # one bin: y - c = 0.1, 0.1, -0.9, 0.1; mean -0.15, sample variance 0.25
    sums = binned_sums(np.full(4, 0.9), np.array([True, True, False, True]), 1)
    assert unbiased_squared_l2_from_sums(sums) == pytest.approx(0.15**2 - 0.25 / 4)


def test_unbiased_squared_l2_is_unbiased_where_ece_is_not():
    values, eces = [], []
    for seed in range(400):
        sums = binned_sums(*calibrated(300, seed), 15)
        values.append(float(unbiased_squared_l2_from_sums(sums)))
        eces.append(float(ece_from_sums(sums)))
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(400)
    assert np.mean(eces) > 0.04


def test_unbiased_squared_l2_finds_a_known_error():
    rng = np.random.default_rng(5)
    values = []
    for _ in range(300):
        confidences = rng.choice([0.3, 0.6, 0.95], 200)
        correct = rng.random(200) < confidences - 0.1
        values.append(float(unbiased_squared_l2_from_sums(binned_sums(confidences, correct, 15))))
    assert abs(np.mean(values) - 0.01) < 3 * np.std(values) / math.sqrt(300)


def test_debiased_l1_lies_nearer_the_truth_than_ece():
    rng = np.random.default_rng(6)
    ece, debiased = [], []
    for _ in range(200):
        confidences = rng.random(400)
        correct = rng.random(400) < np.clip(confidences - 0.05, 0, 1)
        sums = binned_sums(confidences, correct, 15)
        ece.append(float(ece_from_sums(sums)))
        debiased.append(float(debiased_l1_from_sums(sums)))
    assert abs(np.mean(debiased) - 0.05) < 0.5 * abs(np.mean(ece) - 0.05)


def test_mean_of_a_folded_normal_equals_simulation():
    rng = np.random.default_rng(7)
    means, deviations = np.array([0.0, 0.5, 2.0, 0.3]), np.array([1.0, 1.0, 0.5, 0.0])
    simulated = np.abs(means + deviations * rng.standard_normal((200_000, 4))).mean(0)
    np.testing.assert_allclose(folded_normal_mean(means, deviations), simulated, rtol=0.01)


@pytest.mark.parametrize(
    ("confidences", "correct", "message"),
    [
        ([0.5, math.nan], [True, False], "confidences must not hold NaN: the first is at index 1"),
        ([0.5, 1.5], [True, False], r"confidences must lie in \[0, 1\], got values from 0.5 to 1.5"),
        ([-0.5, 0.5], [True, False], r"confidences must lie in \[0, 1\]"),
        ([0.5, 1.0000001], [True, False], r"got values from 0\.5 to 1\.0000001$"),
        (np.float32([0.5, 1.0000001]), [True, False], r"got values from 0\.5 to 1\.0000001$"),
        ([0.5, 0.5], [True], "same shape"),
        ([0.5, 0.5], [0, 2], r"correct must lie in \[0, 1\]"),
        ([0.5, 0.5], [0.0, math.nan], "correct must not hold NaN"),
        (["a", "b"], [0, 1], "confidences must hold numbers"),
        ([], [], "calibration of nothing"),
    ],
)
def test_wrong_inputs_are_refused(confidences, correct, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(confidences, correct)


def test_wrong_bins_masks_and_probabilities_are_refused():
    with pytest.raises(ValueError, match="bins must be a whole number"):
        CalibrationAccumulator(0)
    with pytest.raises(ValueError, match="mask must be boolean"):
        CalibrationAccumulator().update([0.5], [True], [1])
    with pytest.raises(ValueError, match="confidences and mask must have the same shape"):
        CalibrationAccumulator().update([0.5, 0.5], [True, True], [True])
    with pytest.raises(ValueError, match="targets and mask must have the same shape"):
        CalibrationAccumulator().update_probabilities([[0.5, 0.5]], [0], [True, False])
    with pytest.raises(ValueError, match=r"\[N, K\]"):
        CalibrationAccumulator().update_probabilities([0.5], [0])
    with pytest.raises(ValueError, match="from 0 to 1"):
        CalibrationAccumulator().update_probabilities([[0.5, 0.5]], [2])
    for bad in ([[0.5, math.nan]], [[1.5, 0.5]], [[-0.5, 0.9]]):
        with pytest.raises(ValueError, match=r"probabilities must"):
            CalibrationAccumulator().update_probabilities(bad, [0])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("classes", [3, 1000])
def test_rows_of_probabilities_sum_to_one_as_well_as_their_type_allows(dtype, classes):
    """Many rows are read in part: what is wrong with all of them is found, and rounding is not taken for it."""
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(500, classes, generator=generator).mul_(3).softmax(-1).to(getattr(torch, dtype))
    equal = torch.full((500, classes), 1 / classes).to(probabilities.dtype)
    targets = torch.zeros(500, dtype=torch.long)
    for p in (probabilities, equal):
        CalibrationAccumulator().update_probabilities(p, targets)
        ClasswiseAccumulator(classes).update(p, targets)
        calibration_figures([0.5], [1], p, targets)
        for spoiled in (p * 0.98, (p * 1.02).clamp(max=1)):
            with pytest.raises(ValueError, match=r"probabilities must sum to 1 in every row \(within .*got sums from"):
                CalibrationAccumulator().update_probabilities(spoiled, targets)


def test_sums_of_rows():
    accumulator = CalibrationAccumulator()
    accumulator.update_probabilities([[0.5, 0.5], [0.30004, 0.7]], [0, 1])
    with pytest.raises(ValueError, match=r"within 0\.0001.*got sums from 1\.0 to 1\.0002.*softmax"):
        accumulator.update_probabilities([[0.5, 0.5], [0.3002, 0.7]], [0, 1])
    with pytest.raises(ValueError, match=r"sums from 0\.0 to 0\.0"):
        accumulator.update_probabilities([[False, False]], [0])
    with pytest.raises(ValueError, match=r"sums from 2\.0 to 2\.0"):
        accumulator.update_probabilities(np.ones((1, 2), bool), [0])
    accumulator.update_probabilities([[0, 1]], [1])  # whole numbers that are probabilities
    assert accumulator.sums[COUNT].tolist() == [0] * 7 + [1] + [0] * 2 + [1] + [0] * 3 + [1]
    # what the mask leaves out counts for nothing, here neither
    accumulator.update_probabilities([[0.5, 0.5], [math.nan, 3.0]], [0, 1], [True, False])
    assert accumulator.compute().count == 4
    CalibrationAccumulator().update_probabilities(np.zeros((0, 2)), np.zeros(0, int))
    CalibrationAccumulator().update_probabilities([[0.0, 0.0]], [0], [False])


def test_refused_input_leaves_the_accumulator_as_it_was():
    accumulator = CalibrationAccumulator().update([0.5], [True])
    with pytest.raises(ValueError, match="confidences"):
        accumulator.update(np.r_[np.full(100_000, 0.3), 2.0], np.ones(100_001, bool))
    assert accumulator.sums[COUNT].sum() == accumulator.sums[CORRECT].sum() == 1


# Peers close a bin's left edge where ours closes the right one: they agree where no confidence lies on an edge.


@pytest.mark.parametrize(("norm", "figure"), [("l1", "ece"), ("max", "mce")])
def test_torchmetrics_agrees(norm, figure):
    peer = pytest.importorskip(
        "torchmetrics.functional.classification", reason="torchmetrics is not installed: an optional peer"
    )
    confidences, correct = calibrated(20_000, 8)
    ours = CalibrationAccumulator(15).update(confidences, correct).compute().figures()[figure]
    given = torch.tensor(confidences), torch.tensor(correct).long()
    assert ours == pytest.approx(float(peer.binary_calibration_error(*given, n_bins=15, norm=norm)), abs=1e-5)
    probabilities_NK, targets_N = of_five_classes(20_000)
    ours = CalibrationAccumulator(15).update_probabilities(probabilities_NK, targets_N).compute().figures()[figure]
    given = torch.tensor(probabilities_NK), torch.tensor(targets_N)
    theirs = peer.multiclass_calibration_error(*given, num_classes=5, n_bins=15, norm=norm)
    assert ours == pytest.approx(float(theirs), abs=1e-5)


@pytest.mark.parametrize("figure", ["ece", "mce"])
def test_netcal_agrees(figure):
    peers = pytest.importorskip("netcal.metrics", reason="netcal is not installed: an optional peer")
    peer = getattr(peers, figure.upper())(15)
    confidences, correct = calibrated(20_000, 9)
    ours = CalibrationAccumulator(15).update(confidences, correct).compute().figures()[figure]
    assert ours == pytest.approx(float(peer.measure(confidences, correct.astype(int))), abs=2e-6)
    probabilities_NK, targets_N = of_five_classes(20_000)
    ours = CalibrationAccumulator(15).update_probabilities(probabilities_NK, targets_N).compute().figures()[figure]
    assert ours == pytest.approx(float(peer.measure(probabilities_NK, targets_N)), abs=2e-6)
