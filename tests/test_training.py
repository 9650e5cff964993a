"""Training a translator: its figures, its resume, what a second start of it does."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from small_runs import brief_config, small_config

from nmt_ls.batching import epoch_batches
from nmt_ls.corpus import Corpus
from nmt_ls.embedded import EmbeddedSizes, prepare_embedded
from nmt_ls.experiment.checkpoint import load_weights, weights_id
from nmt_ls.experiment.command_line import UserError, config_to_dict, parse
from nmt_ls.experiment.engine import EngineConfig
from nmt_ls.experiment.precision import Precision
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.experiment.schedule import ScheduleConfig
from nmt_ls.losses import LossConfig, smoothed_cross_entropy
from nmt_ls.scoring import evaluate, fitted_temperature, score_batches, split_batches
from nmt_ls.search import SearchConfig
from nmt_ls.training import TrainConfig, TranslationTask, train
from nmt_ls.transformer import Transformer, TransformerConfig
from nmt_ls.translator import Translator, with_vocabularies
from nmt_ls.truth import bleu_ceilings, true_entropy
from nmt_ls.vocabulary import Vocabulary, VocabularyConfig, train_vocabulary


@pytest.fixture
def task(small_corpus: Corpus, tmp_path: Path) -> TranslationTask:
    size = small_corpus.source_vocabulary.size
    torch.manual_seed(0)
    model = Transformer(
        TransformerConfig(
            width=16,
            feed_forward=16,
            heads=2,
            encoder_layers=1,
            decoder_layers=1,
            dropout=0.0,
            source_vocabulary=size,
            target_vocabulary=size,
        )
    ).double()
    config = small_config(small_corpus, tmp_path, loss=LossConfig(alpha=0.2, prior="unigram"))
    return TranslationTask(config, small_corpus, model, Precision())


def test_loss_of_a_batch_is_the_definition_and_its_extra_the_nll(task: TranslationTask) -> None:
    batch = task.batches(1)[0]
    loss = task.loss(task.model, batch)
    logits_NV = task.model.logits(task.model(batch.source_BS, batch.target_in_BT)).flatten(0, 1)
    targets_N = batch.target_out_BT.flatten()
    prior = task.corpus.unigram_prior()
    expected = smoothed_cross_entropy(logits_NV, targets_N, 0.2, prior, ignore_index=0, reduction="sum")
    nll = torch.nn.functional.cross_entropy(logits_NV, targets_N, ignore_index=0, reduction="sum")
    assert loss.count == int((targets_N != 0).sum())
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.extras["nll"], nll)


def test_figures_do_not_depend_on_how_a_split_is_batched(task: TranslationTask) -> None:
    split = task.corpus.split("validation")
    figures = [
        score_batches(task.model, batches, loss=task.config.loss, prior=task.prior).figures()
        for batches in (
            split_batches(split),
            epoch_batches(split, max_tokens=120, seed=3, epoch=2),
        )
    ]
    assert figures[0]["tokens"] == int(split.target.lengths_N.sum()) + len(split)
    for name, value in figures[0].items():
        assert value == pytest.approx(figures[1][name], rel=1e-9), name


def test_figures_against_probabilities_computed_sentence_by_sentence(task: TranslationTask) -> None:
    split = task.corpus.split("validation")
    translator = Translator(task.model, task.corpus.source_vocabulary, task.corpus.target_vocabulary)
    rows = range(len(split))
    for temperature in (1.0, 1.7):
        log_probs = torch.cat(
            translator.score(
                [split.source_text(row) for row in rows], [split.references(row)[0] for row in rows], temperature
            )
        )
        figures = score_batches(
            task.model, split_batches(split), loss=task.config.loss, prior=task.prior, temperature=temperature
        ).figures()
        assert figures["nll"] == pytest.approx(-float(log_probs.mean()), rel=1e-9)
        assert figures["perplexity"] == pytest.approx(math.exp(figures["nll"]))


def test_fitted_temperature_is_the_best_of_its_neighbourhood(small_run: RunDirectory, small_corpus: Corpus) -> None:
    model = Translator.load(small_run.path).model.double()
    batches = list(split_batches(small_corpus.split("validation")))
    best = fitted_temperature(model, batches)

    def nll(temperature: float) -> float:
        return score_batches(model, batches, loss=LossConfig(), temperature=temperature).likelihood.nll

    assert nll(best) < min(nll(best * 0.99), nll(best * 1.01), nll(1.0))


def test_a_finished_run_has_all_its_files_and_is_left_alone(small_run: RunDirectory, small_corpus: Corpus) -> None:
    summary = json.loads(small_run.summary_file.read_text())
    assert {"nll", "ece", "bleu", "entropy", "bleu_most_probable", "bleu_sample", "signature"} <= set(summary)
    assert set(summary["checkpoints"]) == {"best", "averaged", "last"}
    assert summary["signature"]["alpha"] == 0.1
    assert summary["signature"]["corpus"] == small_corpus.checksum
    manifest = small_run.read_manifest()
    assert {"commit", "versions", "device", "threads", "precision", "corpus_checksum", "command"} <= set(manifest)
    assert (small_run.path / "spm.model").read_bytes() == (small_corpus.directory / "spm.model").read_bytes()
    lines = small_run.read_metrics()
    validation = [line for line in lines if line["split"] == "validation"]
    assert [line["step"] for line in validation] == [30, 60]
    assert {"loss", "nll", "accuracy", "ece", "bleu"} <= set(validation[0])
    assert validation[-1]["nll"] < validation[0]["nll"]
    assert {"loss", "nll", "lr", "grad_norm"} <= set(next(line for line in lines if line["split"] == "train"))

    before = {path: path.stat().st_mtime_ns for path in small_run.path.rglob("*") if path.name != ".lock"}
    again = train(small_config(small_corpus, small_run.path))
    assert again.already_finished
    assert again.summary == summary
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_summary_figures_are_those_of_the_checkpoint(small_run: RunDirectory, small_corpus: Corpus) -> None:
    summary = small_run.read_summary()
    config = small_config(small_corpus, small_run.path)
    precision = Precision(**{key: small_run.read_manifest()["precision"][key] for key in ("kind", "matmul")})
    for name in ("best", "averaged", "last"):
        translator = Translator.load(small_run.path, name, precision=precision)
        figures = evaluate(translator, small_corpus.split("test"), config.search, loss=config.loss).figures()
        for key in ("nll", "loss", "ece", "bleu"):
            assert figures[key] == pytest.approx(summary["checkpoints"][name][key], rel=1e-5), (name, key)


def test_entropy_and_ceilings_bound_what_a_model_reaches(small_run: RunDirectory, small_corpus: Corpus) -> None:
    summary, split = small_run.read_summary(), small_corpus.split("test")
    assert 0 < true_entropy(split) < summary["nll"]
    ceilings = bleu_ceilings(split)
    assert summary["bleu"] < ceilings["bleu_sample"] < 100
    assert ceilings["bleu_most_probable"] == summary["bleu_most_probable"]


def test_another_setting_is_refused_by_its_key(small_run: RunDirectory, small_corpus: Corpus) -> None:
    with pytest.raises(UserError, match=r"loss\.alpha"):
        train(small_config(small_corpus, small_run.path, loss=LossConfig(alpha=0.2)))


def test_init_from_starts_with_the_weights_of_a_run(
    small_run: RunDirectory, small_corpus: Corpus, tmp_path: Path
) -> None:
    barely = EngineConfig(max_updates=1, validate_every=1)
    tiny_steps = replace(small_config(small_corpus, tmp_path).optimizer, learning_rate=1e-12)
    outcome = train(
        brief_config(
            small_corpus, tmp_path / "tuned", init_from=str(small_run.path), engine=barely, optimizer=tiny_steps
        )
    )
    for name, weight in load_weights(small_run.checkpoints / "best").items():
        torch.testing.assert_close(load_weights(outcome.run.checkpoints / "last")[name], weight, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="init_from"):
        train(
            small_config(
                small_corpus,
                tmp_path / "other",
                init_from=str(small_run.path),
                model=TransformerConfig(width=64, feed_forward=64, heads=2, encoder_layers=1, decoder_layers=1),
            )
        )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_2n_updates_equal_n_and_a_resume_and_n_more(small_corpus: Corpus, tmp_path: Path, precision: str) -> None:
    """Across an epoch's end too: an epoch of the small corpus has about 15 batches."""
    assert 10 < len(epoch_batches(small_corpus.split("train"), max_tokens=800, seed=1, epoch=1)) < 20
    engine = EngineConfig(max_updates=20, validate_every=5, average_last=2, log_every=7)
    settings = {"precision": precision, "validation_sentences": 0}
    whole = train(brief_config(small_corpus, tmp_path / "whole", engine=engine, **settings)).run
    half = replace(engine, max_updates=10)
    train(brief_config(small_corpus, tmp_path / "parts", engine=half, **settings))
    parts = train(brief_config(small_corpus, tmp_path / "parts", engine=engine, **settings)).run
    for name in ("last", "best", "averaged"):
        expected, found = load_weights(whole.checkpoints / name), load_weights(parts.checkpoints / name)
        assert all(torch.equal(found[key], weight) for key, weight in expected.items()), name
    assert whole.read_summary()["nll"] == parts.read_summary()["nll"]


