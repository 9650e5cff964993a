"""python -m vision_ls.project: penultimate activations on the plane through three templates, as in Figure 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nmt_ls.experiment.command_line import run_command
from nmt_ls.experiment.records import one_line, store_records
from nmt_ls.experiment.tables import format_table
from vision_ls.data import in_brackets
from vision_ls.geometry import project
from vision_ls.projecting import (
    ProjectConfig,
    Projected,
    outside_the_regime,
    pictures,
    project_runs,
)
from vision_ls.runs import picture_stem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["project"]

HEAD = ("run", "alpha", "split")
PLANE = (
    "scatter_ratio", "projection_scale", "triangle_regularity", "template_regularity", "template_side", "arc_variation",
    "arc_ratio",
)  # fmt: skip
ALL = ("scatter_ratio_all", "nc1", "nc2_equinorm", "nc2_equiangle", "nc2_maximal_angle", "cosine_own", "cosine_others")


def main(config: ProjectConfig) -> None:
    projected, classes = project_runs(config)
    print_tables(config, projected, classes)
    if config.results is not None:
        store(config, projected, classes)


def print_tables(config: ProjectConfig, projected: Sequence[Projected], classes: Sequence[str]) -> None:
    """The numbers beside the picture, and those of all classes."""
    heads = [{key: each.recipe[key] for key in HEAD} for each in projected]
    data = projected[0].recipe["data"] + in_brackets(projected[0].recipe.get("note", ""))
    print(f"{', '.join(classes)} of {data}, {config.checkpoint} checkpoint, on their plane\n")
    rows = [{**head, **each.of_classes} for head, each in zip(heads, projected, strict=True)]
    print(format_table(rows, [*HEAD, *PLANE]))
    print("\nregularity: shortest over longest side; arc_variation: of the first two classes' distances from the third")
    print("template, 0 on an exact arc; arc_ratio: each class's spread along those distances over that across, 1 if")
    print("isotropic; all classes, in all dimensions:\n")
    rows = [{**head, **each.of_all} for head, each in zip(heads, projected, strict=True)]
    print(format_table(rows, [*HEAD, *ALL]))
    for clause in outside_the_regime(projected):
        print(f"\n{clause}; what it shows says nothing about over-confident networks")
    print()
    for each in projected:
        print(f"recipe: {one_line(each.recipe)}")


def store(config: ProjectConfig, projected: Sequence[Projected], classes: Sequence[str]) -> None:
    """Append the records that are not there yet, and write the pictures."""
    drawn: dict[str, Figure] = {}
    if config.figure:
        first = projected[0].recipe
        checkpoint = f"{config.checkpoint} checkpoint"
        title = ", ".join(filter(None, (first["data"], first.get("note"), first["model"], checkpoint)))
        # one name for both, without the unit at its end
        stem = picture_stem("projection", [Path(run).name for run in config.runs], config.checkpoint, config.name)
        drawn = {f"{stem}-{unit}": figure for unit, figure in pictures(projected, classes, title).items()}
    records = [record for each in projected for record in each.records(classes, config.name)]
    store_records(Path(str(config.results)), records, drawn)


if __name__ == "__main__":
    run_command(
        main,
        ProjectConfig,
        program="python -m vision_ls.project",
        description="Penultimate activations on the plane through three classes' templates, as in Figure 1.",
    )
