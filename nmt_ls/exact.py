"""Exact calibration on the embedded corpus, where the true distribution p* is known.

Two things that are never mixed. *Calibration*: ECE with the 0/1 correctness of a prediction ŷ replaced by its true
probability p*(ŷ | prefix, source), which takes the noise of labels away. *Approximation*: KL(p* ‖ model) and total
variation. A model can be calibrated and far from the truth.

The tokens are those of `fresh_text`.

Shapes: N tokens, V pieces, E entries (a token and a piece that may truly come next).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from nmt_ls.corpus import Corpus
from nmt_ls.experiment.command_line import UserError
from nmt_ls.fresh_text import FreshText
from nmt_ls.metrics.adaptive import equal_mass_ece, smooth_ece, sweep_ece
from nmt_ls.metrics.calibration import (
    binned_sums,
    debiased_l1_from_sums,
    expected_calibration_error,
    unbiased_squared_l2_from_sums,
)
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.likelihood import sparse_divergences
from nmt_ls.metrics.plots import estimator_figure
from nmt_ls.metrics.temperature import log_probs
from nmt_ls.score_records import Figures
from nmt_ls.scoring import BINS, slabs, split_batches
from nmt_ls.translator import Translator
from nmt_ls.truth import is_embedded

MOST_SAMPLES = 20
"""Disjoint samples of a size on which the estimators are tried."""

Measure = Callable[[FloatArray, NDArray[Any]], float]
"""Of confidences [N] and correctness [N]: 0/1, or the true probability of being right."""


def _squared_l2(confidences: FloatArray, correct: NDArray[Any]) -> float:
    return float(unbiased_squared_l2_from_sums(binned_sums(confidences, correct, BINS)))


EXACT: dict[str, Measure] = {
    "exact_ece": lambda c, p: expected_calibration_error(c, p, BINS),
    "exact_equal_mass_ece": lambda c, p: equal_mass_ece(c, p, BINS),
    "exact_sweep_ece": lambda c, p: sweep_ece(c, p)[0],
    "exact_smooth_ece": smooth_ece,
    "exact_squared_l2": _squared_l2,
}
"""The exact values by name: calibration errors of all tokens, with the true probability of being right for
correctness. The sweep's bins are as many as keep that probability rising from bin to bin."""

ESTIMATORS: dict[str, Measure] = {
    "equal-width": EXACT["exact_ece"],
    "debiased": lambda c, y: float(debiased_l1_from_sums(binned_sums(c, y, BINS))),
    "equal-mass": EXACT["exact_equal_mass_ece"],
    "sweep": EXACT["exact_sweep_ece"],
    "smooth": EXACT["exact_smooth_ece"],
    "squared-l2": EXACT["exact_squared_l2"],
}
"""What is made of 0/1 correctness, by name. Each is held against the same measure with the truth: equal-width against
exact_ece, equal-mass, sweep, smooth and squared-l2 (unbiased, Kumar et al. 2019) against the exact value of that name;
debiased, which corrects equal-width ECE, against exact_ece too. All estimate an ECE and are recorded as estimated_ece,
but squared-l2, whose unit is another: estimated_squared_l2."""


@dataclass(frozen=True, kw_only=True)
class ExactTokens:
    """N tokens of fresh targets, in the order of the draw, end-of-sentence included."""

    confidences: FloatArray  # probability of the most probable piece ŷ
    correct: NDArray[np.bool_]  # whether ŷ is the piece drawn
    truths: FloatArray  # p*(ŷ)
    kl: FloatArray  # KL(p* ‖ model), nats
    variation: FloatArray  # total variation
    entropy: FloatArray  # of p*, nats
    nll: FloatArray  # of the piece drawn, nats

    def __len__(self) -> int:
        return len(self.confidences)


def check_exact(corpus: Corpus) -> None:
    """Raises UserError where the truth is not known."""
    if not is_embedded(corpus):
        raise UserError(
            f"exact_tokens: the true distribution is known of the embedded corpus alone (of today's grammar), "
            f"not of {corpus.directory}; leave exact_tokens out"
        )


