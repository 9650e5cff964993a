"""What the paper says and how it is tested: configs/claims.yaml, read and checked line by line.

The file itself says what its words mean; `claim_statistics` computes them and `verdicts` decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from nmt_ls.experiment.command_line import UserError, load_config
from nmt_ls.experiment.config_values import read_yaml
from nmt_ls.metrics.temperature import check_temperature

Statistic = Literal[
    "bleu",
    "squared_l2",
    "nll",
    "accuracy",
    "nll_at_every_temperature",
    "best_temperature_distance",
    "record",
    "record_distance",
    "record_error",
]
Expectation = Literal["higher", "lower", "not higher", "not lower", "similar"]
Chosen = Literal["nll", "squared_l2", "bleu"]
ONE_SIDED = ("best_temperature_distance", "record_error")
"""Statistics of one recipe, without a baseline."""
OF_RECORDS = ("record", "record_distance", "record_error")
WITH_TARGET = ("record_distance", "record_error")
TAUGHT = {
    "teacher_alpha": "teacher's α",
    "teacher_dropout": "its dropout",
    "teacher_temperature": "T",
    "student_temperature": "its own T",
    "beta": "β",
    "squared_temperature_factor": "T² factor",
}
"""Of signatures of students, what tells them apart, and what it is called."""
EVERY_TEMPERATURE = ("nll_at_every_temperature", "best_temperature_distance")
Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class Regime:
    """Where a claim applies: to hard-target models whose `figure`, on the reported split, is at least `at_least`.

    over, under: names of two figures, where the first also has to be the larger (over- and under-confidence).
    of_teachers: the models are the teachers with hard targets, of which records of their students say the figure.
    """

    figure: str
    at_least: float
    over: str = ""
    under: str = ""
    of_teachers: bool = False

    def __post_init__(self) -> None:
        if bool(self.over) != bool(self.under):
            raise ValueError("over, under: name both or neither")

    def __str__(self) -> str:
        return self.figure.replace("ece", "ECE").replace("_", " ")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Runs in which claims are tested.

    results: folder of a study, below --results. runs: a pattern of the runs' names. dropout: what they were trained
    with, said even where it is 0. caution: what to remember when reading a figure of these runs. beam, length_penalty:
    of the translations that count, as records name them. seeds: how many are planned of every recipe that is compared;
    with fewer a verdict is provisional (0: none are planned). beside: another setting with the same recipes and seeds
    in another precision, with which accuracy is compared. teachers: of students, the setting with their teachers, which
    stand in their figure. students: whether only what is of students is shown, as another setting shows the rest.
    """

    title: str
    results: str
    runs: str
    dropout: float
    command: str
    caution: str = ""
    split: str = "test"
    choose_on: str = "validation"
    checkpoint: str = "last"
    beam: int = 5
    length_penalty: str = "average:1"
    seeds: int = 0
    beside: str = ""
    teachers: str = ""
    students: bool = False

    @property
    def name(self) -> str:
        """The title, and what to remember when reading it."""
        return f"{self.title} ({self.caution})" if self.caution else self.title

    def __post_init__(self) -> None:
        if self.seeds < 0:
            raise ValueError(f"seeds must not be negative, got {self.seeds}")
        if self.beam < 2:
            raise ValueError(f"beam: {self.beam} is greedy search, whose translations no temperature changes")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.choose_on == self.split:
            raise ValueError(
                f"choose_on: temperatures chosen on {self.split} may not be reported on it; name another split"
            )
        if not self.runs or not self.results:
            raise ValueError("runs and results must not be empty")


