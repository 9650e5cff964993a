"""Translation quality: BLEU, chrF and TER through sacrebleu, their signatures, and paired tests of two systems.

References are given a sentence: one string, or a sequence of strings whose number may vary from sentence to sentence.
Text is detokenised, as a reader would see it; `bleu_lowercase` stands beside BLEU for comparison with published
figures on lower-cased text (its signature names the tokeniser). Scores run from 0 to 100.

Shapes: S sentences; a BLEU statistic is 10 whole numbers: hypothesis and reference length, matched n-grams of order 1
to 4, n-grams of order 1 to 4. They are additive over sentences.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from nmt_ls.metrics.inputs import FloatArray

References = Sequence[str | Sequence[str]]
MetricName = Literal["bleu", "bleu_lowercase", "chrf", "ter"]
METRICS: tuple[MetricName, ...] = ("bleu", "bleu_lowercase", "chrf", "ter")
BLEU_STATISTICS = 10


@dataclass(frozen=True, kw_only=True)
class TranslationScores:
    """Corpus scores of one system; `scores` and `signatures` have the same keys (a choice of METRICS)."""

    scores: dict[str, float]
    signatures: dict[str, str]
    brevity_penalty: float
    length_ratio: float  # hypothesis over reference length, as BLEU counts them

    @property
    def bleu(self) -> float:
        return self.scores["bleu"]

    @property
    def chrf(self) -> float:
        return self.scores["chrf"]


def translation_scores(
    hypotheses: Sequence[str],
    references: References,
    metrics: Sequence[MetricName] = ("bleu", "bleu_lowercase", "chrf"),
) -> TranslationScores:
    """Corpus scores with sacrebleu's signatures. TER is slow and so must be asked for.

    Raises ValueError where the numbers of sentences differ, where there are none, or where one has no reference.
    """
    streams = reference_streams(hypotheses, references)
    scores: dict[str, float] = {}
    signatures: dict[str, str] = {}
    for name in metrics:
        metric = sacrebleu_metric(name)
        scores[name] = float(metric.corpus_score(list(hypotheses), streams).score)
        signatures[name] = str(metric.get_signature())
    lengths = bleu_statistics(hypotheses, references)[:, :2].sum(0)
    return TranslationScores(
        scores=scores,
        signatures=signatures,
        brevity_penalty=float(brevity_penalty(lengths)),
        length_ratio=float(lengths[0] / max(lengths[1], 1)),
    )


def sacrebleu_metric(name: MetricName) -> Any:
    """A new sacrebleu metric object: ValueError for an unknown name."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    # force: our text is detokenised, so sacrebleu need not warn that it looks tokenised
    if name == "bleu":
        return BLEU(force=True)
    if name == "bleu_lowercase":
        return BLEU(force=True, lowercase=True)
    if name == "chrf":
        return CHRF()
    if name == "ter":
        return TER()
    raise ValueError(f"unknown translation metric {name!r}: choose from {', '.join(METRICS)}")


def reference_streams(hypotheses: Sequence[str], references: References) -> list[list[str | None]]:
    """sacrebleu's layout: stream i holds the i-th reference of every sentence, None where it has fewer."""
    if len(hypotheses) != len(references):
        raise ValueError(f"there are {len(hypotheses)} hypotheses but references for {len(references)} sentences")
    if not hypotheses:
        raise ValueError("there are no hypotheses to score")
    lists = [[refs] if isinstance(refs, str) else list(refs) for refs in references]
    for index, refs in enumerate(lists):
        if not refs:
            raise ValueError(f"sentence {index} has no reference")
    return [[refs[i] if i < len(refs) else None for refs in lists] for i in range(max(map(len, lists)))]


def sentence_statistics(name: MetricName, hypotheses: Sequence[str], references: References) -> FloatArray:
    """What a metric sums over sentences, [S, F]: what bootstraps and paired tests resample."""
    # the statistics that sacrebleu's own significance tests use; it has no public name for them, nor for their score
    rows = sacrebleu_metric(name)._extract_corpus_statistics(
        list(hypotheses), reference_streams(hypotheses, references)
    )
    return np.asarray(rows, dtype=np.float64)


def scores_from_statistics(name: MetricName, statistics: FloatArray) -> FloatArray:
    """Corpus scores of summed `sentence_statistics`, [..., F] -> [...]; of BLEU `bleu_from_statistics` is faster."""
    metric = sacrebleu_metric(name)
    rows = statistics.reshape(-1, statistics.shape[-1])
    return np.array([metric._compute_score_from_stats(row).score for row in rows]).reshape(statistics.shape[:-1])


def bleu_statistics(hypotheses: Sequence[str], references: References, lowercase: bool = False) -> NDArray[np.int64]:
    """Sentence-level BLEU statistics [S, 10] (see the top of the file)."""
    return sentence_statistics("bleu_lowercase" if lowercase else "bleu", hypotheses, references).astype(np.int64)