def test_a_run_killed_at_a_random_moment_ends_with_the_same_weights(small_corpus: Corpus, tmp_path: Path) -> None:
    """SIGKILL, through the command line, in a process of its own; then the same command again."""
    engine = EngineConfig(max_updates=120, validate_every=60, checkpoint_every=5, average_last=2, log_every=5)
    config = brief_config(small_corpus, tmp_path / "killed", engine=engine, validation_sentences=0)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config_to_dict(config)))
    command = [sys.executable, "-m", "nmt_ls.train", "--config", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    victim = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = tmp_path / "killed" / "checkpoints" / "last"
    while not last.exists() and victim.poll() is None:
        time.sleep(0.01)
    time.sleep(random.random() / 4)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL  # it was still at work
    subprocess.run(command, env=environment, check=True, capture_output=True)
    whole = train(replace(config, out=str(tmp_path / "whole"))).run
    for name in ("last", "best", "averaged"):
        expected = load_weights(whole.checkpoints / name)
        found = load_weights(RunDirectory(tmp_path / "killed").checkpoints / name)
        assert all(torch.equal(found[key], weight) for key, weight in expected.items()), name


def test_bad_settings_are_refused() -> None:
    for settings, word in (
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": -1}, "seed"),
        ({"checkpoints": ()}, "checkpoints"),
        ({"validation_sentences": 0, "engine": EngineConfig(monitor="bleu")}, "validation_sentences"),
        ({"engine": EngineConfig(monitor="chrf")}, "engine.monitor: choose nll, accuracy, ece, bleu, not 'chrf'"),
    ):
        with pytest.raises(ValueError, match=word):
            TrainConfig(**settings)  # type: ignore[arg-type]


def test_settings_that_only_fail_late_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="average_last"):
        TrainConfig(engine=EngineConfig(average_last=0))
    with pytest.raises(ValueError, match="warmup_updates"):
        TrainConfig(engine=EngineConfig(max_updates=10), schedule=ScheduleConfig(kind="cosine", warmup_updates=10))
    with pytest.raises(ValueError, match="samples"):
        TrainConfig(search=SearchConfig(samples=2))


