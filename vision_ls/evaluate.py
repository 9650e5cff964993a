"""python -m vision_ls.evaluate: what a trained classifier is worth on a split, and how far its confidence is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nmt_ls.experiment.command_line import run_command
from nmt_ls.experiment.records import one_line, save_diagrams
from nmt_ls.experiment.tables import format_table
from vision_ls.data import in_brackets
from vision_ls.evaluation import EvaluateConfig, Evaluated, ShownGaps, evaluate_runs, gap_diagrams, store
from vision_ls.scoring import over_runs

COLUMNS = ["temperature", "accuracy", "top5_accuracy", "nll", "ece", "debiased_ece", "ece_floor", "smooth_ece"]
MORE = [
    "temperature",
    "classwise_ece",
    "equal_mass_ece",
    "squared_l2",
    "brier",
    "multiclass_brier",
    "aurc",
    "signed_gap",
]
OVER_RUNS = ("accuracy", "nll", "ece", "debiased_ece", "train_accuracy", "exact_ece")
ALIKE = (
    *("data", "model", "train_size", "updates", "dropout", "prior", "spread", "training_precision", "settings"),
    *("alpha", "teacher_alpha", "teacher_dropout", "teacher_temperature", "student_temperature", "beta"),
    *("squared_temperature_factor", "teacher_checkpoint", "teacher_model", "teacher_settings", "teacher_train_size"),
    "temperature_is",
)
ALWAYS = ("alpha", "temperature_is")  # of these, in the table even where all runs have the same
Measured = tuple[Mapping[str, Any], Mapping[str, float]]  # the recipe of a run's figures, and the figures
EXACT = ["temperature", "exact_ece", "exact_signed_gap", "kl_to_truth", "tv_to_truth"]


def main(config: EvaluateConfig) -> int:
    found: list[Measured] = []
    gaps: list[ShownGaps] = []
    for evaluated in evaluate_runs(config):
        if found:
            print()
        print_figures(evaluated)
        if config.results is not None:
            store(Path(config.results), evaluated, figure=config.figure)
        about = {"data": Path(evaluated.classifier.data.place).name}
        # the figures alone: with them the logits would be kept of every run
        found += [({**each.recipe, **about}, each.values) for each in evaluated.everything]
        gaps.append(evaluated.shown_gaps())
    if config.results is not None and config.figure:
        save_diagrams(Path(config.results), gap_diagrams(gaps))
    if len(config.runs) > 1:
        print_over_runs(found)
    return 0


def print_figures(evaluated: Evaluated) -> None:
    """Tables for a terminal: without temperature, and at the one fitted on the validation split."""
    values = evaluated.plain.values
    rows = [{"temperature": "1", **values}]
    if evaluated.fitted is not None:
        fitted = evaluated.fitted.values
        rows.append({"temperature": f"{values['fitted_temperature']:.3f} (fitted)", **fitted})
    where = f"{evaluated.classifier.path}, {evaluated.classifier.checkpoint} checkpoint"
    note = in_brackets(evaluated.classifier.data.note)
    print(f"{where}, {evaluated.split} split, {values['images']:,.0f} images{note}\n")
    print(format_table(rows, COLUMNS))
    print()
    print(format_table(rows, MORE))
    if "exact_ece" in values:
        print("\nagainst the exact posterior of every image:\n")
        print(format_table(rows, EXACT))
    print(
        f"\nlogit gap {values['logit_gap_mean']:.2f} ± {values['logit_gap_sd']:.2f} over images, "
        f"{values['logit_gap_within_sd']:.2f} between the classes of one{least_loss(evaluated)}"
    )
    print(f"template norms {values['template_norm']:.2f} ± {values['template_norm_sd']:.2f} over classes")
    print(f"accuracy on training images {values['train_accuracy']:.4f}")
    print(f"\nrecipe: {one_line(evaluated.plain.recipe)}")


def least_loss(evaluated: Evaluated) -> str:
    """The gap at which the run's loss is least, as the end of a sentence; empty for hard targets with a prior."""
    values, loss = evaluated.plain.values, evaluated.classifier.config.loss
    if "logit_gap_ideal" in values:
        return f"; least loss at {values['logit_gap_ideal']:.2f}"
    return f"; no single ideal gap with a {loss.prior} prior" if loss.alpha > 0 else ""


def print_over_runs(found: Sequence[Measured]) -> None:
    """Mean and standard deviation over runs that differ in nothing but their seeds, apart for each temperature."""
    columns = [key for key in ALIKE if key in ALWAYS or len({recipe.get(key) for recipe, _ in found}) > 1]
    groups: dict[tuple[Any, ...], list[Mapping[str, float]]] = {}
    for recipe, values in found:
        groups.setdefault(tuple(recipe.get(key) for key in ALIKE), []).append(values)
    rows = [
        {**dict(zip(ALIKE, group, strict=True)), **row}
        for group, values in groups.items()
        for row in over_runs(values, OVER_RUNS)
    ]
    recipe = found[0][0]
    note = in_brackets(recipe.get("note", ""))
    print(f"\nover runs, {recipe['checkpoint']} checkpoint, {recipe['split']} split{note}:\n")
    print(format_table(rows, [*columns, "figure", "runs", "mean", "sd"]))


if __name__ == "__main__":
    run_command(
        main,
        EvaluateConfig,
        program="python -m vision_ls.evaluate",
        description="Evaluate a classifier: accuracy, likelihood, calibration, and temperature scaling beside them.",
    )
