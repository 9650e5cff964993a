"""python -m vision_ls.evaluate: what a trained classifier is worth on a split, and how far its confidence is right."""

from __future__ import annotations

from pathlib import Path

from nmt_ls.experiment.command_line import run_command
from nmt_ls.experiment.tables import format_table
from vision_ls.evaluation import EvaluateConfig, Evaluated, evaluate, store

COLUMNS = ["temperature", "accuracy", "top5_accuracy", "nll", "ece", "debiased_ece", "ece_floor", "smooth_ece"]
MORE = ["temperature", "classwise_ece", "equal_mass_ece", "squared_l2", "brier", "aurc", "signed_gap"]
EXACT = ["temperature", "exact_ece", "exact_signed_gap", "kl_to_truth", "tv_to_truth"]


def main(config: EvaluateConfig) -> int:
    evaluated = evaluate(config)
    print_figures(evaluated)
    if config.results is not None:
        store(Path(config.results), evaluated, figure=config.figure)
    return 0


def print_figures(evaluated: Evaluated) -> None:
    """Tables for a terminal: without temperature, and at the one fitted on the validation split."""
    values = evaluated.plain.values
    rows = [{"temperature": "1", **values}]
    if evaluated.fitted is not None:
        fitted = evaluated.fitted.values
        rows.append({"temperature": f"{values['fitted_temperature']:.3f} (fitted)", **fitted})
    where = f"{evaluated.classifier.path}, {evaluated.classifier.checkpoint} checkpoint"
    print(f"{where}, {evaluated.split} split, {values['images']:,.0f} images\n")
    print(format_table(rows, COLUMNS))
    print()
    print(format_table(rows, MORE))
    if "exact_ece" in values:
        print("\nagainst the exact posterior of every image:\n")
        print(format_table(rows, EXACT))
    ideal = values.get("logit_gap_ideal", float("inf"))
    print(
        f"\nlogit gap {values['logit_gap_mean']:.2f} ± {values['logit_gap_sd']:.2f} over images, "
        f"{values['logit_gap_within_sd']:.2f} between the classes of one; least loss at {ideal:.2f}"
    )
    print(f"template norms {values['template_norm']:.2f} ± {values['template_norm_sd']:.2f} over classes")
    print(f"accuracy on training images {values['train_accuracy']:.4f}")


if __name__ == "__main__":
    run_command(
        main,
        EvaluateConfig,
        program="python -m vision_ls.evaluate",
        description="Evaluate a classifier: accuracy, likelihood, calibration, and temperature scaling beside them.",
    )
