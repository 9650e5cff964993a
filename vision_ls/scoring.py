"""Figures of a classifier on images: what validation, the summary of `train` and `evaluate` all call.

Shape suffixes: N images, B of a batch, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nmt_ls.losses import LossConfig, Prior, smoothed_cross_entropy
from nmt_ls.metrics.calibration import Calibration, CalibrationAccumulator
from nmt_ls.metrics.figures import calibration_figures
from nmt_ls.metrics.likelihood import Likelihood, LikelihoodAccumulator, TokenStatistics, divergences, token_statistics
from nmt_ls.metrics.selective import RiskCoverage, risk_coverage
from nmt_ls.metrics.temperature import log_probs
from vision_ls.augment import Augmentation
from vision_ls.data import ImageSplit, spread_rows
from vision_ls.models import ImageModel

BINS = 15
"""Equal-width bins of ECE (Guo et al. 2017; the paper)."""
EVALUATION_BATCH = 250
"""Images at a time where nothing is trained; a bound on memory, without influence on any figure."""
TOP = 5
TOP_ACCURACY = f"top{TOP}_accuracy"
REGIME_IMAGES = 10_000  # of the training images on which training accuracy is measured


@torch.no_grad()
def predict(
    model: ImageModel,
    augmentation: Augmentation,
    split: ImageSplit,
    *,
    rows_N: Tensor | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    on_progress: Callable[[int], object] | None = None,
) -> Tensor:
    """The logits of a split's images, not augmented, in eval mode: fp32 NK on the CPU. The model's mode is kept.

    rows_N: of these images alone, read a batch at a time. forward: what else to compute of a batch, such as
    `model.penultimate`.
    """
    device, training = next(model.parameters()).device, model.training
    model.eval()
    parts = []
    for start in range(0, len(split if rows_N is None else rows_N), EVALUATION_BATCH):
        part = slice(start, start + EVALUATION_BATCH)
        chosen = part if rows_N is None else rows_N[part].to(split.images_NCHW.device)
        images = split.images_NCHW[chosen].to(device)
        with autocast():
            parts.append((forward or model)(augmentation.evaluate(images)).float().cpu())
        if on_progress is not None:
            on_progress(len(images))
    model.train(training)
    return torch.cat(parts)


def training_accuracy(training: ImageSplit, logits_of: Callable[[Tensor], Tensor]) -> float:
    """Accuracy on (REGIME_IMAGES of) what a network was trained on, not augmented: whether it is over-confident.

    logits_of: the logits NK of these rows of the images.
    """
    rows_N = spread_rows(len(training), REGIME_IMAGES)
    return float((logits_of(rows_N).argmax(1).cpu() == training.labels_N.cpu()[rows_N]).double().mean())


def over_runs(figures: Sequence[Mapping[str, float]], names: Sequence[str]) -> list[dict[str, Any]]:
    """For a table, a row each of these figures that some run has: of how many, their mean and standard deviation (none
    of a single one)."""
    rows = []
    for name in names:
        values = [found[name] for found in figures if name in found]
        if values:
            spread = {"sd": stdev(values)} if len(values) > 1 else {}
            rows.append({"figure": name, "runs": len(values), "mean": mean(values), **spread})
    return rows


def telling(names: Sequence[str], classes: int) -> list[str]:
    """These figures without what is 1 for every classifier of so few classes."""
    return [name for name in names if name != TOP_ACCURACY or classes > TOP]


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """Figures of logits on hard labels, at one temperature (the smoothed loss, training's, at temperature 1).

    examples: what belongs to each image. logits_NK: as they came, at temperature 1.
    """

    smoothed_loss: float
    top_accuracy: float  # the label is among the TOP most probable classes
    likelihood: Likelihood
    calibration: Calibration
    examples: TokenStatistics
    logits_NK: Tensor
    labels_N: Tensor
    temperature: float

    def figures(self) -> dict[str, float]:
        """The main ones, by the names under which they are logged and recorded."""
        return {
            "loss": self.smoothed_loss,
            "nll": self.likelihood.nll,
            "accuracy": self.likelihood.accuracy,
            TOP_ACCURACY: self.top_accuracy,
            "ece": self.calibration.ece,
            "debiased_ece": self.calibration.debiased_l1,
            "model_entropy": self.likelihood.entropy,
            "images": self.likelihood.tokens,
        }

    def every_figure(self) -> dict[str, float]:
        """These and all other calibration figures of the library, those of every class too."""
        probabilities_NK = log_probs(self.logits_NK, self.temperature).exp()
        confidences, correct = self.examples.confidences, self.examples.correct
        return {
            **self.figures(),
            **calibration_figures(confidences, correct, probabilities_NK, self.labels_N, bins=BINS),
        }

    def risk_coverage(self) -> RiskCoverage:
        """Error of what is kept against how much is kept, the surest first."""
        return risk_coverage(self.examples.confidences, self.examples.correct)


def score_logits(
    logits_NK: Tensor, labels_N: Tensor, *, loss: LossConfig, prior: Prior = "uniform", temperature: float = 1.0
) -> ImageScores:
    """Figures of logits (on the CPU) against labels."""
    labels_N = labels_N.cpu()
    examples = token_statistics(logits_NK, labels_N, temperature)
    top = logits_NK.topk(min(TOP, logits_NK.shape[1]), dim=1).indices
    tokens = LikelihoodAccumulator().update(examples.log_probs, examples.correct, examples.entropies)
    return ImageScores(
        smoothed_loss=float(smoothed_cross_entropy(logits_NK, labels_N, loss.alpha, prior, loss.spread)),
        top_accuracy=float((top == labels_N[:, None]).any(1).double().mean()),
        likelihood=tokens.compute(),
        calibration=CalibrationAccumulator(BINS).update(examples.confidences, examples.correct).compute(),
        examples=examples,
        logits_NK=logits_NK,
        labels_N=labels_N,
        temperature=temperature,
    )


def exact_figures(scores: ImageScores, posteriors_NK: Tensor) -> dict[str, float]:
    """What only a known truth p(k | image) can say, nats where it applies.

    exact_accuracy: the mean of p(ŷ | image), what accuracy would be over all labels. exact_ece: ECE with the 0/1
    correctness replaced by it, and its signed gap. Apart from it, how far the
    model is from the truth: the mean KL divergence and total variation. And what the truth allows: the mean of
    −log p of these labels (entropy), and the accuracy of its own best guess.
    """
    posteriors_NK = posteriors_NK.cpu()
    chance_N = posteriors_NK.gather(1, scores.examples.predictions[:, None].cpu())[:, 0]
    exact = CalibrationAccumulator(BINS).update(scores.examples.confidences, chance_N).compute()
    kl_N, variation_N = divergences(posteriors_NK, log_probs(scores.logits_NK, scores.temperature))
    of_labels_N = posteriors_NK.gather(1, scores.labels_N[:, None])[:, 0]
    best: NDArray[np.float64] = posteriors_NK.max(1).values.numpy()
    return {
        "exact_accuracy": float(chance_N.mean()),
        "exact_ece": exact.ece,
        "exact_signed_gap": exact.signed_gap,
        "kl_to_truth": float(kl_N.mean()),
        "tv_to_truth": float(variation_N.mean()),
        "entropy": float(-of_labels_N.log().mean()),
        "best_accuracy": float(best.mean()),
    }
