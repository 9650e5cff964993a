"""Likelihood on hard labels: NLL in nats a token, perplexity, entropy and accuracy, with pads left out.

Shapes: N tokens, K classes, M tokens that are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nmt_ls.metrics.inputs import as_array, as_mask, check_finite, check_unit_interval, same_shape
from nmt_ls.metrics.temperature import as_tensor, check_logits, check_rows, logit_chunks, unchecked_log_probs

_ROUNDING = 1e-6  # may leave the log-probability of a certain token above 0, and its entropy below


class TokenStatistics(NamedTuple):
    """What one pass over logits leaves of the M tokens that are kept, each of shape [M]."""

    log_probs: Tensor  # of the target, nats
    confidences: Tensor  # probability of the most probable class
    correct: Tensor  # bool: the most probable class is the target
    entropies: Tensor  # of the prediction, nats
    predictions: Tensor  # the most probable class
    kept: Tensor  # bool, shape [N]: which of the N tokens those are


def token_statistics(
    logits_NK: Any, targets_N: Any, temperature: float = 1.0, ignore_index: int = -100
) -> TokenStatistics:
    """Target log-probability, confidence, correctness and entropy of every token whose target is not `ignore_index`.

    Logits and targets are numpy or torch. Rows are taken a slab at a time, so that the memory beside the logits does
    not grow with N. Ignored tokens are dropped, not zeroed: a pad can reach no figure that is made from the result.

    Raises ValueError for shapes and targets that do not fit and for logits without a softmax (NaN, +inf, a row only
    -inf). What is NaN in the result is then the temperature's fault: one so small that logits / temperature overflows.
    """
    logits_NK, targets_N = check_logits(logits_NK, targets_N, ignore_index)
    kept_N = targets_N != ignore_index
    parts: list[tuple[Tensor, ...]] = []
    for z, y in logit_chunks(logits_NK, targets_N):
        keep = y != ignore_index
        if not bool(keep.all()):
            z, y = z[keep], y[keep]
        log_p = unchecked_log_probs(z, temperature)
        top, predicted = log_p.max(-1)
        # a class of probability 0 adds nothing: 0 * -inf would be NaN
        entropy = -(log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1)
        parts.append((log_p.gather(1, y[:, None]).squeeze(1), top.exp(), predicted == y, entropy, predicted))
    log_p_M, confidence_M, correct_M, entropy_M, predicted_M = (torch.cat(part) for part in zip(*parts, strict=True))
    if bool(confidence_M.isnan().any()):
        check_rows(logits_NK, kept_N)
    return TokenStatistics(log_p_M, confidence_M, correct_M, entropy_M, predicted_M, kept_N)


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Figures a token; NaN where what they need was not given."""

    tokens: int
    nll: float  # nats
    perplexity: float
    entropy: float  # nats
    accuracy: float


class LikelihoodAccumulator:
    """Sums of target log-probabilities, correctness and entropies over a stream of tokens; mergeable."""

    def __init__(self) -> None:
        self.tokens = 0
        self.nll_sum = 0.0
        self.entropy_sum = 0.0
        self.correct_sum = 0.0

    def update(self, log_probs_N: Any, correct_N: Any = None, entropies_N: Any = None, mask_N: Any = None) -> Self:
        """Add tokens: log-probabilities of their targets (nats), and what else is known of them.

        All of one shape, numpy or torch; only positions where the boolean mask is True. What is left out in one
        update (correctness, entropy) is NaN in the result. Raises ValueError for NaN, for log-probabilities above 0,
        for correctness outside [0, 1] and for entropies that are negative or infinite.
        """
        log_p = as_array(log_probs_N, "log_probs")
        keep = np.ones(log_p.shape, bool) if mask_N is None else as_mask(mask_N, log_p, "log_probs")
        kept = log_p[keep].astype(np.float64)
        if np.isnan(kept).any() or (kept.size and kept.max() > _ROUNDING):
            raise ValueError(f"log_probs must be at most 0 and not NaN, got a maximum of {kept.max()}")
        # both before anything is added, so that refused input leaves the sums as they were
        right, uncertain = _kept(correct_N, "correct", log_p, keep), _kept(entropies_N, "entropies", log_p, keep)
        if right is not None:
            check_unit_interval(right, "correct")
        if uncertain is not None:
            check_finite(uncertain, "entropies")
            if uncertain.size and uncertain.min() < -_ROUNDING:
                raise ValueError(f"entropies must be at least 0, got a minimum of {uncertain.min()}")
        self.tokens += kept.size
        self.nll_sum -= float(kept.sum())
        self.correct_sum += math.nan if right is None else float(right.sum(dtype=np.float64))
        self.entropy_sum += math.nan if uncertain is None else float(uncertain.sum(dtype=np.float64))
        return self

    def merge(self, other: LikelihoodAccumulator) -> Self:
        """Add what another accumulator has seen."""
        self.tokens += other.tokens
        self.nll_sum += other.nll_sum
        self.entropy_sum += other.entropy_sum
        self.correct_sum += other.correct_sum
        return self

    def compute(self) -> Likelihood:
        """The figures a token. Raises ValueError if nothing was added."""
        if self.tokens == 0:
            raise ValueError("likelihood of nothing: no tokens were given (or the mask left none)")
        nll = self.nll_sum / self.tokens
        return Likelihood(
            tokens=self.tokens,
            nll=nll,
            perplexity=perplexity(nll),
            entropy=self.entropy_sum / self.tokens,
            accuracy=self.correct_sum / self.tokens,
        )


