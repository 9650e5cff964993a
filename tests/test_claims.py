"""The claims file that we ship, and what its reader refuses."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from nmt_ls.claims import Claims, Setting, Side, Test, read_claims
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.study import Cell, Study, load_study

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "configs" / "claims.yaml"


@pytest.fixture(scope="module")
def shipped() -> Claims:
    return read_claims(SHIPPED)


def test_every_claim_of_the_paper_is_there(shipped: Claims) -> None:
    names = {claim.name for claim in shipped.claims}
    translation = {
        "nmt-calibration",
        "nmt-calibration-as-temperature",
        "nmt-bleu",
        "nmt-nll-every-temperature",
        "nmt-temperature-recovers-part",
        "nmt-smoothed-temperature-hurts",
        "nmt-best-temperatures",
        "nmt-bleu-and-perplexity",
        "nmt-logit-gaps",
    }
    assert translation <= names
    for claim in shipped.claims:
        if claim.name in translation:
            assert set(claim.settings) == {"multi30k-de", "multi30k-de-d0.1", "multi30k-fr", "tatoeba"}
        for regime in claim.regimes:
            if regime.figure == "debiased_ece":
                assert regime.at_least == 0.03
                assert (regime.over, regime.under) == ("over_confidence", "under_confidence")
    of_over_confidence = {  # what is said of over-confident networks
        "nmt-calibration",
        "nmt-calibration-as-temperature",
        "nmt-smoothed-temperature-hurts",
        "nmt-best-temperatures",
        "embedded-exact-calibration",
        "vision-calibration",
        "vision-calibration-as-temperature",
        "vision-calibration-larger-images",
    }
    of_over_confidence |= {claim.name for claim in shipped.claims if "calibrat" in claim.name and not claim.not_run}
    assert of_over_confidence <= {
        claim.name for claim in shipped.claims if "debiased_ece" in [regime.figure for regime in claim.regimes]
    }


def trained(cell: Cell) -> list[str]:
    """The names of the runs that a cell's commands train."""
    words = [step.line.split() for step in cell.steps]
    return [line[line.index("--out") + 1].removeprefix("runs/") for line in words if "--out" in line]


def test_settings_find_the_cells_of_their_study(shipped: Claims) -> None:
    for name, setting in shipped.settings.items():
        split = "train" if name.endswith("-training") else "test"
        assert (setting.split, setting.choose_on, setting.checkpoint) == (split, "validation", "last")
        (file,) = [word for word in setting.command.split() if word.endswith(".yaml")]
        if not (ROOT / file).exists():
            continue
        study = study_of(file)
        assert study.results == Path("results") / setting.results
        found = [cell for cell in study.cells if any(fnmatch(run, setting.runs) for run in trained(cell))]
        alphas = {cell.values["alpha"] for cell in found}
        compared = (0.0,) if name == "mnist-dropout" else (0.0, 0.1)
        assert set(compared) <= alphas
        if name != "mnist-taught":  # where it is the teacher's
            assert {cell.values.get("dropout", 0.0) for cell in found} == {setting.dropout}
        for alpha in compared:
            assert len({cell.values["seed"] for cell in found if cell.values["alpha"] == alpha}) == setting.seeds


@cache
def study_of(file: str) -> Study:
    return load_study(ROOT / file)


def taught_in(study: Study) -> set[tuple[float, float, float, int]]:
    """Teacher's α and dropout, temperature and seed of the students that a study trains."""
    found = set()
    for cell in study.cells:
        for words in (step.line.split() for step in cell.steps):
            if "--teacher" in words:
                alpha, dropout = cell.values["alpha"], cell.values.get("dropout", 0.0)
                found.add((alpha, dropout, float(words[words.index("--temperature") + 1]), cell.values["seed"]))
    return found


def test_students_of_claims_are_those_of_their_study(shipped: Claims) -> None:
    asked = [
        (shipped.settings[name], side.taught)
        for claim in shipped.claims
        for name in claim.settings
        for test in claim.tests.values()
        for side in test.sides
        if side.taught
    ]
    assert asked
    for setting, taught in asked:
        (file,) = [word for word in setting.command.split() if word.endswith(".yaml")]
        alpha, temperature = taught["teacher_alpha"], taught["teacher_temperature"]
        trained_by = taught_in(study_of(file))
        found = [
            recipe
            for recipe in trained_by
            if recipe[:3] == (alpha, taught.get("teacher_dropout", recipe[1]), temperature)
        ]
        assert len(found) == setting.seeds


