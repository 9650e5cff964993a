"""The score command: its figures, its records, its figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nmt_ls.corpus import Corpus
from nmt_ls.experiment.records import read_records
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.losses import LossConfig
from nmt_ls.metrics import expected_calibration_error
from nmt_ls.score import ScoreConfig, main
from nmt_ls.scoring import score_batches, split_batches
from nmt_ls.search import SearchConfig
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
        run=str(small_run.path), checkpoint="last", results=str(tmp_path / "results"), search=SearchConfig(beam=2)
    )
    main(config)
    records = {record.name: record for record in read_records(tmp_path / "results" / "records.jsonl")}
    summary = small_run.read_summary()["checkpoints"]["last"]
    for name in ("nll", "ece", "bleu", "chrf", "accuracy"):
        assert records[name].value == pytest.approx(summary[name], abs=0.3 if name in ("bleu", "chrf") else 1e-4)
    signature = records["bleu"].signature
    assert "sacrebleu" in signature
    recipe = {"alpha": 0.1, "beam": 2, "checkpoint": "last", "split": "test", "temperature": 1.0, "updates": 60}
    assert {key: signature[key] for key in recipe} == recipe
    assert {"commit", "seed", "corpus", "device", "threads", "training_command", "precision"} <= set(signature)
    assert 0 <= records["ece_p_value"].value <= 1
    pictures = sorted(path.suffix for path in (tmp_path / "results" / "figures").iterdir())
    assert pictures == [".png", ".svg"]
    assert "bleu" in capsys.readouterr().out


def test_a_fitted_temperature_lowers_validation_nll(small_run: RunDirectory, tmp_path: Path) -> None:
    nll = []
    for temperature in (1.0, "fitted"):
        folder = tmp_path / str(temperature)
        config = ScoreConfig(
            run=str(small_run.path), split="validation", results=str(folder), temperature=temperature,  # type: ignore[arg-type]
            search=SearchConfig(beam=1),
        )  # fmt: skip
        main(config)
        records = {record.name: record for record in read_records(folder / "records.jsonl")}
        nll.append(records["nll"].value)
        assert records["nll"].signature["temperature_is"] == ("given" if temperature == 1.0 else "fitted")
    assert nll[1] < nll[0]


def test_bad_settings() -> None:
    for settings in (
        {"temperature": 0.0},
        {"search": SearchConfig(temperature=2.0)},
        {"search": SearchConfig(samples=2)},
    ):
        with pytest.raises(ValueError):
            ScoreConfig(**settings)  # type: ignore[arg-type]
