"""python -m vision_ls.evaluate: what a trained classifier is worth on a split, and how far its confidence is right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nmt_ls.experiment.command_line import run_command
from nmt_ls.experiment.records import one_line, save_diagrams
from nmt_ls.experiment.tables import format_table
from vision_ls.data import in_brackets
from vision_ls.evaluation import EvaluateConfig, Evaluated, ShownGaps, evaluate_runs, gap_diagrams, store
from vision_ls.scoring import TOP_ACCURACY, over_runs, telling
from vision_ls.train_config import STEPS_TO_REACH

OVER_RUNS = (
    *("accuracy", TOP_ACCURACY, "nll", "ece", "debiased_ece", "aurc", "train_accuracy"),
    *(*STEPS_TO_REACH, "logit_gap_mean", "template_norm_spread", "exact_ece"),
)
ALIKE = (
    *("data", "model", "train_size", "updates", "dropout", "prior", "spread", "training_precision", "settings"),
    *("alpha", "teacher_alpha", "teacher_dropout", "teacher_temperature", "student_temperature", "beta"),
    *("squared_temperature_factor", "teacher_checkpoint", "teacher_model", "teacher_settings", "teacher_train_size"),
    "temperature_is",
)
ALWAYS = ("alpha", "temperature_is")  # of these, in the table even where all runs have the same
Measured = tuple[Mapping[str, Any], Mapping[str, float]]  # the recipe of a run's figures, and the figures


def main(config: EvaluateConfig) -> int:
    found: list[Measured] = []
    gaps: list[ShownGaps] = []
    for evaluated in evaluate_runs(config):
        if found:
            print()
        print_figures(evaluated)
        if config.results is not None:
            store(Path(config.results), evaluated, figure=config.figure)
        data = evaluated.classifier.data
        about = {"data": Path(data.place).name, "classes": len(data.classes)}
        # the figures alone: with them the logits would be kept of every run
        found += [({**each.recipe, **about}, each.values) for each in evaluated.everything]
        gaps.append(evaluated.shown_gaps())
    if config.results is not None and config.figure:
        save_diagrams(Path(config.results), gap_diagrams(gaps))
    if len(config.runs) > 1:
        print_over_runs(found)
    return 0


def print_figures(evaluated: Evaluated) -> None:
    """Every figure for a terminal: at temperature 1, and at the one fitted on the validation split."""
    values = evaluated.plain.values
    where = f"{evaluated.classifier.path}, {evaluated.classifier.checkpoint} checkpoint"
    note = in_brackets(evaluated.classifier.data.note)
    print(f"{where}, {evaluated.split} split, {values['images']:,.0f} images{note}\n")
    print(figure_table(evaluated))
    print(
        f"\nlogit gap {values['logit_gap_mean']:.2f} ± {values['logit_gap_sd']:.2f} over images, "
        f"{values['logit_gap_within_sd']:.2f} between the classes of one{least_loss(evaluated)}"
    )
    if clause := evaluated.outside_the_regime:
        print(f"{clause}; what it shows says nothing about over-confident networks")
    print(f"\nrecipe: {one_line(evaluated.plain.recipe)}")


def figure_table(evaluated: Evaluated) -> str:
    """A recorded figure a row; what a fitted temperature makes of it stands beside it."""
    columns = {"T = 1": evaluated.plain.values}
    if evaluated.fitted is not None:
        columns[f"T = {evaluated.plain.values['fitted_temperature']:.3f}, fitted"] = evaluated.fitted.values
    rows = [
        {"figure": name, **{column: _readable(values[name]) for column, values in columns.items() if name in values}}
        for name, value in evaluated.plain.values.items()
        if math.isfinite(value)
    ]
    return format_table(rows, ["figure", *columns])


def _readable(value: float) -> float:
    """Counts as whole numbers: as floats large ones would be in powers of ten."""
    return int(value) if float(value).is_integer() else value


def least_loss(evaluated: Evaluated) -> str:
    """The gap at which the run's loss is least, as the end of a sentence; empty for hard targets with a prior."""
    values, loss = evaluated.plain.values, evaluated.classifier.config.loss
    if "logit_gap_ideal" in values:
        return f"; least loss at {values['logit_gap_ideal']:.2f}"
    return f"; no single ideal gap with a {loss.prior} prior" if loss.alpha > 0 else ""


def print_over_runs(found: Sequence[Measured]) -> None:
    """Mean and standard deviation over runs that differ in nothing but their seeds, apart for each temperature."""
    columns = [key for key in ALIKE if key in ALWAYS or len({recipe.get(key) for recipe, _ in found}) > 1]
    names = telling(OVER_RUNS, max(recipe["classes"] for recipe, _ in found))
    groups: dict[tuple[Any, ...], list[Mapping[str, float]]] = {}
    for recipe, values in found:
        groups.setdefault(tuple(recipe.get(key) for key in ALIKE), []).append(values)
    rows = [
        {**dict(zip(ALIKE, group, strict=True)), **row}
        for group, values in groups.items()
        for row in over_runs(values, names)
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
