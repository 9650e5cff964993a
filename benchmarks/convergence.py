"""python -m benchmarks.convergence: whether training in bf16 arrives where training in fp32 does.

Pairs of runs of one recipe and seed (the recipes of several pairs may differ, as by α or language), one trained in each
precision, at every validation that both have made after the first `after` updates: NLL (all of the validation split)
and BLEU (its first sentences, as training translates them), both computed in fp32. Two such runs part after a few
updates like two seeds, and a single validation moves by several hundredths of a nat, so their mean difference is
judged, with its standard error: whether the 95% interval lies within the limit (0.02 nats, 0.3 BLEU), outside it, or
neither. Of several pairs the interval is Student's t over the pairs' mean differences; of a single pair it is that over
its validations, rather too narrow, as validations of one run resemble each other. Beside it stands the best validation
of each precision, mean over pairs.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import print_table, write_records
from nmt_ls.experiment.command_line import UserError, run_command
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.metrics.statistics import Estimate

FIGURES: Mapping[str, tuple[float, Callable[[Iterable[float]], float]]] = {"nll": (0.02, min), "bleu": (0.3, max)}
"""By name: by how much the runs may differ, and which of many is the best."""
PRECISIONS = ("fp32", "bf16")
_FREE = ("precision", "out", "threads")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Which runs are compared.

    Attributes:
        fp32: runs trained in fp32.
        bf16: the same runs in bf16, in any order.
        after: updates before the first validation that counts.
        out: where the records go; empty for nowhere.
    """

    fp32: tuple[str, ...]
    bf16: tuple[str, ...]
    after: int = 2000
    out: str = "results/speed/convergence.jsonl"

    def __post_init__(self) -> None:
        if self.after < 0:
            raise ValueError("after must not be negative")
        if not self.fp32 or len(self.fp32) != len(self.bf16):
            raise ValueError(f"fp32 and bf16 must name as many runs, got {len(self.fp32)} and {len(self.bf16)}")


def validations(run: RunDirectory) -> dict[int, dict[str, float]]:
    """The figures of every validation, by update."""
    lines = map(json.loads, run.metrics_file.read_text(encoding="utf-8").splitlines())
    return {line["step"]: line for line in lines if line["split"] == "validation"}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The runs of a recipe and seed, their figures at every validation by update, and the updates that are compared."""

    runs: Mapping[str, RunDirectory]
    made: Mapping[str, Mapping[int, Mapping[str, float]]]
    steps: list[int]

    @classmethod
    def read(cls, fp32: str, bf16: str, after: int) -> Pair:
        """Raises UserError for other precisions than these, different corpora, and runs without a common validation."""
        runs = {"fp32": RunDirectory(Path(fp32)), "bf16": RunDirectory(Path(bf16))}
        for name, run in runs.items():
            kind = run.read_manifest()["precision"]["kind"]
            if kind != name:
                raise UserError(f"{name}: {run.path} was trained in {kind}; name a run trained in {name}")
        if len({run.read_manifest()["corpus_checksum"] for run in runs.values()}) > 1:
            raise UserError(f"{fp32} and {bf16} were trained on different corpora (their checksums differ)")
        made = {name: validations(run) for name, run in runs.items()}
        steps = sorted(step for step in made["fp32"].keys() & made["bf16"].keys() if step > after)
        if not steps:
            raise UserError(f"after: {fp32} and {bf16} have no common validation after update {after}")
        return cls(runs=runs, made=made, steps=steps)

    def mean(self, name: str, figure: str) -> float:
        return statistics.mean(self.made[name][step][figure] for step in self.steps)

    def differences(self, figure: str) -> list[float]:
        """bf16 less fp32, at every update that is compared."""
        return [self.made["bf16"][step][figure] - self.made["fp32"][step][figure] for step in self.steps]


def compare(config: BenchmarkConfig) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row a figure, and what they are about.

    Raises UserError for a run without a partner, two runs of one recipe and seed, and for a single pair with a single
    validation, which says nothing of its error.
    """
    pairs = [Pair.read(fp32, bf16, config.after) for fp32, bf16 in _partners(config.fp32, config.bf16)]
    if len(pairs) == 1 and len(pairs[0].steps) < 2:
        raise UserError(f"after: the runs have fewer than two common validations after update {config.after}")
    rows = [_row(figure, pairs) for figure in FIGURES]
    runs = [pair.runs["bf16"] for pair in pairs]
    about = {
        "alphas": [run.read_config()["loss"]["alpha"] for run in runs],
        "seeds": [run.read_config()["seed"] for run in runs],
        "validations": [len(pair.steps) for pair in pairs],
        "first": min(pair.steps[0] for pair in pairs),
        "last": max(pair.steps[-1] for pair in pairs),
        "commit_of_training": sorted({run.read_manifest()["commit"] for pair in pairs for run in pair.runs.values()}),
        "corpora": [run.read_manifest()["corpus_checksum"] for run in runs],
    }
    return rows, about