def brevity_penalty(statistics: NDArray[Any]) -> FloatArray:
    """BLEU's brevity penalty from [..., hypothesis length, reference length, ...]."""
    hypothesis, reference = statistics[..., 0].astype(np.float64), statistics[..., 1].astype(np.float64)
    ratio = np.divide(reference, hypothesis, out=np.full_like(reference, np.inf), where=hypothesis > 0)
    return np.where(hypothesis < reference, np.exp(1.0 - np.maximum(ratio, 1.0)), 1.0)


def bleu_from_statistics(statistics: NDArray[Any]) -> FloatArray:
    """Corpus BLEU of summed statistics [..., 10], for any leading dimensions; equal to sacrebleu's default (`exp`).

    An order without a match counts as 1/2^k matches, k numbering such orders from the lowest; without any unigram
    match, or without n-grams of the highest order, BLEU is 0.
    """
    matches = statistics[..., 2:6].astype(np.float64)
    totals = statistics[..., 6:10].astype(np.float64)
    unmatched = (matches == 0) & (totals > 0)
    smoothed = np.where(unmatched, 0.5 ** np.cumsum(unmatched, axis=-1), matches)
    scorable = (totals > 0).all(-1) & (matches > 0).any(-1)
    precision = np.divide(smoothed, totals, out=np.ones_like(totals), where=totals > 0)
    score = 100.0 * brevity_penalty(statistics) * np.exp(np.log(precision).mean(-1))
    return np.where(scorable, score, 0.0)


def sentence_bleu(hypotheses: Sequence[str], references: References) -> FloatArray:
    """sacrebleu's sentence BLEU, [S]: exponential smoothing, only the orders that the hypothesis has (effective)."""
    from sacrebleu.metrics.bleu import BLEU

    reference_streams(hypotheses, references)
    return _sentence_scores(BLEU(effective_order=True), hypotheses, references)


def sentence_chrf(hypotheses: Sequence[str], references: References) -> FloatArray:
    """Sentence chrF, [S]."""
    reference_streams(hypotheses, references)
    return _sentence_scores(sacrebleu_metric("chrf"), hypotheses, references)


def _sentence_scores(metric: Any, hypotheses: Sequence[str], references: References) -> FloatArray:
    lists = [[refs] if isinstance(refs, str) else list(refs) for refs in references]
    return np.array(
        [metric.sentence_score(hypothesis, refs).score for hypothesis, refs in zip(hypotheses, lists, strict=True)]
    )


@dataclass(frozen=True, kw_only=True)
class PairedTestResult:
    """One metric of a paired test: the system against the baseline."""

    baseline: float
    system: float
    difference: float  # system minus baseline
    p_value: float
    signature: str


def paired_test(
    baseline: Sequence[str],
    system: Sequence[str],
    references: References,
    method: Literal["bootstrap", "randomisation"] = "bootstrap",
    *,
    metrics: Sequence[MetricName] = ("bleu", "chrf"),
    trials: int = 0,
    seed: int = 12345,
) -> dict[str, PairedTestResult]:
    """Are two systems' outputs of the same sentences of different quality? sacrebleu's two-sided paired tests.

    "bootstrap": paired bootstrap resampling (Koehn 2004; 1,000 resamples unless `trials` is given).
    "randomisation": approximate randomisation (Riezler & Maxwell 2005; 10,000 trials).
    It compares two outputs; two recipes, each with several seeds, are compared by `statistics.crossed_bootstrap`.
    """
    from sacrebleu.significance import PairedTest

    if method not in ("bootstrap", "randomisation"):
        raise ValueError(f"method must be 'bootstrap' or 'randomisation', got {method!r}")
    if len(baseline) != len(system):
        raise ValueError(f"the baseline has {len(baseline)} sentences and the system {len(system)}")
    streams = reference_streams(system, references)
    results: dict[str, PairedTestResult] = {}
    # one metric at a time: sacrebleu files results under the metric's own name, in which two kinds of BLEU would clash
    for name in metrics:
        with _sacrebleu_seed(seed):
            signatures, scores = PairedTest(
                [("baseline", list(baseline)), ("system", list(system))],
                {name: sacrebleu_metric(name)},
                cast(Any, streams),
                test_type="bs" if method == "bootstrap" else "ar",
                n_samples=trials,
            )()
        ((label, signature),) = signatures.items()
        first, second = cast(list[Any], scores[label])
        difference = float(second.score - first.score)
        results[name] = PairedTestResult(
            baseline=float(first.score),
            system=float(second.score),
            difference=difference,
            # sacrebleu counts only trials beyond the difference, and so calls equal outputs significant
            p_value=float(second.p_value) if difference != 0 else 1.0,
            signature=str(signature),
        )
    return results


@contextmanager
def _sacrebleu_seed(seed: int) -> Iterator[None]:
    """sacrebleu takes the seed of its tests from the environment only."""
    before = os.environ.get("SACREBLEU_SEED")
    os.environ["SACREBLEU_SEED"] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SACREBLEU_SEED"]
        else:
            os.environ["SACREBLEU_SEED"] = before
