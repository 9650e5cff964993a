"""Distillation (Section 4): what a student is taught, by which frozen teacher, and how smooth the targets are.

Shape suffixes: N images, B of a batch, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nmt_ls.experiment.checkpoint import CheckpointName
from nmt_ls.losses import distillation_loss
from vision_ls.augment import Augmentation
from vision_ls.data import ImageSplit
from vision_ls.models import ImageModel
from vision_ls.scoring import EVALUATION_BATCH, predict

VIEWS_SEED = 0
"""Of the views on which the smoothness index is measured: the same for every student of a teacher."""


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """What a student learns from beside the labels; without a teacher, from those alone.

    teacher: the run of a classifier of the same images. It is frozen, in eval mode, and shown what the student is
        shown, so that shape and normalisation of its images have to be the student's. {seed} stands for the seed.
    checkpoint: which weights of it.
    temperature: divides the teacher's logits.
    student_temperature: divides the student's while it learns; left out, the teacher's, as Section 4 has it.
    beta: weight of the teacher's targets, against that of the labels (at the student's temperature too); with 1, the
        paper's, labels are not looked at.
    squared_temperature_factor: the teacher's part is multiplied by both temperatures, so that its gradient keeps its
        size (Hinton et al. 2015, section 2); at high ones student's logits are then matched to teacher's (eq. 4).
    """

    teacher: str | None = None
    checkpoint: CheckpointName = "best"
    temperature: float = 1.0
    student_temperature: float | None = None
    beta: float = 1.0
    squared_temperature_factor: bool = False

    def __post_init__(self) -> None:
        for key in ("temperature", "student_temperature"):
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{key} must be positive, not {value}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must lie in [0, 1], not {self.beta}")

    def recipe(self, teacher: Mapping[str, Any]) -> dict[str, Any]:
        """What signatures of a student's figures say of it; teacher: see `Teacher.facts`."""
        student = self.temperature if self.student_temperature is None else self.student_temperature
        return {
            **{f"teacher_{key}": value for key, value in teacher.items()},
            "teacher_temperature": self.temperature,
            "student_temperature": student,
            "beta": self.beta,
            "squared_temperature_factor": self.squared_temperature_factor,
        }


class Teacher:
    """A trained classifier that says of views what it makes of them, and a student's loss against that.

    facts: which run and weights these are and how they were trained, for manifests and signatures. figures: for
    summaries of students, its accuracy on what it was trained on, which says whether it is over-confident, and on test
    images, and how soon it had learnt (None where that is not known).

    Where images are never shown otherwise its logits are computed once, in fp32; else in the arithmetic of training.
    """

    def __init__(
        self,
        model: ImageModel,
        config: DistillationConfig,
        facts: Mapping[str, Any],
        *,
        figures: Mapping[str, float | None],
        forward: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """forward: the model's, where it is compiled."""
        self.model, self.config, self.facts = model.eval().requires_grad_(False), config, dict(facts)
        self._figures = {name: value for name, value in figures.items() if value is not None}
        self._forward = forward or self.model
        self._known_NK: Tensor | None = None

    def learn_by_heart(self, images: ImageSplit, augmentation: Augmentation) -> None:
        """Keep the logits of training images that are never shown otherwise; of others nothing is kept."""
        if augmentation.fixed:
            self._known_NK = predict(self.model, augmentation, images).to(next(self.model.parameters()).device)

    @torch.no_grad()
    def logits(self, views_BCHW: Tensor, rows_B: Tensor) -> Tensor:
        """Of these views of these rows of the training images: BK, float32 or wider."""
        return self._forward(views_BCHW) if self._known_NK is None else self._known_NK[rows_B.to(self._known_NK.device)]

    def loss(self, student_BK: Tensor, views_BCHW: Tensor, labels_B: Tensor, rows_B: Tensor) -> Tensor:
        """The student's loss, summed over the batch, in nats: `losses.distillation_loss`."""
        config = self.config
        return len(rows_B) * distillation_loss(
            student_BK,
            self.logits(views_BCHW, rows_B),
            labels_B,
            config.beta,
            config.temperature,
            config.student_temperature,
            config.squared_temperature_factor,
        )

    def figures(self, images: ImageSplit, augmentation: Augmentation) -> dict[str, float]:
        """What a student's summary has of it, by name."""
        return {"gamma": self.smoothness_index(images, augmentation), **self._figures}

    def smoothness_index(self, images: ImageSplit, augmentation: Augmentation) -> float:
        """γ of its targets, at its temperature: over all training images, each in one view of those that students see.

        Views are drawn from VIEWS_SEED; the global random numbers stay where they are.
        """
        logits_NK = self._of_views(images, augmentation) if self._known_NK is None else self._known_NK
        return smoothness_index(logits_NK, images.labels_N.to(logits_NK.device), self.config.temperature)

    @torch.no_grad()
    def _of_views(self, images: ImageSplit, augmentation: Augmentation) -> Tensor:
        """The logits of one random view of every image; not as compiled, for which these batches have other shapes."""
        device, parts = next(self.model.parameters()).device, []
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(VIEWS_SEED)  # of the CPU, where augmentation draws
            for rows_B in torch.split(torch.arange(len(images)), EVALUATION_BATCH):
                parts.append(self.model(augmentation.train(images.images_NCHW[rows_B].to(device))))
        return torch.cat(parts)


def smoothness_index(logits_NK: Tensor, labels_N: Tensor, temperature: float = 1.0) -> float:
    """γ = E[Σ_k (1 − y_k) p_k(T) · K/(K − 1)]: the mass on wrong classes, as the α that would put as much there.

    Section 4. Targets smoothed with α have γ = α; what is uniform has γ = 1. Computed in float64.
    """
    wrong_N = 1 - torch.softmax(logits_NK.double() / temperature, 1).gather(1, labels_N[:, None])[:, 0]
    classes = logits_NK.shape[1]
    return float(wrong_N.mean()) * classes / (classes - 1)
