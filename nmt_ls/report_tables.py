"""The tables of a report: what was measured of every recipe of a setting, means over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nmt_ls.accuracy_tables import ACCURACY_MATTERS, accuracy_rows, precision_rows
from nmt_ls.claim_statistics import choose_temperature
from nmt_ls.claims import Chosen
from nmt_ls.distillation_report import student_rows
from nmt_ls.findings import Finding, interval_text
from nmt_ls.image_calibration import scaling_rows
from nmt_ls.information_report import information_rows
from nmt_ls.study_results import NotMeasuredError, Run, SettingResults, fitted_text, mean_and_sd, scored_values
from nmt_ls.translation_tables import estimator_rows, translation_rows


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table: the key of its values, its heading, and how numbers are written."""

    key: str
    heading: str
    format: str = ""

    def text(self, value: Any) -> str:
        """A cell; blank for what is not there."""
        if value is None:
            return ""
        if isinstance(value, Finding):
            return interval_text(value.difference, *value.interval, self.format)
        return format(value, self.format) if self.format and not isinstance(value, str) else str(value)


RECIPES = "Recipes, means over seeds"
RECIPE = [
    Column(key="alpha", heading="α", format="g"),
    Column(key="checkpoint", heading="checkpoint"),
    Column(key="temperature", heading="T"),
    Column(key="seeds", heading="seeds"),
    Column(key="updates", heading="updates"),
]
FIGURES = [
    Column(key="best_validation_step", heading="best step", format=".0f"),
    Column(key="bleu", heading="BLEU", format=".2f"),
    Column(key="chrf", heading="chrF", format=".2f"),
    Column(key="accuracy", heading="accuracy", format=".4f"),
    Column(key="top5_accuracy", heading="top 5", format=".4f"),
    Column(key="train_accuracy", heading="accuracy in training", format=".4f"),
    Column(key="nll", heading="NLL", format=".4f"),
    Column(key="perplexity", heading="perplexity", format=".3f"),
    Column(key="ece", heading="ECE", format=".4f"),
    Column(key="ece_floor", heading="ECE floor", format=".4f"),
    Column(key="ece_p_value", heading="p, if calibrated", format=".3f"),
    Column(key="debiased_ece", heading="debiased ECE", format=".4f"),
    Column(key="squared_l2", heading="squared L2", format=".5f"),
    Column(key="aurc", heading="AURC", format=".4f"),
    Column(key="inference_ece", heading="inference ECE", format=".4f"),
    Column(key="empty_preferred", heading="empty preferred", format=".3f"),
    Column(key="exact_accuracy", heading="exact accuracy", format=".4f"),
    Column(key="exact_ece", heading="exact ECE", format=".4f"),
    Column(key="kl_to_truth", heading="KL to truth", format=".4f"),
    Column(key="tv_to_truth", heading="TV to truth", format=".4f"),
    Column(key="logit_gap_mean", heading="logit gap", format=".2f"),
    Column(key="logit_gap_within_sd", heading="its sd over classes", format=".2f"),
    Column(key="logit_gap_ideal", heading="ideal gap", format=".2f"),
    Column(key="template_norm_spread", heading="spread of template norms", format=".3f"),
    Column(key="steps_to_98", heading="updates to 98%", format=".0f"),
    Column(key="steps_to_99", heading="to 99% of final accuracy", format=".0f"),
]
TEMPERATURES = [
    Column(key="alpha", heading="α", format="g"),
    Column(key="seeds", heading="seeds"),
    Column(key="T by nll", heading="T by NLL", format=".3f"),
    Column(key="nll", heading="NLL, T = 1", format=".4f"),
    Column(key="nll at it", heading="NLL, T by NLL", format=".4f"),
    Column(key="ece", heading="ECE, T = 1", format=".4f"),
    Column(key="ece at it", heading="ECE, T by NLL", format=".4f"),
    Column(key="T by squared_l2", heading="T by calibration", format=".3f"),
    Column(key="ece at calibrated", heading="ECE, T by calibration", format=".4f"),
    Column(key="T by bleu", heading="T by BLEU", format=".2f"),
    Column(key="bleu", heading="BLEU, T = 1", format=".2f"),
    Column(key="bleu at it", heading="BLEU, T by BLEU", format=".2f"),
]

