"""The benchmarks run, on shapes too small to say anything about speed; nothing here is timed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are run from the root of a checkout, not installed

from benchmarks import beam_search, common, free_running, metrics_speed, scaling, sweep_speed, training_step
from benchmarks.profiles import take_apart
from nmt_ls.batching import epoch_batches
from nmt_ls.corpus import Corpus
from nmt_ls.experiment.records import read_records
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.transformer import Transformer, TransformerConfig


def config_of(rows: int) -> TransformerConfig:
    return TransformerConfig(
        source_vocabulary=rows,
        target_vocabulary=rows,
        encoder_layers=1,
        decoder_layers=2,
        width=16,
        feed_forward=24,
        heads=2,
        dropout=0.1,
        norm="post",
    )


def test_contestants_take_turns_and_the_first_round_is_not_counted() -> None:
    order: list[str] = []
    seconds = common.take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    assert common.ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == 2.0


def test_the_processor_clock_is_for_one_thread() -> None:
    with pytest.raises(ValueError, match="needs threads 1"):
        beam_search.BenchmarkConfig(clock="cpu", threads=2)
    with pytest.raises(ValueError, match="without 2x1"):
        beam_search.BenchmarkConfig(clock="cpu", threads=1)


def test_records_name_the_processor_and_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    common.write_records(str(path), "some", [({"size": "tiny"}, {"tokens/s": 3.0, "ratio": 2.0})], repeats=5, beam=4)
    records = read_records(path)
    assert [(record.name, record.value) for record in records] == [("some/tokens/s", 3.0), ("some/ratio", 2.0)]
    assert {"processor", "instruction_sets", "load", "threads"} <= set(records[0].signature)
    assert records[0].signature["size"] == "tiny"
    assert (records[0].signature["repeats"], records[0].signature["beam"]) == (5, 4)


@pytest.mark.parametrize("arithmetic", ["fp32", "medium", "bf16"])
def test_training_steps_learn(small_corpus: Corpus, arithmetic: str) -> None:
    batches = epoch_batches(small_corpus.split("train"), max_tokens=200, seed=1, epoch=1)[:2]
    step = training_step.build(f"ours-{arithmetic}", config_of(small_corpus.source_vocabulary.size), 0.1)
    seconds = training_step.race({"ours": step}, batches, 1)
    (row,) = training_step.rates(seconds, sum(batch.tokens for batch in batches))
    assert row["tokens/s"] > 0
    kinds = {row["kind"]: row["ms"] for row in take_apart(lambda: step(batches[0]), 1)}
    assert kinds["matrix products"] > 0
    assert kinds["optimiser"] > 0


def test_marian_computes_what_our_model_computes() -> None:
    pytest.importorskip("transformers")
    from benchmarks.marian import attention_mask, marian_of

    torch.manual_seed(1)
    model = Transformer(config_of(40)).eval()
    source_BS, target_BT = torch.randint(4, 40, (3, 7)), torch.randint(4, 40, (3, 5))
    source_BS[1, 5:] = 0
    with torch.no_grad():
        theirs = marian_of(model)(
            input_ids=source_BS, attention_mask=attention_mask(source_BS), decoder_input_ids=target_BT
        ).logits
        torch.testing.assert_close(theirs, model.logits(model(source_BS, target_BT)), rtol=0, atol=1e-4)


def test_marian_takes_its_size_from_the_preset() -> None:
    pytest.importorskip("transformers")
    from benchmarks.marian import marian

    config = TransformerConfig(preset="tiny", source_vocabulary=40, target_vocabulary=40, norm="post")
    theirs = sum(p.numel() for p in marian(config).parameters() if p.requires_grad)
    assert theirs == sum(p.numel() for p in Transformer(config).parameters())
    training_step.build("hf-fp32", config, 0.1)


SEARCHES = {"ours-bf16": "torch", "ct2-float32": "ctranslate2", "hf-fp32": "transformers"}


@pytest.mark.parametrize("name", SEARCHES)
def test_forced_search_has_the_length_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(SEARCHES[name])
    monkeypatch.setattr(beam_search, "VOCABULARIES", {"tiny": 200})
    config = beam_search.BenchmarkConfig(
        sizes=("tiny",), contestants=(name,), sentences=3, source_length=5, steps=4, beam=2, repeats=1, threads=1
    )
    (row,), profiles = beam_search.forced(config, "tiny")
    assert set(profiles) == ({name} if name.startswith("ours") else set())
    assert row["contestant"] == name
    assert row["tokens/s"] > 0


@pytest.mark.parametrize("name", ["ours-medium", "ct2-float32"])
def test_a_run_translates_its_test_split(name: str, small_run: RunDirectory) -> None:
    pytest.importorskip(SEARCHES.get(name, "torch"))
    seconds, quality, sentences = free_running.race_on_text(str(small_run.path), "best", 2, [name], 1, sentences=3)
    assert sentences == 3
    assert len(seconds[name]) == 1
    assert quality[name]["same as the first"] == 1.0


def test_calibration_errors_of_all_contestants_agree() -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("netcal")
    config = metrics_speed.BenchmarkConfig(confidences=3000, rows=500, classes=4, chunk=700, repeats=1)
    for build in (metrics_speed.confidences_contest, metrics_speed.probabilities_contest):
        rows = metrics_speed.contest(build(config), 1)  # it asserts that they agree
        assert [row["contestant"] for row in rows] == ["ours", "torchmetrics", "netcal"]


def test_sweep_passes_over_the_split(small_run: RunDirectory) -> None:
    config = sweep_speed.BenchmarkConfig(run=str(small_run.path), temperatures=3)
    model, split = sweep_speed.load(config)
    at_one, *_ = sweep_speed.sweep(model, split, [1.0, 1.2, 1.4])
    (alone,) = sweep_speed.sweep(model, split, [1.0])
    assert at_one.nll == pytest.approx(alone.nll, rel=1e-6)
    for run in sweep_speed.contest(config).values():
        run()


def test_sweep_decodes_together_what_it_decodes_separately(
    small_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep.jsonl"
    sweep_speed.main(
        sweep_speed.BenchmarkConfig(
            run=str(small_run.path), temperatures=0, decodes=3, sentences=5, beam=2, repeats=1, threads=1, out=str(out)
        )
    )
    assert "Translations of 5 sentences, beam 2, fp32" in capsys.readouterr().out
    figures = {(record.signature["what"], record.name): record.value for record in read_records(out)}
    assert figures["3 together", "sweep_speed/same"] == 1.0
    assert figures["3 separately", "sweep_speed/to one"] > 0


def test_scaling_measures_in_processes_of_their_own(small_corpus: Corpus) -> None:
    figures = scaling.in_a_process(scaling.train_epoch, small_corpus.directory, "fp32", 1)
    assert figures["tokens/s"] > 0
    assert figures["peak MiB"] > 50
    (row,) = scaling.scale_vocabulary(scaling.BenchmarkConfig(vocabularies=(200,), repeats=1, arithmetic="fp32"))
    assert row["vocabulary"] == 200
