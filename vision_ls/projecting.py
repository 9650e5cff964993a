"""What `project` does: three classes of a run on the plane through their templates, and numbers beside the picture.

Shape suffixes: N images, D width of the penultimate layer, K classes, 3 the chosen classes, 2 coordinates in the plane.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nmt_ls.experiment.checkpoint import CheckpointName
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import Record, prepare_results, read_records, records_of
from vision_ls.data import ImageSplit, spread_rows
from vision_ls.geometry import (
    ClassMeans,
    Plane,
    Simplex,
    distance_variation,
    mean_side,
    radial_over_tangential,
    regularity,
    template_cosines,
)
from vision_ls.runs import LONGEST_NAME, Classifier, find_runs, regime_missed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPLITS = ("train", "validation", "test")
LEAST = 1e-30  # of what a logarithm is taken: clusters may have shrunk to points


@dataclass(frozen=True, kw_only=True)
class ProjectConfig:
    """Which runs to project, and onto the plane of which classes.

    runs: one or more on the same images; the paper shows one without smoothing and one with it.
    data: where their images lie, if no longer where they were trained.
    classes: three, by name or number; left out, the first three.
    checkpoint: which weights of the runs.
    splits: of the images; train is what a run was trained on, not augmented.
    images: of a split, at most so many are looked at, evenly spread (0: all), besides all of the three classes.
    shown: images of each class in the picture; the numbers are of all.
    name: of these three classes, where several triples of the same images are projected: it is added to the names of
        their numbers and pictures.
    results: a directory to whose records.jsonl every number is appended that is not there yet.
    figure: whether to draw the two pictures there.
    device: auto takes CUDA where there is a GPU.
    """

    runs: tuple[str, ...]
    data: str | None = None
    classes: tuple[str, ...] = ()
    checkpoint: CheckpointName = "best"
    splits: tuple[str, ...] = ("train", "validation")
    images: int = 50_000
    shown: int = 300
    name: str = ""
    results: str | None = None
    figure: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if not self.runs or len(set(self.runs)) < len(self.runs):
            raise ValueError("runs: name one or more, each only once")
        if self.classes and len(self.classes) != 3:
            raise ValueError(f"classes: a plane is that of three classes, not {len(self.classes)}")
        if not self.splits or len(set(self.splits)) < len(self.splits) or not set(self.splits) <= set(SPLITS):
            raise ValueError(
                f"splits: name one or more of {', '.join(SPLITS)}, each only once, not {' '.join(self.splits)!r}"
            )
        if self.images < 0:
            raise ValueError(f"images must not be negative, got {self.images}")
        if self.shown < 1:
            raise ValueError(f"shown must be positive, got {self.shown}")
        if self.name and not self.name.isidentifier():
            raise ValueError(f"name becomes part of other names: use letters, digits and _, not {self.name!r}")
        if len(self.name.encode()) > LONGEST_NAME // 2:
            raise ValueError(f"name becomes part of the names of files: {len(self.name)} characters are too many")


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One network and split: coordinates of the examples, which of the three classes each is of, and the templates."""

    title: str
    coordinates_N2: NDArray[np.float64]
    labels_N: NDArray[np.int64]
    templates_32: NDArray[np.float64]

    def scaled(self, unit: float) -> Panel:
        """The same in multiples of `unit`."""
        return Panel(
            title=self.title,
            coordinates_N2=self.coordinates_N2 / unit,
            labels_N=self.labels_N,
            templates_32=self.templates_32 / unit,
        )


@dataclass(frozen=True, kw_only=True)
class Projected:
    """One run and split: the picture's points in raw units, the scaled picture's unit, and the numbers.

    of_classes: numbers of the three classes on their plane. of_all: of all classes, in all dimensions.
    training_accuracy: of a run with hard targets, which may be outside the regime; else None.
    """

    panel: Panel
    unit: float
    of_classes: Mapping[str, float]
    of_all: Mapping[str, float]
    recipe: Mapping[str, Any]
    training_accuracy: float | None

    def records(self, classes: Sequence[str], name: str) -> list[Record]:
        """One a number; those of the three classes name them."""
        of_classes = {named(key, name): value for key, value in self.of_classes.items()}
        return [
            *records_of(of_classes, {**self.recipe, "classes": list(classes)}),
            *records_of(self.of_all, self.recipe),
        ]


def named(figure: str, name: str) -> str:
    """What a number of the three classes is called, where they have a name."""
    return f"{figure}_{name}" if name else figure


