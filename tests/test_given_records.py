"""Bring your own probabilities: the format, what is refused and how, the report."""

from __future__ import annotations

import gzip
import io
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmt_ls.experiment.command_line import UserError, run_command
from nmt_ls.experiment.records import read_records
from nmt_ls.given_records import TokenRecords, calibrated, read_token_records, record_figures
from nmt_ls.metrics import calibration_figures, expected_calibration_error
from nmt_ls.metrics.calibrators import IsotonicCalibration
from nmt_ls.reporting import ScoreConfig
from nmt_ls.score import main
from nmt_ls.search_changes import SearchChanges

TOKEN = {"sentence": 0, "position": 0, "confidence": 0.5, "correct": True}
LISTS = {"sentence": "a", "confidence": [0.5, 1.0, 0.0], "correct": [True, 1, 0], "log_prob": [-0.7, 0, -9]}


EMPTY = {"sentence": 5, "confidence": [], "correct": []}


def written(path: Path, *entries: Any, name: str = "tokens.jsonl") -> Path:
    file = path / name
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
    assert_same_tokens(again, found)


def assert_same_tokens(one: TokenRecords, other: TokenRecords) -> None:
    for key in ("sentences", "positions", "confidences", "correct", "log_probs"):
        assert np.array_equal(getattr(one, key), getattr(other, key)), key
        assert getattr(one, key).dtype == getattr(other, key).dtype


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
        ({**TOKEN, "position": 1, "log_prob": -0.7}, "log_prob: given in some lines only"),
        ({**LISTS, "log_prob": [-1, -1]}, "log_prob: 2 values, but confidence has 3; give lists of one length"),
        ({**LISTS, "correct": True}, "correct: true is no list, but confidence is"),
        ({**LISTS, "log_prob": [0.0, 0.5, 0.0]}, r"log_prob\[1\]: got 0.5; give the natural logarithm"),
        ({**LISTS, "confidence": [0.5, 2, 0.5]}, r"confidence\[1\]: got 2"),
        (
            '{"sentence": 1, "position": 0, "confidence": 0.9, "correct": 0, "confidence": 0.1}',
            '"confidence": given twice',
        ),
        ({**TOKEN, "position": 1, "confidence": {"a": 1}}, 'confidence: got {"a": 1}'),
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


@pytest.mark.parametrize(
    ("confidence", "correct", "log_prob", "words"),
    [
        (
            0.9,
            True,
            -5.0,
            r"log_prob: got -5, but of a correct token it is ln\(confidence\) = -0.1054; is it log2 or log10",
        ),
        (0.9, True, 0.0, "got 0, but of a correct token"),
        (0.5, True, math.log2(0.5), "got -1, but of a correct token"),
        (0.5, True, math.log10(0.5), "got -0.301, but of a correct token"),
        (0.9, False, -0.5, r"got -0.5, but of a wrong token it is at most ln\(min\(confidence, 1 - conf.* = -2.303"),
        (0.2, False, -1.0, r"of a wrong token it is at most .* = -1.609"),
        (1.0, False, -1.0, r"of a wrong token it is at most .* = -inf"),
        (0.0, True, -1.0, r"of a correct token it is ln\(confidence\) = -inf"),
    ],
)
def test_a_log_prob_that_the_confidence_rules_out(
    tmp_path: Path, confidence: float, correct: bool, log_prob: float, words: str
) -> None:
    token = {**TOKEN, "confidence": confidence, "correct": correct, "log_prob": log_prob}
    with pytest.raises(UserError, match=f"tokens.jsonl:1: .*{words}"):
        read_token_records(written(tmp_path, token))
    lists = {"sentence": 0, "confidence": [1.0, confidence], "correct": [1, correct], "log_prob": [0, log_prob]}
    with pytest.raises(UserError, match=r"tokens.jsonl:1: log_prob\[1\]: got"):
        read_token_records(written(tmp_path, lists))


def test_log_probs_may_be_rounded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    exact = rng.beta(2, 1, 3000)
    correct = rng.random(3000) < 0.5
    right = np.where(correct, exact, np.minimum(exact, 1 - exact))
    for digits in (2, 3, 6, 15):
        columns = {
            "confidence": exact.round(digits).tolist(),
            "correct": correct.tolist(),
            "log_prob": np.log(right).round(digits).tolist(),
        }
        assert len(read_token_records(written(tmp_path, {"sentence": 0, **columns})).correct) == 3000
    half = {"confidence": exact.astype(np.float16).tolist(), "log_prob": np.log(right).astype(np.float16).tolist()}
    read_token_records(written(tmp_path, {"sentence": 0, "correct": correct.tolist(), **half}))


