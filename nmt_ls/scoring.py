"""Figures of a translator on a split: what validation, `score` and the final summary of `train` all call.

Shapes: B sentences, T target positions, N tokens that are not padding, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nmt_ls.batching import Batch, Pairs, epoch_batches
from nmt_ls.corpus import Corpus, Split
from nmt_ls.experiment.command_line import UserError
from nmt_ls.losses import LossConfig, Prior, smoothed_cross_entropy
from nmt_ls.metrics.calibration import Calibration, CalibrationAccumulator
from nmt_ls.metrics.likelihood import Likelihood, LikelihoodAccumulator, TokenStatistics, token_statistics
from nmt_ls.metrics.temperature import fit_temperature_to_chunks
from nmt_ls.metrics.translation import TranslationScores, translation_scores
from nmt_ls.search import SearchConfig
from nmt_ls.transformer import Transformer
from nmt_ls.translator import Hypothesis, Translator
from nmt_ls.vocabulary import PAD

CHUNK_TOKENS = 1024
"""How many tokens' logits exist at a time; a bound on memory, without influence on any figure."""
BINS = 15
"""Equal-width bins of ECE (Guo et al. 2017; the paper)."""
MAX_TOKENS = 4096
"""Tokens of a batch in teacher-forced scoring; likewise."""


def label_prior(loss: LossConfig, corpus: Corpus, device: torch.device) -> Prior:
    """The prior that `loss` names: uniform, or the frequencies of the corpus's training labels."""
    return corpus.unigram_prior().to(device) if loss.prior == "unigram" else "uniform"


def split_batches(split: Pairs, *, shuffle: bool = False) -> Iterable[Batch]:
    """A split, or pairs encoded on the spot, in batches by length (shuffled: in an order that is always the same), each
    sentence once."""
    longest = int(max(split.source.lengths_N.max(initial=0), split.target.lengths_N.max(initial=0))) + 1
    return epoch_batches(split, max_tokens=max(MAX_TOKENS, longest), seed=0, epoch=0, shuffle=shuffle)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What was asked of the model, token by token: M target tokens that are not padding, end-of-sentence included."""

    sentences: NDArray[np.int64]  # row of the split
    positions: NDArray[np.int64]  # from 0 in the target
    labels: NDArray[np.int64]  # piece ids
    log_probs: NDArray[np.float64]  # of the label, nats
    confidences: NDArray[np.float64]  # probability of the most probable piece
    predictions: NDArray[np.int64]  # that piece
    correct: NDArray[np.bool_]  # whether it is the label


@dataclass(frozen=True, kw_only=True)
class TeacherForced:
    """Figures of a model on hard labels, given the correct prefix.

    smoothed_loss: training's, at temperature 1, nats a token. The rest is at the temperature that was asked for.
    """

    smoothed_loss: float
    likelihood: Likelihood
    calibration: Calibration
    tokens: Tokens

    def figures(self) -> dict[str, float]:
        """By the names under which they are logged and recorded."""
        return {
            "loss": self.smoothed_loss,
            "nll": self.likelihood.nll,
            "perplexity": self.likelihood.perplexity,
            "accuracy": self.likelihood.accuracy,
            "ece": self.calibration.ece,
            "debiased_ece": self.calibration.debiased_l1,
            "over_confidence": self.calibration.over_confidence,
            "under_confidence": self.calibration.under_confidence,
            "model_entropy": self.likelihood.entropy,
            "tokens": self.likelihood.tokens,
        }


class Slab(NamedTuple):
    """Consecutive rows of a batch that are not padding: activations, labels, and which they are."""

    hidden_ND: Tensor
    targets_N: Tensor
    sentences_N: Tensor
    positions_N: Tensor


Watch = Callable[[Tensor, Slab], object]
"""Is given the logits [N, V] at temperature 1 of a slab's tokens, and the slab."""


