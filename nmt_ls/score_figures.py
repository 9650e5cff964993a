"""The figures that `score` gives of a run on a split, kind by kind, and the diagrams drawn of them.

Shapes: N tokens of a slab, V pieces, S sentences of the split.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from nmt_ls.corpus import Corpus, Split
from nmt_ls.losses import LossConfig
from nmt_ls.metrics.calibration import Calibration, CalibrationAccumulator
from nmt_ls.metrics.figures import calibration_figures
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.logit_gaps import LogitGapAccumulator, LogitGaps
from nmt_ls.metrics.null import calibration_test, null_distribution
from nmt_ls.metrics.plots import logit_gap_figure, reliability_diagram, risk_coverage_figure
from nmt_ls.metrics.selective import risk_coverage
from nmt_ls.metrics.sequence import correlation, empty_translation, nbest_calibration
from nmt_ls.metrics.slices import bucket, calibration_by_slice
from nmt_ls.metrics.temperature import log_probs
from nmt_ls.metrics.ter_alignment import ter_alignment
from nmt_ls.metrics.translation import sentence_bleu, sentence_chrf
from nmt_ls.score_records import Figures
from nmt_ls.scoring import BINS, Evaluation, Slab, TeacherForced, Tokens
from nmt_ls.vocabulary import EOS, Vocabulary

POSITION_EDGES = (1, 4, 8, 16)  # from 1, end-of-sentence included
FREQUENCY_EDGES = (10, 100, 1_000, 10_000)  # of the predicted piece among the training split's targets
LENGTH_EDGES = (5, 10, 15, 20, 30)  # of the source in pieces, end-of-sentence included
OF_THE_NULL = ("ece_floor", "ece_null_mean", "ece_p_value", "squared_l2_p_value")
"""Figures that hold an error against a calibrated model whose every token is right or wrong on its own."""
EXACT_SLICE = 1_000  # tokens whose null distribution is drawn one by one, in about 30 ms; of more, bin by bin


class Watcher:
    """What else than teacher-forced figures one pass over the split gives: logit gaps, and p(empty translation)."""

    def __init__(self, sentences: int, temperature: float) -> None:
        self.gaps = LogitGapAccumulator()
        self.empty_S: FloatArray = np.full(sentences, np.nan)  # log p(end of sentence at once | source)
        self._temperature = temperature

    def __call__(self, logits_NV: Tensor, slab: Slab) -> None:
        self.gaps.update(logits_NV, slab.targets_N)
        first_N = slab.positions_N == 0
        if bool(first_N.any()):
            log_p = log_probs(logits_NV[first_N], self._temperature)[:, EOS]
            self.empty_S[slab.sentences_N[first_N.cpu()].numpy()] = log_p.double().cpu().numpy()


def forced_figures(forced: TeacherForced) -> Figures:
    """Likelihood, calibration and selective prediction given the correct prefix."""
    tokens = forced.tokens
    return Figures(values={**forced.figures(), **calibration_figures(tokens.confidences, tokens.correct, bins=BINS)})


def translation_figures(evaluation: Evaluation) -> Figures:
    """What the translations are worth."""
    return Figures(values=evaluation.translation_figures(), searched=True, signatures=evaluation.translation.signatures)


def gap_figures(gaps: LogitGaps, loss: LossConfig) -> Figures:
    """Logit gaps at temperature 1, and the gap at which the run's loss is least, where it is one number."""
    values = gaps.figures_of_loss(loss.alpha, loss.spread, loss.prior)
    return Figures(values=values, recipe={"temperature": 1.0, "temperature_is": "given", "fitted_on": None})


