"""Bring your own translations: two systems compared, metric by metric; files that do not pair up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmt_ls.experiment.command_line import run_command
from nmt_ls.experiment.records import read_records
from nmt_ls.given_translations import COMPARED, bootstrapped_difference, compare, read_translations
from nmt_ls.metrics.statistics import crossed_bootstrap
from nmt_ls.metrics.translation import bleu_from_statistics, bleu_statistics, paired_test, translation_scores
from nmt_ls.reporting import ScoreConfig
from nmt_ls.score import main

WORDS = ["the", "a", "dog", "cat", "bird", "sees", "hears", "follows", "old", "young", "red", "small", "house", "tree"]
FILES = {"translations": "ours", "baseline": "theirs", "reference": "reference"}


def texts(lines: int = 60) -> dict[str, list[str]]:
    """References, ours with a word wrong here and there, and theirs with more of them."""
    rng = np.random.default_rng(0)
    reference = [rng.choice(WORDS, rng.integers(5, 12)).tolist() for _ in range(lines)]

    def spoiled(rate: float) -> list[str]:
        return [" ".join(w if rng.random() > rate else str(rng.choice(WORDS)) for w in line) for line in reference]

    return {"ours": spoiled(0.15), "theirs": spoiled(0.4), "reference": [" ".join(line) for line in reference]}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, lines in texts().items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    (tmp_path / "second").write_text("".join(f"{line} again\n" for line in texts()["reference"]))
    return tmp_path


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("references", [("reference",), ("reference", "second")])
def test_every_metric_is_that_of_the_library(references: tuple[str, ...]) -> None:
    given = read_translations("ours", "theirs", references)
    assert [len(one) for one in given.references] == [len(references)] * 60
    found = {one.metric: one for one in compare(given)}
    assert list(found) == ["bleu", "chrf", "ter"]
    ours, theirs = (translation_scores(side, given.references, list(COMPARED)) for side in (given.ours, given.baseline))
    for name, one in found.items():
        values = one.figures().values
        assert values[name] == pytest.approx(ours.scores[name])
        assert values[f"{name}_baseline"] == pytest.approx(theirs.scores[name])
        difference = ours.scores[name] - theirs.scores[name]
        assert values[f"{name}_difference"] == pytest.approx(difference)
        low, high = values[f"{name}_difference_low"], values[f"{name}_difference_high"]
        assert low < difference < high
        assert (low + high) / 2 == pytest.approx(difference)
        assert (difference < 0) == (high < 0) == (name == "ter")  # ours are better
        for method in ("bootstrap", "randomisation"):
            test = paired_test(given.baseline, given.ours, given.references, method, metrics=(one.metric,))[name]
            assert values[f"{name}_{method}_p_value"] == test.p_value < 0.05
            assert one.figures().signatures[f"{name}_{method}_p_value"] == test.signature


@pytest.mark.usefixtures("files")
def test_the_interval_is_a_paired_bootstrap() -> None:
    given = read_translations("ours", "theirs", ("reference",))
    found = bootstrapped_difference(given, "bleu")
    sums = [bleu_statistics(side, given.references)[None] for side in (given.baseline, given.ours)]
    expected = crossed_bootstrap(*sums, bleu_from_statistics, resample_seeds=False)
    assert (found.value, found.sd) == (pytest.approx(expected.value), pytest.approx(expected.sd))


@pytest.mark.usefixtures("files")
def test_a_system_beside_itself() -> None:
    for one in compare(read_translations("ours", "ours", ("reference",))):
        values = list(one.figures().values.values())
        assert values[0] == values[1]
        assert values[2:] == [0.0, 0.0, 0.0, 1.0, 1.0]


def test_score_prints_and_records_it(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "ours").write_text("\n" + (files / "ours").read_text().partition("\n")[2])  # one left empty
    settings: dict[str, Any] = {**FILES, "reference": ("reference", "second"), "results": "results"}
    main(ScoreConfig(**settings))
    said = capsys.readouterr().out
    assert "ours (ours) and theirs (baseline), 60 lines" in said
    rows = {line.split()[0]: line for line in said.splitlines() if line}
    records = {record.name: record for record in read_records("results/records.jsonl")}
    assert len(records) == 7 * 3
    for name, label in (("bleu", "BLEU"), ("chrf", "chrF"), ("ter", "TER")):
        words = rows[label].split()[-7:]
        assert words[:3] == [
            f"{records[name].value:.2f}",
            f"{records[f'{name}_baseline'].value:.2f}",
            f"{records[f'{name}_difference'].value:+.2f}",
        ]
        assert words[5:] == [
            f"{records[f'{name}_{test}_p_value'].value:.4f}" for test in ("bootstrap", "randomisation")
        ]
    signature = records["bleu_difference"].signature
    expected = {"translations": "ours", "baseline": "theirs", "reference": "reference, second", "resamples": 1000}
    assert expected.items() <= signature.items()
    assert len(signature["reference_sha256"].split(", ")) == 2
    assert "ar:10000" in records["ter_randomisation_p_value"].signature["sacrebleu"]
    assert not Path("results/figures").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"translations": "none"}, "none: there is no such file"),
        ({"baseline": "short"}, "short: has 2 lines, but ours has 60; they must pair up, line by line"),
        ({"reference": "reference short"}, "short: has 2 lines, but ours has 60"),
        ({"baseline": "latin"}, "latin:2: not valid UTF-8"),
        ({"translations": "empty"}, "empty: has 0 lines; a comparison resamples them, and needs two at least"),
        ({"reference": None}, "reference: not given; translations are compared with a baseline, by references"),
        ({"baseline": None}, "baseline: not given"),
        ({"translations": None}, "baseline: belongs to translations, which was not given"),
        ({"run": "runs/x"}, "run: belongs to a run, but translations was given"),
        ({"slices": "false"}, "slices: belongs to a run, but translations was given"),
        ({"temperature": "1.5"}, "temperature: belongs to a run, but translations was given"),
        ({"records": "tokens.jsonl"}, "baseline: belongs to translations, but records was given"),
        ({"results": "ours"}, "results: ours cannot be made"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    files: Path, changed: dict[str, str | None], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "short").write_text("one\ntwo\n")
    (files / "empty").write_text("")
    (files / "latin").write_bytes(b"one\nt\xe9n\n")
    settings = {**FILES, "results": "results", **changed}
    argv = [word for key, value in settings.items() if value is not None for word in (f"--{key}", *value.split())]
    with pytest.raises(SystemExit) as left:
        run_command(main, ScoreConfig, program="score", description="", argv=argv)
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {words}"), said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (files / "results").exists()
