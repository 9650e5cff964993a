"""A run as its figures know it: the checkpoint that is measured, how it was trained, and the recipe of its records.

`score` and `sweep` write records of one run under the same keys, and `decode` prints them, so that whoever reads them
need not ask which did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from nmt_ls.experiment.checkpoint import CheckpointName, load_state, weights_id
from nmt_ls.experiment.command_line import load_config
from nmt_ls.experiment.distillation import of_teacher
from nmt_ls.experiment.precision import Kind, Precision
from nmt_ls.experiment.records import Signature
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.search import SearchConfig
from nmt_ls.training import TrainConfig, run_signature

_SWEPT = ("temperature", "beam", "length_penalty", "length_penalty_kind")


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """What a run was asked, and the checkpoint that is measured.

    updates: at which the checkpoint was written; weights: 16 characters of their SHA-256.
    """

    path: Path
    config: TrainConfig
    manifest: Mapping[str, Any]
    updates: int
    checkpoint: CheckpointName
    weights: str

    @classmethod
    def open(cls, path: Path, checkpoint: CheckpointName) -> MeasuredRun:
        """Raises UserError where it is no run of ours, or has no such checkpoint."""
        run = RunDirectory(path)
        config = load_config(TrainConfig, run.read_config(), where=f"{path}/config.yaml")
        folder = run.checkpoints / checkpoint
        weights = weights_id(folder)
        return cls(
            path=path,
            config=config,
            manifest=run.read_manifest(),
            updates=int(load_state(folder)["step"]),
            checkpoint=checkpoint,
            weights=weights,
        )

    def best_validation_step(self) -> int | None:
        """Where the NLL of the validation log is lowest, up to the checkpoint; None where nothing was validated yet."""
        lines = [
            line
            for line in RunDirectory(self.path).read_metrics()
            if line["split"] == "validation" and line["step"] <= self.updates and line.get("nll") is not None
        ]
        return int(min(lines, key=lambda line: float(line["nll"]))["step"]) if lines else None

    def of_teaching(self) -> dict[str, float]:
        """Of a student, what its summary has of its teacher: how smooth its targets were in training (γ), how good and
        how calibrated it was on its test split. Empty for an unfinished run, and one that learnt from labels alone."""
        run = RunDirectory(self.path)
        summary = run.read_summary() if "teacher" in self.manifest and run.summary_file.exists() else {}
        return {key: float(value) for key, value in summary.items() if of_teacher(key)}

    def identity(self, split: str) -> dict[str, Any]:
        """What tells the figures of this run on a split from those of any other."""
        return {"run": self.path.name, "checkpoint": self.checkpoint, "weights": self.weights, "split": split}

    def cell(self, split: str) -> dict[str, Any]:
        """The same, with α and seed: what every row of sentences.parquet says of its run."""
        return {**self.identity(split), "alpha": self.config.loss.alpha, "seed": self.config.seed}

    def recipe(
        self, search: SearchConfig, precision: Precision, *, split: str, device: str | torch.device = "cpu"
    ) -> dict[str, Any]:
        """The signature of a figure of this run: how it was trained, which weights, on what, how it was searched."""
        signature = figure_signature(self.config, self.manifest, search, precision, split=split, device=device)
        return {**signature.to_dict(), **self.identity(split), "updates": self.updates}


def figure_signature(
    trained: TrainConfig,
    manifest: Mapping[str, Any],
    search: SearchConfig,
    precision: Precision,
    *,
    split: str | None,
    device: str | torch.device = "cpu",
) -> Signature:
    """The recipe of a figure but for which weights it is of: how they were trained, on what, how it was searched.

    manifest: of the run. split: of its corpus; None where other text was translated.
    """
    plain = replace(search, samples=0)  # a run's own search draws none; search_keys says how many
    signature = run_signature(
        replace(trained, search=plain),
        manifest["corpus_checksum"],
        precision,
        split=split,
        device=device,
        teacher=manifest.get("teacher"),
        init=manifest.get("init"),
    )
    extras = {
        **signature.extras,
        "sizes": trained.model.said_sizes,
        "search": shared_keys(search, precision.kind).get("search"),  # None where all is usual, and then left out
        "dropout": trained.model.dropout,
        "training_commit": manifest["commit"],
        "training_precision": manifest["precision"]["kind"],
    }
    return replace(signature, extras=extras)


def search_keys(search: SearchConfig, precision: Kind = "fp32") -> dict[str, Any]:
    """How translations were searched for, as records say it; precision: of the arithmetic."""
    return {"temperature": search.temperature, **shared_keys(search, precision)}


def shared_keys(search: SearchConfig, precision: Kind = "fp32") -> dict[str, Any]:
    """What searches at several temperatures have in common; of its lesser settings only what is not the default."""
    unusual = {
        entry.name: getattr(search, entry.name)
        for entry in fields(SearchConfig)
        if entry.name not in _SWEPT and getattr(search, entry.name) != getattr(SearchConfig(), entry.name)
    }
    if precision != "fp32":
        unusual["precision"] = precision
    keys: dict[str, Any] = {
        "beam": search.beam,
        "length_penalty": f"{search.length_penalty_kind}:{search.length_penalty:g}",
    }
    return {**keys, **({"search": unusual} if unusual else {})}
