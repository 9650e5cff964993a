"""python -m nmt_ls.study: run a study, a grid of ordinary command lines, as far as time goes; or say how it stands."""

from __future__ import annotations

import fnmatch
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from nmt_ls.experiment.command_line import UserError, report, run_command
from nmt_ls.experiment.study import Cell, Costs, Estimate, Study, load_study
from nmt_ls.experiment.study_plan import describe_left, plan_rows
from nmt_ls.experiment.study_workers import Session, Workers, describe_status
from nmt_ls.experiment.tables import format_table

PROGRAM = "python -m nmt_ls.study"
USAGE = f"{PROGRAM} run|plan configs/studies/NAME.yaml [--workers 2] [--minutes 170] [--cells 'pattern']"
Action = Literal["run", "plan"]


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """How to go about a study.

    results: where its figures go, in place of the file's folder; so is what a clone has the records of measured anew.
    workers: cells at a time, each with the study file's threads. minutes: stop by then, to go on next time (0: no end).
    cells: only those whose names match one of these patterns, such as m30k-*-s1.
    commands: let `plan` print every command line too.
    """

    results: str | None = None
    workers: int = 2
    minutes: float = 0.0
    cells: tuple[str, ...] = ()
    commands: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if not self.minutes >= 0:
            raise ValueError(f"minutes must not be negative, got {self.minutes}")


def chosen_cells(study: Study, config: StudyConfig) -> list[Cell]:
    """The cells that the patterns name, in the order of the file."""
    if not config.cells:
        return list(study.cells)
    chosen = [c for c in study.cells if any(fnmatch.fnmatchcase(c.name, pattern) for pattern in config.cells)]
    if not chosen:
        raise UserError(f"cells: no cell of {study.name} is called {' or '.join(config.cells)}; `plan` lists them")
    return chosen


def plan(study: Study, config: StudyConfig) -> None:
    """Print the cells, what is known of each, and what is left to do."""
    cells = chosen_cells(study, config)
    print(format_table(plan_rows(study, cells), ["cell", "block", "spent", "left", "state"]))
    if config.commands:
        for cell in cells:
            print(f"\n{cell.name}:")
            print("\n".join(f"  {step.line}" for step in cell.steps))
    costs = Costs.read(study)
    done = sum(costs.done(cell) for cell in cells)
    left = describe_left(Estimate(study, costs).total(cells), config.workers) if done < len(cells) else ""
    print(f"\n{done} of {len(cells)} cells done{left}")


def run(study: Study, config: StudyConfig) -> int:
    """Run what is left; 1 if a cell failed."""
    seconds = 60 * config.minutes or None
    workers = Workers(study, chosen_cells(study, config), workers=config.workers, seconds=seconds, stream=sys.stderr)
    session = workers.run()
    print_session(study, config, session)
    return 1 if session.failed else 0


def print_session(study: Study, config: StudyConfig, session: Session) -> None:
    """What came of a session, failures in a table."""
    if session.failed:
        rows = [
            {
                "failed": name,
                "why": describe_status(failure["status"]),
                "command": " ".join(shlex.split(failure["command"])[:3]),
                "last line": failure["last_line"],
            }
            for name, failure in session.failed.items()
        ]
        print(format_table(rows, ["failed", "why", "command", "last line"]))
        print(f"whole logs: {study.state}/CELL/log\n")
    costs, cells = Costs.read(study), chosen_cells(study, config)
    done = sum(costs.done(cell) for cell in cells)
    print(f"{session.reason}: {done} of {len(cells)} cells done, {len(session.done)} of them now; {study.records}")
    for what, names in (
        ("part-way", session.stopped),
        ("another worker is at", session.elsewhere),
        ("not begun", session.left),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            print(f"{what}: {', '.join(names[:3])}{more}")


def main(argv: Sequence[str]) -> NoReturn:
    """The first two arguments are the action and the study file; the options after them are the funnel's."""
    words = [word for word in argv[:2] if not word.startswith("-")]
    action, path, options = words[0] if words else "", words[1] if len(words) > 1 else "", argv[len(words) :]
    asks_help = "--help" in argv or "-h" in argv
    if not asks_help and (action not in ("run", "plan") or not path):
        report(f"usage: {USAGE}")
        raise SystemExit(2)

    def act(config: StudyConfig) -> int:
        study = load_study(path, results=config.results)
        if action == "run":
            return run(study, config)
        plan(study, config)
        return 0

    run_command(
        act,
        StudyConfig,
        program=f"{PROGRAM} run|plan STUDY.yaml",
        description="Run a study: a grid of ordinary command lines, several at a time, as far as the time goes.",
        argv=options,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
