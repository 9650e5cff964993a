"""What a study's plan says: the cells, what is known of each, and how much work is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nmt_ls.experiment.study import Cell, Costs, Estimate, Left, LeftInAll, Progress, Study
from nmt_ls.experiment.study_workers import clock, is_locked


def time_left(left: Left) -> str:
    """5 min, or ~5 min, guessed."""
    if left.seconds is None:
        return "unknown"
    return f"~{clock(left.seconds)}, guessed" if left.guessed else clock(left.seconds)


def plan_rows(study: Study, cells: list[Cell]) -> list[Mapping[str, Any]]:
    """One row a cell: its name, block, what is known of it, the time spent and that left, guesses marked as such."""
    costs = Costs.read(study)
    estimate, rows = Estimate(study, costs), list[Mapping[str, Any]]()
    for cell in cells:
        progress = Progress.read(cell)
        spent = sum(
            max(costs.seconds.get((cell.name, s.line), 0.0), progress.spent.get(s.line, 0.0)) for s in cell.steps
        )
        waits = not all(costs.done(other) for other in study.cells_of(study.blocks[cell.block].after))
        if costs.done(cell):
            state = "done"
        elif is_locked(cell):
            state = "running"
        elif progress.failure:
            state = f"failed: {progress.failure['last_line']}"
        elif spent:
            state = "part-way"
        else:
            state = "waits for " + ", ".join(study.blocks[cell.block].after) if waits else "to do"
        rows.append(
            {
                "cell": cell.name,
                "block": cell.block,
                "spent": clock(spent) if spent else None,
                "left": None if state == "done" else time_left(estimate.left(cell)),
                "state": state,
            }
        )
    return rows


def describe_left(left: LeftInAll, workers: int) -> str:
    """The work that is left, and how much of it is known from measured costs."""
    parts = [f"{clock(left.measured)} by measured costs"] if left.measured or not left.guessed else []
    parts += [f"~{clock(left.guessed)} by guesses"] if left.guessed else []
    text = f"; left: {clock(left.seconds)} of work ({' and '.join(parts)})"
    text += f", {clock(left.seconds / workers)} with {workers} workers"
    return text + (f", besides {left.unknown} cells of unknown cost" if left.unknown else "")
