"""python -m vision_ls.information: what a classifier's logits still say of its training images, as in Figure 6."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from nmt_ls.experiment.checkpoint import CheckpointName
from nmt_ls.experiment.command_line import UserError, run_command
from nmt_ls.experiment.records import Record, one_line, prepare_results, records_of, store_records
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.experiment.tables import format_table
from vision_ls.data import in_brackets
from vision_ls.mutual_information import Information, InformationConfig, Pair, mutual_information
from vision_ls.runs import Classifier, find_run, find_runs
from vision_ls.train_config import new_model

__all__ = ["mutual_information"]

SHORT_NAMES = {key: f"information.{key}" for key in ("classes", "images", "views", "sigma")}
HEAD = ("run", "alpha", "updates")
NATS = ("initial", "peak", "mutual_information", "mutual_information_error", "mutual_information_reused")
COURSE = "mutual_information_course"


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Whose information is measured, and of which images.

    runs: of classifiers, one or more; left out, the newest finished one under runs/. What they recorded while training
        (`information.classes` there) is drawn as a course.
    data: where their images lie, if no longer where they were when they were trained.
    checkpoint: which weights of the runs.
    information: of what; left out, as the runs recorded it while training.
    results: a directory to whose records.jsonl every figure is appended that is not there yet.
    figure: whether to draw the course there.
    device: auto takes CUDA where there is a GPU.
    """

    runs: tuple[str, ...] = ()
    data: str | None = None
    checkpoint: CheckpointName = "best"
    information: InformationConfig = field(default_factory=InformationConfig)
    results: str | None = None
    figure: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if len(set(self.runs)) < len(self.runs):
            raise ValueError("runs: name each only once")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run: at its checkpoint, before its first update, and its course (update, nats) where it recorded one."""

    classifier: Classifier
    pair: Pair
    found: Information
    initial: Information
    course: Sequence[tuple[int, float]]

    @property
    def recipe(self) -> dict[str, Any]:
        """The signature of these figures."""
        names = self.classifier.data.classes
        return {
            **self.classifier.recipe("train"),
            "temperature_is": "given",
            "classes": [names[k] for k in self.pair.classes],
            "images": len(self.pair.rows_N),
            "views": self.pair.views,
            "every_outcome": self.pair.every_outcome,
            "sigma": self.pair.config.sigma,
        }

    @property
    def row(self) -> dict[str, Any]:
        """Of the table."""
        recipe = self.recipe
        peak = {} if self.peak is None else {"peak": self.peak}
        return {key: recipe[key] for key in HEAD} | {"initial": self.initial.value, **peak, **self.found.figures()}

    @property
    def peak(self) -> float | None:
        """The most that its course ever showed."""
        return max((value for _, value in self.course), default=None)

    def records(self) -> list[Record]:
        """One a figure, and one a point of the course."""
        recipe = self.recipe
        values = {**self.found.figures(), "mutual_information_initial": self.initial.value}
        if self.peak is not None:
            values["mutual_information_peak"] = self.peak
        points = [records_of({COURSE: value}, {**recipe, "update": step}) for step, value in self.course]
        return [*records_of(values, recipe), *(record for point in points for record in point)]


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
    print("initial: before the first update; peak: of the course; error: of the draws of views; reused: as in the")
    print("paper, of the views that are fitted too, so too high\n")
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
        asked = config.information
        if asked == InformationConfig():
            asked = run.config.information
        if not asked.classes:
            raise UserError(f"information.classes: {path} was trained without; name two with --classes")
        opened.append((run, Pair(asked, run.data, run.images("train"), run.augmentation)))
    first, theirs = opened[0]
    for run, pair in opened[1:]:
        if run.data.checksum != first.data.checksum:
            raise UserError(f"runs: {run.path} was trained on other images than {first.path}; measure them apart")
        if (pair.classes, len(pair.rows_N)) != (theirs.classes, len(theirs.rows_N)):
            raise UserError(f"runs: {run.path} measured other classes than {first.path}; name two with --classes")
    return [measure(run, pair) for run, pair in opened]


def measure(run: Classifier, pair: Pair) -> Measured:
    """One run on its images."""
    torch.manual_seed(run.config.seed)
    untrained = new_model(run.config, run.data).to(run.device)  # the weights with which it began
    initial = pair.information(untrained)
    points: list[tuple[int, float]] = []
    if run.config.information == pair.config:
        lines = [line for line in RunDirectory(run.path).read_metrics() if "mutual_information" in line]
        points = [(0, initial.value), *((line["step"], line["mutual_information"]) for line in lines)]
    return Measured(classifier=run, pair=pair, found=pair.information(run.model), initial=initial, course=points)


def store(config: MeasureConfig, measured: Sequence[Measured]) -> None:
    """Append the records that are not there yet, and draw the courses, if any was recorded."""
    drawn: Mapping[str, Any] = {}
    courses = {
        f"α = {each.recipe['alpha']:g}, seed {each.recipe['seed']}": each.course for each in measured if each.course
    }
    if config.figure and courses:
        from vision_ls.information_figure import information_figure  # loads matplotlib

        recipe = measured[0].recipe
        title = ", ".join([f"{' and '.join(recipe['classes'])}", recipe["model"], *filter(None, [recipe.get("note")])])
        stem = "-".join(["information", *(each.recipe["run"] for each in measured), config.checkpoint, "train"])
        drawn = {stem: information_figure(courses, recipe["images"], title)}
    store_records(Path(str(config.results)), [record for each in measured for record in each.records()], drawn)


if __name__ == "__main__":
    run_command(
        main,
        MeasureConfig,
        program="python -m vision_ls.information",
        description="Mutual information between training images and the difference of two logits, as in Figure 6.",
        short_names=SHORT_NAMES,
    )