def project_runs(config: ProjectConfig) -> tuple[list[Projected], tuple[str, ...]]:
    """Every run on every split, in that order, and the names of the classes.

    Raises UserError for runs, images, classes and splits that do not fit, before any image is looked at.
    """
    if config.results is not None:
        prepare_results(Path(config.results))
    runs: list[Classifier] = []
    for path in find_runs(config.runs):
        known = [run.data for run in runs]
        runs.append(Classifier.open(path, config.checkpoint, data=config.data, device=config.device, known=known))
    for run in runs[1:]:
        if run.data.checksum != runs[0].data.checksum:
            raise UserError(
                f"runs: {run.path} was trained on other images ({run.data.place}) than {runs[0].path} "
                f"({runs[0].data.place}); project them apart"
            )
    chosen = choose_classes(config.classes, runs[0])
    if config.results is not None:
        check_classes(Path(config.results), runs[0], [runs[0].data.classes[k] for k in chosen], config.name)
    for run in runs:
        for split in config.splits:
            looked_at(run, split, chosen, config.images)
        plane_of(run, chosen)
    names = tuple(runs[0].data.classes[k] for k in chosen)
    targets = [run.learnt_from for run in runs]
    projected = []
    for run in runs:
        which = run.learnt_from
        if targets.count(which) > 1:
            which += f", seed {run.config.seed}"
        learnt = run.training_accuracy() if run.hard_targets else None
        projected += [measure(run, split, chosen, config, f"{which}, {split}", learnt) for split in config.splits]
    return projected, names


def check_classes(results: Path, run: Classifier, classes: Sequence[str], name: str) -> None:
    """Raises UserError where the records have numbers of three other classes of these images under the same names."""
    file, figure = results / "records.jsonl", named("scatter_ratio", name)
    for record in read_records(file) if file.exists() else []:
        ours = record.name == figure and record.signature.get("corpus") == run.data.checksum
        if ours and record.signature.get("classes") != list(classes):
            others = ", ".join(map(str, record.signature.get("classes", [])))
            raise UserError(
                f"name: {file} has numbers of other classes of these images ({others}) under this name; "
                "choose another with --name, or other --results"
            )


def choose_classes(asked: Sequence[str], run: Classifier) -> list[int]:
    """The numbers of three classes. Raises UserError for a class that there is not, or one named twice."""
    if len(run.data.classes) < 3:
        raise UserError(f"classes: {run.data.place} has {len(run.data.classes)}; a plane needs three")
    chosen = [run.data.class_index(name) for name in asked] or [0, 1, 2]
    if len(set(chosen)) < 3:
        raise UserError(f"classes: {' '.join(asked)} are not three different ones")
    return chosen


def looked_at(run: Classifier, split: str, chosen: Sequence[int], most: int) -> tuple[ImageSplit, Tensor]:
    """The images of a split, and which rows of it are looked at; most: see `chosen_rows`.

    Raises UserError where a class has none of them.
    """
    images = run.images(split)
    labels_N = images.labels_N.cpu()
    rows_N = chosen_rows(labels_N, chosen, most)
    absent = set(range(len(run.data.classes))) - set(labels_N[rows_N].tolist())
    if absent:
        k = min(absent)
        what = "no example; leave the split out with --splits"
        if bool((labels_N == k).any()):
            what = f"no example among the {len(rows_N):,} looked at; look at more with --images"
        raise UserError(f"{run.path}, {split} split: class {run.data.classes[k]!r} has {what}")
    return images, rows_N


def plane_of(run: Classifier, chosen: Sequence[int]) -> Plane:
    """Raises UserError where the three templates span no plane."""
    try:
        return Plane.through(run.model.templates[list(chosen)].cpu())
    except ValueError as error:
        names = " ".join(run.data.classes[k] for k in chosen)
        raise UserError(f"{run.path}, classes {names}: {error}; name others, or a checkpoint that has learnt") from None


def measure(
    run: Classifier, split: str, chosen: Sequence[int], config: ProjectConfig, title: str, learnt: float | None
) -> Projected:
    """One run on one split; learnt: its training accuracy, see Projected."""
    images, rows_N = looked_at(run, split, chosen, config.images)
    activations_ND = run.outputs(images, title, rows_N=rows_N, forward=run.model.penultimate)
    labels_N = images.labels_N.cpu()[rows_N]
    templates_KD, plane = run.model.templates.cpu(), plane_of(run, chosen)
    ours_N = torch.isin(labels_N, torch.tensor(chosen))
    coordinates_N2 = plane.coordinates(activations_ND[ours_N])
    places_N = (labels_N[ours_N, None] == torch.tensor(chosen)).int().argmax(1)
    corners_32 = plane.coordinates(templates_KD[list(chosen)])
    try:
        of_classes = plane_figures(coordinates_N2, places_N, corners_32)
        of_all = class_figures(activations_ND, labels_N, templates_KD)
    except ValueError as error:
        raise UserError(
            f"{run.path}, {split} split: {error}; name other classes, or a checkpoint that has learnt more"
        ) from None
    shown_N = first_of_each(places_N, config.shown)
    return Projected(
        panel=Panel(
            title=title,
            coordinates_N2=coordinates_N2[shown_N].numpy(),
            labels_N=places_N[shown_N].numpy(),
            templates_32=corners_32.numpy(),
        ),
        unit=mean_side(corners_32),
        of_classes=of_classes,
        of_all=of_all,
        recipe={
            **run.recipe(split),
            "temperature_is": "given",
            "data": Path(run.data.place).name,
            "examples": len(labels_N),
        },
        training_accuracy=learnt,
    )