class OutputTokens:
    """The tokens (pieces) that the model itself wrote: how sure it was of each, and whether TER aligns it with an
    equal piece of the reference, of several references of the one that takes the fewest edits (Wang et al. 2020).

    confidences: the probability of the piece at the search's temperature, given what the model had written before.
    End-of-sentence is not among them: TER has no such token.
    """

    def __init__(self, evaluation: Evaluation, split: Split, vocabulary: Vocabulary) -> None:
        confidences, correct = list[float](), list[bool]()
        for row, found in enumerate(evaluation.hypotheses):
            if not found:
                continue
            references = [vocabulary.pieces(vocabulary.encode(text)) for text in split.references(row)]
            alignments = [ter_alignment(found[0].pieces, reference) for reference in references]
            correct += min(alignments, key=lambda alignment: alignment.edits).correct
            confidences += np.exp(found[0].token_log_probs[: len(found[0].pieces)]).tolist()
        self.confidences = np.minimum(np.array(confidences), 1.0)
        self.correct = np.array(correct, dtype=bool)

    def calibration(self) -> Calibration:
        """In bins."""
        return CalibrationAccumulator(BINS).update(self.confidences, self.correct).compute()

    def figures(self) -> Figures:
        """Inference calibration, in the names of the teacher-forced one.

        Without floors and p-values: whether one alignment with one reference finds a piece depends on its neighbours,
        and is not drawn with the piece's probability even where the model is the truth itself.
        """
        values = calibration_figures(self.confidences, self.correct, bins=BINS) | {"tokens": len(self.correct)}
        return Figures(
            values={f"inference_{name}": value for name, value in values.items() if name not in OF_THE_NULL},
            searched=True,
            recipe={"confidence": "token probability", "correct": "TER-aligned piece"},
        )


class SentenceScores(NamedTuple):
    """Of every sentence that has a translation; each [number of those]."""

    rows: list[int]  # of the split
    log_p: FloatArray  # of the translation, nats
    a_token: FloatArray  # the same over its tokens, end-of-sentence included
    bleu: FloatArray  # of the sentence, at most 100
    chrf: FloatArray


def sentence_scores(evaluation: Evaluation, split: Split) -> SentenceScores:
    """How probable each translation is, and how good."""
    rows = [row for row, found in enumerate(evaluation.hypotheses) if found and found[0].token_log_probs]
    best = [evaluation.hypotheses[row][0] for row in rows]
    texts, references = [one.text for one in best], [split.references(row) for row in rows]
    log_p = np.array([one.log_prob for one in best])
    a_token = log_p / np.array([len(one.token_log_probs) for one in best])
    bleu = np.minimum(sentence_bleu(texts, references), 100.0)  # sacrebleu's rounding exceeds it a little
    return SentenceScores(rows, log_p, a_token, bleu, sentence_chrf(texts, references))


def sentence_figures(evaluation: Evaluation, split: Split, empty_S: FloatArray) -> Figures:
    """Do probable translations have better quality, and how probable is saying nothing?"""
    rows, log_p, a_token, bleu, chrf = sentence_scores(evaluation, split)
    values: dict[str, float] = {}
    if len(log_p) >= 2:
        for quality_name, quality in (("bleu", bleu), ("chrf", chrf)):
            for score_name, score in (("log_prob", log_p), ("mean_log_prob", a_token)):
                found = correlation(score, quality)
                values[f"{score_name}_{quality_name}_pearson"] = found.pearson
                values[f"{score_name}_{quality_name}_spearman"] = found.spearman
    if len(log_p):
        curve = risk_coverage(a_token, bleu / 100)
        values |= {"sentence_aurc": curve.aurc, "sentence_excess_aurc": curve.excess_aurc}
        empty = empty_translation(np.minimum(empty_S[rows], 0.0), np.minimum(log_p, 0.0))
        values |= {"empty_probability": empty.mean_probability, "empty_preferred": empty.preferred}
    return Figures(values=values, searched=True)


def nbest_figures(evaluation: Evaluation, split: Split) -> list[Figures]:
    """Calibration of n-best lists, where more than one translation was asked for: does a hypothesis's share of its
    list's probability tell whether it is the one of highest sentence BLEU?"""
    width = max((len(found) for found in evaluation.hypotheses), default=0)
    rows = [row for row, found in enumerate(evaluation.hypotheses) if found]
    if width < 2:
        return []
    log_probs_SH, bleu_SH = np.zeros((len(rows), width)), np.zeros((len(rows), width))
    mask_SH = np.zeros((len(rows), width), dtype=bool)
    for index, row in enumerate(rows):
        found = evaluation.hypotheses[row]
        log_probs_SH[index, : len(found)] = [one.log_prob for one in found]
        bleu_SH[index, : len(found)] = sentence_bleu([one.text for one in found], [split.references(row)] * len(found))
        mask_SH[index, : len(found)] = True
    calibration = nbest_calibration(log_probs_SH, bleu_SH, mask_SH, BINS)
    values = {
        "nbest_ece": calibration.ece,
        "nbest_over_confidence": calibration.over_confidence,
        "nbest_under_confidence": calibration.under_confidence,
        "nbest_brier": calibration.brier,
    }
    return [Figures(values=values, searched=True)]


