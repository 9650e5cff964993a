"""Word-level distillation of translators (Kim & Rush 2016, section 3.1): a student learns what a frozen teacher says of
every next piece of the reference, as Section 4 of the paper has it of images.

Sequence-level distillation needs nothing of this: the student is trained on a corpus whose targets a teacher wrote.

Shapes: B sentences, T target positions, N tokens, D and E the widths of student and teacher, V pieces.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nmt_ls.batching import Batch, Pairs
from nmt_ls.corpus import Corpus
from nmt_ls.experiment.checkpoint import load_state, weights_id
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.distillation import DistillationConfig, finished_teacher, own_teacher
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.losses import projected_distillation_loss, smoothness_index
from nmt_ls.runs import check_vocabularies, find_run
from nmt_ls.scoring import slabs, split_batches
from nmt_ls.transformer import Transformer
from nmt_ls.translator import Translator
from nmt_ls.vocabulary import PAD

GAMMA_TOKENS = 200_000
"""Target tokens on which the smoothness index is measured."""
REPEATED = ("bleu", "nll", "accuracy", "ece", "debiased_ece", "over_confidence", "under_confidence")
"""Figures of a teacher's checkpoint on its test split that summaries and records of its students repeat."""
GAMMA_CHUNK = 256
"""Tokens of which it is computed at a time, in float64."""


class Teacher:
    """A trained translator that says of every prefix of a reference what it expects next, and a student's loss.

    facts: which run and weights these are and how they were trained, for manifests and signatures. figures: for
    summaries of students, how good and how calibrated it is.
    """

    def __init__(
        self, model: Transformer, config: DistillationConfig, facts: Mapping[str, Any], figures: Mapping[str, float]
    ) -> None:
        self.model, self.config, self.facts = model.eval().requires_grad_(False), config, dict(facts)
        self._figures = dict(figures)

    def loss(self, hidden_BTD: Tensor, weight_VD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The student's loss on a batch in nats, summed over its tokens, and beside it the hard-label NLL."""
        with torch.no_grad():
            teacher_BTE = self.model(batch.source_BS, batch.target_in_BT)
        config = self.config
        return projected_distillation_loss(
            hidden_BTD.flatten(0, 1),
            weight_VD,
            teacher_BTE.flatten(0, 1),
            self.model.output_weight,
            batch.target_out_BT.flatten(),
            config.beta,
            config.temperature,
            config.student_temperature,
            config.squared_temperature_factor,
            ignore_index=PAD,
        )

    def figures(self, training: Pairs) -> dict[str, float]:
        """What a student's summary has of it, by name."""
        return {"gamma": self.smoothness_index(training), **self._figures}

    @torch.no_grad()
    def smoothness_index(self, training: Pairs) -> float:
        """γ of its targets, at its temperature, over GAMMA_TOKENS of the training tokens in an order that is always the
        same, or all where there are fewer."""
        tokens, total = 0, 0.0
        for slab in slabs(self.model, split_batches(training, shuffle=True)):
            for start in range(0, len(slab.targets_N), GAMMA_CHUNK):
                part = slice(start, start + GAMMA_CHUNK)
                logits_nV, targets_n = self.model.logits(slab.hidden_ND[part]), slab.targets_N[part].long()
                total += len(targets_n) * smoothness_index(logits_nV, targets_n, self.config.temperature)
            tokens += len(slab.targets_N)
            if tokens >= GAMMA_TOKENS:
                break
        return total / tokens


def open_teacher(config: DistillationConfig, corpus: Corpus, device: torch.device) -> Teacher:
    """The teacher of a student on this corpus.

    Raises UserError where it is no translator's run, is not finished, or has other vocabularies than the corpus.
    """
    path = find_run(str(config.teacher), option="distillation.teacher")
    run = finished_teacher(path)
    try:
        check_vocabularies(path, corpus)
        model = Translator.load(path, config.checkpoint, device).model
    except UserError as error:
        raise UserError(f"distillation.teacher: {error}") from None
    summary = run.read_summary()
    measured = summary["checkpoints"].get(config.checkpoint, {})
    if not measured:
        print(
            f"distillation.teacher: {path} was not scored at its {config.checkpoint} checkpoint when it was trained: "
            "records of its students will not say how good it is",
            file=sys.stderr,
        )
    return Teacher(
        model,
        config,
        teacher_facts(run, config, model, summary["signature"]),
        {f"teacher_{name}": measured[name] for name in REPEATED if name in measured},
    )


def teacher_facts(
    run: RunDirectory, config: DistillationConfig, model: Transformer, signature: Mapping[str, Any]
) -> dict[str, Any]:
    """What manifests and signatures of students say of their teacher; signature: of its summary."""
    folder = run.checkpoints / config.checkpoint
    return {
        **own_teacher(run.read_manifest()),
        "run": run.path.name,
        "checkpoint": config.checkpoint,
        "weights": weights_id(folder),
        "model": model.config.said_sizes,
        "updates": int(load_state(folder)["step"]),
        "dropout": model.config.dropout,
        **{key: signature[key] for key in ("alpha", "spread", "prior", "seed", "corpus")},
    }