@torch.no_grad()
def exact_tokens(
    translator: Translator,
    text: FreshText,
    count: int,
    temperature: float = 1.0,
    on_progress: Callable[[int], object] | None = None,
) -> ExactTokens:
    """The model against the truth on the first `count` tokens of the text; on_progress: called with tokens done."""
    translator.precision.apply()
    columns = [np.empty(text.tokens) for _ in range(7)]
    for slab in slabs(translator.model, split_batches(text.pairs)):
        tokens_N = text.first_tokens[slab.sentences_N.numpy()] + slab.positions_N.cpu().numpy()
        log_q_NV = log_probs(translator.model.logits(slab.hidden_ND), temperature).cpu()
        for column, values_N in zip(columns, _against(log_q_NV, slab.targets_N.cpu(), text, tokens_N), strict=True):
            column[tokens_N] = values_N.numpy()
        if on_progress is not None:
            on_progress(len(tokens_N))
    confidences, correct, truths, kl, variation, entropy, nll = (column[:count] for column in columns)
    return ExactTokens(
        confidences=confidences,
        correct=correct.astype(bool),
        truths=truths,
        kl=kl,
        variation=variation,
        entropy=entropy,
        nll=nll,
    )


def _against(log_q_NV: Tensor, labels_N: Tensor, text: FreshText, tokens_N: NDArray[np.int64]) -> tuple[Tensor, ...]:
    """The columns of ExactTokens for some tokens, in their order."""
    rows_E, ids_E, probs_E = text.entries(tokens_N)
    kl_N, variation_N, entropy_N = sparse_divergences(rows_E, ids_E, probs_E, log_q_NV)
    top_N, predicted_N = log_q_NV.max(-1)
    hits_E = probs_E * (ids_E == predicted_N[rows_E])
    truth_N = torch.zeros(len(top_N), dtype=torch.float64).index_add_(0, rows_E, hits_E)
    nll_N = -log_q_NV.gather(1, labels_N[:, None]).squeeze(1)
    confidence_N = top_N.double().exp().clamp(max=1.0)
    return confidence_N, predicted_N == labels_N, truth_N.clamp(max=1.0), kl_N, variation_N, entropy_N, nll_N


def exact_figures(tokens: ExactTokens) -> list[Figures]:
    """Exact calibration and approximation error; then what each estimator of ECE says of samples of these tokens."""
    recipe = {"split": "test", "drawn": "afresh", "tokens": len(tokens)}
    gaps = tokens.truths - tokens.confidences
    exact = {
        **{name: measure(tokens.confidences, tokens.truths) for name, measure in EXACT.items()},
        "exact_signed_gap": float(gaps.mean()),
        "exact_accuracy": float(tokens.truths.mean()),
        "kl_to_truth": float(tokens.kl.mean()),
        "tv_to_truth": float(tokens.variation.mean()),
        "entropy": float(tokens.entropy.mean()),
        "exact_nll": float((tokens.entropy + tokens.kl).mean()),
        "sampled_nll": float(tokens.nll.mean()),
    }
    return [Figures(values=exact, recipe=recipe), *estimator_figures(tokens, recipe)]


def sample_sizes(tokens: int) -> list[int]:
    """1,000, 10,000, … up to all."""
    sizes = [10**power for power in range(3, 12) if 10**power < tokens]
    return [*sizes, tokens]


def estimator_figures(tokens: ExactTokens, recipe: dict[str, object]) -> list[Figures]:
    """Mean and sd over disjoint samples of each size of what an estimator makes of 0/1 correctness."""
    found = []
    for size in sample_sizes(len(tokens)):
        starts = range(0, len(tokens) - size + 1, size)[:MOST_SAMPLES]
        for name, estimator in ESTIMATORS.items():
            values = [
                estimator(tokens.confidences[start : start + size], tokens.correct[start : start + size])
                for start in starts
            ]
            figure = "estimated_squared_l2" if name == "squared-l2" else "estimated_ece"
            spread = {f"{figure}_sd": float(np.std(values, ddof=1))} if len(values) > 1 else {}
            found.append(
                Figures(
                    values={figure: float(np.mean(values)), **spread},
                    recipe={**recipe, "estimator": name, "sample_tokens": size, "samples": len(values)},
                )
            )
    return found


def estimator_diagram(figures: list[Figures], title: str) -> Figure:
    """What the estimators of ECE say against the number of tokens, beside the exact value of equal-width bins."""
    exact, *estimated = figures
    curves: dict[str, dict[int, tuple[float, float]]] = {}
    for each in estimated:
        if "estimated_ece" not in each.values:
            continue
        mean, sd = each.values["estimated_ece"], each.values.get("estimated_ece_sd", 0.0)
        curves.setdefault(str(each.recipe["estimator"]), {})[int(each.recipe["sample_tokens"])] = (mean, sd)
    return estimator_figure(curves, exact.values["exact_ece"], title=title)