SCALING = [
    Column(key="system", heading="trained with"),
    RECIPE[0],
    *RECIPE[2:],
    *(column for column in FIGURES if column.key in ("accuracy", "nll")),
    *(
        each
        for key, heading in (("ece", "ECE"), ("debiased_ece", "debiased ECE"), ("squared_l2", "squared L2"))
        for each in (
            Column(key=key, heading=heading, format=".4f"),
            Column(key=f"{key} sd", heading="its sd over seeds", format=".4f"),
        )
    ),
]
"""Of Table 3 as images have it (nmt_ls.image_calibration)."""
TRANSLATIONS = [
    RECIPE[0],
    *RECIPE[2:4],
    *(
        each
        for key, heading, digits in (
            ("bleu", "BLEU", ".2f"),
            ("perplexity", "perplexity", ".3f"),
            ("nll", "NLL", ".4f"),
            ("ece", "ECE", ".4f"),
            ("debiased_ece", "debiased ECE", ".4f"),
            ("squared_l2", "squared L2", ".5f"),
        )
        for each in (
            Column(key=key, heading=heading, format=digits),
            Column(key=f"{key} sd", heading="its sd over seeds", format=digits),
            Column(key=f"{key} difference", heading=f"{heading}, difference from α = 0 [95%]", format=digits),
        )
    ),
    Column(key="over", heading="intervals over"),
]
"""Of Tables 1 and 3 as translators have them (nmt_ls.translation_tables)."""
ESTIMATORS = [
    RECIPE[0],
    Column(key="estimator", heading="estimator"),
    Column(key="sample_tokens", heading="tokens of a sample", format=","),
    RECIPE[3],
    Column(key="estimate", heading="estimate", format=".5f"),
    Column(key="exact", heading="exact", format=".5f"),
    Column(key="bias", heading="bias", format="+.5f"),
    Column(key="sd over samples", heading="sd over samples", format=".5f"),
    Column(key="rmse", heading="RMSE", format=".5f"),
]
ACCURACIES = [
    RECIPE[0],
    Column(key="seeds", heading="seeds"),
    Column(key="accuracy", heading="accuracy", format=".4f"),
    Column(key="accuracy sd", heading="its sd over seeds", format=".4f"),
    Column(key="difference", heading="difference from α = 0 [90%]"),
    Column(key="similar", heading=f"within {ACCURACY_MATTERS:g}"),
    Column(key="seeds difference", heading="of these images alone [90%]"),
    Column(key="seeds similar", heading=f"within {ACCURACY_MATTERS:g} there"),
]
PRECISIONS = [
    RECIPE[0],
    Column(key="seeds", heading="seeds"),
    Column(key="here", heading="accuracy here", format=".4f"),
    Column(key="there", heading="accuracy there", format=".4f"),
    Column(key="difference", heading="difference [90%]"),
    Column(key="similar", heading=f"within {ACCURACY_MATTERS:g}"),
]
EXACT = ("exact_accuracy", "exact_ece", "kl_to_truth")
STUDENTS = [
    Column(key="teacher_alpha", heading="teacher's α", format="g"),
    Column(key="teacher_dropout", heading="its dropout", format="g"),
    Column(key="teacher_temperature", heading="T", format="g"),
    Column(key="student_temperature", heading="the student's T", format="g"),
    Column(key="beta", heading="β", format="g"),
    Column(key="squared_temperature_factor", heading="factor T²", format="g"),
    RECIPE[3],
    Column(key="gamma", heading="γ", format=".4f"),
    Column(key="teacher_bleu", heading="the teacher's BLEU", format=".2f"),
    Column(key="bleu", heading="BLEU", format=".2f"),
    Column(key="bleu sd", heading="its sd over seeds", format=".2f"),
    Column(key="bleu difference", heading="BLEU, difference from hard labels alone [95%, over seeds]", format=".2f"),
    Column(key="teacher_accuracy", heading="the teacher's accuracy", format=".4f"),
    Column(key="accuracy", heading="accuracy", format=".4f"),
    Column(key="accuracy sd", heading="its sd over seeds", format=".4f"),
    Column(key="accuracy difference", heading="difference from hard labels alone [95%, over seeds]", format=".4f"),
    *(column for column in FIGURES if column.key in ("train_accuracy", "nll", "ece", *EXACT)),
    Column(key="kl_to_truth fitted", heading="KL to truth, its temperature fitted", format=".4f"),
]
"""Of students (nmt_ls.distillation_report)."""
INFORMATION = [
    RECIPE[0],
    RECIPE[3],
    Column(key="classes", heading="of the classes"),
    Column(key="mutual_information_initial", heading="before training", format=".3f"),
    Column(key="mutual_information_peak", heading="at its peak", format=".3f"),
    Column(key="mutual_information", heading="at the end", format=".3f"),
    Column(key="mutual_information sd", heading="its sd over seeds", format=".3f"),
    Column(key="mutual_information_fall", heading="less than at its peak by", format=".3f"),
    Column(key="mutual_information_reused", heading="as the paper estimates it", format=".3f"),
    Column(key="log N", heading="log N", format=".3f"),
]
"""Of nmt_ls.information_report."""
GEOMETRY = [
    RECIPE[0],
    Column(key="split", heading="split"),
    Column(key="seeds", heading="seeds"),
    *(
        each
        for name, heading in (
            ("scatter_ratio", "within over between"),
            ("projection_scale", "distance from centre"),
            ("triangle_regularity", "regularity of triangle"),
            ("template_regularity", "of templates"),
            ("arc_variation", "variation of distance to third template"),
            ("arc_ratio", "arc ratio"),
        )
        for each in (
            Column(key=name, heading=heading, format=".3f"),
            Column(key=f"{name}_near", heading=f"{heading}, near classes", format=".3f"),
        )
    ),
    Column(key="scatter_ratio_all", heading="within over between, all classes", format=".3f"),
    Column(key="nc1", heading="NC1", format=".3f"),
    Column(key="nc2_equinorm", heading="NC2, norms", format=".3f"),
    Column(key="nc2_equiangle", heading="NC2, angles", format=".3f"),
    Column(key="cosine_own", heading="cosine to own template", format=".3f"),
    Column(key="cosine_others", heading="to others", format=".3f"),
]
"""The numbers beside Figure 1 (vision_ls.project), of the three classes on their plane and of all."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the report; of its columns those are shown of which some row has a value."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[dict[str, Any]]

    @cached_property
    def shown(self) -> list[Column]:
        return [column for column in self.columns if any(row.get(column.key) is not None for row in self.rows)]


def setting_tables(results: SettingResults, beside: SettingResults | None = None) -> list[Table]:
    """All tables of a setting that have rows. beside: of a setting with the same recipes in another precision."""
    setting = results.setting
    of_students = Table(
        title="Section 4 of the paper: students by their teacher and the temperature of its targets",
        columns=STUDENTS,
        rows=list(student_rows(results)),
    )
    if setting.students:
        return [of_students] if of_students.rows else []
    tables = [
        Table(title=RECIPES, columns=[*RECIPE, *FIGURES], rows=list(recipe_rows(results))),
        Table(
            title=f"Temperatures chosen on {setting.choose_on}, figures of {setting.split}",
            columns=TEMPERATURES,
            rows=list(temperature_rows(results)),
        ),
        Table(
            title=f"As Tables 1 and 3 of the paper: temperatures fitted to each run on {setting.choose_on} by NLL",
            columns=TRANSLATIONS,
            rows=list(translation_rows(results)),
        ),
        Table(
            title="Estimators of calibration error beside the exact value of each, T = 1",
            columns=ESTIMATORS,
            rows=list(estimator_rows(results)),
        ),
        Table(title="As Table 2 of the paper: accuracy", columns=ACCURACIES, rows=list(accuracy_rows(results))),
        Table(
            title=f"As Table 3 of the paper: {_choice(results)}temperatures fitted to each run on {setting.choose_on}",
            columns=SCALING,
            rows=list(scaling_rows(results)),
        ),
        of_students,
        Table(
            title="Beside Figure 6 of the paper: mutual information in nats, means over seeds",
            columns=INFORMATION,
            rows=list(information_rows(results)),
        ),
        Table(
            title="Beside Figure 1 of the paper: means over seeds", columns=GEOMETRY, rows=list(geometry_rows(results))
        ),
    ]
    if beside is not None:
        tables.append(
            Table(
                title=f"Beside the same recipes and seeds in another precision ({beside.setting.title})",
                columns=PRECISIONS,
                rows=list(precision_rows(results, beside)),
            )
        )
    return [table for table in tables if table.rows]


def _choice(results: SettingResults) -> str:
    """How Table 3's α was chosen, where there was a choice."""
    several = sum(alpha > 0 for alpha in results.alphas) > 1
    return f"α of lowest NLL on {results.setting.choose_on}, " if several else ""