def _row(figure: str, pairs: list[Pair]) -> dict[str, Any]:
    limit, best = FIGURES[figure]
    each = [pair.differences(figure) for pair in pairs]
    # what is independent of what: pairs, if there are several
    values = [statistics.mean(differences) for differences in each] if len(pairs) > 1 else each[0]
    difference, error = statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
    estimate = Estimate(value=difference, sd=error, resamples=0, degrees=len(pairs) - 1 if len(pairs) > 1 else math.inf)
    bests = {
        f"best {name}": statistics.mean(best(line[figure] for line in pair.made[name].values()) for pair in pairs)
        for name in PRECISIONS
    }
    return {
        "figure": figure,
        **{name: statistics.mean(pair.mean(name, figure) for pair in pairs) for name in PRECISIONS},
        "difference": difference,
        "standard error": error,
        "difference at the last": statistics.mean(differences[-1] for differences in each),
        **bests,
        "limit": limit,
        "interval": judge(estimate, limit),
    }


def judge(difference: Estimate, limit: float) -> str:
    """Where the 95% interval of a mean difference lies: within the limit on either side, outside it, or neither."""
    if -limit <= difference.low and difference.high <= limit:
        return "inside"
    return "outside" if difference.low > limit or difference.high < -limit else "cannot be told"


def _partners(fp32: Sequence[str], bf16: Sequence[str]) -> list[tuple[str, str]]:
    """Each run in fp32 with the one in bf16 that has its recipe and seed."""
    left, taken = {run: _recipe(run) for run in bf16}, list[dict[str, Any]]()
    pairs = list[tuple[str, str]]()
    for run in fp32:
        recipe = _recipe(run)
        if not left:
            raise UserError(f"bf16: a run is named twice, and {run} has no partner")
        wrong = {other: _unlike(recipe, left[other]) for other in left}
        nearest = min(wrong, key=lambda other: len(wrong[other]))
        if wrong[nearest]:
            keys = ", ".join(wrong[nearest])
            raise UserError(f"{run} has no partner: of the runs in bf16 the most like it, {nearest}, differs in {keys}")
        if any(not _unlike(recipe, earlier) for earlier in taken):
            raise UserError(f"fp32: {run} is a second run of one recipe and seed; name one of each")
        del left[nearest]
        taken.append(recipe)
        pairs.append((run, nearest))
    return pairs


def _recipe(run: str) -> dict[str, Any]:
    return {key: value for key, value in RunDirectory(Path(run)).read_config().items() if key not in _FREE}


def _unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys in which two recipes differ."""
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def main(config: BenchmarkConfig) -> None:
    rows, about = compare(config)
    columns = {"figure": "", "fp32": ".3f", "bf16": ".3f", "difference": "+.3f", "standard error": ".3f"}
    columns |= {"difference at the last": "+.3f", "best fp32": ".3f", "best bf16": ".3f", "limit": "", "interval": ""}
    counts = ", ".join(map(str, about["validations"]))
    print_table(
        f"pairs: {len(about['seeds'])}; means of {counts} validations, updates {about['first']} to {about['last']}",
        rows,
        columns,
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