def test_a_sentence_without_tokens_does_not_count(tmp_path: Path) -> None:
    """Wherever it stands, and whether or not it has the list of log_probs that the others have."""
    full = {**LISTS, "log_prob": [-0.7, 0.0, -9.0]}
    alone = read_token_records(written(tmp_path, full, {**full, "sentence": "b"}))
    for empty in (EMPTY, {**EMPTY, "log_prob": []}):
        for place in range(3):
            lines = [full, {**full, "sentence": "b"}]
            lines.insert(place, empty)
            found = read_token_records(written(tmp_path, *lines))
            assert_same_tokens(found, alone)
            assert record_figures(found)[0].values["sentences"] == 2
    for empty in (EMPTY, {**EMPTY, "log_prob": []}):
        assert read_token_records(written(tmp_path, empty, TOKEN)).log_probs is None
    with pytest.raises(UserError, match=r"tokens.jsonl:1: log_prob: 1 values, but confidence has 0"):
        read_token_records(written(tmp_path, {**EMPTY, "log_prob": [-1]}))


def test_packed_files_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = written(tmp_path, LISTS, EMPTY, {**LISTS, "sentence": 7})
    whole = read_token_records(plain)
    packed = tmp_path / "test.v1.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    piped = {name: io.BufferedReader(io.BytesIO(file.read_bytes())) for name, file in (("a", plain), ("b", packed))}
    for name in piped:
        monkeypatch.setattr("nmt_ls.given_records.standard_input", lambda _key, name=name: piped[name])
        assert_same_tokens(read_token_records("-"), whole)
    unpacked = read_token_records(packed)
    assert_same_tokens(unpacked, whole)
    assert unpacked.sha256 == whole.sha256  # of what it holds
    assert (unpacked.name, unpacked.stem) == ("test.v1.jsonl.gz", "test.v1")

    bad = io.BufferedReader(io.BytesIO(b'{"sentence": 1}\n'))
    monkeypatch.setattr("nmt_ls.given_records.standard_input", lambda _key: bad)
    with pytest.raises(UserError, match=r"^standard input, line 1: confidence: missing"):
        read_token_records("-")
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"test.v1.jsonl.gz:\d+: damaged gzip file"):
        read_token_records(packed)
    with pytest.raises(UserError, match=r"fit_on: .* is no file"):
        read_token_records(tmp_path, "fit_on")


