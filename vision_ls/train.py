"""python -m vision_ls.train: train a classifier, or go on with one, and say what it is worth."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from nmt_ls.experiment.command_line import run_command
from nmt_ls.experiment.distillation import taught_line
from nmt_ls.experiment.records import one_line
from nmt_ls.experiment.tables import format_table
from nmt_ls.experiment.training_run import Outcome
from vision_ls.data import in_brackets
from vision_ls.scoring import TOP_ACCURACY, over_runs, telling
from vision_ls.train_config import STEPS_TO_REACH, TrainConfig
from vision_ls.training import train_all

SHORT_NAMES = {
    "ls": "loss.alpha",
    "lr": "optimizer.learning_rate",
    "dropout": "model.dropout",
    "max_updates": "engine.max_updates",
}
MAIN = ("accuracy", TOP_ACCURACY, "nll", "ece", "debiased_ece", "train_accuracy")
OVER_SEEDS = (*MAIN, *STEPS_TO_REACH, "exact_ece")
EXACT = ("exact_ece", "exact_signed_gap", "kl_to_truth", "tv_to_truth")


def main(config: TrainConfig) -> int:
    outcomes = train_all(config)
    if not outcomes:  # of several processes the first says everything
        return 0
    finished = [(outcome, outcome.summary) for outcome in outcomes if outcome.summary is not None]
    for outcome, summary in finished:
        print_summary(outcome, summary)
    if len(finished) > 1:
        print_over_seeds([summary for _, summary in finished], classes_of(finished[0][0]))
    if len(finished) < len(outcomes):
        return 128 + outcomes[-1].signal
    runs = [str(outcome.run.path) for outcome in outcomes]
    named = shlex.join(["--runs" if len(runs) > 1 else "--run", *runs])
    print(f"\nnext: python -m vision_ls.evaluate {named} --results results/mine")
    return 0


def classes_of(outcome: Outcome) -> int:
    """How many there are."""
    return len(outcome.run.read_manifest()["classes"])


def print_summary(outcome: Outcome, summary: Mapping[str, Any]) -> None:
    """The final table of a run, and on the embedded shapes the truth beside it."""
    done = " (finished before; nothing was done)" if outcome.already_finished else ""
    signature = summary["signature"]
    note = in_brackets(signature.get("note", ""))
    print(f"\n{outcome.run.path}, {summary['updates']:,} updates, {summary['split']} split{note}{done}\n")
    rows = [{"checkpoint": name, **row} for name, row in summary["checkpoints"].items()]
    print(format_table(rows, ["checkpoint", "loss", *telling(MAIN, classes_of(outcome))]))
    print(
        f"\nloss: smoothed; nll: nats an image, hard labels; ece: 15 bins; 98% and 99% of the final validation "
        f"accuracy at updates {summary['steps_to_98']:,} and {summary['steps_to_99']:,}"
    )
    if "gamma" in summary:
        print(taught_line(signature, summary["gamma"]))
    if "entropy" in summary:
        truth = summary["checkpoints"][summary["checkpoint"]]
        print(
            "\nagainst the exact posterior of every image (exact_ece: correctness replaced by the true probability):\n"
        )
        print(format_table(rows, ["checkpoint", *EXACT]))
        print(
            f"\nwhat the truth allows: NLL {truth['entropy']:.4f} nats an image, accuracy {truth['best_accuracy']:.4f}"
        )
    print(f"\nrecipe: {one_line(signature)}")


def print_over_seeds(summaries: Sequence[Mapping[str, Any]], classes: int) -> None:
    """Mean and standard deviation over the runs, of the first checkpoint that each summary scores."""
    first = summaries[0]
    note = in_brackets(first["signature"].get("note", ""))
    print(f"\nover {len(summaries)} seeds, {first['checkpoint']} checkpoint, {first['split']} split{note}:\n")
    figures = [{**summary, **summary["checkpoints"][summary["checkpoint"]]} for summary in summaries]
    rows = over_runs(figures, telling(OVER_SEEDS, classes))
    print(format_table(rows, ["figure", "mean", "sd"]))


if __name__ == "__main__":
    run_command(
        main,
        TrainConfig,
        program="python -m vision_ls.train",
        description="Train a classifier with label smoothing, or go on with one, and score it on its test split.",
        short_names=SHORT_NAMES,
    )
