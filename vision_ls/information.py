"""python -m vision_ls.information: what a classifier's logits still say of its training images, as in Figure 6."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from nmt_ls.experiment.checkpoint import CheckpointName
from nmt_ls.experiment.command_line import UserError, run_command
from nmt_ls.experiment.records import Record, one_line, prepare_results, records_of, store_records
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.experiment.tables import format_table
from vision_ls.data import in_brackets
from vision_ls.mutual_information import Information, InformationConfig, Pair, Sigma, mutual_information
from vision_ls.runs import Classifier, find_run, find_runs, picture_stem
from vision_ls.train_config import new_model

__all__ = ["mutual_information"]

HEAD = ("run", "alpha", "updates")
NATS = ("initial", "peak", "mutual_information", "mutual_information_error", "mutual_information_reused")
NAME = "mutual_information"
DENSE = 20
STEADY = 5
"""Measurements of a course whose mean counts as one, where its peak is sought."""


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Whose information is measured, and of which images.

    runs: of classifiers, one or more; left out, the newest finished one under runs/. What they recorded while training
        (`information.classes` there) is drawn as a course, where it is measured in the same way here.
    data: where their images lie, if no longer where they were when they were trained.
    checkpoint: which weights of the runs.
    classes, images, views, sigma: as in training (information.*); what is left out is as each run was trained with.
    results: a directory to whose records.jsonl every figure is appended that is not there yet.
    figure: whether to draw the course there.
    device: auto takes CUDA where there is a GPU.
    """

    runs: tuple[str, ...] = ()
    data: str | None = None
    checkpoint: CheckpointName = "best"
    classes: tuple[str, ...] = ()
    images: int | None = None
    views: int | None = None
    sigma: Sigma | None = None
    results: str | None = None
    figure: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if len(set(self.runs)) < len(self.runs):
            raise ValueError("runs: name each only once")
        self.asked(InformationConfig())

    def asked(self, trained: InformationConfig) -> InformationConfig:
        """What is measured of a run that was trained with these."""
        given = {"classes": self.classes or None, "images": self.images, "views": self.views, "sigma": self.sigma}
        return replace(trained, **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run: at its checkpoint, before its first update, and its course (update, nats) where it recorded one; recipe:
    the signature of these figures."""

    classifier: Classifier
    pair: Pair
    found: Information
    initial: Information
    course: Sequence[tuple[int, float]]
    recipe: Mapping[str, Any]

    @property
    def row(self) -> dict[str, Any]:
        """Of the table."""
        peak = {} if self.peak is None else {"peak": self.peak}
        return {key: self.recipe[key] for key in HEAD} | {"initial": self.initial.value, **peak, **self.found.figures()}

    @property
    def peak(self) -> float | None:
        """The most that its course ever showed: a mean of STEADY measurements in a row, so that none decides."""
        values = [value for _, value in self.course]
        rows = [values[start : start + STEADY] for start in range(max(len(values) - STEADY + 1, 1))]
        return max((sum(row) / len(row) for row in rows if row), default=None)

    def records(self) -> list[Record]:
        """One a figure, and one a point of the course; with another σ than the paper's they have names of their own."""
        recipe, sigma = self.recipe, self.pair.config.sigma
        values = {**self.found.figures(), f"{NAME}_initial": self.initial.value}
        if self.peak is not None:
            values |= {f"{NAME}_peak": self.peak, f"{NAME}_fall": self.peak - self.found.value}
        records = records_of(values, recipe)
        for update, value in thinned(self.course):
            records += records_of({f"{NAME}_course": value}, {**recipe, "update": update})
        named = "" if sigma == "shared" else f"{sigma}_"
        return [replace(record, name=f"{named}{record.name}") for record in records]


def thinned(course: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Of a course of hundreds of measurements what a figure needs: the first, where all is quick, then every fifth, and
    the last."""
    last = len(course) - 1
    return [point for index, point in enumerate(course) if index < DENSE or index % 5 == 0 or index == last]


def main(config: MeasureConfig) -> None:
    if config.results is not None:
        prepare_results(Path(config.results))
    measured = measure_all(config)
    first = measured[0]
    names, images = " and ".join(first.recipe["classes"]), len(first.pair.rows_N)
    data = f"{Path(first.classifier.data.place).name}{in_brackets(first.classifier.data.note)}"
    how = f"all {first.pair.views} outcomes" if first.pair.every_outcome else f"{first.pair.views} views"
    print(f"{names} of {data}, {images} training images, {how} of each, {config.checkpoint} checkpoint\n")
    print(format_table([each.row for each in measured], [*HEAD, *NATS]))
    print(f"\nnats; log 2 = {math.log(2):.4f} says which class, log N = {math.log(images):.4f} which image;")
    print(f"initial: before the first update; peak: of the course, {STEADY} measurements in a row")
    if not first.pair.every_outcome:
        print("error: of the draws of views; reused: as in the paper, of the views that are fitted too, so too high")
    print()
    for each in measured:
        print(f"recipe: {one_line(each.recipe)}")
    if config.results is not None:
        store(config, measured)


def measure_all(config: MeasureConfig) -> list[Measured]:
    """Every run. Raises UserError for runs, images and classes that do not fit, before any image is looked at."""
    opened: list[tuple[Classifier, Pair]] = []
    for path in find_runs(config.runs) or [find_run(None)]:
        known = [classifier.data for classifier, _ in opened]
        run = Classifier.open(path, config.checkpoint, data=config.data, device=config.device, known=known)
        asked = config.asked(run.config.information)
        if not asked.classes:
            raise UserError(f"classes: {path} was trained without; name two with --classes")
        opened.append((run, Pair(asked, run.data, run.images("train"), run.augmentation)))
    first, theirs = opened[0]
    for run, pair in opened[1:]:
        if run.data.checksum != first.data.checksum:
            raise UserError(f"runs: {run.path} was trained on other images than {first.path}; measure them apart")
        if (pair.config, run.config.augment) != (theirs.config, first.config.augment):
            raise UserError(
                f"runs: {run.path} was trained for another measure (information, augment) than {first.path}; say which "
                "with --classes, --images, --views and --sigma, or measure them apart"
            )
    return [measure(run, pair) for run, pair in opened]


def measure(run: Classifier, pair: Pair) -> Measured:
    """One run on its images."""
    torch.manual_seed(run.config.seed)
    untrained = new_model(run.config, run.data).to(run.device)  # the weights with which it began
    initial = pair.information(untrained)
    points: list[tuple[int, float]] = []
    if run.config.information == pair.config:
        lines = [line for line in RunDirectory(run.path).read_metrics() if NAME in line]
        points = [(0, initial.value), *((line["step"], line[NAME]) for line in lines)]
    recipe = {
        **run.recipe("train"),
        "temperature_is": "given",
        "classes": [run.data.classes[k] for k in pair.classes],
        "images": len(pair.rows_N),
        "views": pair.views,
        "every_outcome": pair.every_outcome,
        "sigma": pair.config.sigma,
    }
    found = pair.information(run.model)
    return Measured(classifier=run, pair=pair, found=found, initial=initial, course=points, recipe=recipe)


def store(config: MeasureConfig, measured: Sequence[Measured]) -> None:
    """Append the records that are not there yet, and draw the courses, if any was recorded."""
    drawn: Mapping[str, Any] = {}
    courses = {each.recipe["run"]: [dict(each.course)] for each in measured if each.course}
    if config.figure and courses:
        from nmt_ls.metrics.course_plot import information_figure  # loads matplotlib

        recipe = measured[0].recipe
        title = ", ".join([f"{' and '.join(recipe['classes'])}", recipe["model"], *filter(None, [recipe.get("note")])])
        stem = picture_stem("information", [each.recipe["run"] for each in measured], config.checkpoint, "train")
        drawn = {stem: information_figure(courses, recipe["images"], title)}
    store_records(Path(str(config.results)), [record for each in measured for record in each.records()], drawn)


if __name__ == "__main__":
    run_command(
        main,
        MeasureConfig,
        program="python -m vision_ls.information",
        description="Mutual information between training images and the difference of two logits, as in Figure 6.",
    )
