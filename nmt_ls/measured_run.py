"""A run as its figures know it: the checkpoint that is measured, how it was trained, and the recipe of its records.

`score` and `sweep` write records of one run under the same keys, so that whoever reads them need not ask which did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from nmt_ls.experiment.checkpoint import load_state, weights_id
from nmt_ls.experiment.command_line import load_config
from nmt_ls.experiment.precision import Precision
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.search import SearchConfig
from nmt_ls.training import TrainConfig, run_signature
from nmt_ls.translator import CheckpointName

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

    def identity(self, split: str) -> dict[str, Any]:
        """What tells the figures of this run on a split from those of any other."""
        return {"run": self.path.name, "checkpoint": self.checkpoint, "weights": self.weights, "split": split}

    def recipe(
        self, search: SearchConfig, precision: Precision, *, split: str, device: str | torch.device = "cpu"
    ) -> dict[str, Any]:
        """The signature of a figure of this run: how it was trained, which weights, on what, how it was searched."""
        corpus = self.manifest["corpus_checksum"]
        signature = run_signature(replace(self.config, search=search), corpus, precision, split=split, device=device)
        return {
            **signature.to_dict(),
            **self.identity(split),
            **search_keys(search),
            "dropout": self.config.model.dropout,
            "updates": self.updates,
            "training_commit": self.manifest["commit"],
            "training_precision": self.manifest["precision"]["kind"],
        }


def search_keys(search: SearchConfig) -> dict[str, Any]:
    """How translations were searched for, as records say it; of the rest only what is not the default."""
    unusual = {
        entry.name: getattr(search, entry.name)
        for entry in fields(SearchConfig)
        if entry.name not in _SWEPT and getattr(search, entry.name) != getattr(SearchConfig(), entry.name)
    }
    keys: dict[str, Any] = {
        "temperature": search.temperature,
        "beam": search.beam,
        "length_penalty": f"{search.length_penalty_kind}:{search.length_penalty:g}",
    }
    return {**keys, **({"search": unusual} if unusual else {})}