GOOD: dict[str, Any] = {
    "regimes": {"over": {"figure": "debiased_ece", "at_least": 0.03}},
    "settings": {
        "here": {"title": "t", "results": "r", "runs": "x-*", "dropout": 0.0, "command": "python -m nmt_ls.study"}
    },
    "claims": {
        "one": {
            "title": "t",
            "where": "w",
            "sentence": "s",
            "numbers": "n",
            "settings": ["here"],
            "regime": "over",
            "tests": {
                "it falls": {
                    "statistic": "nll",
                    "expect": "lower",
                    "effect": 0.01,
                    "baseline": {"alpha": 0},
                    "treated": {"alpha": 0.1, "temperature": "nll"},
                }
            },
        }
    },
}


def changed(content: Any, keys: tuple[str, ...], value: Any) -> Any:
    """The same with one key set, or (None) taken out."""
    if not keys:
        return value
    copy = dict(content)
    if value is None and len(keys) == 1:
        del copy[keys[0]]
    else:
        copy[keys[0]] = changed(copy.get(keys[0], {}), keys[1:], value)
    return copy


def read(tmp_path: Path, content: Mapping[str, Any]) -> Claims:
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_claims(path)


def test_a_file_is_read(tmp_path: Path) -> None:
    claims = read(tmp_path, GOOD)
    (claim,) = claims.claims
    assert [regime.at_least for regime in claim.regimes] == [0.03]
    assert claim.tests == {
        "it falls": Test(
            statistic="nll",
            expect="lower",
            effect=0.01,
            baseline=Side(alpha=0.0),
            treated=Side(alpha=0.1, temperature="nll"),
        )
    }
    assert claims.settings["here"].dropout == 0.0


TEST = ("claims", "one", "tests", "it falls")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        # the traps of earlier reproductions
        (("settings", "here", "dropout"), None, r"line 6: settings.here: dropout has to be given"),
        (
            ("settings", "here", "choose_on"),
            "test",
            r"choose_on: temperatures chosen on test may not be reported on it; .* \(\S*claims.yaml, line 12\)",
        ),
        (("settings", "here", "beam"), 1, r"beam: 1 is greedy search, whose translations no temperature changes"),
        (("settings", "here", "seeds"), -1, r"seeds must not be negative"),
        (("regimes", "over", "over"), "over_confidence", r"over, under: name both or neither"),
        ((*TEST, "effect"), 0.0, r"effect must be above 0"),
        ((*TEST, "treated", "temperature"), 0.0, r"temperature"),
        ((*TEST, "treated", "temperature"), "ece", r"line 30: treated.temperature: expected a number or"),
        ((*TEST, "statistic"), "ece", r"line 23: statistic: expected one of bleu, squared_l2, nll"),
        ((*TEST, "expct"), "lower", r"line 31: unknown key expct; did you mean expect"),
        ((*TEST, "baseline"), None, r"baseline: nll compares: name one"),
        ((*TEST, "figure"), "ece", r"figure: name one where records are compared"),
        ((*TEST, "statistic"), "record", r"figure: name one where records are compared"),
        ((*TEST, "statistic"), "record_error", r"baseline: record_error is of one recipe"),
        ((*TEST, "statistic"), "nll_at_every_temperature", r"is of all temperatures; name none"),
        (
            ("claims", "one", "settings"),
            ["there"],
            r"line 18: claims.one.settings: there is no 'there'; there are here",
        ),
        (("claims", "one", "regime"), ["over", "calm"], r"claims.one.regime: there is no 'calm'; there are over"),
        (("claims", "one", "regime"), "calm", r"claims.one.regime: there is no 'calm'; there are over"),
        (("claims", "one", "tests"), None, r"tests: name some, or say in not_run"),
        (("claims", "one", "not_run"), "because", r"tests: name some, or say in not_run"),
        (("claims", "two"), "x", r"claims.two: expected keys and values below it"),
        (("settings",), None, r"settings has to be given"),
    ],
)
def test_mistakes_name_the_line(tmp_path: Path, keys: tuple[str, ...], value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read(tmp_path, changed(GOOD, keys, value))
    assert "claims.yaml" in str(raised.value)


def test_all_mistakes_are_said_together(tmp_path: Path) -> None:
    content = changed(changed(GOOD, ("settings", "here", "dropout"), 2.0), (*TEST, "expect"), "more")
    with pytest.raises(UserError) as raised:
        read(tmp_path, content)
    assert "dropout must be in [0, 1)" in str(raised.value)
    assert "expect: expected one of" in str(raised.value)


def test_sides_say_what_they_are() -> None:
    assert str(Side(alpha=0.1)) == "α = 0.1"
    assert str(Side(alpha=0.0, temperature=1.13)) == "α = 0 at T = 1.13"
    assert str(Side(alpha=0.0, temperature="nll")) == "α = 0 at the best T by NLL"


def test_a_setting_needs_runs() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        Setting(title="t", results="r", runs="", dropout=0.3, command="c")
