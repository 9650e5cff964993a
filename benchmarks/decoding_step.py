"""python -m benchmarks.decoding_step --before TREE: a step of beam search, before and after.

TREE is another checkout of this repository (`git worktree add ../before COMMIT`, from the first beam search, 07627c1,
on); *after* is this one. Forced beam search with the same weights, each tree by turns in processes of its own, in the
order before, after, after, before. In fp32 and medium nine of ten translations must be the same (in bf16 random weights
amplify what each rounds otherwise: how many are is recorded).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.beam_search import VOCABULARIES
from benchmarks.common import arithmetic_here, best_gemm_rates, describe_machine, print_table, ratio, write_records
from nmt_ls.experiment.command_line import UserError, run_command
from nmt_ls.experiment.records import commit_of

ARITHMETICS = ("fp32", "medium", "bf16")
SAME = {"fp32": 0.9, "medium": 0.9, "bf16": 0.0}
"""The share of translations that must be those of `before`."""
PACKAGE = Path("nmt_ls", "experiment")
"""By which git tells a checkout of this project."""
PROFILED = "ms in "
"""Begins the names of figures that come from profiles."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
        before: root of the other checkout.
        sizes: presets of the model, as in benchmarks.beam_search.
        arithmetics: fp32, medium (fp32 by oneDNN's kernels) or bf16 (autocast). Empty for all, without bf16 where it
            is emulated.
        beam: hypotheses a sentence.
        sentences: of the batch.
        source_length: pieces of every source, end-of-sentence included.
        steps: length of every translation.
        repeats: rounds; in each both trees have one process.
        runs: searches that a process times.
        threads: of each; 0 leaves PyTorch's choice.
        out: where the records go; empty for nowhere.
    """

    before: str
    sizes: tuple[str, ...] = ("small", "base")
    arithmetics: tuple[str, ...] = ()
    beam: int = 4
    sentences: int = 64
    source_length: int = 16
    steps: int = 24
    repeats: int = 4
    runs: int = 3
    threads: int = 0
    out: str = "results/speed/decoding_step.jsonl"

    def __post_init__(self) -> None:
        if wrong := sorted(set(self.sizes) - set(VOCABULARIES)):
            raise ValueError(f"sizes must be among {', '.join(VOCABULARIES)}, not {', '.join(wrong)}")
        if wrong := sorted(set(self.arithmetics) - set(ARITHMETICS)):
            raise ValueError(f"arithmetics must be among {', '.join(ARITHMETICS)}, not {', '.join(wrong)}")
        counts = (self.beam, self.sentences, self.source_length, self.steps, self.repeats, self.runs)
        if min(counts) < 1 or self.threads < 0:
            raise ValueError("counts must be positive, and threads not negative")


def find_trees(before: str) -> dict[str, Path]:
    """The two checkouts by name. UserError where the other one is none."""
    trees = {"before": Path(before).resolve(), "after": Path(__file__).resolve().parents[1]}
    for tree in trees.values():
        if not (tree / "nmt_ls" / "search").is_dir() or commit_of(tree / PACKAGE)[0] is None:
            raise UserError(
                f"before: {tree} is not the root of a checkout with nmt_ls/search; git worktree add makes one"
            )
    return trees


def state_of(tree: Path) -> str:
    """The commit of a checkout, with -dirty where it was changed."""
    commit, dirty = commit_of(tree / PACKAGE)
    return str(commit)[:12] + ("-dirty" if dirty else "")


def run_worker(tree: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What decoding_step_worker measured. UserError with its last line where it failed."""
    command = [sys.executable, "-m", "benchmarks.decoding_step_worker", str(tree), json.dumps(asked)]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"the search of {tree} failed: {last}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def compare(trees: dict[str, Path], asked: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """A row a tree: target tokens/s, ms of a step by kind of operation (medians over the rounds), and how many
    translations are those of `before`. UserError where these are too few."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    for turn in range(repeats):
        for name in ("before", "after") if turn % 2 == 0 else ("after", "before"):
            found[name].append(run_worker(trees[name], asked))
    seconds = {name: [statistics.median(each["seconds"]) for each in rounds] for name, rounds in found.items()}
    first = found["before"][0]["translations"]
    rows = []
    for name, rounds in found.items():
        tokens = asked["sentences"] * asked["steps"]
        row: dict[str, Any] = {"tree": name, "tokens/s": tokens / statistics.median(seconds[name])}
        row["speed-up"] = ratio(seconds["before"], seconds[name])
        row["same translations"] = sum(a == b for a, b in zip(first, rounds[0]["translations"], strict=True))
        if row["same translations"] < SAME[asked["arithmetic"]] * len(first):
            raise UserError(
                f"only {row['same translations']} of {len(first)} translations of the two trees are the same"
            )
        profiles = [{part["kind"]: part["ms"] for part in each["profile"]} for each in rounds]
        for kind in dict.fromkeys(kind for profile in profiles for kind in profile):
            row[PROFILED + kind] = statistics.median(profile.get(kind, 0.0) for profile in profiles)
        rows.append(row)
    return rows


def main(config: BenchmarkConfig) -> None:
    """Every size in every arithmetic. UserError where the other tree is no checkout, or its search fails."""
    trees = find_trees(config.before)
    if config.threads:
        torch.set_num_threads(config.threads)
    products = best_gemm_rates()
    print(describe_machine(products))
    commits = {name: state_of(tree) for name, tree in trees.items()}
    arithmetics = arithmetic_here(config.arithmetics, ARITHMETICS, products)
    for size in config.sizes:
        for arithmetic in arithmetics:
            asked = {
                "preset": size,
                "vocabulary": VOCABULARIES[size],
                "arithmetic": arithmetic,
                "beam": config.beam,
                "sentences": config.sentences,
                "source_length": config.source_length,
                "steps": config.steps,
                "runs": config.runs,
                "threads": torch.get_num_threads(),
            }
            rows = compare(trees, asked, config.repeats)
            title = f"{size}, {arithmetic}, {commits['before']} and {commits['after']}"
            print_table(title, rows, {"tree": "", "tokens/s": ",.0f", "speed-up": ".2f", "same translations": ""})
            print_table(f"{title}: a step, ms", by_kind(rows), {"kind": "", **dict.fromkeys(trees, ".2f")})
            about = {**asked, "repeats": config.repeats}
            named = [({**about, "tree": row["tree"], "measured": commits[row.pop("tree")]}, row) for row in rows]
            write_records(config.out, "decoding_step", named, products)


def by_kind(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The profiles of `compare`, a row a kind of operation, a column a tree."""
    kinds = dict.fromkeys(key for row in rows for key in row if key.startswith(PROFILED))
    return [
        {"kind": kind.removeprefix(PROFILED), **{row["tree"]: row.get(kind, 0.0) for row in rows}} for kind in kinds
    ]


if __name__ == "__main__":
    run_command(
        main,
        BenchmarkConfig,
        program="python -m benchmarks.decoding_step",
        description="A step of beam search, before and after: this checkout beside another one.",
    )
