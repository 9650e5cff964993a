"""python -m benchmarks.convergence: whether training in bf16 arrives where training in fp32 does.

Two runs of one configuration and seed, one trained in each precision, at every validation that both have made after
the first `after` updates: NLL (all of the validation split) and BLEU (its first sentences, as training translates
them), both computed in fp32. Two such runs part after a few updates like two seeds, and a single validation moves by
several hundredths of a nat, so it is their mean difference that is judged, with its standard error.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import print_table, write_records
from nmt_ls.experiment.command_line import UserError, run_command
from nmt_ls.experiment.run_directory import RunDirectory

FIGURES = ("nll", "bleu")
_FREE = ("precision", "out", "threads")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Which runs are compared.

    Attributes:
        fp32: a run trained in fp32.
        bf16: the same run in bf16.
        after: updates before the first validation that counts.
        out: where the records go; empty for nowhere.
    """

    fp32: str
    bf16: str
    after: int = 2000
    out: str = "results/speed/convergence.jsonl"

    def __post_init__(self) -> None:
        if self.after < 0:
            raise ValueError("after must not be negative")


def validations(run: RunDirectory) -> dict[int, dict[str, float]]:
    """The figures of every validation, by update."""
    lines = map(json.loads, run.metrics_file.read_text(encoding="utf-8").splitlines())
    return {line["step"]: line for line in lines if line["split"] == "validation"}


def compare(config: BenchmarkConfig) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row a figure, and what they are about. Raises UserError for runs that differ in more than their precision."""
    runs = {name: RunDirectory(Path(getattr(config, name))) for name in ("fp32", "bf16")}
    recipes = {name: _recipe(run) for name, run in runs.items()}
    if recipes["fp32"] != recipes["bf16"]:
        wrong = sorted(k for k in recipes["fp32"] if recipes["fp32"][k] != recipes["bf16"].get(k))
        raise UserError(f"fp32 and bf16: the runs differ in {', '.join(wrong)}; compare runs of one configuration")
    for name, run in runs.items():
        kind = run.read_manifest()["precision"]["kind"]
        if kind != name:
            raise UserError(f"{name}: {run.path} was trained in {kind}; name a run trained in {name}")
    made = {name: validations(run) for name, run in runs.items()}
    steps = sorted(step for step in made["fp32"].keys() & made["bf16"].keys() if step > config.after)
    if len(steps) < 2:
        raise UserError(f"after: the runs have fewer than two common validations after update {config.after}")
    rows = []
    for figure in FIGURES:
        differences = [made["bf16"][step][figure] - made["fp32"][step][figure] for step in steps]
        rows.append(
            {
                "figure": figure,
                "fp32": statistics.mean(made["fp32"][step][figure] for step in steps),
                "bf16": statistics.mean(made["bf16"][step][figure] for step in steps),
                "difference": statistics.mean(differences),
                "standard error": statistics.stdev(differences) / math.sqrt(len(differences)),
                "difference at the last": differences[-1],
            }
        )
    recipe = recipes["fp32"]
    about = {
        "alpha": recipe["loss"]["alpha"],
        "seed": recipe["seed"],
        "validations": len(steps),
        "first": steps[0],
        "last": steps[-1],
        "commit_of_training": runs["bf16"].read_manifest()["commit"],
        "corpus": runs["bf16"].read_manifest()["corpus_checksum"],
    }
    return rows, about


def _recipe(run: RunDirectory) -> Mapping[str, Any]:
    return {key: value for key, value in run.read_config().items() if key not in _FREE}


def main(config: BenchmarkConfig) -> None:
    rows, about = compare(config)
    columns = {"figure": "", "fp32": ".3f", "bf16": ".3f", "difference": "+.3f", "standard error": ".3f"}
    title = f"means over {about['validations']} validations, updates {about['first']} to {about['last']}"
    print_table(title, rows, {**columns, "difference at the last": "+.3f"})
    write_records(config.out, "convergence", [({**about, "figure": row.pop("figure")}, row) for row in rows])


if __name__ == "__main__":
    run_command(
        main,
        BenchmarkConfig,
        program="python -m benchmarks.convergence",
        description="Whether training in bf16 arrives where training in fp32 does.",
    )