@dataclass(frozen=True, kw_only=True)
class Side:
    """A recipe at a temperature: a number, or the best by a figure on the split `choose_on`.

    taught: of students, by what teacher and how, as signatures have it; left out, the runs that learnt from labels
    alone. What it does not say of teacher_alpha, teacher_dropout and teacher_temperature may be anything; else β is 1,
    the student's temperature the teacher's, and the loss has the factor T² where T is not 1.
    """

    alpha: float
    temperature: float | Chosen = 1.0
    taught: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.taught) - set(TAUGHT)):
            raise ValueError(f"taught: {unknown[0]} is none of {', '.join(TAUGHT)}")
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha must be in [0, 1), got {self.alpha}")
        if isinstance(self.temperature, float):
            check_temperature(self.temperature)

    def __str__(self) -> str:
        name = f"α = {self.alpha:g}"
        if self.taught:
            name = f"student ({', '.join(f'{TAUGHT[key]} = {value:g}' for key, value in self.taught.items())})"
        if isinstance(self.temperature, str):
            names = {"nll": "NLL", "squared_l2": "calibration error", "bleu": "BLEU"}
            return f"{name} at the best T by {names[self.temperature]}"
        return name if self.temperature == 1 else f"{name} at T = {self.temperature:g}"


@dataclass(frozen=True, kw_only=True)
class Test:
    """One comparison, and what the claim expects of it.

    effect: the smallest difference that matters. figure, target: names of records, for statistics of records. premise:
    what is said where this test fails, if it asks whether there is anything to explain at all. added: when it joined,
    if it was not there before the runs.
    """

    __test__ = False  # pytest: this is none of yours

    statistic: Statistic
    expect: Expectation
    effect: float
    treated: Side
    baseline: Side | None = None
    figure: str = ""
    target: str = ""
    premise: str = ""
    added: str = ""

    def __post_init__(self) -> None:
        if not self.effect > 0:
            raise ValueError(f"effect must be above 0, got {self.effect}")
        if (self.baseline is None) != (self.statistic in ONE_SIDED):
            one = "is of one recipe: leave it out" if self.statistic in ONE_SIDED else "compares: name one"
            raise ValueError(f"baseline: {self.statistic} {one}")
        if bool(self.figure) != (self.statistic in OF_RECORDS):
            raise ValueError(f"figure: name one where records are compared, and only there, not for {self.statistic}")
        if bool(self.target) != (self.statistic in WITH_TARGET):
            raise ValueError(f"target: name one for {' and '.join(WITH_TARGET)}, and only there")
        for side in self.sides:
            if self.statistic in (*EVERY_TEMPERATURE, "record_distance") and self.within_runs:
                raise ValueError(f"treated: {self.statistic} compares two α")
            if self.statistic in EVERY_TEMPERATURE and side.temperature != 1.0:
                raise ValueError(f"statistic: {self.statistic} is of all temperatures; name none")
            if self.statistic in OF_RECORDS and side.temperature not in (1.0, "nll"):
                raise ValueError("temperature: records are scored at a given temperature of 1, or at one fitted by nll")

    @property
    def within_runs(self) -> bool:
        """Whether both sides are of the same runs, at two temperatures."""
        return (
            self.baseline is not None
            and self.baseline.alpha == self.treated.alpha
            and self.baseline.taught == self.treated.taught
        )

    @property
    def sides(self) -> tuple[Side, ...]:
        """The treated recipe, after the baseline if there is one."""
        return (self.treated,) if self.baseline is None else (self.baseline, self.treated)


