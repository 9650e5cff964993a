"""python -m nmt_ls.train: train a translator, or go on with one, and say what it is worth."""

from __future__ import annotations

from typing import Any

from nmt_ls.experiment.command_line import run_command
from nmt_ls.experiment.distillation import taught_line
from nmt_ls.experiment.records import one_line
from nmt_ls.experiment.tables import format_table
from nmt_ls.experiment.training_run import Outcome
from nmt_ls.training import TrainConfig, train_together

SHORT_NAMES = {
    "ls": "loss.alpha",
    "lr": "optimizer.learning_rate",
    "beam": "search.beam",
    "dropout": "model.dropout",
    "max_updates": "engine.max_updates",
}


def main(config: TrainConfig) -> int:
    outcome = train_together(config)
    if outcome is None:  # of several processes the first says everything
        return 0
    if outcome.summary is None:
        return 128 + outcome.signal
    print_summary(outcome, outcome.summary)
    return 0


def print_summary(outcome: Outcome, summary: dict[str, Any]) -> None:
    """The final table, and on the embedded corpus the truth beside it."""
    done = " (finished before; nothing was done)" if outcome.already_finished else ""
    print(f"\n{outcome.run.path}, {summary['updates']:,} updates, {summary['split']} split{done}\n")
    columns = ["checkpoint", "loss", "nll", "accuracy", "ece", "bleu", "bleu_lowercase", "chrf", "length_ratio"]
    print(format_table([{"checkpoint": name, **row} for name, row in summary["checkpoints"].items()], columns))
    print("\nloss: smoothed; nll: nats a token, hard labels; ece: 15 bins, given the correct prefix")
    for name, text in summary["translation_signatures"].items():
        print(f"{name}: {text}")
    if "entropy" in summary:
        print("\nwhat the truth allows (the embedded grammar's own probabilities of the same targets):")
        print(f"  NLL {summary['nll']:.4f}, true entropy {summary['entropy']:.4f} nats a piece")
        print(
            f"  BLEU {summary['bleu']:.2f}; the grammar's most probable translations "
            f"{summary['bleu_most_probable']:.2f}, samples from it {summary['bleu_sample']:.2f}"
        )
    if "gamma" in summary:
        print(f"\n{taught_line(summary['signature'], summary['gamma'])}")
    for example in summary["examples"]:
        print(f"\n  source       {example['source']}")
        print(f"  reference    {example['reference']}")
        print(f"  translation  {example['translation']}")
    print(f"\nrecipe: {one_line(summary['signature'])}")
    print(f"\nnext: python -m nmt_ls.decode --run {outcome.run.path} --temperature 1.13")


if __name__ == "__main__":
    run_command(
        main,
        TrainConfig,
        program="python -m nmt_ls.train",
        description="Train a translator with label smoothing, or go on with one, and score it on its test split.",
        short_names=SHORT_NAMES,
    )