def recipe_rows(results: SettingResults) -> Iterator[dict[str, Any]]:
    """Of every α, checkpoint and temperature (1, or fitted): each scored figure's mean over seeds, and its sd.

    The sd of a figure `x` is `x sd`; it is left out where there is one seed. α and checkpoint of the claims come first;
    another checkpoint of an α has no row where all of its weights are those of the first.
    """
    first = results.setting.checkpoint
    shown = {run.signature.get("weights") for run in results.runs(checkpoint=first)}
    for checkpoint in sorted(results.checkpoints, key=lambda name: (name != first, name)):
        runs = results.runs(checkpoint=checkpoint)
        for alpha in sorted({run.alpha for run in runs}):
            weights = {run.signature.get("weights") for run in runs if run.alpha == alpha}
            if checkpoint != first and None not in weights and weights <= shown:
                continue
            for fitted in (False, True):
                scored = [run for run in runs if run.alpha == alpha and fitted in run.scored]
                if scored:
                    yield _recipe_row(scored, alpha, checkpoint, fitted)


def _recipe_row(runs: Sequence[Run], alpha: float, checkpoint: str, fitted: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "alpha": alpha,
        "checkpoint": checkpoint,
        "temperature": fitted_text(runs) if fitted else "1",
        "seeds": len(runs),
        "updates": _span([run.signature.get("updates") for run in runs], ""),
    }
    for name in dict.fromkeys(name for run in runs for name in run.scored[fitted]):
        values = scored_values(runs, name, fitted=fitted)
        # a mean of p-values is none
        row |= {name: _span(values, ".3f")} if "p_value" in name else mean_and_sd(name, values)
    return row


