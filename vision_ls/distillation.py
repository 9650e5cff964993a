"""Distillation (Section 4): what a student is taught, by which frozen teacher, and how smooth the targets are.

Shape suffixes: N images, B of a batch, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nmt_ls.experiment.distillation import DistillationConfig
from nmt_ls.losses import distillation_loss, smoothness_index
from vision_ls.augment import Augmentation
from vision_ls.data import ImageSplit
from vision_ls.models import ImageModel
from vision_ls.scoring import EVALUATION_BATCH, predict

VIEWS_SEED = 0
"""Of the views on which the smoothness index is measured: the same for every student of a teacher."""


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