def test_a_run_that_saved_nothing_begins_anew_with_the_corrected_setting(small_corpus: Corpus, tmp_path: Path) -> None:
    barely = EngineConfig(max_updates=1, validate_every=1)
    with pytest.raises(UserError, match="init_from: nowhere"):
        train(small_config(small_corpus, tmp_path / "run", engine=barely, init_from="nowhere"))
    outcome = train(brief_config(small_corpus, tmp_path / "run", engine=barely))
    assert outcome.summary is not None
    assert outcome.run.read_config()["init_from"] is None


def test_init_from_refuses_another_vocabulary_of_the_same_size(
    small_run: RunDirectory, small_corpus: Corpus, tmp_path: Path
) -> None:
    other = prepare_embedded(tmp_path / "other", 1, EmbeddedSizes(train=400, validation=30, test=20, vocabulary=600))
    assert other.source_vocabulary.size == small_corpus.source_vocabulary.size
    with pytest.raises(UserError, match=r"init_from.*another vocabulary"):
        train(small_config(other, tmp_path / "run", init_from=str(small_run.path)))


@pytest.fixture
def started(small_run: RunDirectory, small_corpus: Corpus, tmp_path: Path) -> TrainConfig:
    """Of a finished run of two updates in tmp_path/run, which began with the weights of tmp_path/first."""
    shutil.copytree(small_run.path, tmp_path / "first")
    settings = {"init_from": str(tmp_path / "first"), "validation_sentences": 0}
    engine = EngineConfig(max_updates=2, validate_every=2)
    config = brief_config(small_corpus, tmp_path / "run", engine=engine, **settings)
    train(config)
    return config