def perplexity(nll: float) -> float:
    """exp(NLL in nats a token); infinite where that overflows."""
    return math.exp(nll) if nll < 709.0 else math.inf


def _kept(values: Any, name: str, like: NDArray[Any], keep: NDArray[np.bool_]) -> NDArray[Any] | None:
    """The values that count, if there are any."""
    if values is None:
        return None
    array = as_array(values, name)
    same_shape(like, "log_probs", array, name)
    return np.asarray(array[keep])


def divergences(true_probs_NK: Any, log_probs_NK: Any) -> tuple[Tensor, Tensor]:
    """KL(p* || model) in nats and total variation of every row, float64 [N] each, where the truth p* is known.

    These say how far a model is from the truth, which is another thing than calibration: never mix the two. KL is
    infinite where the model gives no probability to what can happen.
    """
    true_probs_NK, log_probs_NK = as_tensor(true_probs_NK, "true_probs"), as_tensor(log_probs_NK, "log_probs")
    if true_probs_NK.shape != log_probs_NK.shape or true_probs_NK.ndim != 2:
        raise ValueError(
            "true_probs and log_probs must both be [N, K], got "
            f"{tuple(true_probs_NK.shape)} and {tuple(log_probs_NK.shape)}"
        )
    true_NK, log_q_NK = true_probs_NK.double(), log_probs_NK.double()
    sums_N = true_NK.sum(-1)
    if not bool((true_NK >= 0).all()) or not bool(torch.isclose(sums_N, torch.ones_like(sums_N), atol=1e-4).all()):
        raise ValueError("true_probs must be distributions: not negative, and each row with a sum of 1")
    kl_N = torch.where(true_NK > 0, true_NK * (true_NK.log() - log_q_NK), 0.0).sum(-1)
    return kl_N, (true_NK - log_q_NK.exp()).abs().sum(-1) / 2


def sparse_divergences(
    rows_E: Any, classes_E: Any, true_probs_E: Any, log_probs_NK: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """`divergences` where the truth gives probability to few classes, and the truth's entropy: float64 [N] each.

    Entry e says that class classes_E[e] has probability true_probs_E[e] > 0 in row rows_E[e]; no class twice in a row.
    Raises ValueError where a row's entries do not sum to 1.
    """
    rows_E, classes_E = as_tensor(rows_E, "rows"), as_tensor(classes_E, "classes")
    true_probs_E, log_probs_NK = as_tensor(true_probs_E, "true_probs"), as_tensor(log_probs_NK, "log_probs")
    count = log_probs_NK.shape[0]
    p_E, log_q_E = true_probs_E.double(), log_probs_NK[rows_E, classes_E].double()

    def per_row(values_E: Tensor) -> Tensor:
        return torch.zeros(count, dtype=torch.float64, device=values_E.device).index_add_(0, rows_E, values_E)

    sums_N = per_row(p_E)
    if not bool((p_E > 0).all()) or not bool(torch.isclose(sums_N, torch.ones_like(sums_N), atol=1e-4).all()):
        raise ValueError("true_probs must be above 0, and those of each row sum to 1")
    q_E = log_q_E.exp()
    # what the model gives to impossible classes is the rest of its mass
    variation_N = (per_row((p_E - q_E).abs()) + (1.0 - per_row(q_E)).clamp_min(0.0)) / 2
    return per_row(p_E * (p_E.log() - log_q_E)), variation_N, per_row(-p_E * p_E.log())