@torch.no_grad()
def slabs(model: Transformer, batches: Iterable[Batch]) -> Iterator[Slab]:
    """Penultimate activations of every target token, in slabs of at most CHUNK_TOKENS rows."""
    device = model.output_weight.device
    for batch in batches:
        batch = batch.to(device)
        rows_N, positions_N = torch.nonzero(batch.target_out_BT != PAD, as_tuple=True)
        hidden_ND = model(batch.source_BS, batch.target_in_BT)[rows_N, positions_N]
        targets_N, sentences_N = batch.target_out_BT[rows_N, positions_N], batch.indices_B[rows_N.cpu()]
        for start in range(0, len(rows_N), CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            yield Slab(hidden_ND[part], targets_N[part], sentences_N[part], positions_N[part])


@torch.no_grad()
def score_batches(
    model: Transformer,
    batches: Iterable[Batch],
    *,
    loss: LossConfig,
    prior: Prior = "uniform",
    temperature: float = 1.0,
    bins: int = BINS,
    watch: Watch | None = None,
) -> TeacherForced:
    """Teacher-forced figures of a model on batches, from fp32 logits; how they are batched changes nothing.

    watch: is shown every slab with its logits, for what else is wanted of the same pass.
    Raises UserError where the model's log-probabilities, or what is shown to `watch`, are not numbers.
    """
    likelihood, smoothed = LikelihoodAccumulator(), 0.0
    columns = list[dict[str, Tensor]]()
    for slab in slabs(model, batches):
        logits, targets = model.logits(slab.hidden_ND), slab.targets_N
        if watch is not None:
            try:
                watch(logits, slab)
            except ValueError as error:
                raise UserError(f"{error}; take another checkpoint") from None
        smoothed += float(smoothed_cross_entropy(logits, targets, loss.alpha, prior, loss.spread, reduction="sum"))
        found = _token_statistics(logits, targets, temperature)
        likelihood.update(found.log_probs, found.correct, found.entropies)
        columns.append(_token_columns(slab, found))
    figures, tokens = likelihood.compute(), _tokens(columns)
    return TeacherForced(
        smoothed_loss=smoothed / figures.tokens,
        likelihood=figures,
        calibration=CalibrationAccumulator(bins).update(tokens.confidences, tokens.correct).compute(),
        tokens=tokens,
    )


def _token_statistics(logits_NV: Tensor, targets_N: Tensor, temperature: float) -> TokenStatistics:
    """As the metrics have them. Raises UserError where log-probabilities are not numbers."""
    try:
        found = token_statistics(logits_NV, targets_N, temperature)
    except ValueError as error:
        raise UserError(f"{error}; take another checkpoint") from None
    if found.log_probs.isnan().any():
        raise UserError(
            f"at temperature {temperature:g} the model's log-probabilities are not numbers (NaN); "
            "take a temperature nearer to 1, or another checkpoint"
        )
    return found


def _token_columns(slab: Slab, found: TokenStatistics) -> dict[str, Tensor]:
    """The fields of Tokens, of one slab."""
    return {
        "sentences": slab.sentences_N,
        "positions": slab.positions_N,
        "labels": slab.targets_N,
        "log_probs": found.log_probs.double(),
        "confidences": found.confidences.double().clamp(max=1.0),
        "predictions": found.predictions,
        "correct": found.correct,
    }


def _tokens(columns: Sequence[Mapping[str, Tensor]]) -> Tokens:
    """Of all slabs, in their order."""
    return Tokens(**{name: torch.cat([part[name] for part in columns]).cpu().numpy() for name in columns[0]})


def fitted_temperature(model: Transformer, batches: Iterable[Batch]) -> float:
    """The temperature of lowest NLL on these batches. Activations are kept, logits computed anew at each step."""
    kept = list(slabs(model, batches))

    def chunks() -> Iterator[tuple[Tensor, Tensor]]:
        with torch.no_grad():
            for slab in kept:
                yield model.logits(slab.hidden_ND), slab.targets_N

    return fit_temperature_to_chunks(chunks, by="nll")


def first_text(translations: Sequence[Hypothesis]) -> str:
    """The best translation; empty where the search's constraints left none."""
    return translations[0].text if translations else ""


def translate_split(
    translator: Translator,
    split: Split,
    search: SearchConfig,
    sentences: int | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> tuple[list[list[Hypothesis]], TranslationScores]:
    """Translations of the first `sentences` sources of a split (None: all), and their scores against its references."""
    rows = range(len(split) if sentences is None else min(sentences, len(split)))
    hypotheses = translator.translate([split.source_text(row) for row in rows], search, on_progress=on_progress)
    scores = translation_scores([first_text(best) for best in hypotheses], [split.references(row) for row in rows])
    return hypotheses, scores


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Teacher-forced figures, and translations with their scores against the references."""

    teacher_forced: TeacherForced
    translation: TranslationScores
    hypotheses: list[list[Hypothesis]]

    def figures(self) -> dict[str, float]:
        """By the names under which they are recorded."""
        return {**self.teacher_forced.figures(), **self.translation_figures()}

    def translation_figures(self) -> dict[str, float]:
        """Those of the translations alone."""
        translation = self.translation
        return {
            **translation.scores,
            "length_ratio": translation.length_ratio,
            "brevity_penalty": translation.brevity_penalty,
        }


def evaluate(
    translator: Translator,
    split: Split,
    search: SearchConfig,
    *,
    loss: LossConfig,
    prior: Prior = "uniform",
    on_progress: Callable[[int], object] | None = None,
    watch: Watch | None = None,
) -> Evaluation:
    """Everything that is reported of one checkpoint on one split, at `search.temperature`; watch: see score_batches."""
    translator.precision.apply()
    teacher_forced = score_batches(
        translator.model, split_batches(split), loss=loss, prior=prior, temperature=search.temperature, watch=watch
    )
    hypotheses, translation = translate_split(translator, split, search, on_progress=on_progress)
    return Evaluation(teacher_forced=teacher_forced, translation=translation, hypotheses=hypotheses)
