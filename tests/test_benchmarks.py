"""The benchmarks run, on shapes too small to say anything about speed; nothing here is timed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from small_runs import small_config

from benchmarks import beam_search, common, free_running, metrics_speed, scaling, sweep_speed, training_step
from benchmarks.profiles import take_apart
from nmt_ls.batching import epoch_batches
from nmt_ls.corpus import Corpus
from nmt_ls.decoding import run_corpus
from nmt_ls.experiment.checkpoint import load_weights
from nmt_ls.experiment.engine import EngineConfig
from nmt_ls.experiment.records import read_records
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.experiment.schedule import OptimizerConfig, ScheduleConfig
from nmt_ls.metrics.translation import translation_scores
from nmt_ls.training import train
from nmt_ls.transformer import Transformer, TransformerConfig
from nmt_ls.translator import Translator


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
    with pytest.raises(ValueError, match="2x1 needs threads 2"):
        beam_search.BenchmarkConfig(clock="cpu", threads=1, contestants=("ours-bf16-2x1",))


def test_contestants_by_default_are_all_that_the_threads_allow() -> None:
    alone = beam_search.BenchmarkConfig(clock="cpu", threads=1).chosen()
    assert not [name for name in alone if name.endswith("2x1")]
    assert {"ours-fp32", "ours-bf16", "hf-fp32", "hf-bf16"} <= set(alone)
    together = beam_search.BenchmarkConfig(threads=2).chosen()
    assert {name.removesuffix("-2x1") for name in together} == set(alone)
    assert "ours-bf16-2x1" in together


def test_hugging_face_keeps_a_copy_of_each_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model turned to bf16 and back would hold rounded weights."""
    pytest.importorskip("transformers")
    monkeypatch.setattr(beam_search, "VOCABULARIES", {"tiny": 200})
    config = beam_search.BenchmarkConfig(
        sizes=("tiny",), contestants=("hf-bf16", "hf-fp32"), sentences=2, source_length=4, steps=3, beam=2
    )
    with ExitStack() as stack:
        runs = beam_search.contestants(config, "tiny", stack)
        for run in runs.values():
            run()
        bf16, fp32 = (run.args[0].model.shared.weight for run in runs.values())  # type: ignore[attr-defined]
    assert (bf16.dtype, fp32.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(fp32, beam_search.build_model("tiny").output_weight, rtol=0, atol=0)


def test_records_name_the_processor_and_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    common.write_records(str(path), "some", [({"size": "tiny"}, {"tokens/s": 3.0, "ratio": 2.0})], repeats=5, beam=4)
    records = read_records(path)
    assert [(record.name, record.value) for record in records] == [("some/tokens/s", 3.0), ("some/ratio", 2.0)]
    assert {"processor", "instruction_sets", "load", "threads"} <= set(records[0].signature)
    assert {"transformers", "ctranslate2"} & set(common.peer_versions()) <= set(records[0].signature["versions"])
    assert records[0].signature["size"] == "tiny"
    assert (records[0].signature["repeats"], records[0].signature["beam"]) == (5, 4)


@pytest.mark.usefixtures("tiny_products")
def test_products_are_measured_with_their_errors() -> None:
    products = common.best_gemm_rates(repeats=1)
    assert products["fp32"].error < 1e-6
    assert 1e-4 < products["bf16"].error < 1e-2
    assert all(each.gflops > 0 for each in products.values())


@pytest.mark.parametrize(("error", "counts"), [(4e-7, True), (3e-6, False), (2e-3, False)])
def test_medium_counts_as_fp32_by_its_error(error: float, counts: bool) -> None:
    products = {"fp32": common.Products(100.0, 3e-7), "medium": common.Products(200.0, error)}
    assert common.medium_is_fp32(products) is counts
    assert ("does NOT count" in common.describe_machine(products)) is not counts


def test_rates_of_made_up_seconds() -> None:
    seconds = {"ours-bf16": [1.0, 2.0, 4.0], "hf-fp32": [3.0, 4.0, 20.0], "hf-bf16": [2.0, 4.0, 4.0]}
    ours, fp32, bf16 = training_step.rates(seconds, 100)
    assert (ours["tokens/s"], ours["tokens/s at best"]) == (50.0, 100.0)
    assert (ours["to hf-fp32"], ours["to hf in the same"]) == (3.0, 2.0)
    assert (fp32["to hf-fp32"], bf16["to hf in the same"]) == (1.0, 1.0)


def test_fairseq_is_compared_with_two_threads_only() -> None:
    rows = [{"tokens/s": 10_600.0}]
    training_step.compare_with_fairseq(rows, "tiny", 1, 115.0)
    training_step.compare_with_fairseq(rows, "base", 2, 115.0)
    assert rows == [{"tokens/s": 10_600.0}]
    training_step.compare_with_fairseq(rows, "tiny", 2, 460.0)
    assert rows == [{"tokens/s": 10_600.0, "to fairseq": 2.0, "to fairseq by GEMM": 1.0}]


def test_figures_of_made_up_seconds() -> None:
    seconds = {
        "ours-fp32": [1.0, 2.0, 4.0],
        "ct2-int8": [2.0, 4.0, 4.0],
        "ct2-float32": [9.0, 9.0, 9.0],
        "hf-fp32": [4.0, 8.0, 16.0],
    }
    ours, best, other, _ = beam_search.figures(seconds, 80, "tokens")
    assert (ours["tokens/s"], ours["tokens/s at best"]) == (40.0, 80.0)
    assert (ours["to CTranslate2's best"], ours["to Hugging Face's best"]) == (2.0, 4.0)
    assert (best["to CTranslate2's best"], other["to CTranslate2's best"]) == (1.0, 4.0 / 9.0)
    (alone,) = beam_search.figures({"ours-fp32": [1.0]}, 80, "tokens")
    assert alone == {"contestant": "ours-fp32", "tokens/s": 80.0, "tokens/s at best": 80.0}


def test_ratios_to_the_best_mode_of_the_same_bleu() -> None:
    seconds = {"ours-fp32": [4.0], "ours-int8": [1.0], "ct2-float32": [2.0], "ct2-int8": [0.5], "hf-fp32": [8.0]}
    bleu = {"ours-fp32": 38.8, "ours-int8": 38.9, "ct2-float32": 38.75, "ct2-int8": 38.6, "hf-fp32": 38.8}
    quality = {name: {"BLEU": value} for name, value in bleu.items()}
    rows: list[dict[str, object]] = [{"contestant": "ours-fp32"}, {"contestant": "ours-int8"}]
    race = free_running.Race(seconds=seconds, quality=quality, profiles={}, sentences=1, corpus="")
    beam_search.compare_with_faithful(rows, race)
    assert [row[beam_search.FAITHFUL] for row in rows] == [0.5, 2.0]
    del quality["ct2-float32"], seconds["ct2-float32"]
    beam_search.compare_with_faithful(alone := [{"contestant": "ours-int8"}], race)
    assert beam_search.FAITHFUL not in alone[0]


@pytest.mark.parametrize("name", ["ours-fp32", "ours-medium", "ours-bf16", "hf-fp32", "hf-bf16"])
def test_training_steps_learn(small_corpus: Corpus, name: str) -> None:
    pytest.importorskip("transformers" if name.startswith("hf") else "torch")
    batches = epoch_batches(small_corpus.split("train"), max_tokens=200, seed=1, epoch=1)[:2]
    step = training_step.build(name, config_of(small_corpus.source_vocabulary.size), 0.1)
    first = step(batches[0])
    assert first > 4  # nats a token, of some 600 pieces
    for _ in range(30):
        last = step(batches[0])
    assert last < first - 0.2
    seconds = training_step.race({name: step}, batches, 2)
    assert len(seconds[name]) == 2
    kinds = {row["kind"]: row["ms"] for row in take_apart(lambda: step(batches[0]), 1)}
    assert kinds["matrix products"] > 0
    assert kinds["optimiser"] > 0


def test_a_step_is_the_update_of_training(small_corpus: Corpus, tmp_path: Path) -> None:
    rows = small_corpus.source_vocabulary.size
    shape = replace(config_of(rows), dropout=0.0)
    trained = small_config(
        small_corpus,
        tmp_path / "run",
        model=shape,
        validation_sentences=0,
        optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(kind="constant", warmup_updates=0),
        engine=EngineConfig(max_updates=1, validate_every=1, average_last=0),
        checkpoints=("last",),
    )
    run = train(trained).run
    expected = load_weights(run.checkpoints / "last")
    arithmetic = "fp32" if run.read_manifest()["precision"]["matmul"] == "highest" else "medium"
    torch.manual_seed(trained.seed)
    model = Transformer(shape)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    batch = epoch_batches(small_corpus.split("train"), max_tokens=trained.max_tokens, seed=trained.seed, epoch=1)[0]
    training_step.our_step(model, common.precision_of(arithmetic), trained.loss.alpha)(batch)
    found = model.state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-7)
    assert all(not torch.equal(found[name], weight) for name, weight in before.items() if name in expected)