def test_a_resume_does_not_need_the_run_it_was_started_from(
    small_run: RunDirectory, started: TrainConfig, tmp_path: Path
) -> None:
    manifest = RunDirectory(tmp_path / "run").read_manifest()
    assert manifest["init"] == {
        "run": "first", "checkpoint": "best", "weights": weights_id(small_run.checkpoints / "best")
    }  # fmt: skip
    shutil.rmtree(tmp_path / "first")
    more = train(replace(started, engine=replace(started.engine, max_updates=4)))
    assert more.summary is not None
    assert more.summary["updates"] == 4
    assert more.summary["signature"]["init_weights"] == manifest["init"]["weights"]


def test_a_run_starts_from_the_weights_it_was_begun_with(started: TrainConfig, tmp_path: Path) -> None:
    """Killed before its first checkpoint, while the run it starts from went on."""
    run = RunDirectory(tmp_path / "run")
    shutil.rmtree(tmp_path / "first" / "checkpoints" / "best")
    shutil.copytree(run.checkpoints / "last", tmp_path / "first" / "checkpoints" / "best")
    shutil.rmtree(run.checkpoints)
    run.summary_file.unlink()
    with pytest.raises(UserError, match=r"init_from: .* has other weights than when this run was begun"):
        train(started)


def test_a_resume_keeps_the_form_of_attention_that_the_manifest_names(small_corpus: Corpus, tmp_path: Path) -> None:
    """Runs begun when training measured which is faster name another than auto."""
    engine = EngineConfig(max_updates=1, validate_every=1)
    run = train(brief_config(small_corpus, tmp_path / "run", engine=engine)).run
    manifest = run.read_manifest()
    assert manifest["attention"] == {"form": "auto"}
    run.manifest_file.write_text(json.dumps({**manifest, "attention": {"form": "fused", "reason": "measured"}}))
    train(brief_config(small_corpus, tmp_path / "run", engine=replace(engine, max_updates=2)))
    assert run.read_manifest()["attention"]["form"] == "fused"
    assert Translator.load(run.path).model.config.attention == "fused"


def test_a_changed_corpus_is_noticed(small_corpus: Corpus, tmp_path: Path) -> None:
    shutil.copytree(small_corpus.directory, tmp_path / "corpus")
    (file,) = (tmp_path / "corpus" / "train").glob("*.arrow")
    content = bytearray(file.read_bytes())
    at = content.index(b"Der ")
    content[at : at + 4] = b"Die "
    file.write_bytes(content)
    config = small_config(small_corpus, tmp_path / "run")
    with pytest.raises(UserError, match="differs from its checksum"):
        train(replace(config, data=str(tmp_path / "corpus")))


def test_two_vocabularies_cannot_be_shared(small_corpus: Corpus, tmp_path: Path) -> None:
    other = train_vocabulary(["ein Wort und noch ein Wort"] * 9, tmp_path / "other.model", VocabularyConfig(size=30))
    with pytest.raises(UserError, match="share_embeddings"):
        with_vocabularies(TransformerConfig(), small_corpus.source_vocabulary, other)
    with pytest.raises(UserError, match="share_embeddings"):  # of one size
        with_vocabularies(TransformerConfig(), other, Vocabulary(tmp_path / "other.model"))


def test_a_corpus_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a prepared corpus"):
        train(TrainConfig(data=str(tmp_path / "nowhere"), out=str(tmp_path / "run")))


def test_a_preset_on_the_command_line_brings_all_its_sizes() -> None:
    for preset, layers, width in (("base", 6, 512), ("small", 3, 256)):
        config = parse(TrainConfig, ["--model.preset", preset], program="train", description="")
        sized = config.model.sized()
        assert (sized.encoder_layers, sized.decoder_layers, sized.width) == (layers, layers, width)