def slice_figures(tokens: Tokens, split: Split, corpus: Corpus) -> list[Figures]:
    """Calibration apart by position, by the training frequency of the predicted piece, where the end of the sentence is
    predicted, and by the source's length.

    Slices go by what is known before the label is: among tokens whose *label* is rare, or the end, a calibrated model
    is too sure, or not sure enough, as well.
    """
    pieces = corpus.split("train").target
    total = int(pieces.lengths_N.sum()) + len(pieces)
    frequency = np.rint(corpus.unigram_prior().numpy() * total)[tokens.predictions]
    kinds = {
        "position": bucket(tokens.positions + 1, POSITION_EDGES),
        "predicted_frequency": bucket(frequency, FREQUENCY_EDGES),
        "predicted_end": ((tokens.predictions == EOS).astype(np.intp), ["words", "end of sentence"]),
        "source_length": bucket((split.source.lengths_N + 1)[tokens.sentences], LENGTH_EDGES),
    }
    return calibration_apart(tokens.confidences, tokens.correct, kinds)


def calibration_apart(
    confidences: FloatArray,
    correct: NDArray[np.bool_],
    kinds: Mapping[str, tuple[NDArray[np.intp], list[str]]],
    by_outcome: Collection[str] = (),
) -> list[Figures]:
    """Of each slice ECE with its floor and p-value, debiased ECE, and signed gap (accuracy minus confidence).

    A slice has fewer tokens than the whole, and so a higher floor: an ECE below it says nothing.
    kinds: the tokens' slices, and their names. by_outcome: those of them that depend on the labels. They have no floor
    and no p-value, which are of a calibrated model whose slices are known beforehand.
    """
    found = []
    for kind, (groups, names) in kinds.items():
        for index, calibration in calibration_by_slice(confidences, correct, groups, BINS).items():
            inside = groups == index
            values = {"ece": calibration.ece}
            if kind not in by_outcome:
                test = calibration_test(confidences[inside], correct[inside], BINS, exact_up_to=EXACT_SLICE)
                values |= {"ece_floor": test.floor, "ece_p_value": test.p_value}
            values |= {"debiased_ece": calibration.debiased_l1, "signed_gap": calibration.signed_gap}
            values = {f"{name}_by_{kind}": value for name, value in values.items()}
            found.append(Figures(values=values, recipe={"slice": names[index], "tokens": calibration.count}))
    return found


def reliability(name: str, forced: TeacherForced, outputs: OutputTokens | None, title: str) -> Figure:
    """Accuracy against confidence with the band of a calibrated model; with outputs, of these beside it."""
    systems = {name: forced.calibration}
    if outputs is not None:
        systems = {"given the correct prefix": forced.calibration, "of its own output": outputs.calibration()}
    return reliability_diagram(systems, null_distribution(forced.tokens.confidences, BINS).accuracy_band(), title=title)


def risks(evaluation: Evaluation, split: Split, title: str) -> Figure:
    """Risk against coverage: of tokens given the correct prefix, and of whole translations by log p a token."""
    tokens = evaluation.teacher_forced.tokens
    scores = sentence_scores(evaluation, split)
    curves = {"tokens: share wrong": risk_coverage(tokens.confidences, tokens.correct)}
    if scores.rows:
        curves["sentences: 1 − sentence BLEU"] = risk_coverage(scores.a_token, scores.bleu / 100)
    return risk_coverage_figure(curves, title=title, risk_label="risk")


def gap_diagram(name: str, gaps: LogitGaps, figures: Figures, title: str) -> Figure:
    """Histogram of the logit gaps, with the ideal one where the loss has one."""
    ideal = figures.values.get("logit_gap_ideal", torch.inf)
    return logit_gap_figure({name: gaps}, {name: ideal}, title=title)
