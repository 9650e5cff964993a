"""Bring your own probabilities: the format, what is refused and how, the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import read_records
from nmt_ls.given_records import read_token_records, record_figures
from nmt_ls.metrics import calibration_figures, expected_calibration_error
from nmt_ls.reporting import ScoreConfig
from nmt_ls.score import main
from nmt_ls.search_changes import SearchChanges

TOKEN = {"sentence": 0, "position": 0, "confidence": 0.5, "correct": True}
LISTS = {"sentence": "a", "confidence": [0.5, 1.0, 0.0], "correct": [True, 1, 0], "log_prob": [-0.7, 0, -9]}


def written(path: Path, *entries: Any) -> Path:
    file = path / "tokens.jsonl"
    file.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in entries))
    return file


def test_a_token_a_line_and_a_sentence_a_line_are_the_same(tmp_path: Path) -> None:
    found = read_token_records(written(tmp_path, LISTS, "", {**LISTS, "sentence": 7, "position": [4, 2, 0]}))
    assert found.sentences.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.positions.tolist() == [0, 1, 2, 4, 2, 0]
    assert found.confidences.tolist() == [0.5, 1.0, 0.0] * 2
    assert found.correct.tolist() == [True, True, False] * 2
    assert found.log_probs is not None
    assert found.log_probs.tolist() == [-0.7, 0.0, -9.0] * 2
    one_by_one = [
        {"sentence": name, "position": place, **{key: LISTS[key][at] for key in ("confidence", "correct", "log_prob")}}  # type: ignore[index]
        for name, places in (("a", [0, 1, 2]), (7, [4, 2, 0]))
        for at, place in enumerate(places)
    ]
    again = read_token_records(written(tmp_path, *one_by_one))
    for key, values in vars(found).items():
        assert getattr(again, key).tolist() == values.tolist(), key


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({**TOKEN, "position": 1, "confidence": 1.5}, "confidence: got 1.5; give the probability"),
        ({**TOKEN, "position": 1, "confidence": -0.1}, "confidence: got -0.1"),
        ({**TOKEN, "position": 1, "confidence": True}, "confidence: got true"),
        ({**TOKEN, "position": 1, "confidence": "0.5"}, 'confidence: got "0.5"'),
        ({**TOKEN, "position": 1, "confidence": math.nan}, "confidence: got NaN; give the probability"),
        ({**TOKEN, "position": 1, "confidence": math.inf}, "confidence: got Infinity"),
        ({**TOKEN, "position": 1, "correct": 0.5}, "correct: got 0.5; say true or false"),
        ({**TOKEN, "position": 1, "correct": None}, "correct: got null"),
        ({**TOKEN, "position": -1}, "position: got -1; give the token's place"),
        ({**TOKEN, "position": 1.0}, "position: got 1.0"),
        ({**TOKEN, "position": 10**400}, "position: got 1000"),
        (TOKEN, "position: sentence 0 has a token at 0 already, in line 1; give each token once"),
        ({"sentence": 1, "confidence": [0.5, 0.5], "correct": [1, 0], "position": [3, 3]}, "at 3 already, in line 2"),
        ({"sentence": 0, "confidence": 0.5, "correct": True}, "position: missing; give the token's place"),
        ({"position": 0, "confidence": 0.5, "correct": True}, "sentence: missing"),
        ({"sentence": 1, "position": 0, "correct": True}, "confidence: missing"),
        ({**TOKEN, "sentence": None}, "sentence: null names no sentence"),
        ({**TOKEN, "position": 1, "conf": 0.5}, "conf: unknown key; the keys are sentence, position"),
        ({**TOKEN, "position": 1, "log_prob": -1.0}, "log_prob: given in some lines only"),
        ({**LISTS, "log_prob": [-1, -1]}, "log_prob: 2 values, but confidence has 3; give lists of one length"),
        ({**LISTS, "correct": True}, "correct: true is no list, but confidence is"),
        ({**LISTS, "log_prob": [0.0, 0.5, 0.0]}, r"log_prob\[1\]: got 0.5; give the natural logarithm"),
        ({**LISTS, "confidence": [0.5, 2, 0.5]}, r"confidence\[1\]: got 2"),
        ("[1, 2]", "not a JSON object"),
        ("{", "not JSON"),
        ("confidence 0.5", "not JSON \\(a line is one JSON object\\)"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_the_first_fault_is_named_by_file_line_and_key(tmp_path: Path, line: Any, words: str) -> None:
    path = written(tmp_path, TOKEN, line)
    with pytest.raises(UserError, match=f"tokens.jsonl:2: .*{words}") as refused:
        read_token_records(path)
    assert "\n" not in str(refused.value)


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no tokens"):
        read_token_records(written(tmp_path, "", {"sentence": 0, "confidence": [], "correct": []}))
    with pytest.raises(UserError, match=r"records: .*nothing is no file"):
        read_token_records(tmp_path / "nothing")
    (tmp_path / "latin").write_bytes(b'{"sentence": "\xe9"}\n')
    with pytest.raises(UserError, match="latin:1: not JSON"):
        read_token_records(tmp_path / "latin")


def test_the_report_by_hand(tmp_path: Path) -> None:
    tokens = read_token_records(
        written(
            tmp_path,
            {"sentence": 0, "confidence": [0.9, 0.9, 0.25], "correct": [1, 0, 0], "log_prob": [-0.5, -1.5, -4.0]},
            {"sentence": 1, "confidence": [0.25], "correct": [1], "log_prob": [0.0]},
        )
    )
    whole, *slices = record_figures(tokens)
    values = whole.values
    assert set(values) - {"tokens", "sentences", "nll", "perplexity"} == set(calibration_figures([0.5], [1]))
    assert values["tokens"] == 4
    assert values["sentences"] == 2
    assert values["ece"] == pytest.approx(0.5 * 0.4 + 0.5 * 0.25)
    assert values["mce"] == pytest.approx(0.4)
    assert values["over_confidence"] == pytest.approx(0.2)
    assert values["under_confidence"] == pytest.approx(0.125)
    assert values["signed_gap"] == pytest.approx(-0.075)
    brier = (0.01 + 0.81 + 0.0625 + 0.5625) / 4
    assert values["brier"] == pytest.approx(brier)
    split = ("reliability", "uncertainty", "within_bin")
    assert sum(values[name] for name in split) - values["resolution"] == pytest.approx(brier)
    assert values["nll"] == pytest.approx(1.5)
    assert values["perplexity"] == pytest.approx(math.exp(1.5))
    assert values["aurc"] == pytest.approx((0.5 + 0.5 + 0.5 + 0.5) / 4)
    (last,) = (group for group in slices if group.recipe["slice"] == "last token")
    assert last.recipe["tokens"] == 2
    assert last.values["signed_gap_by_end"] == pytest.approx(0.25)
    assert {next(iter(group.values)) for group in slices} == {"ece_by_position", "ece_by_end", "ece_by_length"}


def test_score_prints_and_records_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    confidences = rng.beta(4, 1, (50, 12))
    correct = rng.random((50, 12)) < confidences
    lines = [
        {"sentence": row, "confidence": confidences[row].tolist(), "correct": correct[row].tolist()}
        for row in range(50)
    ]
    path = written(tmp_path, *lines)
    main(ScoreConfig(records=str(path), results=str(tmp_path / "results")))
    assert "ece_by_end (last token)" in capsys.readouterr().out
    found = {record.name: record for record in read_records(tmp_path / "results" / "records.jsonl")}
    assert found["ece"].value == pytest.approx(expected_calibration_error(confidences, correct))
    assert found["ece"].signature["records"] == "tokens.jsonl"
    assert len(found["ece"].signature["records_sha256"]) == 64
    assert {"smooth_ece", "sweep_ece", "debiased_ece", "ece_p_value", "resolution"} <= set(found)
    assert "nll" not in found
    pictures = {file.name for file in (tmp_path / "results" / "figures").glob("*.png")}
    assert pictures == {"reliability-tokens.png", "risk-coverage-tokens.png"}


def test_what_needs_a_model_is_refused_beside_records() -> None:
    for temperature in ("fitted", 1.5):
        with pytest.raises(ValueError, match=r"temperature: .* needs logits"):
            ScoreConfig(records="x", temperature=temperature)  # type: ignore[arg-type]
    for setting in ({"run": "x"}, {"checkpoint": "last"}, {"exact_tokens": 5}, {"search": SearchChanges(beam=2)}):
        with pytest.raises(ValueError, match=f"{next(iter(setting))}: belongs to a run"):
            ScoreConfig(records="x", **setting)  # type: ignore[arg-type]
    ScoreConfig(records="x", results="y", figure=False, slices=False)