def test_tokens_are_kept_in_arrays(tmp_path: Path) -> None:
    """Some 50 bytes a token and not several hundred, so that ten million fit into memory."""
    count = 20_000
    file = written(tmp_path, *({**TOKEN, "position": place, "log_prob": -0.7} for place in range(count)))
    tracemalloc.start()
    read_token_records(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 140 * count  # arrays that grow are held twice for a moment


def test_the_first_token_given_twice_is_named(tmp_path: Path) -> None:
    many = [
        {"sentence": name, "position": place, "confidence": 0.5, "correct": 1} for place in range(9) for name in "ba"
    ]
    with pytest.raises(UserError, match=r'tokens.jsonl:19: .*sentence "a" has a token at 7 already, in line 16; give'):
        read_token_records(written(tmp_path, *many, many[15], many[2], many[15]))


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
            {"sentence": 0, "confidence": [0.9, 0.9, 0.25], "correct": [1, 0, 0], "log_prob": [-0.1, -2.5, -4.0]},
            {"sentence": 1, "confidence": [0.25], "correct": [1], "log_prob": [-1.4]},
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
    assert values["nll"] == pytest.approx(2.0)
    assert values["perplexity"] == pytest.approx(math.exp(2.0))
    assert values["aurc"] == pytest.approx((0.5 + 0.5 + 0.5 + 0.5) / 4)
    (last,) = (group for group in slices if group.recipe["slice"] == "last token")
    assert last.recipe["tokens"] == 2
    assert last.values["signed_gap_by_end"] == pytest.approx(0.25)
    assert {next(iter(group.values)) for group in slices} == {"ece_by_position", "ece_by_end", "ece_by_length"}
    # a calibrated model whose slices are known beforehand has no such slices
    floors = {name for group in slices for name in group.values if "floor" in name or "p_value" in name}
    assert floors == {"ece_floor_by_position", "ece_p_value_by_position"}


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
    ScoreConfig(records="x", fit_on="z", same_split=True, results="y", figure=False, slices=False)
    for setting, words in (
        ({"fit_on": "x"}, "fit_on: belongs to records, which was not given"),
        ({"records": "x", "same_split": True}, "same_split: belongs to fit_on, which was not given"),
        ({"records": "-", "fit_on": "-"}, "fit_on: records is standard input already"),
    ):
        with pytest.raises(ValueError, match=words):
            ScoreConfig(**setting)  # type: ignore[arg-type]


def too_sure(path: Path, name: str, seed: int, sentences: int = 40) -> Path:
    """Tokens whose confidences are too high."""
    rng = np.random.default_rng(seed)
    confidences = rng.beta(4, 1, (sentences, 12))
    correct = rng.random((sentences, 12)) < confidences**3
    right = np.where(correct, confidences, np.minimum(confidences, 1 - confidences))
    lines = [
        {"sentence": row, "confidence": c.tolist(), "correct": y.tolist(), "log_prob": np.log(p).tolist()}
        for row, (c, y, p) in enumerate(zip(confidences, correct, right, strict=True))
    ]
    return written(path, *lines, name=name)


def test_an_isotonic_calibrator_of_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test, validation = too_sure(tmp_path, "test.jsonl", 0), too_sure(tmp_path, "validation.jsonl", 1)
    main(ScoreConfig(records=str(test), fit_on=str(validation), results=str(tmp_path / "results")))
    said = capsys.readouterr()
    assert "warning" not in said.err
    fit, given = read_token_records(validation), read_token_records(test)
    isotonic = IsotonicCalibration.fit(fit.confidences, fit.correct, split="validation")
    after = isotonic.apply(given.confidences, split="test")
    expected = {"value": given.confidences, "isotonic": after}
    records = [record for record in read_records(tmp_path / "results" / "records.jsonl") if record.name == "ece"]
    for record, confidences in zip(records, expected.values(), strict=True):
        assert record.value == pytest.approx(expected_calibration_error(confidences, given.correct))
    plain, fitted = (record.signature for record in records)
    own = {"calibrator": "isotonic", "fitted_on": "validation.jsonl", "fitted_on_sha256": fit.sha256}
    assert {**plain, **own} == fitted
    rows = {line.split("  ")[0]: line.split()[-2:] for line in said.out.splitlines()}
    assert rows["figure"] == ["value", "isotonic"]
    assert rows["ece"] == [f"{record.value:.4g}" for record in records]
    assert records[1].value < records[0].value
    assert rows["ece_by_end (last token)"][1] != "token)"
    assert rows["perplexity"][0] == "perplexity"  # nothing is known of it afterwards
    pictures = {file.stem for file in (tmp_path / "results" / "figures").glob("*.png")}
    stems = ("test", "test-isotonic-validation")
    assert pictures == {f"{kind}-{stem}" for kind in ("reliability", "risk-coverage") for stem in stems}


def test_a_calibrator_of_the_same_tokens_is_refused_unless_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = read_token_records(too_sure(tmp_path, "test.jsonl", 0))
    copy = tmp_path / "copy.jsonl.gz"  # written otherwise, and under another name
    entries = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    copy.write_bytes(gzip.compress("\n".join(json.dumps(entry, indent=None) + " " for entry in entries).encode()))
    with pytest.raises(
        UserError, match=r"fit_on: copy.jsonl.gz holds the same tokens as test.jsonl.*--same_split true"
    ):
        calibrated(test, read_token_records(copy))
    config = {"records": str(tmp_path / "test.jsonl"), "results": str(tmp_path / "results"), "figure": False}
    with pytest.raises(UserError, match="the same tokens"):
        main(ScoreConfig(**config, fit_on=str(copy)))  # type: ignore[arg-type]
    assert not (tmp_path / "results").exists()
    for fit_on in (str(copy), str(tmp_path / "test.jsonl")):
        main(ScoreConfig(**config, fit_on=fit_on, same_split=True))  # type: ignore[arg-type]
        assert "fitted on the tokens that it is reported on, which flatters it" in capsys.readouterr().err
    records = [record for record in read_records(tmp_path / "results" / "records.jsonl") if record.name == "ece"]
    assert [record.signature.get("same_split") for record in records] == [None, True, True]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--records", "none.jsonl"], "records: none.jsonl is no file"),
        (["--records", "."], "records: . is no file"),
        (["--records", "test.jsonl", "--fit_on", "none.jsonl"], "fit_on: none.jsonl is no file"),
        (["--records", "test.jsonl", "--fit_on", "bad.jsonl"], "bad.jsonl:1: confidence: missing"),
        (["--records", "test.jsonl", "--fit_on", "test.jsonl"], "fit_on: test.jsonl holds the same tokens"),
        (["--records", "test.jsonl", "--temperature", "fitted"], "temperature: fitted needs logits"),
        (["--records", "bad.gz"], "bad.gz:1: damaged gzip file"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    too_sure(tmp_path, "test.jsonl", 0, sentences=3)
    written(tmp_path, {"sentence": 0}, name="bad.jsonl")
    (tmp_path / "bad.gz").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(SystemExit) as left:
        run_command(main, ScoreConfig, program="score", description="", argv=[*arguments, "--results", "results"])
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {words}")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (tmp_path / "results").exists()
