"""Uncertainty and tests: bootstrap over sentences crossed with seeds, McNemar, equivalence, seeds needed.

A recipe is measured with several seeds on one test set, so sentences and seeds are crossed: every seed translates
every sentence. One resample of sentences therefore serves all seeds and both recipes, and seeds are resampled apart.

Shapes: A and C seeds of two recipes, S sentences, R resamples; what follows S (...) are sums that add up over
sentences (`slices.sliced_sums`, `translation.bleu_statistics`, NLL sums), from which a figure is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nmt_ls.metrics.distributions import student_t_cdf, student_t_quantile, t_test_power
from nmt_ls.metrics.inputs import FloatArray, as_array, check_binary, check_finite, same_shape

Figure = Callable[[FloatArray], FloatArray]
_WEIGHTS_AT_ONCE = 1 << 21


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure or a difference of figures, with its bootstrap standard deviation.

    The interval is value +- t sd, with Student's quantile of `degrees` degrees of freedom: infinite (t = 1.96), or
    `seed_degrees` where few seeds were resampled. There are no percentile intervals: for ECE, which is biased upwards
    and more so in resamples, they would not cover.
    """

    value: float
    sd: float
    resamples: int
    degrees: float = math.inf

    def reach(self, level: float = 0.95) -> float:
        """Half the width of the interval of this level."""
        return self.sd * student_t_quantile((1 + level) / 2, self.degrees)

    @property
    def low(self) -> float:
        return self.value - self.reach()

    @property
    def high(self) -> float:
        return self.value + self.reach()

    @property
    def p_value(self) -> float:
        """Two-sided, of the hypothesis that the true value is 0."""
        if self.sd == 0:
            return 1.0 if self.value == 0 else 0.0
        return 2 * student_t_cdf(-abs(self.value) / self.sd, self.degrees)


def seed_degrees(sd: float, per_seed: Sequence[FloatArray]) -> float:
    """Degrees of freedom of a variance of which the seeds' part is estimated from few of them (Satterthwaite 1946).

    per_seed: each recipe's figure, one value a seed. The sentences' part counts as known. A recipe with one seed adds
    nothing: nothing is known of its seeds.
    """
    parts = [(float(values.var(ddof=1)) / len(values), len(values) - 1) for values in per_seed if len(values) > 1]
    known = sum(part * part / degrees for part, degrees in parts)
    if known == 0:
        return math.inf
    return max(sd * sd, sum(part for part, _ in parts)) ** 2 / known


