"""python -m benchmarks.convergence: whether training in bf16 arrives where training in fp32 does.

Two runs of one configuration and seed, one trained in each precision, at every validation that both have made after
the first `after` updates: NLL (all of the validation split) and BLEU (its first sentences, as training translates
them), both computed in fp32. Two such runs part after a few updates like two seeds, and a single validation moves by
several hundredths of a nat, so it is their mean difference that is judged, with its standard error: whether the 95%
interval lies within the limit (0.02 nats, 0.3 BLEU), outside it, or neither. Validations of one run resemble
each other, so the interval is rather too narrow. Beside it stands the best validation of each run.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import print_table, write_records
from nmt_ls.experiment.command_line import UserError, run_command
from nmt_ls.experiment.run_directory import RunDirectory

FIGURES: Mapping[str, tuple[float, Callable[[Iterable[float]], float]]] = {"nll": (0.02, min), "bleu": (0.3, max)}
"""By name: by how much the runs may differ, and which of many is the best."""
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
        keys = recipes["fp32"].keys() | recipes["bf16"].keys()
        wrong = sorted(key for key in keys if recipes["fp32"].get(key) != recipes["bf16"].get(key))
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
    for figure, (limit, best) in FIGURES.items():
        differences = [made["bf16"][step][figure] - made["fp32"][step][figure] for step in steps]
        difference = statistics.mean(differences)
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        rows.append(
            {
                "figure": figure,
                "fp32": statistics.mean(made["fp32"][step][figure] for step in steps),
                "bf16": statistics.mean(made["bf16"][step][figure] for step in steps),
                "difference": difference,
                "standard error": error,
                "difference at the last": differences[-1],
                **{f"best {name}": best(line[figure] for line in made[name].values()) for name in made},
                "limit": limit,
                "interval": judge(difference, error, limit),
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


def judge(difference: float, error: float, limit: float) -> str:
    """Where the 95% interval of a mean difference lies: within the limit on either side, outside it, or neither."""
    low, high = difference - 1.96 * error, difference + 1.96 * error
    if -limit <= low and high <= limit:
        return "inside"
    return "outside" if low > limit or high < -limit else "cannot be told"


def _recipe(run: RunDirectory) -> Mapping[str, Any]:
    return {key: value for key, value in run.read_config().items() if key not in _FREE}


def main(config: BenchmarkConfig) -> None:
    rows, about = compare(config)
    columns = {"figure": "", "fp32": ".3f", "bf16": ".3f", "difference": "+.3f", "standard error": ".3f"}
    columns |= {"difference at the last": "+.3f", "best fp32": ".3f", "best bf16": ".3f", "limit": "", "interval": ""}
    print_table(
        f"means over {about['validations']} validations, updates {about['first']} to {about['last']}", rows, columns
    )
    named = [({**about, **{key: row.pop(key) for key in ("figure", "limit", "interval")}}, row) for row in rows]
    write_records(config.out, "convergence", named)


if __name__ == "__main__":
    run_command(
        main,
        BenchmarkConfig,
        program="python -m benchmarks.convergence",
        description="Whether training in bf16 arrives where training in fp32 does.",
    )