@dataclass(frozen=True, kw_only=True)
class _ClaimText:
    """A claim as the file has it, but for its tests."""

    title: str
    where: str
    sentence: str
    numbers: str
    kind: Literal["claim", "question"] = "claim"
    settings: tuple[str, ...] = ()
    regime: tuple[str, ...] | str = ()
    tests: dict[str, Any] = field(default_factory=dict)
    not_run: str = ""
    changed: str = ""

    def __post_init__(self) -> None:
        if bool(self.not_run) == bool(self.tests):
            raise ValueError("tests: name some, or say in not_run why there are none")
        if bool(self.settings) != bool(self.tests):
            raise ValueError("settings: name those in which the tests are made")

    @property
    def regimes(self) -> tuple[str, ...]:
        """The names of the regimes, of which the file has one or a list."""
        return (self.regime,) if isinstance(self.regime, str) else self.regime


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper says (or, of kind `question`, what we ask), where it is tested, in which regimes, and how.

    changed: what of it became another when runs were known, besides tests that say when they were added.
    """

    name: str
    kind: Literal["claim", "question"]
    title: str
    where: str
    sentence: str
    numbers: str
    settings: tuple[str, ...]
    regimes: tuple[Regime, ...]
    tests: Mapping[str, Test]
    not_run: str
    changed: str = ""


@dataclass(frozen=True, kw_only=True)
class Claims:
    """The whole file."""

    settings: Mapping[str, Setting]
    claims: tuple[Claim, ...]


@dataclass(frozen=True, kw_only=True)
class _ClaimsFile:
    settings: dict[str, Any]
    claims: dict[str, Any]
    regimes: dict[str, Any] = field(default_factory=dict)


def read_claims(path: str | Path) -> Claims:
    """The claims file.

    Raises:
        UserError: one line for each mistake, naming file, line and key.
    """
    problems = list[str]()
    content, lines = read_yaml(str(path), problems)
    if problems:
        raise UserError("\n".join(problems))
    reader = _Reader(str(path), lines, problems)
    try:
        whole = load_config(_ClaimsFile, content, str(path), lines)
    except UserError as error:
        said = str(error).splitlines()
        raise UserError("\n".join(line if str(path) in line else f"{path}: {line}" for line in said)) from None
    regimes = reader.parts(Regime, whole.regimes, "regimes")
    settings = reader.parts(Setting, whole.settings, "settings")
    for name, setting in settings.items():
        for key, other in (("beside", setting.beside), ("teachers", setting.teachers)):
            reader.known(f"settings.{name}.{key}", [other] if other else [], settings)
    claims = [
        reader.claim(name, text, settings, regimes)
        for name, text in reader.parts(_ClaimText, whole.claims, "claims").items()
    ]
    if problems:
        raise UserError("\n".join(problems))
    return Claims(settings=settings, claims=tuple(claims))


@dataclass(frozen=True)
class _Reader:
    """Collects the problems of all parts of the file."""

    path: str
    lines: Mapping[str, int]
    problems: list[str]

    def parts(self, part: type[Part], content: Mapping[str, Any], prefix: str) -> dict[str, Part]:
        """The sound ones among parts of a kind, by name."""
        found = {}
        for name, mapping in content.items():
            key = f"{prefix}.{name}"
            where = f"{self.path}, line {self.lines.get(key, 1)}: {key}"
            if not isinstance(mapping, Mapping):
                self.problems.append(f"{where}: expected keys and values below it")
                continue
            below = {inner[len(key) + 1 :]: line for inner, line in self.lines.items() if inner.startswith(key + ".")}
            try:
                found[name] = load_config(part, mapping, self.path, below)
            except UserError as error:
                self.problems.extend(
                    line if line.startswith(self.path) else f"{key if self.path in line else where}: {line}"
                    for line in str(error).splitlines()
                )
        return found

    def known(self, key: str, wanted: Iterable[str], known: Iterable[str]) -> None:
        """Names that the file does not have are problems."""
        for one in wanted:
            if one not in known:
                line = self.lines.get(key, 1)
                self.problems.append(
                    f"{self.path}, line {line}: {key}: there is no {one!r}; there are {', '.join(known)}"
                )

    def claim(
        self, name: str, text: _ClaimText, settings: Mapping[str, Setting], regimes: Mapping[str, Regime]
    ) -> Claim:
        """A claim with its tests; names of settings and regimes that the file does not have are problems."""
        key = f"claims.{name}"
        self.known(f"{key}.settings", text.settings, settings)
        self.known(f"{key}.regime", text.regimes, regimes)
        return Claim(
            name=name,
            kind=text.kind,
            title=text.title,
            where=text.where,
            sentence=text.sentence,
            numbers=text.numbers,
            settings=text.settings,
            regimes=tuple(regimes[one] for one in text.regimes if one in regimes),
            tests=self.parts(Test, text.tests, f"{key}.tests"),
            not_run=text.not_run,
            changed=text.changed,
        )
