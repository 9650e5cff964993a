"""The score command: its figures, its records, its figure."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import small_config

from nmt_ls.corpus import Corpus
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import read_records
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.losses import LossConfig
from nmt_ls.metrics import expected_calibration_error
from nmt_ls.reporting import ScoreConfig
from nmt_ls.score import main
from nmt_ls.scoring import score_batches, split_batches
from nmt_ls.search_changes import SearchChanges
from nmt_ls.sweeping import SweepConfig, sweep
from nmt_ls.translator import Translator


def test_tokens_are_those_of_the_split_and_no_pad_is_among_them(small_run: RunDirectory, small_corpus: Corpus) -> None:
    split = small_corpus.split("test")
    scored = score_batches(Translator.load(small_run.path).model, split_batches(split), loss=LossConfig())
    tokens = scored.tokens
    order = np.lexsort((tokens.positions, tokens.sentences))
    expected = [piece for row in range(len(split)) for piece in [*split.target_ids(row), 2]]
    assert tokens.labels[order].tolist() == expected
    assert scored.likelihood.nll == pytest.approx(-tokens.log_probs.mean())
    assert scored.calibration.ece == pytest.approx(expected_calibration_error(tokens.confidences, tokens.correct))
    assert scored.likelihood.accuracy == pytest.approx(tokens.correct.mean())


def test_records_say_what_was_measured_and_how(
    small_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ScoreConfig(
        run=str(small_run.path),
        checkpoint="last",
        results=str(tmp_path / "results"),
    )
    main(config)
    records = {record.name: record for record in read_records(tmp_path / "results" / "records.jsonl")}
    summary = small_run.read_summary()["checkpoints"]["last"]
    for name, value in summary.items():  # what is not given is the run's own
        assert records[name].value == pytest.approx(value, abs=1e-6), name
    signature = records["bleu"].signature
    assert "sacrebleu" in signature
    recipe = {"alpha": 0.1, "beam": 2, "checkpoint": "last", "split": "test", "temperature": 1.0, "updates": 60}
    assert {key: signature[key] for key in recipe} == recipe
    assert "beam" not in records["ece"].signature  # nothing is searched for it
    assert {"commit", "seed", "corpus", "device", "threads", "training_command", "precision"} <= set(signature)
    assert 0 <= records["ece_p_value"].value <= 1
    log = {line["nll"]: line["step"] for line in small_run.read_metrics() if line["split"] == "validation"}
    assert records["best_validation_step"].value == log[min(log)]
    pictures = sorted(path.suffix for path in (tmp_path / "results" / "figures").glob("reliability-*"))
    assert pictures == [".png", ".svg"]
    shown = capsys.readouterr().out
    assert "bleu" in shown
    (line,) = (line for line in shown.splitlines() if line.startswith("recipe: "))
    for part in ("alpha:0.1", "beam:2", "checkpoint:last", "split:test", "temperature:1.0", "corpus:", "commit:"):
        assert part in line


def test_records_have_the_recipe_of_a_sweep_which_still_measures_its_own(
    small_run: RunDirectory, tmp_path: Path
) -> None:
    config = ScoreConfig(run=str(small_run.path), results=str(tmp_path), figure=False)
    main(config)  # of the checkpoint that either takes if none is named
    assert not (tmp_path / "figures").exists()
    ours = {record.name: record for record in read_records(tmp_path / "records.jsonl")}
    search = small_config(Corpus.load(str(small_run.read_config()["data"])), tmp_path).search
    sweep(
        SweepConfig(
            runs=(str(small_run.path),), split="test", temperatures=("1",), inverse_temperatures="0.5:1:2",
            beams=(search.beam,), results=str(tmp_path),
        )
    )  # fmt: skip
    for record in read_records(tmp_path / "records.jsonl")[-4:]:  # the decoded cell: BLEU and its like
        theirs = record.signature
        assert record.value == pytest.approx(ours[record.name].value)
        shared = {key: value for key, value in ours[record.name].signature.items() if key in theirs}
        assert shared == theirs
        assert {"run", "weights", "dropout", "updates", "training_commit", "training_precision"} <= set(shared)
    (nll,) = (
        record
        for record in read_records(tmp_path / "records.jsonl")
        if record.name == "nll" and "temperature_is" not in record.signature and record.signature["temperature"] == 1.0
    )
    assert nll.signature.items() <= ours["nll"].signature.items()


def test_a_second_call_appends_nothing(
    small_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ScoreConfig(run=str(small_run.path), checkpoint="last", results=str(tmp_path), figure=False)
    main(config)
    before = (tmp_path / "records.jsonl").read_bytes()
    main(config)
    assert (tmp_path / "records.jsonl").read_bytes() == before
    assert "added 0 records" in capsys.readouterr().err
    main(replace(config, checkpoint="best", search=SearchChanges(beam=1)))
    assert len((tmp_path / "records.jsonl").read_bytes()) > len(before)


def test_an_unfinished_run_is_scored_and_recorded(small_run: RunDirectory, tmp_path: Path) -> None:
    run = RunDirectory(shutil.copytree(small_run.path, tmp_path / "run"))
    run.summary_file.unlink()
    main(ScoreConfig(run=str(run.path), checkpoint="averaged", results=str(tmp_path), search=SearchChanges(beam=1)))
    (record,) = (found for found in read_records(tmp_path / "records.jsonl") if found.name == "bleu")
    assert record.signature["updates"] == 60
    assert record.signature["beam"] == 1


def test_what_is_wrong_is_said_before_the_model_is_loaded(
    small_run: RunDirectory, small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("nmt_ls.reporting.Translator.load", load)
    (tmp_path / "file").write_text("")
    run = str(small_run.path)
    for wrong, words in (
        ({"results": str(tmp_path / "file")}, "results: .*file cannot be made"),
        ({"split": "dev"}, "dev"),
        ({"data": str(tmp_path)}, "not a prepared corpus"),
        ({"search": SearchChanges(nbest=3)}, "search.nbest"),
    ):
        with pytest.raises(UserError, match=words):
            main(ScoreConfig(run=run, **wrong))  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="the model was loaded"):
        main(ScoreConfig(run=run, data=str(small_corpus.directory)))


def test_a_temperature_at_which_logits_overflow_is_named(small_run: RunDirectory) -> None:
    with pytest.raises(UserError, match="at temperature 1e-42 the model's log-probabilities are not numbers"):
        main(ScoreConfig(run=str(small_run.path), temperature=1e-42))


def test_a_changed_split_is_not_scored(small_run: RunDirectory, small_corpus: Corpus, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_corpus.directory, tmp_path / "small"))
    (arrow,) = (copy / "test").glob("*.arrow")
    before = small_corpus.split("test").source_text(0).encode()
    arrow.write_bytes(arrow.read_bytes().replace(before, before.swapcase()))
    with pytest.raises(UserError, match="small/test: changed since"):
        main(ScoreConfig(run=str(small_run.path), data=str(copy)))


def test_a_fitted_temperature_lowers_validation_nll(
    small_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nll = []
    for temperature in (1.0, "fitted"):
        folder = tmp_path / str(temperature)
        config = ScoreConfig(
            run=str(small_run.path), split="validation", results=str(folder), temperature=temperature,  # type: ignore[arg-type]
            search=SearchChanges(beam=1),
        )  # fmt: skip
        main(config)
        records = {record.name: record for record in read_records(folder / "records.jsonl")}
        nll.append(records["nll"].value)
        assert records["nll"].signature["temperature_is"] == ("given" if temperature == 1.0 else "fitted")
        assert records["nll"].signature.get("fitted_on") == (None if temperature == 1.0 else "validation")
        assert records["logit_gap_mean"].signature["temperature"] == 1.0
        assert "fitted_on" not in records["logit_gap_mean"].signature
        flattered = "fitted on the validation split and reported on it" in capsys.readouterr().err
        assert flattered == (temperature == "fitted")
    assert nll[1] < nll[0]


def test_bad_settings() -> None:
    for settings in (
        {"temperature": 0.0},
        {"search": SearchChanges(samples=2)},
    ):
        with pytest.raises(ValueError):
            ScoreConfig(**settings)  # type: ignore[arg-type]


def test_likelihood_is_in_fp32_whatever_the_search_is_in(small_run: RunDirectory, tmp_path: Path) -> None:
    main(
        ScoreConfig(
            run=str(small_run.path), results=str(tmp_path), precision="bf16", figure=False, slices=False
        )
    )  # fmt: skip
    said = {record.name: record.signature["precision"] for record in read_records(tmp_path / "records.jsonl")}
    assert {said["nll"].partition("/")[0], said["ece"].partition("/")[0]} == {"fp32"}
    assert {said["bleu"].partition("/")[0], said["inference_ece"].partition("/")[0]} == {"bf16"}