def _span(values: Sequence[Any], digits: str) -> Any:
    """The value that all have, or the smallest and the largest as text; None where one has none."""
    if any(value is None for value in values):
        return None
    low, high = min(values), max(values)
    return low if low == high else f"{low:{digits}} to {high:{digits}}"


def temperature_rows(results: SettingResults) -> Iterator[dict[str, Any]]:
    """Of every α: temperatures chosen on the one split, and figures at 1 and at them on the other."""
    for alpha in results.alphas:
        row: dict[str, Any] = {"alpha": alpha}
        swept = [run for run in results.runs(alpha) if run.swept]
        decoded = [run for run in results.runs(alpha) if run.decoded]
        ways: Sequence[tuple[Chosen, Sequence[Run], Sequence[tuple[str, str]]]] = (
            ("nll", swept, (("nll", "nll at it"), ("ece", "ece at it"))),
            ("squared_l2", swept, (("ece", "ece at calibrated"),)),
            ("bleu", decoded, (("bleu", "bleu at it"),)),
        )
        for by, runs, figures in ways:
            if not runs:
                continue
            try:
                chosen, edge = choose_temperature(results, runs, by)
            except NotMeasuredError:
                continue
            row["seeds"], row[f"T by {by}"] = len(runs), f"{chosen:.3g}, at the edge of the grid" if edge else chosen
            for name, at_it in figures:
                at = [run.decoded if by == "bleu" else run.swept for run in runs]
                if all(name in cells.get(1.0, {}) for cells in at):
                    row[name] = float(np.mean([cells[1.0][name] for cells in at]))
                row[at_it] = float(np.mean([cells[chosen][name] for cells in at]))
        if len(row) > 1:
            yield row


def geometry_rows(results: SettingResults) -> Iterator[dict[str, Any]]:
    """The numbers beside Figure 1 at every α, on the images that were trained on and on validation."""
    setting = results.setting
    if setting.split != "train":
        return
    for split in (setting.split, setting.choose_on):
        for alpha in results.alphas:
            runs = results.runs(alpha, split=split)
            row: dict[str, Any] = {"alpha": alpha, "split": split}
            for column in GEOMETRY[3:]:
                if values := scored_values(runs, column.key):
                    row |= {"seeds": len(values), **mean_and_sd(column.key, values)}
            if "seeds" in row:
                yield row
