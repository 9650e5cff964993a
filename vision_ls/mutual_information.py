"""How much the difference of two logits says of which training image it is of: Section 4, Figure 6.

X is the index of one of N images of two classes, Y = z_a - z_b of a randomly augmented view of it, and p(y | x) is
taken to be normal. What is estimated is a mean over images x and views y of x,

    log N(y; μ_x, σ) - log( (1/N) Σ_x' N(y; μ_x', σ) )   <= log N,

which in expectation is at most I(X; Y), for any μ and σ that do not depend on the views that are scored (Barber &
Agakov 2003): log N less the cross-entropy of guessing x from y by Bayes' rule. The paper scores the views that μ and σ
come from, which is biased upwards (two clusters that have collapsed have log 2 = 0.69 nats, and 0.81 by 5 views), and
its formula as printed lacks the 1/N. Here views are scored that were not fitted; or there are so few outcomes that all
are looked at, each as probable as the others, and nothing is sampled.

Shape suffixes: N images, L views of each, B of a batch, C channels, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nmt_ls.experiment.command_line import UserError
from vision_ls.augment import Augmentation
from vision_ls.data import ImageData, ImageSplit, spread_rows
from vision_ls.models import ImageModel
from vision_ls.scoring import EVALUATION_BATCH

Sigma = Literal["shared", "each", "best"]
VIEWS_SEED = 0
"""Of randomly drawn views: the same for every checkpoint and run, so that what differs is the network."""
_NARROWEST = 1e-9  # of a normal distribution, as a share of the range of values: clusters may have shrunk to points
_LEAST_OF_EACH = 0.1  # of an image's own σ, as a share of the shared one
_PRIOR_VIEWS = 2  # all fitted views of an image may be alike by chance: its own σ is not 0 for that
_WIDTHS = (0.1, 10.0)  # between which the best σ is sought, as multiples of the standard deviation within images
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, kw_only=True)
class InformationConfig:
    """Of which images information is measured, and how.

    classes: two, by name or number; while training none is measured without them.
    images: training images, half of each class, evenly spread over the class.
    views: of each image. Where it has no more outcomes than that, each is looked at once and nothing is sampled;
        else half of the views give μ and σ (a third, if σ is to be best: another third chooses it), the others are
        scored.
    sigma: one for all images (the paper's), one for each, or the one for all that gives the most information.
    """

    classes: tuple[str, ...] = ()
    images: int = 600
    views: int = 32
    sigma: Sigma = "shared"

    def __post_init__(self) -> None:
        if self.classes and (len(self.classes) != 2 or self.classes[0] == self.classes[1]):
            raise ValueError(f"classes: name two different ones, not {' '.join(self.classes)!r}")
        if self.images < 2 or self.images % 2:
            raise ValueError(f"images must be even and 2 or more, half of each class, not {self.images}")
        if self.views < 6:
            raise ValueError(
                f"views must be 6 or more, a share of them to be fitted and one to be scored, not {self.views}"
            )


@dataclass(frozen=True, kw_only=True)
class Information:
    """Nats: the estimate and, where views were drawn, its standard error over draws of the scored ones (of these images
    and fitted views) and the paper's form, which scores the views that it fits."""

    value: float
    standard_error: float | None = None
    reused: float | None = None

    def figures(self) -> dict[str, float]:
        """By the names under which they are logged and recorded."""
        found = {"": self.value, "_error": self.standard_error, "_reused": self.reused}
        return {f"mutual_information{name}": value for name, value in found.items() if value is not None}


def mutual_information(
    values_NL: Tensor, held_out_NL: Tensor | None = None, sigma: Literal["shared", "each"] | float = "shared"
) -> float:
    """I(X; Y) in nats, as at the top of this file: at most log N; from held-out views it may be a little below 0.

    values_NL: Y of L views of each image, which give μ and σ. held_out_NL: of those that are scored, of the same
    images, as many as you like. Left out, `values_NL` is scored: right where it holds all outcomes, biased upwards
    where they were sampled.
    sigma: "shared", the root of the mean variance within images; "each", every image its own (drawn towards the shared
        one as by two views more, where other views are scored; else at least a tenth of it); or a number.

    Raises ValueError for shapes that do not fit, fewer than 2 views or images, values that are not finite, σ <= 0.
    """
    return float(_scores(values_NL, held_out_NL, sigma).mean())


def best_sigma(values_NL: Tensor, chosen_on_NL: Tensor) -> float:
    """The one σ for all images at which views other than the fitted ones show the most information.

    Sought by golden section between 0.1 and 10 times the standard deviation within images. What is scored with it
    should be neither of these views, unless they are all outcomes. Raises ValueError as `mutual_information`.
    """
    within = _within(values_NL.double(), correction=1)
    low, high = (math.log(width * within) for width in _WIDTHS)
    found: dict[float, float] = {}

    def at(place: float) -> float:
        if place not in found:
            found[place] = mutual_information(values_NL, chosen_on_NL, math.exp(place))
        return found[place]

    while high - low > 0.01:
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if at(left) >= at(right):
            high = right
        else:
            low = left
    return math.exp(max(found, key=lambda place: found[place]))


def information_of(values_NL: Tensor, *, every_outcome: bool, sigma: Sigma) -> Information:
    """The estimate from views in the order in which they were drawn; every_outcome: these are all there are."""
    views = values_NL.shape[1]
    if every_outcome:
        width = best_sigma(values_NL, values_NL) if sigma == "best" else sigma
        return Information(value=mutual_information(values_NL, sigma=width))
    share = views // (3 if sigma == "best" else 2)
    fitted_NL, scored_NL = values_NL[:, :share], values_NL[:, -share:]
    width = best_sigma(fitted_NL, values_NL[:, share : 2 * share]) if sigma == "best" else sigma
    scores_NL = _scores(fitted_NL, scored_NL, width)
    error = math.sqrt(float(scores_NL.var(1).mean()) / scores_NL.numel())
    reused = mutual_information(values_NL)
    return Information(value=float(scores_NL.mean()), standard_error=error, reused=reused)


def _scores(values_NL: Tensor, held_out_NL: Tensor | None, sigma: str | float) -> Tensor:
    """What is averaged, NL of the scored views."""
    for values, least in ((values_NL, 2), (held_out_NL, 1)):
        if values is None:
            continue
        if values.ndim != 2 or len(values) < 2 or values.shape[1] < least:
            raise ValueError(
                f"values must be of 2 or more images, {least} or more views each, not {tuple(values.shape)}"
            )
        if not values.isfinite().all():
            raise ValueError("values must be finite")
    values_NL = values_NL.double()
    scored_NL = values_NL if held_out_NL is None else held_out_NL.double()
    if len(scored_NL) != len(values_NL):
        raise ValueError(f"values are of {len(values_NL)} images, held-out ones of {len(scored_NL)}")
    means_N, sds_N = values_NL.mean(1), _sds(values_NL, sigma, held_out=held_out_NL is not None)
    scores_NL = torch.empty_like(scored_NL)
    for view in range(scored_NL.shape[1]):  # one at a time: N x N densities each
        z_NN = (scored_NL[:, view, None] - means_N) / sds_N
        log_density_NN = -z_NN.square() / 2 - sds_N.log()
        scores_NL[:, view] = log_density_NN.diagonal() - log_density_NN.logsumexp(1)
    return scores_NL + math.log(len(values_NL))


def _sds(values_NL: Tensor, sigma: str | float, *, held_out: bool) -> Tensor:
    """σ of every image; of held-out views, of how they lie round a mean of L others."""
    if not isinstance(sigma, str):
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma must be positive, not {sigma}")
        return torch.full_like(values_NL[:, 0], sigma)
    if sigma not in ("shared", "each"):
        raise ValueError(f'sigma must be "shared", "each" or a number, not {sigma!r}')
    shared = _within(values_NL, correction=int(held_out))
    sds_N = _own(values_NL, shared, held_out) if sigma == "each" else torch.full_like(values_NL[:, 0], shared)
    return sds_N * math.sqrt(1 + 1 / values_NL.shape[1]) if held_out else sds_N


def _own(values_NL: Tensor, shared: float, held_out: bool) -> Tensor:
    """Every image's own standard deviation; of sampled views drawn towards the shared one, as by two views more."""
    if not held_out:
        return values_NL.std(1, correction=0).clamp_min(_LEAST_OF_EACH * shared)
    degrees = values_NL.shape[1] - 1
    return ((degrees * values_NL.var(1) + _PRIOR_VIEWS * shared**2) / (degrees + _PRIOR_VIEWS)).sqrt()


def _within(values_NL: Tensor, *, correction: int) -> float:
    """The standard deviation within images, never 0."""
    return max(float(values_NL.var(1, correction=correction).mean().sqrt()), _narrowest(values_NL))


def _narrowest(values_NL: Tensor) -> float:
    reach = float(values_NL.max() - values_NL.min())
    return _NARROWEST * reach if reach else 1.0


class Pair:
    """The images of two classes whose logits' difference is looked at, and of what network's training they are.

    rows_N: which training images, the first class's first. classes: the numbers of the two.
    """

    def __init__(self, config: InformationConfig, data: ImageData, training: ImageSplit, augmentation: Augmentation):
        """Raises UserError for a class that there is not, one class twice, one with too few images, and where an image
        has one outcome only."""
        self.config, self.augmentation = config, augmentation
        if augmentation.fixed:
            raise UserError(
                "information: images are always shown alike here, so that every one is told from all others; "
                "train with augment.pad, augment.flip or another change"
            )
        first, second = (data.class_index(name) for name in config.classes)
        if first == second:
            raise UserError(f"information.classes: {' and '.join(config.classes)} are one class")
        half, rows = config.images // 2, []
        for k in (first, second):
            own_N = (training.labels_N.cpu() == k).nonzero().squeeze(1)
            if len(own_N) < half:
                raise UserError(
                    f"information.images: {config.images} are {half} of class {data.classes[k]!r}, which has "
                    f"{len(own_N)} to train on; ask for {2 * len(own_N)} at most"
                )
            rows.append(own_N[spread_rows(len(own_N), half)])
        self.rows_N, self.classes = torch.cat(rows), (first, second)
        self._images_NCHW = training.select(self.rows_N).images_NCHW

    @property
    def every_outcome(self) -> bool:
        """Whether all outcomes of the augmentation are looked at, so that none is sampled."""
        return self.augmentation.config.enumerable and self.augmentation.outcomes <= self.config.views

    @property
    def views(self) -> int:
        """How many of each image are looked at."""
        return self.augmentation.outcomes if self.every_outcome else self.config.views

    def information(self, model: ImageModel) -> Information:
        """What the model's logits say, in eval mode and fp32."""
        return information_of(self.logit_differences(model), every_outcome=self.every_outcome, sigma=self.config.sigma)

    @torch.no_grad()
    def logit_differences(self, model: ImageModel) -> Tensor:
        """z_a - z_b of views of every image, NL on the CPU, in eval mode and fp32; the model's mode and the global
        random numbers are kept."""
        device, training, (first, second) = next(model.parameters()).device, model.training, self.classes
        model.eval()
        parts = []
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(VIEWS_SEED)  # of the CPU, where augmentation draws
            for images_BCHW in torch.split(self._images_NCHW, EVALUATION_BATCH):
                logits = [model(view_BCHW) for view_BCHW in self._views(images_BCHW.to(device))]
                parts.append(torch.stack([(each[:, first] - each[:, second]).float().cpu() for each in logits], 1))
        model.train(training)
        return torch.cat(parts)

    def _views(self, images_BCHW: Tensor) -> Iterator[Tensor]:
        if self.every_outcome:
            yield from self.augmentation.views(images_BCHW)
        else:
            for _ in range(self.config.views):
                yield self.augmentation.train(images_BCHW)
