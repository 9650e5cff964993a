import math

import numpy as np
import pytest

from nmt_ls.metrics import statistics
from nmt_ls.metrics.calibration import unbiased_squared_l2_from_sums
from nmt_ls.metrics.distributions import incomplete_beta, student_t_cdf, student_t_quantile, t_test_power
from nmt_ls.metrics.slices import sliced_sums
from nmt_ls.metrics.statistics import (
    bootstrap,
    crossed_bootstrap,
    equivalence_from_error,
    equivalence_test,
    mcnemar,
    ratio_of_sums,
    seeds_needed,
    variances_of_fixed_seeds,
)
from nmt_ls.metrics.translation import bleu_from_statistics, bleu_statistics


def measurements(rng, seeds, sentences, sentence_effects, seed_sd, noise_sd, shift=0.0):
    """[seeds, sentences, 2]: a value and a count of 1, with the effects of sentences, of seeds, and noise."""
    values = sentence_effects + seed_sd * rng.standard_normal((seeds, 1)) + shift
    values = values + noise_sd * rng.standard_normal((seeds, sentences))
    return np.stack([values, np.ones_like(values)], -1)


def test_bootstrap_of_a_mean_equals_its_standard_error():
    values = np.random.default_rng(0).standard_normal(300)
    statistics = np.stack([values, np.ones(300)], -1)[None]
    result = bootstrap(statistics, ratio_of_sums, resamples=4000)
    assert result.value == pytest.approx(values.mean())
    assert result.sd == pytest.approx(values.std() / math.sqrt(300), rel=0.05)
    assert result.high - result.low == pytest.approx(2 * 1.96 * result.sd, rel=1e-4)


def test_few_seeds_widen_the_interval():
    # all that varies is the seed: the interval is Welch's, wider than 1.96 sd by Student's quantile
    first, second = np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.5, 5.0])
    sides = [np.stack([np.repeat(s[:, None], 50, 1), np.ones((3, 50))], -1) for s in (first, second)]
    result = crossed_bootstrap(*sides, ratio_of_sums, resamples=4000)
    parts = np.array([first.var(ddof=1) / 3, second.var(ddof=1) / 3])
    assert result.sd == pytest.approx(math.sqrt(parts.sum()), rel=0.05)
    assert result.degrees == pytest.approx(parts.sum() ** 2 / (parts**2 / 2).sum(), rel=0.25)
    assert result.reach() > 2.5 * result.sd
    assert result.p_value > 2 * (1 - 0.5 * (1 + math.erf(result.value / result.sd / math.sqrt(2))))
    alone = crossed_bootstrap(*sides, ratio_of_sums, resample_seeds=False)
    assert math.isinf(alone.degrees)


def test_variances_of_fixed_seeds_are_those_of_the_bootstrap_without_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_WEIGHTS_AT_ONCE", 60 * 70)  # resamples in several parts
    rng = np.random.default_rng(3)
    sides = [rng.uniform(1, 2, (seeds, 70, 2)) for seeds in (3, 2)]
    together, alone = variances_of_fixed_seeds(sides, ratio_of_sums, lambda means: means[1] - means[0], resamples=100)

    def sd(first: np.ndarray, second: np.ndarray) -> float:
        return crossed_bootstrap(first, second, ratio_of_sums, resamples=100, resample_seeds=False).sd

    assert together == pytest.approx(sd(sides[0][:2], sides[1]) ** 2)
    assert alone == pytest.approx([sd(sides[0][[a]], sides[1][[a]]) ** 2 for a in (0, 1)])
    with pytest.raises(ValueError, match="resamples must be at least 2"):
        variances_of_fixed_seeds(sides, ratio_of_sums, lambda means: means[0], resamples=1)


def test_seeds_contribute_their_own_standard_error():
    # the sentences of a seed are all equal: what varies is the seed alone
    seeds = np.array([1.0, 2.0, 4.0, 9.0])
    statistics = np.stack([np.repeat(seeds[:, None], 50, 1), np.ones((4, 50))], -1)
    result = bootstrap(statistics, ratio_of_sums, resamples=8000)
    assert result.sd == pytest.approx(seeds.std(ddof=1) / 2, rel=0.04)


def test_shared_sentences_cancel_in_a_difference():
    rng = np.random.default_rng(1)
    effects = 10 * rng.standard_normal(200)
    first = measurements(rng, 3, 200, effects, 0.0, 0.1)
    second = measurements(rng, 2, 200, effects, 0.0, 0.1, shift=0.5)
    difference = crossed_bootstrap(first, second, ratio_of_sums)
    alone = bootstrap(second, ratio_of_sums)
    assert difference.value == pytest.approx(0.5, abs=0.05)
    assert difference.sd < alone.sd / 20
    assert difference.p_value < 1e-6
    assert crossed_bootstrap(first[:1], first[:1], ratio_of_sums).p_value == 1


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        effects = rng.standard_normal(80)
        first = measurements(rng, 6, 80, effects, 0.3, 0.5)
        second = measurements(rng, 6, 80, effects, 0.3, 0.5, shift=1.0)
        result = crossed_bootstrap(first, second, ratio_of_sums, resamples=200, seed=trial)
        covered += result.low < 1.0 < result.high
    assert 0.88 <= covered / 200 <= 0.99


