import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from nmt_ls.metrics import adaptive
from nmt_ls.metrics.adaptive import (
    ClasswiseAccumulator,
    SmoothECE,
    adaptive_calibration_error,
    equal_mass_ece,
    smooth_ece,
    sweep_ece,
)
from nmt_ls.metrics.calibration import expected_calibration_error


def drawn(count, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    confidences = rng.beta(3, 1, count)
    return confidences, rng.random(count) < np.clip(confidences - shift, 0, 1)


def test_equal_mass_ece_by_hand():
    # sorted halves: {0.1 wrong, 0.2 right} and {0.5 wrong, 0.9 right}
    confidences, correct = [0.9, 0.1, 0.5, 0.2], [1, 0, 0, 1]
    assert equal_mass_ece(confidences, correct, bins=2) == pytest.approx(0.5 * abs(0.5 - 0.15) + 0.5 * abs(0.5 - 0.7))
    assert equal_mass_ece(confidences, correct, bins=1) == pytest.approx(abs(0.5 - 0.425))
    assert equal_mass_ece(confidences, correct, bins=99) == pytest.approx((0.1 + 0.1 + 0.5 + 0.8) / 4)


def test_the_order_of_equal_confidences_does_not_matter():
    confidences = np.repeat([0.3, 1.0], [5, 45])
    correct = np.arange(50) % 3 > 0
    shuffled = np.r_[correct[:5], np.sort(correct[5:])]
    assert equal_mass_ece(confidences, correct) == pytest.approx(equal_mass_ece(confidences, shuffled))
    assert sweep_ece(confidences, correct) == pytest.approx(sweep_ece(confidences, shuffled))


def plain_sweep(confidences, correct):
    order = np.argsort(confidences)
    c, y = np.asarray(confidences)[order], np.asarray(correct, float)[order]
    n, chosen = len(c), 1
    for bins in range(1, n + 1):
        parts = [range(b * n // bins, (b + 1) * n // bins) for b in range(bins)]
        means = [y[list(part)].mean() for part in parts]
        if any(later < earlier for earlier, later in itertools.pairwise(means)):
            break
        chosen = bins
    parts = [list(range(b * n // chosen, (b + 1) * n // chosen)) for b in range(chosen)]
    return sum(len(p) / n * abs(y[p].mean() - c[p].mean()) for p in parts), chosen


@pytest.mark.parametrize("seed", range(5))
def test_sweep_equals_its_definition(seed):
    confidences, correct = drawn(300, seed)
    assert sweep_ece(confidences, correct) == pytest.approx(plain_sweep(confidences, correct))


def nearly_sorted(kind, count, rng):
    """Confidences and correctness of a ranker that errs little."""
    c = np.sort(rng.random(count))
    half = count // 2
    width = int(rng.integers(1, 6))
    if kind == "labels":  # all wrong, then a few mixed ones, then all right
        y = (np.arange(count) > half).astype(float)
        y[half - width : half + width] = rng.random(2 * width) < 0.5
    elif kind == "swaps":  # rising probabilities of which some neighbours changed places
        y = np.sort(rng.random(count))
        at = rng.integers(0, count - 1, width)
        y[at], y[at + 1] = y[at + 1], y[at]
    elif kind == "noise":
        y = np.clip(np.linspace(0, 1, count) + rng.uniform(-1, 1, count) / count, 0, 1)
    else:  # means of ties, in long runs that are equal up to rounding
        c = np.sort(rng.integers(0, 7, count) / 7)
        y = (rng.random(count) < c).astype(float)
    return c, y


@pytest.mark.parametrize("kind", ["labels", "swaps", "noise", "ties"])
@pytest.mark.parametrize("plain_bins", [1, 8])
def test_sweep_that_looks_only_where_means_can_fall_equals_its_definition(kind, plain_bins, monkeypatch):
    monkeypatch.setattr("nmt_ls.metrics.adaptive._PLAIN_BINS", plain_bins)
    monkeypatch.setattr("nmt_ls.metrics.adaptive._EDGES_AT_ONCE", 40)
    rng = np.random.default_rng(11)
    for _ in range(40):
        c, y = nearly_sorted(kind, int(rng.integers(20, 90)), rng)
        # the definition has no tolerance for rounding: exact fractions need none
        tied = {value: [Fraction(v) for v in y[c == value]] for value in c}
        exact = [sum(tied[value]) / len(tied[value]) for value in c]
        bins = plain_bins_of(exact)
        assert sweep_ece(c, y)[1] == bins


def plain_bins_of(y):
    """The number of bins of `plain_sweep`, of values in exact fractions."""
    n = len(y)
    for bins in range(2, n + 1):
        edges = [b * n // bins for b in range(bins + 1)]
        means = [sum(y[low:high]) / (high - low) for low, high in itertools.pairwise(edges)]
        if any(earlier - later > Fraction(1, 10**12) for earlier, later in itertools.pairwise(means)):
            return bins - 1
    return n


def test_sweep_of_a_nearly_perfect_ranker_looks_at_few_edges(monkeypatch):
    """One pair of 200,000 in the wrong order: trying each number of bins on all values takes 10^10 steps."""
    looked_at = []

    def counted(count, bins):
        looked_at.append(bins)
        return edges_of(count, bins)

    edges_of = adaptive._equal_mass_edges
    monkeypatch.setattr(adaptive, "_equal_mass_edges", counted)
    confidences = (np.arange(200_000) + 0.5) / 200_000
    correct = confidences > 0.5
    correct[[99_999, 100_000]] = True, False
    error, bins = sweep_ece(confidences, correct)
    assert 100_000 <= bins <= 200_000
    # two neighbours apart by one bin are in the wrong order, whatever else
    edges = edges_of(200_000, bins + 1)
    means = np.add.reduceat(correct * 1.0, edges[:-1]) / np.diff(edges)
    assert (np.diff(means) < 0).any()
    assert error == pytest.approx(0.25, abs=1e-4)
    assert sum(looked_at) < 10_000_000


def test_sweep_of_perfectly_sorted_labels_uses_every_bin():
    error, bins = sweep_ece([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])
    assert bins == 4
    assert error == pytest.approx((0.1 + 0.2 + 0.2 + 0.1) / 4)


def test_sweep_of_many_rising_probabilities_is_quick_and_uses_every_bin():
    truths = np.linspace(0, 0.9, 200_000)  # trying every number of bins would take an hour
    error, bins = sweep_ece(truths + 0.1, truths)
    assert bins == 200_000
    assert error == pytest.approx(0.1)


def smooth_by_images(confidences, correct, width, points=2000):
    """The reflected kernel written out: every residual with its mirror images, integrated by the trapezoid rule."""
    t = np.linspace(0, 1, points + 1)
    total = np.zeros_like(t)
    for c, y in zip(confidences, correct, strict=True):
        for image in range(-3, 4):
            for sign in (1, -1):
                total += (y - c) * np.exp(-0.5 * ((t - (2 * image + sign * c)) / width) ** 2)
    total /= width * math.sqrt(2 * math.pi) * len(confidences)
    return np.trapezoid(np.abs(total), t)


@pytest.mark.parametrize("width", [0.02, 0.1, 0.5])
def test_smoothing_equals_the_reflected_kernel_written_out(width):
    confidences, correct = drawn(40, 1)
    confidences[:3] = 0.0, 1.0, 1 - 1e-4
    found = SmoothECE().update(confidences, correct).at_width(width)
    assert found == pytest.approx(smooth_by_images(confidences, correct, width), rel=2e-3)


def test_smooth_ece_is_the_fixed_point():
    confidences, correct = drawn(200, 2, shift=0.1)
    value = smooth_ece(confidences, correct)
    assert SmoothECE().update(confidences, correct).at_width(value) == pytest.approx(value, abs=1e-5)
    assert smooth_by_images(confidences, correct, value) == pytest.approx(value, rel=5e-3)


def test_smooth_ece_of_a_point_mass_by_hand():
    # every confidence 1/2 and three of four right: the residual 1/4 lies in one place, so smECE(s) = 1/4 for any s
    confidences = np.full(4, 0.5)
    accumulator = SmoothECE().update(confidences, np.array([True, True, True, False]))
    assert accumulator.at_width(0.05) == pytest.approx(0.25, abs=1e-6)
    assert accumulator.compute() == pytest.approx(0.25, abs=1e-5)


def test_smooth_ece_of_a_perfect_predictor_is_exactly_zero():
    assert smooth_ece([0.0, 1.0, 1.0], [False, True, True]) == 0
    assert smooth_ece([0.25, 0.7], [0.25, 0.7]) == 0  # each right as often as it says
    assert smooth_ece([0.0, 1.0, 1.0], [False, True, False]) > 0


def test_smooth_ece_streams_and_falls_towards_zero_for_a_calibrated_model():
    confidences, correct = drawn(200_000, 3)
    parts = [
        SmoothECE().update(torch.tensor(confidences[i::2]), torch.tensor(correct[i::2])).compute() for i in range(2)
    ]
    whole = (
        SmoothECE().update(confidences[::2], correct[::2]).merge(SmoothECE().update(confidences[1::2], correct[1::2]))
    )
    assert whole.compute() == pytest.approx(smooth_ece(confidences, correct), rel=1e-6)
    assert max(*parts, whole.compute()) < 0.01
    assert smooth_ece(*drawn(200_000, 4, shift=0.1)) == pytest.approx(0.1, abs=0.02)


def test_smooth_ece_agrees_with_relplot():
    relplot = pytest.importorskip("relplot", reason="relplot is not installed: an optional peer")
    confidences, correct = drawn(2000, 5, shift=0.08)
    assert smooth_ece(confidences, correct) == pytest.approx(relplot.smECE(confidences, correct * 1.0), abs=2e-3)


def test_classwise_error_equals_an_ece_for_each_class():
    rng = np.random.default_rng(6)
    probabilities = rng.dirichlet(np.full(4, 0.5), 3000).astype(np.float32)
    targets = rng.integers(0, 4, 3000)
    first = ClasswiseAccumulator(4, 10).update(probabilities[:1000], targets[:1000])
    result = first.merge(
        ClasswiseAccumulator(4, 10).update(torch.tensor(probabilities[1000:]), targets[1000:])
    ).compute()
    expected = [expected_calibration_error(probabilities[:, k], targets == k, 10) for k in range(4)]
    np.testing.assert_allclose(result.by_class, expected, rtol=1e-6)
    assert result.static == pytest.approx(np.mean(expected))


def test_multiclass_brier_by_hand():
    # (0.7 - 1)^2 + 0.2^2 + 0.1^2 = 0.14 and 0.5^2 + (0.3 - 1)^2 + 0.2^2 = 0.78
    probabilities, targets = [[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]], [0, 1]
    assert ClasswiseAccumulator(3).update(probabilities, targets).compute().multiclass_brier == pytest.approx(0.46)
    for right, expected in ((0, 0.0), (1, 2.0)):  # its ends
        given = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        found = ClasswiseAccumulator(2).update(given, np.full(2, right, np.uint64)).compute()
        assert found.multiclass_brier == expected


def test_multiclass_brier_streams_and_merges():
    rng = np.random.default_rng(9)
    probabilities = rng.dirichlet(np.full(40, 0.2), 5000).astype(np.float32)  # several slabs
    targets = rng.integers(0, 40, 5000)
    one_hot = np.eye(40)[targets]
    parts = [ClasswiseAccumulator(40).update(probabilities[i::2], targets[i::2]) for i in range(2)]
    found = parts[0].merge(parts[1]).compute().multiclass_brier
    assert found == pytest.approx(((probabilities - one_hot) ** 2).sum(1).mean(), rel=1e-9)
    # of two classes it is twice the binary score
    two = probabilities[:, :2].astype(float) / probabilities[:, :2].sum(1, keepdims=True, dtype=float)
    expected = 2 * np.mean((two[:, 0] - (targets > 20)) ** 2)
    found = ClasswiseAccumulator(2).update(two, (targets <= 20) * 1).compute().multiclass_brier
    assert found == pytest.approx(expected)


def test_adaptive_error_by_hand_and_with_a_threshold():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    targets = np.array([0, 1, 1, 1])
    # class 0: {0.2, 0.3} no hits, {0.6, 0.9} one hit; class 1 mirrors it
    expected = (abs(0 - 0.25) + abs(0.5 - 0.75)) / 2
    assert adaptive_calibration_error(probabilities, targets, bins=2) == pytest.approx(expected)
    # above 0.5: class 0 keeps {0.6, 0.9}, class 1 {0.7, 0.8}
    kept = adaptive_calibration_error(probabilities, targets, bins=1, threshold=0.5)
    assert kept == pytest.approx((abs(0.5 - 0.75) + abs(1 - 0.75)) / 2)


def test_all_class_figures_of_a_calibrated_model_are_small():
    rng = np.random.default_rng(7)
    probabilities = rng.dirichlet(np.ones(3), 40_000)
    targets = (rng.random(40_000)[:, None] > np.cumsum(probabilities, 1)).sum(1)
    assert adaptive_calibration_error(probabilities, targets) < 0.015
    assert ClasswiseAccumulator(3).update(probabilities, targets).compute().static < 0.01
    assert adaptive_calibration_error(probabilities[:, ::-1], targets) > 0.15


def many_classes():
    """A number of rows that 15 divides: netcal's quantiles and our counts then cut the bins at the same places."""
    rng = np.random.default_rng(8)
    return rng.dirichlet(np.full(5, 0.6), 15_000), rng.integers(0, 5, 15_000)


def test_torchmetrics_agrees_on_every_class():
    """It has no class-wise error, but ours is the mean of its binary one over the classes (Nixon et al. 2019)."""
    peer = pytest.importorskip(
        "torchmetrics.functional.classification", reason="torchmetrics is not installed: an optional peer"
    )
    probabilities_NK, targets_N = many_classes()
    theirs = [
        float(peer.binary_calibration_error(torch.tensor(probabilities_NK[:, k]), torch.tensor(targets_N == k).long()))
        for k in range(5)
    ]
    ours = ClasswiseAccumulator(5, 15).update(probabilities_NK, targets_N).compute()
    np.testing.assert_allclose(ours.by_class, theirs, atol=1e-5)
    assert ours.static == pytest.approx(np.mean(theirs), abs=1e-5)


def test_netcal_agrees_on_bins_of_equal_mass_and_on_every_class():
    """Its ACE is another figure, the mean gap of the top label over equal-width bins (Neumann et al. 2018); taken of
    one class at a time, with bins of equal mass, its mean over the classes is the ACE of Nixon et al. 2019, ours."""
    peers = pytest.importorskip("netcal.metrics", reason="netcal is not installed: an optional peer")
    probabilities_NK, targets_N = many_classes()
    top_N, correct_N = probabilities_NK.max(1), (probabilities_NK.argmax(1) == targets_N).astype(int)
    theirs = peers.ECE(15, equal_intervals=False).measure(top_N, correct_N)
    assert equal_mass_ece(top_N, correct_N) == pytest.approx(float(theirs), abs=1e-6)

    def over_classes(peer):
        return np.mean([peer.measure(probabilities_NK[:, k], (targets_N == k).astype(int)) for k in range(5)])

    static = ClasswiseAccumulator(5, 15).update(probabilities_NK, targets_N).compute().static
    assert static == pytest.approx(over_classes(peers.ECE(15)), abs=1e-6)
    ace = adaptive_calibration_error(probabilities_NK, targets_N)
    assert ace == pytest.approx(over_classes(peers.ACE(15, equal_intervals=False)), abs=1e-6)
    assert abs(ace - float(peers.ACE(15).measure(probabilities_NK, targets_N))) > 0.01


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        equal_mass_ece([math.nan], [1])
    with pytest.raises(ValueError, match="nothing"):
        sweep_ece([], [])
    with pytest.raises(ValueError, match="nothing"):
        SmoothECE().compute()
    with pytest.raises(ValueError, match="at least 16"):
        SmoothECE(3)
    with pytest.raises(ValueError, match="points"):
        SmoothECE(16).merge(SmoothECE(32))
    with pytest.raises(ValueError, match="2 classes, the accumulator 3"):
        ClasswiseAccumulator(3).update([[0.5, 0.5]], [0])
    with pytest.raises(ValueError, match="different classes or bins"):
        ClasswiseAccumulator(3).merge(ClasswiseAccumulator(4))
    with pytest.raises(ValueError, match="probabilities must lie"):
        adaptive_calibration_error([[0.5, 1.5]], [0])
    with pytest.raises(ValueError, match="probabilities must sum to 1"):
        adaptive_calibration_error([[0.5, 0.4]], [0])
    accumulator = ClasswiseAccumulator(2)
    with pytest.raises(ValueError, match="probabilities must sum to 1"):
        accumulator.update([[0.5, 0.5], [0.5, 0.4]], [0, 1])
    assert accumulator.count == accumulator.brier_sum == 0