@pytest.mark.usefixtures("tiny_products")
def test_training_step_writes_records(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training_step, "build", lambda *_: lambda batch: float(batch.tokens))
    kinds = [{"kind": "products", "ms": 1.0, "%": 100.0}]
    monkeypatch.setattr(training_step, "take_apart", lambda run, _: run() or kinds)
    out = tmp_path / "records.jsonl"
    training_step.main(
        training_step.BenchmarkConfig(
            data=str(small_corpus.directory), sizes=("tiny",), dropouts=(0.1,), batches=2, repeats=1, max_tokens=200,
            out=str(out),
        )
    )  # fmt: skip
    assert "tiny, dropout 0.1" in capsys.readouterr().out
    records = read_records(out)
    assert {record.signature["contestant"] for record in records} == set(training_step.CONTESTANTS)
    assert {"gemm_gflops_fp32", "gemm_error_medium", "medium_is_fp32", "corpus"} <= set(records[0].signature)


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


SEARCHES = {
    "ours-bf16": "torch",
    "ct2-float32": "ctranslate2",
    "hf-fp32": "transformers",
    "hf-bf16": "transformers",
}


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


@pytest.fixture(scope="module")
def post_norm_run(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that Marian can compute."""
    return train(
        small_config(small_corpus, tmp_path_factory.mktemp("runs") / "post", model=config_of(0), validation_sentences=0)
    ).run


@pytest.mark.parametrize("other", ["ct2-float32", "hf-fp32", "ours-fp32-2x1"])
def test_contestants_translate_a_run_s_test_split_alike(other: str, post_norm_run: RunDirectory) -> None:
    pytest.importorskip(SEARCHES.get(other, "torch"))
    race = free_running.race_on_text(str(post_norm_run.path), "best", 2, ["ours-fp32", other], 1, sentences=6)
    assert race.sentences == 6
    assert {name: len(taken) for name, taken in race.seconds.items()} == {"ours-fp32": 1, other: 1}
    corpus = run_corpus(post_norm_run.path)
    split = corpus.split("test")
    lines = [split.source_text(row) for row in range(6)]
    found = Translator.load(post_norm_run.path, "best").translate(lines, free_running.search_config(2))
    bleu = translation_scores([best[0].text for best in found], [split.references(row) for row in range(6)]).bleu
    assert race.quality["ours-fp32"]["BLEU"] == pytest.approx(bleu)
    assert race.quality[other] == {"BLEU": pytest.approx(bleu), "same as the first": 1.0}
    assert race.corpus == corpus.checksum


def test_marian_is_left_out_of_a_model_that_is_not_like_it(
    small_run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the runs of most studies, whose norm comes before the sublayers."""
    race = free_running.race_on_text(
        str(small_run.path), "best", 2, ["ours-fp32", "hf-fp32", "hf-bf16"], 1, sentences=2
    )
    assert list(race.seconds) == ["ours-fp32"]
    assert "without hf-fp32, hf-bf16: Marian has norm=post and share_embeddings=all" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny_products")
def test_beam_search_writes_records(
    small_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(beam_search, "VOCABULARIES", {"tiny": 200})
    kinds = [{"kind": "matrix products", "ms": 1.0, "%": 100.0}]
    monkeypatch.setattr(free_running, "take_apart", lambda *_: kinds)  # that of forced steps is of fewer operations
    other = "ours-int8" if "ours-int8" in beam_search.all_contestants() else "ours-fp32"
    out = tmp_path / "records.jsonl"
    beam_search.main(
        beam_search.BenchmarkConfig(
            sizes=("tiny",), contestants=("ours-bf16", other), run=str(small_run.path), sentences=3,
            source_length=5, steps=4, beam=2, repeats=1, limit=2, out=str(out),
        )
    )  # fmt: skip
    assert "free-running" in capsys.readouterr().out
    records = {(record.name, record.signature["contestant"]): record for record in read_records(out)}
    assert records["beam_search/forced/tokens/s", other].value > 0
    assert records["beam_search/forced/ms in matrix products", other].value > 0
    assert records["beam_search/free/ms a sentence in matrix products", other].value == 1.0
    signature = records["beam_search/free/sentences/s", "ours-bf16"].signature
    assert (signature["sentences"], signature["max_tokens"]) == (2, 8192)
    assert {"corpus", "peers_max_tokens", "gemm_error_bf16"} <= set(signature)


def test_calibration_errors_of_all_contestants_agree() -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("netcal")
    config = metrics_speed.BenchmarkConfig(confidences=3000, rows=500, classes=4, chunk=700, repeats=1)
    for runs in (metrics_speed.confidences_contest(config), metrics_speed.probabilities_contest(config, 300)):
        rows = metrics_speed.contest(runs, 1)  # it asserts that they agree
        assert [row["contestant"] for row in rows] == ["ours", "torchmetrics", "netcal"]


def test_sweep_passes_over_the_split(small_run: RunDirectory) -> None:
    config = sweep_speed.BenchmarkConfig(run=str(small_run.path), temperatures=3)
    model, split = sweep_speed.load(config)
    at_one, *_ = sweep_speed.sweep(model, split, [1.0, 1.2, 1.4])
    (alone,) = sweep_speed.sweep(model, split, [1.0])
    assert at_one.nll == pytest.approx(alone.nll, rel=1e-6)
    for run in sweep_speed.contest(config).values():
        run()


@pytest.mark.usefixtures("tiny_products")
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


@pytest.mark.usefixtures("tiny_products")
def test_metrics_speed_measures_a_tenth_beside(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("netcal")
    out = tmp_path / "records.jsonl"
    metrics_speed.main(
        metrics_speed.BenchmarkConfig(
            confidences=3000, rows=500, classes=4, chunk=700, row_chunks=(40, 200), repeats=1, out=str(out)
        )
    )
    assert {(record.signature["input"], record.signature["chunk"]) for record in read_records(out)} == {
        ("300 confidences", 700), ("50 x 4 probabilities", 40), ("50 x 4 probabilities", 50),
        ("3,000 confidences", 700), ("500 x 4 probabilities", 40), ("500 x 4 probabilities", 200),
    }  # fmt: skip


def test_scaling_measures_in_processes_of_their_own(small_corpus: Corpus) -> None:
    figures = scaling.in_a_process(scaling.train_epoch, small_corpus.directory, "fp32", 1)
    assert figures["tokens/s"] > 0
    assert figures["peak MiB"] > 50
    with pytest.raises(ValueError, match="pairs must be at least 1,000"):
        scaling.BenchmarkConfig(pairs=(400,))


@pytest.mark.usefixtures("tiny_products")
def test_scaling_writes_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The corpus is made in this process, and the small model gets a small vocabulary; cores has processes indeed."""

    def here(work: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
        return work(*arguments) | {"peak MiB": 100.0}

    whole, batch, search = scaling.train_epoch, scaling.random_batch, scaling.SearchBenchmarkConfig
    monkeypatch.setattr(scaling, "random_batch", partial(batch, sentences=8, length=4))
    monkeypatch.setattr(scaling, "SearchBenchmarkConfig", partial(search, sentences=2, steps=3))
    monkeypatch.setattr(scaling, "in_a_process", here)
    monkeypatch.setattr(beam_search, "VOCABULARIES", {"small": 200, "base": 200})
    monkeypatch.setattr(scaling, "WAYS", ((1, 1), (2, 1)))
    monkeypatch.setattr(scaling, "CORES_SIZES", {"vocabulary": 200, "sentences": 4})
    monkeypatch.setattr(scaling, "train_epoch", lambda directory, arithmetic: whole(directory, arithmetic, 1))
    out = tmp_path / "records.jsonl"
    scaling.main(
        scaling.BenchmarkConfig(
            pairs=(1000,), vocabularies=(200, 300), beams=(1, 2), updates=1, repeats=1, arithmetic="medium",
            out=str(out),
        )
    )  # fmt: skip
    firsts = [record for record in read_records(out) if record.name.endswith("/to the first")]
    assert {record.name.split("/")[1] for record in firsts} == set(scaling.PARTS)
    assert firsts[0].value == 1.0
    (pairs,) = [r for r in read_records(out) if r.name == "scaling/cores/to the first" and r.signature["runs"] == 2]
    assert pairs.value > 0