def chosen_rows(labels_N: Tensor, chosen: Sequence[int], most: int) -> Tensor:
    """Rows, in order: `most` of all (0: all), evenly spread, and every one of the chosen classes."""
    wanted_N = torch.isin(labels_N, torch.tensor(chosen))
    wanted_N[spread_rows(len(labels_N), most or len(labels_N))] = True
    return wanted_N.nonzero().squeeze(1)


def first_of_each(places_N: Tensor, count: int) -> Tensor:
    """Rows, in order, of the first `count` of each class."""
    return torch.cat([(places_N == place).nonzero().squeeze(1)[:count] for place in range(3)]).sort().values


def plane_figures(coordinates_N2: Tensor, places_N: Tensor, corners_32: Tensor) -> dict[str, float]:
    """What the picture shows: how broad its clusters are, how regular its triangles, how much of an arc there is.

    scatter_ratio: within-class over between-class scatter; projection_scale: mean distance of the examples from the
    centre of their classes; and the logarithms of both. triangle_regularity, triangle_side: of the class means;
    template_regularity, template_side: of the templates. arc_variation: variation coefficient of the first two
    classes' distances from the third template; arc_ratio: their spread along those distances over that across.
    """
    means = ClassMeans.of(coordinates_N2, places_N, 3)
    scatter = means.within_over_between()
    scale = float(torch.linalg.vector_norm(coordinates_N2 - means.centre_D, dim=1).mean())
    return {
        "scatter_ratio": scatter,
        "log_scatter_ratio": math.log(max(scatter, LEAST)),
        "projection_scale": scale,
        "log_projection_scale": math.log(max(scale, LEAST)),
        "triangle_regularity": regularity(means.means_KD),
        "triangle_side": mean_side(means.means_KD),
        "template_regularity": regularity(corners_32),
        "template_side": mean_side(corners_32),
        "arc_variation": distance_variation(coordinates_N2[places_N < 2], corners_32[2]),
        "arc_ratio": radial_over_tangential([coordinates_N2[places_N == place] for place in (0, 1)], corners_32[2]),
    }


def class_figures(activations_ND: Tensor, labels_N: Tensor, templates_KD: Tensor) -> dict[str, float]:
    """Scatter, neural collapse of class means and of templates, and cosines to the templates."""
    means = ClassMeans.of(activations_ND, labels_N, len(templates_KD))
    own, others = template_cosines(activations_ND, labels_N, templates_KD)
    of_means, of_templates = Simplex.of(means.means_KD), Simplex.of(templates_KD)
    return {
        "scatter_ratio_all": means.within_over_between(),
        "nc1": means.nc1(),
        **{f"nc2_{name}": value for name, value in asdict(of_means).items()},
        **{f"nc2_templates_{name}": value for name, value in asdict(of_templates).items()},
        "cosine_own": own,
        "cosine_others": others,
    }


def pictures(projected: Sequence[Projected], classes: Sequence[str], title: str) -> dict[str, Figure]:
    """Figure 1 twice: in the units of the activations, whose scale is a finding, and in those of the templates."""
    from vision_ls.projection_figure import projection_figure  # loads matplotlib: only where something is drawn

    remarks = outside_the_regime(projected)
    return {
        "raw": projection_figure(
            [each.panel for each in projected], classes, "units of the activations", title, remarks
        ),
        "scaled": projection_figure(
            [each.panel.scaled(each.unit) for each in projected],
            classes,
            "mean distances of the templates",
            title,
            remarks,
        ),
    }


def outside_the_regime(projected: Sequence[Projected]) -> list[str]:
    """Of each hard-target run that has not learnt its training images well enough to be over-confident: that it has
    not, as a clause."""
    hard = {each.recipe["run"]: each.training_accuracy for each in projected if each.training_accuracy is not None}
    return [clause for clause in map(regime_missed, hard, hard.values()) if clause]
