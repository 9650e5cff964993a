"""What students have in common, whatever is learnt: how they are taught, and what becomes of the rest of their run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from nmt_ls.experiment.checkpoint import CheckpointName
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.run_directory import RunDirectory

OF_STUDENTS = {
    "teacher": "distillation.teacher",
    "temperature": "distillation.temperature",
    "student_temperature": "distillation.student_temperature",
    "beta": "distillation.beta",
}
"""Short names of what is typed daily."""
OF_TEACHER = {"of": "its teacher, as its summary has it"}
"""What signatures of a student's records say besides, where the figure is its teacher's."""


def of_teacher(figure: str) -> bool:
    """Whether it is a figure of a student's teacher: how smooth its targets were in training (γ), how good it was, and
    how soon."""
    return figure == "gamma" or figure.startswith("teacher_")


class HasFacts(Protocol):
    """A package's teacher. facts: which run and weights it is and how it was trained."""

    facts: dict[str, Any]


AnyTeacher = TypeVar("AnyTeacher", bound=HasFacts)


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """What a student learns from beside the labels; without a teacher, from those alone.

    teacher: the run of a trained model. It is frozen, in eval mode, and shown what the student is shown: images of the
        same shape and normalisation, or sentences in the pieces of the same vocabularies. {seed} stands for the seed.
    checkpoint: which weights of it.
    temperature: divides the teacher's logits.
    student_temperature: divides the student's while it learns; left out, the teacher's, as Section 4 has it.
    beta: weight of the teacher's targets, against that of the labels (at the student's temperature too); with 1, the
        paper's, labels are not looked at.
    squared_temperature_factor: the teacher's part is multiplied by both temperatures, so that its gradient keeps its
        size (Hinton et al. 2015, section 2); at high ones student's logits are then matched to teacher's (eq. 4). At
        β = 1 Adam does not notice it, unless gradients are clipped.
    """

    teacher: str | None = None
    checkpoint: CheckpointName = "best"
    temperature: float = 1.0
    student_temperature: float | None = None
    beta: float = 1.0
    squared_temperature_factor: bool = False

    def __post_init__(self) -> None:
        for key in ("temperature", "student_temperature"):
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{key} must be positive, not {value}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must lie in [0, 1], not {self.beta}")

    def check(self, alpha: float) -> None:
        """Raises ValueError where settings of a student have no teacher, or a student's own labels are smoothed."""
        if self.teacher is not None and alpha != 0:
            raise ValueError(
                f"loss.alpha: a student's own labels are not smoothed, its teacher's were or were not; give --ls 0 and "
                f"not {alpha:g}, or use the command distill"
            )
        if self.teacher is None and self != DistillationConfig():
            raise ValueError("distillation: name a teacher (--distillation.teacher), or leave all else of it out")

    def require(self) -> None:
        """Raises ValueError without a teacher."""
        if self.teacher is None:
            raise ValueError("distillation.teacher: name a finished run with --teacher")

    def with_seed(self, seed: int) -> Self:
        """{seed} in the teacher's name replaced."""
        return self if self.teacher is None else replace(self, teacher=self.teacher.replace("{seed}", str(seed)))

    def short_name(self, alpha: float) -> str:
        """Of what a run learns from, for its name: labels smoothed with α, or a teacher."""
        return f"ls{alpha:g}" if self.teacher is None else f"from-{Path(self.teacher).name}-T{self.temperature:g}"

    def recipe(self, teacher: Mapping[str, Any] | None) -> dict[str, Any]:
        """What signatures of a student's figures say of how it was taught; teacher: what its manifest says of that.
        Nothing without one."""
        if teacher is None:
            return {}
        student = self.temperature if self.student_temperature is None else self.student_temperature
        return {
            **{f"teacher_{key}": value for key, value in teacher.items()},
            "teacher_temperature": self.temperature,
            "student_temperature": student,
            "beta": self.beta,
            "squared_temperature_factor": self.squared_temperature_factor,
        }


def finished_teacher(path: Path) -> RunDirectory:
    """A teacher's run. Raises UserError where it has not been trained to its end."""
    run = RunDirectory(path)
    if not run.summary_file.exists():
        raise UserError(f"distillation.teacher: {path} has not been trained to its end; finish it first")
    return run


def own_teacher(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What facts of a teacher have beside the rest where it is a student itself: the weights of its own teacher.

    manifest: of the teacher's run.
    """
    return {"teacher": manifest["teacher"]["weights"]} if "teacher" in manifest else {}


def settle_teacher(
    config: DistillationConfig, path: Path, begun: Mapping[str, Any], updates: int, open_it: Callable[[], AnyTeacher]
) -> tuple[AnyTeacher | None, dict[str, Any]]:
    """The teacher of a run of so many updates at `path`, and what its manifest says of it; neither for labels alone.

    It is opened before the run is, which would lose its summary if it grows and its teacher does not fit. Not for a
    run that has ended, whose teacher may be gone. begun: the manifest of a run that was begun there.

    Raises UserError as `open_it`.
    """
    if config.teacher is None:
        return None, {}
    run = RunDirectory(path)
    ended = "teacher" in begun and run.summary_file.exists()
    if ended and int(run.read_config()["engine"]["max_updates"]) >= updates:
        return None, {"teacher": begun["teacher"]}
    teacher = open_it()
    return teacher, {"teacher": teacher.facts}


def check_weights(teacher: str | None, facts: Mapping[str, Any], begun: Mapping[str, Any]) -> None:
    """Raises UserError where a teacher's weights are no longer those that the manifest of its student names."""
    if facts["weights"] != begun["weights"]:
        raise UserError(f"distillation.teacher: {teacher} has other weights than when this began")


def taught_line(signature: Mapping[str, Any], gamma: float) -> str:
    """By whom a student was taught, and how, for a terminal."""
    which = f"{signature['teacher_run']}, {signature['teacher_checkpoint']} checkpoint"
    student = signature["student_temperature"]
    at = f"T = {signature['teacher_temperature']:g}"
    if student != signature["teacher_temperature"]:
        at += f", its own {student:g}"
    how = f"at {at}, β = {signature['beta']:g}"
    return f"taught by {which} (α = {signature['teacher_alpha']:g}), {how}; smoothness γ of its targets {gamma:.4f}"