def summed_degrees(parts: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of independent variances (Satterthwaite 1946). parts: each variance with its own."""
    total = sum(variance for variance, _ in parts)
    below = sum(variance * variance / degrees for variance, degrees in parts)
    return total * total / below if below > 0 else math.inf


def bootstrap(statistics_AS: Any, figure: Figure, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """A recipe's figure, the mean over its seeds, with the sd due to its sentences and its seeds.

    `statistics_AS` is [A, S, ...]; `figure` maps summed statistics [..., *] to values [...]. Refuses what
    `combined_bootstrap` does.
    """
    recipe = _checked(statistics_AS, "statistics")
    found = combined_bootstrap([recipe], figure, lambda means: means[0], resamples=resamples, seed=seed)
    return replace(found, degrees=seed_degrees(found.sd, [_figures(figure, recipe.sum(1), 1, "statistics")]))


def crossed_bootstrap(
    first_AS: Any, second_CS: Any, figure: Figure, *, resamples: int = 1000, seed: int = 0, resample_seeds: bool = True
) -> Estimate:
    """Second minus first recipe: the difference of their mean figures over seeds, and its bootstrap sd.

    `first_AS` is [A, S, ...] and `second_CS` [C, S, ...], of the same sentences in the same order. Without
    `resample_seeds` the sd is that due to the sentences alone, which no number of seeds makes smaller.
    """
    recipes = [_checked(recipe, name) for recipe, name in ((first_AS, "first"), (second_CS, "second"))]
    found = combined_bootstrap(
        recipes,
        figure,
        lambda means: means[1] - means[0],
        resamples=resamples,
        seed=seed,
        resample_seeds=resample_seeds,
    )
    per_seed = [figure(recipe.sum(1)) for recipe in recipes] if resample_seeds else []
    return replace(found, degrees=seed_degrees(found.sd, per_seed))


def combined_bootstrap(
    recipes: Sequence[Any],
    figure: Figure,
    combine: Callable[[Sequence[FloatArray]], FloatArray],
    *,
    resamples: int = 1000,
    seed: int = 0,
    resample_seeds: bool = True,
) -> Estimate:
    """Any figure of several recipes' curves, such as the least difference over temperatures, and its bootstrap sd.

    `figure` maps summed statistics [..., *] of one seed to a value or a curve [..., F]; `combine` maps the recipes'
    means over seeds, each [R, F], to [R]. The other arguments are those of `crossed_bootstrap`.

    Resampling both sentences and seeds counts the part in which they act together more than once (Owen 2007, "The
    pigeonhole bootstrap"): the sd is too large by it rather than too small.

    Raises ValueError for statistics that are not finite or do not fit each other, and where a figure comes out as NaN
    or infinite, which is to say that a sum it divides by is 0: of a recipe's whole data, or of a resample of its
    sentences. Resamples without a figure are not left out, since the sd of the others would be too small.
    """
    named = _named(recipes)
    rng = np.random.default_rng(seed)
    value = combine([_figures(figure, recipe.sum(1), 1, name).mean(0)[None] for recipe, name in named])
    drawn = np.zeros(resamples)
    for part, weights_RS in _resampled_sentences(rng, resamples, named[0][0].shape[1]):
        drawn[part] = combine(
            [_resampled_figures(recipe, name, weights_RS, figure, rng, resample_seeds) for recipe, name in named]
        )
    return Estimate(value=float(value[0]), sd=float(drawn.std(ddof=1)), resamples=resamples)


def variances_of_fixed_seeds(
    recipes: Sequence[Any],
    figure: Figure,
    combine: Callable[[Sequence[FloatArray]], FloatArray],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, FloatArray]:
    """The variances over resamples of the sentences alone, of as many seeds as every recipe has: of their means, and of
    each seed by itself, [A]. They are the squares of what `combined_bootstrap` has without `resample_seeds`.
    """
    named = _named(recipes)
    seeds = min(len(recipe) for recipe, _ in named)
    rng = np.random.default_rng(seed)
    together, alone = np.zeros(resamples), np.zeros((seeds, resamples))
    for part, weights_RS in _resampled_sentences(rng, resamples, named[0][0].shape[1]):
        each = [_figures_of_seeds(recipe[:seeds], name, weights_RS, figure) for recipe, name in named]
        together[part] = combine([figures_RA.mean(1) for figures_RA in each])
        for index in range(seeds):
            alone[index, part] = combine([figures_RA[:, index] for figures_RA in each])
    return float(together.var(ddof=1)), np.asarray(alone.var(1, ddof=1))


def _named(recipes: Sequence[Any]) -> list[tuple[FloatArray, str]]:
    """Checked statistics of the recipes, with what messages call them."""
    names = ("first", "second", "third") if len(recipes) > 1 else ("statistics",)
    checked = [_checked(recipe, name) for recipe, name in zip(recipes, names, strict=False)]
    if len(checked) < len(recipes) or not checked:
        raise ValueError(f"one to three recipes can be combined, got {len(recipes)}")
    for other in checked[1:]:
        if other.shape[1:] != checked[0].shape[1:]:
            raise ValueError(f"both must hold the same sentences and sums, got {checked[0].shape} and {other.shape}")
    return list(zip(checked, names, strict=False))


def _resampled_sentences(
    rng: np.random.Generator, resamples: int, sentences: int
) -> Iterator[tuple[slice, FloatArray]]:
    """How often each sentence is drawn, [R, S], for some resamples after the other. Others may draw in between."""
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}")
    rows = max(1, _WEIGHTS_AT_ONCE // sentences)
    for start in range(0, resamples, rows):
        part = slice(start, min(start + rows, resamples))
        yield part, _resample_weights(rng, part.stop - start, sentences, sentences)


def _checked(statistics: Any, name: str) -> FloatArray:
    array = as_array(statistics, name).astype(np.float64)
    if array.ndim < 3 or 0 in array.shape:
        raise ValueError(f"{name} must be [seeds, sentences, sums...] and not empty, got {array.shape}")
    check_finite(array, name)
    return array


def _resampled_figures(
    recipe: FloatArray,
    name: str,
    weights_RS: FloatArray,
    figure: Figure,
    rng: np.random.Generator,
    resample_seeds: bool,
) -> FloatArray:
    """The mean figure over resampled seeds, [R, ...]."""
    figures_RA = _figures_of_seeds(recipe, name, weights_RS, figure)
    if not resample_seeds:
        return np.asarray(figures_RA.mean(1))
    seeds = len(recipe)
    # of A seeds A - 1 are drawn: drawing A would understate their variance by (A - 1) / A (Rao & Wu 1988)
    draws = max(seeds - 1, 1)
    seed_weights_RA = _resample_weights(rng, len(weights_RS), seeds, draws) / draws
    return np.asarray(np.einsum("ra...,ra->r...", figures_RA, seed_weights_RA))


def _figures_of_seeds(recipe: FloatArray, name: str, weights_RS: FloatArray, figure: Figure) -> FloatArray:
    """The figure of every resample and seed, [R, A, ...]."""
    seeds, sentences = recipe.shape[:2]
    flat = recipe.reshape(seeds, sentences, -1)
    totals_RA = np.stack([weights_RS @ flat[a] for a in range(seeds)], axis=1)
    totals_RA = totals_RA.reshape(len(weights_RS), seeds, *recipe.shape[2:])
    return _figures(figure, totals_RA, 2, f"{name}, in a resample of the sentences")


def _figures(figure: Figure, totals: FloatArray, leading: int, where: str) -> FloatArray:
    """The figure of totals whose first `leading` dimensions are resamples and seeds, or seeds; all values finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = np.asarray(figure(totals))
    if figures.shape[:leading] != totals.shape[:leading]:
        raise ValueError(f"the figure must keep the leading dimensions, got {figures.shape}")
    if not np.isfinite(figures).all():
        first = tuple(np.argwhere(~np.isfinite(figures))[0])
        zero = [", ".join(map(str, at)) for at in np.argwhere(totals[first[:leading]] == 0)]
        why = f"it divides by a sum that is 0, of those at [{'], ['.join(zero[:4])}]" if zero else "no sum is 0"
        raise ValueError(
            f"{where}: the figure of seed {first[leading - 1]} is {figures[first]} ({why}{', …' if zero[4:] else ''}); "
            "it needs more sentences that add to what it divides by"
        )
    return figures


def _resample_weights(rng: np.random.Generator, rows: int, items: int, draws: int) -> FloatArray:
    """How often each item is drawn, [rows, items]: rows sum to `draws`."""
    chosen = rng.integers(0, items, (rows, draws)) + np.arange(rows)[:, None] * items
    return np.bincount(chosen.ravel(), minlength=rows * items).reshape(rows, items).astype(np.float64)


def ratio_of_sums(sums: FloatArray) -> FloatArray:
    """A figure for the bootstrap: first sum over second, as NLL a token from [..., (NLL sum, tokens)].

    NaN or infinite, as division is, where the second sum is 0; the bootstrap refuses that.
    """
    return np.asarray(sums[..., 0] / sums[..., 1])


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Paired comparison of two classifiers on the same items (McNemar 1947)."""

    only_first: int  # items that only the first has right
    only_second: int
    exact_p: float  # two-sided binomial
    corrected_p: float  # chi-squared with Edwards' continuity correction


def mcnemar(first_correct: Any, second_correct: Any) -> McNemar:
    """Are two classifiers equally often right on the same items? Both arrays boolean, of one shape."""
    first, second = as_array(first_correct, "first_correct"), as_array(second_correct, "second_correct")
    same_shape(first, "first_correct", second, "second_correct")
    for name, array in (("first_correct", first), ("second_correct", second)):
        check_binary(array, name)
    first, second = first.astype(bool), second.astype(bool)
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    n = b + c
    if n == 0:
        return McNemar(only_first=0, only_second=0, exact_p=1.0, corrected_p=1.0)
    log_half_n = n * math.log(2)
    terms = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - log_half_n for k in range(min(b, c) + 1)
    ]
    statistic = max(abs(b - c) - 1, 0) ** 2 / n
    return McNemar(
        only_first=b,
        only_second=c,
        exact_p=min(1.0, 2 * math.fsum(map(math.exp, terms))),
        corrected_p=math.erfc(math.sqrt(statistic / 2)),
    )


@dataclass(frozen=True, kw_only=True)
class Equivalence:
    """Two one-sided tests (Schuirmann 1987) of the hypothesis that two means differ by `margin` or more."""

    difference: float  # second minus first
    standard_error: float
    degrees: float
    margin: float
    p_value: float
    low: float  # the interval at 1 - 2 * level: wholly within the margin exactly where `equivalent`
    high: float
    equivalent: bool


def equivalence_test(
    first: Sequence[float] | Any,
    second: Sequence[float] | Any,
    margin: float,
    *,
    paired: bool = False,
    level: float = 0.05,
) -> Equivalence:
    """Are two recipes' figures (accuracies of several seeds, say) the same to within `margin`? Welch's t, or paired.

    Raises ValueError for NaN or infinite values, fewer than two of a recipe, and a margin that is not above 0.
    """
    x = as_array(first, "first").astype(np.float64).ravel()
    y = as_array(second, "second").astype(np.float64).ravel()
    check_finite(x, "first")
    check_finite(y, "second")
    if paired:
        same_shape(x, "first", y, "second")
        x, y = np.zeros(1), y - x
    sizes = [len(y)] if paired else [len(x), len(y)]
    if min(sizes) < 2:
        raise ValueError("an equivalence test needs at least two values of each recipe")
    variances = [y.var(ddof=1) / len(y)] if paired else [x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)]
    total = sum(variances)
    degrees = summed_degrees([(v, n - 1) for v, n in zip(variances, sizes, strict=True)])
    return equivalence_from_error(float(y.mean() - x.mean()), math.sqrt(total), margin, degrees=degrees, level=level)


def equivalence_from_error(
    difference: float, standard_error: float, margin: float, *, degrees: float = math.inf, level: float = 0.05
) -> Equivalence:
    """The same from a difference and its standard error, such as a bootstrap's sd."""
    if not margin > 0:
        raise ValueError(f"margin must be above 0, got {margin}")
    if not (math.isfinite(difference) and 0 <= standard_error < math.inf):
        raise ValueError(
            f"an equivalence test needs a difference and its standard error, got {difference} and {standard_error}"
        )
    if standard_error > 0:
        below = student_t_cdf((difference - margin) / standard_error, degrees)
        above = student_t_cdf(-(difference + margin) / standard_error, degrees)
        p_value = max(below, above)
    else:
        p_value = 0.0 if abs(difference) < margin else 1.0
    reach = student_t_quantile(1 - level, degrees) * standard_error
    return Equivalence(
        difference=difference,
        standard_error=standard_error,
        degrees=degrees,
        margin=margin,
        p_value=p_value,
        low=difference - reach,
        high=difference + reach,
        equivalent=p_value < level,
    )


def seeds_needed(
    sd: float, effect: float, *, level: float = 0.05, power: float = 0.8, paired: bool = False, most: int = 10_000
) -> int:
    """Seeds a recipe so that a two-sided t-test finds a true difference of `effect` with this power.

    `sd` is that of one recipe's figure over seeds (of the differences, if paired). At most `most`.
    """
    if not (sd >= 0 and effect > 0 and 0 < level < 1 and 0 < power < 1):
        raise ValueError(
            f"seeds_needed needs sd >= 0, effect > 0 and level, power in (0, 1), got {sd}, {effect}, {level}, {power}"
        )
    if sd == 0:
        return 2

    def enough(n: int) -> bool:
        degrees = n - 1 if paired else 2 * (n - 1)
        return t_test_power(effect / sd * math.sqrt(n if paired else n / 2), degrees, level) >= power

    low, high = 1, 2
    while high < most and not enough(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return min(high, most)