def test_calibration_errors_of_two_systems_are_told_apart():
    rng = np.random.default_rng(3)
    systems = []
    for shift in (0.15, 0.0):
        seeds = []
        for _ in range(2):
            confidences = rng.beta(3, 1, 4000)
            correct = rng.random(4000) < confidences - shift
            seeds.append(sliced_sums(confidences, correct, np.arange(4000) // 20, 200))
        systems.append(np.stack(seeds))
    result = crossed_bootstrap(*systems, unbiased_squared_l2_from_sums, resamples=400)
    assert result.value == pytest.approx(-(0.15**2), abs=0.006)
    assert result.high < 0
    same = crossed_bootstrap(systems[1][:1], systems[1][1:], unbiased_squared_l2_from_sums, resamples=400)
    assert same.low < 0 < same.high


def test_bleu_is_a_figure_for_the_bootstrap():
    lines = [f"the cat number {i} sat on the mat of house {i % 7}" for i in range(60)]
    worse = [line.replace("cat", "dog") if i % 2 else line for i, line in enumerate(lines)]
    first = bleu_statistics(lines, lines)[None]
    second = bleu_statistics(worse, lines)[None]
    result = crossed_bootstrap(first, second, bleu_from_statistics, resamples=300)
    assert result.value == pytest.approx(float(bleu_from_statistics(second[0].sum(0))) - 100)
    assert result.high < 0


def test_the_bootstrap_is_reproducible_and_independent_of_how_it_is_chunked(monkeypatch):
    statistics = measurements(np.random.default_rng(4), 3, 50, np.zeros(50), 1.0, 1.0)
    first = bootstrap(statistics, ratio_of_sums, resamples=500, seed=7)
    assert bootstrap(statistics, ratio_of_sums, resamples=500, seed=7) == first
    monkeypatch.setattr("nmt_ls.metrics.statistics._WEIGHTS_AT_ONCE", 100)
    assert bootstrap(statistics, ratio_of_sums, resamples=4000, seed=7).sd == pytest.approx(first.sd, rel=0.12)


@pytest.mark.filterwarnings("error")
def test_a_figure_that_divides_by_a_sum_of_zero_is_refused():
    good = np.ones((2, 40, 2))
    empty = good.copy()
    empty[1, :, 1] = 0.0
    with pytest.raises(ValueError, match=r"statistics: the figure of seed 1 is inf .* a sum that is 0, .* at \[1\]"):
        bootstrap(empty, ratio_of_sums)
    with pytest.raises(ValueError, match=r"second: the figure of seed 1 is inf"):
        crossed_bootstrap(good, empty, ratio_of_sums)
    with pytest.raises(ValueError, match=r"first: the figure of seed 0 is nan .* at \[0\], \[1\]\)"):
        crossed_bootstrap(0 * good, good, ratio_of_sums)
    with pytest.raises(ValueError, match=r"statistics: .* nan .* at \[0, 0\], \[0, 1\], \[0, 2\], \[0, 3\], …\)"):
        bootstrap(np.zeros((1, 4, 6, 15)), unbiased_squared_l2_from_sums)
    with pytest.raises(ValueError, match=r"the figure of seed 0 is inf \(no sum is 0\)"):
        bootstrap(good, lambda sums: np.full(sums.shape[:-1], np.inf))


@pytest.mark.filterwarnings("error")
def test_resamples_without_a_figure_are_refused():
    """One sentence of forty has all that is counted: a third of the resamples do not hold it."""
    rare = np.zeros((1, 40, 2))
    rare[0, 7] = 1.0
    with pytest.raises(
        ValueError, match=r"in a resample of the sentences: the figure of seed 0 is nan .* more sentences"
    ):
        bootstrap(rare, ratio_of_sums)


def test_mcnemar_by_hand():
    first = [True] * 6 + [False] * 1 + [True] * 5 + [False] * 3
    second = [False] * 6 + [True] * 1 + [True] * 5 + [False] * 3
    result = mcnemar(first, second)
    assert (result.only_first, result.only_second) == (6, 1)
    assert result.exact_p == pytest.approx(2 * (1 + 7) / 2**7)
    assert mcnemar([True, False], [True, False]).exact_p == 1


@pytest.mark.parametrize(("b", "c"), [(3, 9), (0, 5), (40, 41), (500, 600), (30_000, 30_500)])
def test_mcnemar_equals_scipy(b, c):
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with the dev extra")
    result = mcnemar(np.r_[np.ones(b, bool), np.zeros(c, bool)], np.r_[np.zeros(b, bool), np.ones(c, bool)])
    assert result.exact_p == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-6)
    assert result.corrected_p == pytest.approx(stats.chi2.sf((abs(b - c) - 1) ** 2 / (b + c), 1))


@pytest.mark.parametrize("paired", [False, True])
def test_equivalence_equals_two_one_sided_tests_of_scipy(paired):
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with the dev extra")
    rng = np.random.default_rng(5)
    x, y = rng.normal(90, 0.3, 6), rng.normal(90.1, 0.5, 6)
    found = equivalence_test(x, y, 0.8, paired=paired)
    tests = [stats.ttest_rel, stats.ttest_rel] if paired else [stats.ttest_ind, stats.ttest_ind]
    options = {} if paired else {"equal_var": False}
    below = tests[0](y - 0.8, x, alternative="less", **options).pvalue
    above = tests[1](y + 0.8, x, alternative="greater", **options).pvalue
    assert found.p_value == pytest.approx(max(below, above), rel=1e-6)
    assert found.equivalent == (found.p_value < 0.05) == (found.low > -0.8 and found.high < 0.8)


def test_equivalence_needs_evidence():
    assert equivalence_from_error(0.1, 0.1, 0.5).equivalent
    assert not equivalence_from_error(0.1, 0.5, 0.5).equivalent
    assert not equivalence_from_error(0.6, 0.01, 0.5).equivalent
    assert equivalence_from_error(0.0, 1.0, 1.96).p_value == pytest.approx(0.025, abs=1e-4)
    assert equivalence_from_error(0.1, 0.0, 0.5).equivalent


def test_distributions_equal_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with the dev extra")
    for degrees in (1, 2.5, 8, 30, 1000):
        for t in (-40.0, -3.0, -0.5, 0.0, 1e-3, 0.7, 2.0, 15.0):
            assert student_t_cdf(t, degrees) == pytest.approx(stats.t.cdf(t, degrees), rel=1e-9)
        assert student_t_quantile(0.975, degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)
        for delta in (0.0, 0.8, 2.8, 6.0):
            critical = stats.t.ppf(0.975, degrees)
            expected = stats.nct.sf(critical, degrees, delta) + stats.nct.cdf(-critical, degrees, delta)
            assert t_test_power(delta, degrees, 0.05) == pytest.approx(expected, abs=2e-6)
    assert incomplete_beta(2.0, 3.0, 0.4) == pytest.approx(stats.beta.cdf(0.4, 2, 3))


def test_students_t_of_very_many_degrees_is_the_normal_distribution() -> None:
    """Seeds that are equal up to rounding leave such degrees."""
    for degrees in (1e6, 1e9, 1e16, 1e30, float("inf")):
        assert student_t_quantile(0.975, degrees) == pytest.approx(1.959964, rel=1e-5)
    same = np.full((3, 40, 2), 1.0)
    same[..., 0] += np.random.default_rng(0).normal(size=40)
    same[0] *= 1 + 1e-15
    found = bootstrap(same, ratio_of_sums)
    assert found.reach() == pytest.approx(1.96 * found.sd, rel=1e-3)


def test_seeds_needed():
    # two-sided, 5%, 80%: n = 2 (1.96 + 0.84)^2 (0.4 / 0.5)^2 = 10.05 with a known sd, a little more with t
    assert seeds_needed(0.4, 0.5) == 12
    assert seeds_needed(0.4, 0.5, paired=True) == 8
    assert seeds_needed(0.0, 0.5) == 2
    assert seeds_needed(1.0, 0.01, most=50) == 50
    # the smallest number with enough power, from both sides
    assert (
        t_test_power(0.5 / 0.4 * math.sqrt(12 / 2), 22, 0.05)
        >= 0.8
        > t_test_power(0.5 / 0.4 * math.sqrt(11 / 2), 20, 0.05)
    )


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match=r"\[seeds, sentences, sums"):
        bootstrap(np.ones((3, 4)), ratio_of_sums)
    with pytest.raises(ValueError, match="same sentences"):
        crossed_bootstrap(np.ones((1, 4, 2)), np.ones((1, 5, 2)), ratio_of_sums)
    with pytest.raises(ValueError, match="NaN"):
        bootstrap(np.full((1, 4, 2), np.nan), ratio_of_sums)
    with pytest.raises(ValueError, match="leading dimensions"):
        bootstrap(np.ones((1, 4, 2)), lambda sums: sums.mean())
    with pytest.raises(ValueError, match="resamples"):
        bootstrap(np.ones((1, 4, 2)), ratio_of_sums, resamples=1)
    with pytest.raises(ValueError, match="boolean"):
        mcnemar([0.5], [1.0])
    with pytest.raises(ValueError, match="margin"):
        equivalence_from_error(0.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="at least two"):
        equivalence_test([1.0], [1.0, 2.0], 0.1)
    for paired in (False, True):
        with pytest.raises(ValueError, match="second must not hold NaN"):
            equivalence_test([1.0, 1.1], [1.0, math.nan], 0.1, paired=paired)
    for numbers in ((math.nan, 1.0), (0.0, math.nan), (0.0, -1.0)):
        with pytest.raises(ValueError, match="a difference and its standard error"):
            equivalence_from_error(*numbers, 0.1)
    with pytest.raises(ValueError, match="effect > 0"):
        seeds_needed(1.0, 0.0)
