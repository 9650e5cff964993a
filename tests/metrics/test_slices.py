import numpy as np
import pytest
import torch

from nmt_ls.metrics.calibration import binned_sums, expected_calibration_error
from nmt_ls.metrics.slices import bucket, calibration_by_slice, sliced_sums


def drawn(count, seed=0):
    rng = np.random.default_rng(seed)
    confidences = rng.random(count)
    return confidences, rng.random(count) < confidences, rng.integers(0, 6, count)


def test_every_slice_has_the_figures_of_its_own_tokens():
    confidences, correct, slices = drawn(100_000)
    slices[slices == 4] = 2
    found = calibration_by_slice(torch.tensor(confidences), torch.tensor(correct), torch.tensor(slices))
    assert sorted(found) == [0, 1, 2, 3, 5]
    for index, calibration in found.items():
        inside = slices == index
        assert calibration.count == inside.sum()
        assert calibration.ece == pytest.approx(expected_calibration_error(confidences[inside], correct[inside]))


def test_sentence_sums_add_up_to_the_whole():
    confidences, correct, sentences = drawn(5000, 1)
    sums = sliced_sums(confidences, correct, sentences, 10)
    assert sums.shape == (10, 6, 15)
    np.testing.assert_allclose(sums.sum(0), binned_sums(confidences, correct, 15))
    np.testing.assert_allclose(sums.sum(0), binned_sums(confidences, correct.astype(float), 15))
    assert not sums[6:].any()


def test_buckets_by_hand():
    indices, names = bucket(torch.tensor([0, 1, 2, 4, 5]), [1, 4])
    assert indices.tolist() == [0, 0, 1, 1, 2]
    assert names == ["<= 1", "2 to 4", "> 4"]


def test_names_of_buckets_say_what_they_hold():
    assert bucket([3], [1, 2, 4, 8])[1] == ["<= 1", "2", "3 to 4", "5 to 8", "> 8"]
    assert bucket(np.array([1.0, 300.0]), [10.0, 1_000_000, 2_000_000])[1] == [
        "<= 10", "11 to 1000000", "1000001 to 2000000", "> 2000000",
    ]  # fmt: skip
    # where a value may lie between two whole numbers, or an edge does
    assert bucket([1.5, 3], [1, 4])[1] == ["<= 1", "> 1 to 4", "> 4"]
    assert bucket([1, 3], [0.5, 4])[1] == ["<= 0.5", "> 0.5 to 4", "> 4"]


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="whole numbers from 0 to 1"):
        sliced_sums([0.5], [1], [2], 2)
    with pytest.raises(ValueError, match="whole numbers"):
        sliced_sums([0.5], [1], [0.5], 2)
    with pytest.raises(ValueError, match="same shape"):
        sliced_sums([0.5, 0.5], [1, 0], [0], 2)
    with pytest.raises(ValueError, match="rise"):
        bucket([1], [2, 2])
