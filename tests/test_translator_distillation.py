"""Students of translators: what they are taught, that they learn it, and what becomes of runs whose teacher changes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import brief_config, small_config
from torch import Tensor

from nmt_ls.batching import Batch
from nmt_ls.claims import Claim, read_claims
from nmt_ls.corpus import Corpus
from nmt_ls.distill import DistillConfig
from nmt_ls.distill import main as distill_command
from nmt_ls.distillation import REPEATED, open_teacher
from nmt_ls.distillation_report import accuracy_grid, students_figures
from nmt_ls.embedded import EmbeddedSizes, prepare_embedded
from nmt_ls.experiment.checkpoint import load_checkpoint, load_weights, save_checkpoint
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.distillation import DistillationConfig
from nmt_ls.experiment.engine import EngineConfig
from nmt_ls.experiment.precision import Precision
from nmt_ls.experiment.records import append_records, read_records
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.findings import compared_runs
from nmt_ls.losses import LossConfig, smoothness_index
from nmt_ls.report_tables import setting_tables
from nmt_ls.reporting import ScoreConfig
from nmt_ls.score import main as score_command
from nmt_ls.scoring import slabs, split_batches
from nmt_ls.search_changes import SearchChanges
from nmt_ls.study_results import read_results
from nmt_ls.training import TrainConfig, TranslationTask, default_out, new_task, train
from nmt_ls.transformer import Transformer, TransformerConfig
from nmt_ls.translator import Translator
from nmt_ls.verdicts import hard_runs, judge, regime_value
from nmt_ls.vocabulary import PAD

CLAIMS = read_claims(Path(__file__).parents[1] / "configs" / "claims.yaml")

STUDENT = TransformerConfig(width=16, feed_forward=32, heads=2, encoder_layers=1, decoder_layers=1, dropout=0.0)
MANIFEST: dict[str, Any] = {"attention": {"form": "eager"}, "precision": Precision().to_dict()}


def student_config(corpus: Corpus, out: Path, teacher: Path, taught: dict[str, Any], **changes: Any) -> TrainConfig:
    settings = {
        "loss": LossConfig(alpha=0.0),
        "model": STUDENT,
        "validation_sentences": 0,
        "engine": EngineConfig(max_updates=12, validate_every=6, log_every=3, average_last=0),
        "checkpoints": ("last",),
        "distillation": DistillationConfig(teacher=str(teacher), checkpoint="last", **taught),
    }
    return small_config(corpus, out, **{**settings, **changes})


@pytest.fixture
def teacher(small_run: RunDirectory, tmp_path: Path) -> Path:
    """A copy of the small run, to be changed or removed."""
    return Path(shutil.copytree(small_run.path, tmp_path / "teacher"))


def task_of(config: TrainConfig, corpus: Corpus) -> TranslationTask:
    teacher = open_teacher(config.distillation, corpus, torch.device("cpu"))
    manifest = {**MANIFEST, "attention": {"form": config.model.attention}, "teacher": teacher.facts}
    return new_task(config, corpus, manifest, torch.device("cpu"), teacher)


def log_probs(model: Transformer, batch: Batch, temperature: float) -> Tensor:
    """Of every piece at every target position that is no padding."""
    kept = batch.target_out_BT != PAD
    return (model.logits(model(batch.source_BS, batch.target_in_BT)[kept]) / temperature).log_softmax(-1)


@pytest.mark.parametrize(("alike", "beta"), [(True, 1.0), (False, 0.7)])
def test_loss_of_a_batch(
    small_corpus: Corpus, small_run: RunDirectory, tmp_path: Path, alike: bool, beta: float
) -> None:
    """By the definition, from the logits of two models at once; the teacher has no dropout, and no gradient."""
    taught = {"temperature": 2.0, "beta": beta, "student_temperature": None if alike else 1.0}
    config = student_config(small_corpus, tmp_path / "run", small_run.path, taught)
    task = task_of(config, small_corpus)
    batch = next(iter(task.batches(1)))
    loss = task.loss(task.model, batch)
    teacher = Translator.load(small_run.path, "last").model
    own = log_probs(task.model, batch, 2.0 if alike else 1.0)
    soft = -(log_probs(teacher, batch, 2.0).exp() * own).sum()
    labels = batch.target_out_BT[batch.target_out_BT != PAD][:, None].long()
    hard = -own.gather(1, labels).sum()
    torch.testing.assert_close(loss.total, (1 - beta) * hard + beta * soft, rtol=1e-5, atol=1e-3)
    plain = -log_probs(task.model, batch, 1.0).gather(1, labels).sum()
    torch.testing.assert_close(loss.extras["nll"], plain, rtol=1e-5, atol=1e-3)
    assert loss.count == len(labels)
    loss.total.backward()
    assert task.teacher is not None
    assert not any(weight.requires_grad for weight in task.teacher.model.parameters())


def test_smoothness_index_of_all_training_tokens(small_corpus: Corpus, small_run: RunDirectory, tmp_path: Path) -> None:
    task = task_of(student_config(small_corpus, tmp_path, small_run.path, {"temperature": 3.0}), small_corpus)
    assert task.teacher is not None
    parts = list(slabs(task.teacher.model, split_batches(task.training)))
    logits = torch.cat([task.teacher.model.logits(part.hidden_ND) for part in parts]).detach()
    expected = smoothness_index(logits, torch.cat([part.targets_N for part in parts]).long(), 3.0)
    assert task.teacher.smoothness_index(task.training) == pytest.approx(expected, rel=1e-6)


def test_smoothness_index_of_a_part(
    small_corpus: Corpus, small_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(student_config(small_corpus, tmp_path, small_run.path, {}), small_corpus)
    assert task.teacher is not None
    whole = task.teacher.smoothness_index(task.training)
    monkeypatch.setattr("nmt_ls.scoring.MAX_TOKENS", 200)
    monkeypatch.setattr("nmt_ls.distillation.GAMMA_TOKENS", 1000)
    part = task.teacher.smoothness_index(task.training)
    assert part == task.teacher.smoothness_index(task.training)
    assert 0 < abs(part - whole) < 0.1


def test_a_whole_run(
    small_corpus: Corpus, small_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tmp_path / "teacher-s1"
    shutil.copytree(small_run.path, teacher)
    config = student_config(small_corpus, tmp_path / "student", tmp_path / "teacher-s{seed}", {"temperature": 2.0})
    assert distill_command(DistillConfig(**vars(config))) == 0
    run = RunDirectory(tmp_path / "student")
    summary, signature = run.read_summary(), run.read_summary()["signature"]
    line = "taught by teacher-s1, last checkpoint (α = 0.1), at T = 2, β = 1; smoothness γ of its targets"
    assert f"{line} {summary['gamma']:.4f}" in capsys.readouterr().out
    theirs = small_run.read_summary()["checkpoints"]["last"]
    assert {f"teacher_{name}": theirs[name] for name in REPEATED}.items() <= summary.items()
    assert (signature["alpha"], signature["teacher_alpha"], signature["teacher_temperature"]) == (0.0, 0.1, 2.0)
    assert signature["teacher_weights"] == run.read_manifest()["teacher"]["weights"]
    # with its teacher gone a finished student is left alone, and scored
    shutil.rmtree(teacher)
    assert train(config).already_finished
    score_command(
        ScoreConfig(run=str(run.path), checkpoint="last", figure=False, slices=False, results=str(tmp_path / "results"))
    )
    records = {record.name: record for record in read_records(tmp_path / "results" / "records.jsonl")}
    for name in ("gamma", *(f"teacher_{figure}" for figure in REPEATED)):
        assert records[name].value == summary[name]
    assert records["gamma"].signature["of"].startswith("its teacher")
    assert records["bleu"].signature["teacher_alpha"] == 0.1
    assert records["bleu"].signature["sizes"] == "1+1 layers of 16 and 32"
    assert records["bleu"].signature["teacher_run"] == "teacher-s1"


def test_records_of_other_runs_say_nothing_of_teachers(small_run: RunDirectory, tmp_path: Path) -> None:
    score_command(
        ScoreConfig(run=str(small_run.path), figure=False, slices=False, results=str(tmp_path)),
    )
    for record in read_records(tmp_path / "records.jsonl"):
        assert not any("teacher" in name or name == "beta" for name in (record.name, *record.signature))


def test_students_learn_what_nothing_but_their_teacher_says(small_corpus: Corpus, tmp_path: Path) -> None:
    """A teacher that calls every piece by the name of the one before it."""
    untied = TransformerConfig(
        width=32, feed_forward=64, heads=2, encoder_layers=1, decoder_layers=1, share_embeddings="none"
    )
    teacher = train(brief_config(small_corpus, tmp_path / "teacher", model=untied, validation_sentences=0)).run
    weights, state = load_checkpoint(teacher.checkpoints / "last")
    save_checkpoint(
        teacher.checkpoints / "last", {**weights, "output_weight": weights["output_weight"].roll(1, 0)}, state
    )
    engine = EngineConfig(max_updates=60, validate_every=30, average_last=0)
    taught = student_config(small_corpus, tmp_path / "student", teacher.path, {}, engine=engine)
    alone = student_config(
        small_corpus, tmp_path / "alone", teacher.path, {}, engine=engine, distillation=DistillationConfig()
    )
    model = Translator.load(teacher.path, "last").model
    batch = next(iter(split_batches(small_corpus.split("train"), shuffle=True)))
    theirs = log_probs(model, batch, 1.0).exp()
    far, near = (
        -(theirs * log_probs(Translator.load(train(config).run.path, "last").model, batch, 1.0)).sum(1).mean()
        for config in (alone, taught)
    )
    assert near < far - 0.5


def test_without_the_teachers_part_a_student_learns_from_the_labels(
    small_corpus: Corpus, small_run: RunDirectory, tmp_path: Path
) -> None:
    taught = student_config(small_corpus, tmp_path / "taught", small_run.path, {"beta": 0.0})
    alone = student_config(small_corpus, tmp_path / "alone", small_run.path, {}, distillation=DistillationConfig())
    losses = [[line["loss"] for line in train(config).run.read_metrics()] for config in (taught, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) > 4


def test_a_student_resumed_goes_on_exactly(small_corpus: Corpus, small_run: RunDirectory, tmp_path: Path) -> None:
    def steps(updates: int) -> dict[str, Any]:
        return {"engine": EngineConfig(max_updates=updates, validate_every=4, log_every=2, average_last=0)}

    whole = train(student_config(small_corpus, tmp_path / "whole", small_run.path, {}, **steps(12))).run
    train(student_config(small_corpus, tmp_path / "parts", small_run.path, {}, **steps(7)))
    parts = train(student_config(small_corpus, tmp_path / "parts", small_run.path, {}, **steps(12))).run
    weights = [load_weights(run.checkpoints / "last") for run in (whole, parts)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_a_student_does_not_go_on_with_another_teacher(small_corpus: Corpus, teacher: Path, tmp_path: Path) -> None:
    config = student_config(small_corpus, tmp_path / "student", teacher, {})
    run = train(config).run
    run.summary_file.unlink()
    weights, state = load_checkpoint(teacher / "checkpoints" / "last")
    save_checkpoint(teacher / "checkpoints" / "last", {name: 2 * weight for name, weight in weights.items()}, state)
    with pytest.raises(UserError, match=r"teacher\.weights was .*, now .*choose another --out"):
        train(config)


def test_a_run_that_learnt_from_labels_is_no_student(
    small_corpus: Corpus, small_run: RunDirectory, tmp_path: Path
) -> None:
    alone = student_config(small_corpus, tmp_path / "run", small_run.path, {}, distillation=DistillationConfig())
    train(alone)
    with pytest.raises(UserError, match=r"distillation.teacher was .*choose another --out"):
        train(student_config(small_corpus, tmp_path / "run", small_run.path, {}))


def test_teachers_that_do_not_fit(small_corpus: Corpus, small_run: RunDirectory, teacher: Path, tmp_path: Path) -> None:
    sizes = EmbeddedSizes(train=300, validation=10, test=10, vocabulary=500)
    other = prepare_embedded(tmp_path / "corpus", 0, sizes)
    (teacher / "summary.json").unlink()
    for corpus, run, message in (
        (other, small_run.path, r"distillation.teacher: .* was trained with another vocabulary than .*corpus"),
        (small_corpus, teacher, r"distillation.teacher: .* has not been trained to its end"),
        (small_corpus, tmp_path / "nowhere", r"distillation.teacher: .*nowhere is not a run"),
    ):
        with pytest.raises(UserError, match=message):
            train(student_config(corpus, tmp_path / "run", run, {}))
        assert not (tmp_path / "run" / "config.yaml").exists()
    without = student_config(small_corpus, tmp_path / "run", small_run.path, {})
    shutil.rmtree(teacher)
    shutil.copytree(small_run.path, teacher)
    shutil.rmtree(teacher / "checkpoints" / "averaged")
    missing = DistillationConfig(teacher=str(teacher), checkpoint="averaged")
    with pytest.raises(UserError, match=r"distillation.teacher: .*averaged.* no such checkpoint"):
        train(TrainConfig(**{**vars(without), "distillation": missing}))


def test_a_finished_student_that_grows_wants_its_teacher(small_corpus: Corpus, teacher: Path, tmp_path: Path) -> None:
    config = student_config(small_corpus, tmp_path / "student", teacher, {})
    run = train(config).run
    before = (run.summary_file.read_bytes(), run.config_file.read_bytes())
    shutil.rmtree(teacher)
    longer = replace(config, engine=replace(config.engine, max_updates=16))
    with pytest.raises(UserError, match=r"distillation.teacher: .* is not a run"):
        train(longer)
    assert (run.summary_file.read_bytes(), run.config_file.read_bytes()) == before


def test_a_student_may_teach_and_is_told_from_other_teachers(
    small_corpus: Corpus, small_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = train(student_config(small_corpus, tmp_path / "student-s{seed}", small_run.path, {})).run
    assert student.path.name == "student-s1"
    config = student_config(small_corpus, tmp_path / "second", student.path, {}, checkpoints=("best",))
    facts = train(config).run.read_manifest()["teacher"]
    assert facts["teacher"] == student.read_manifest()["teacher"]["weights"]
    assert "teacher" not in student.read_manifest()["teacher"]
    # the second was scored at its best checkpoint alone
    capsys.readouterr()
    asked = DistillationConfig(teacher=str(tmp_path / "second"), checkpoint="last")
    open_teacher(asked, small_corpus, torch.device("cpu"))
    assert "was not scored at its last checkpoint" in capsys.readouterr().err


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="a student's own labels are not smoothed"):
        TrainConfig(distillation=DistillationConfig(teacher="runs/X"))
    with pytest.raises(ValueError, match="name a teacher"):
        TrainConfig(distillation=DistillationConfig(temperature=2.0))
    for taught in (DistillationConfig(), DistillationConfig(temperature=2.0)):
        with pytest.raises(ValueError, match="with --teacher"):
            DistillConfig(distillation=taught)


def test_names_of_runs_that_were_given_none(small_corpus: Corpus, small_run: RunDirectory, tmp_path: Path) -> None:
    config = student_config(small_corpus, tmp_path, small_run.path, {"temperature": 4.0})
    assert default_out(config, small_corpus) == "runs/small-from-small-T4-s1"


STUDENTS_CLAIMS = [claim for claim in CLAIMS.claims if "translators-student" in claim.settings]


@pytest.fixture(scope="module")
def of_students(small_corpus: Corpus, small_run: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of one seed of all recipes that claims ask for: those of one student, said to be of each, with values of
    their own."""
    place = tmp_path_factory.mktemp("study")
    run = train(student_config(small_corpus, place / "student", small_run.path, {})).run
    real = str(place / "real")
    common: dict[str, Any] = {"run": str(run.path), "checkpoint": "last", "figure": False, "slices": False}
    for temperature in (None, "fitted"):
        search = SearchChanges(beam=5)
        score_command(
            ScoreConfig(**common, exact_tokens=300, temperature=temperature, search=search, results=real)  # type: ignore[arg-type]
        )
    sides = [side for claim in STUDENTS_CLAIMS for test in claim.tests.values() for side in test.sides]
    recipes = {(side.alpha, *side.taught.values()) for side in sides}
    found = []
    for number, (alpha, *taught) in enumerate(sorted({*recipes, (0.0,)})):
        for record in read_records(place / "real" / "records.jsonl"):
            of_teacher = {"beta", *(key for key in record.signature if "teacher" in key or "student_" in key)}
            signature = {key: value for key, value in record.signature.items() if taught or key not in of_teacher}
            told = dict(zip(("teacher_alpha", "teacher_temperature"), taught, strict=False))
            signature |= {"alpha": alpha, "run": f"grammar-student-{number}", "dropout": 0.1, **told}
            if taught:
                signature |= {"student_temperature": taught[1], "squared_temperature_factor": True}
            found.append(replace(record, value=record.value + number, signature=signature))
    append_records(place / "results" / "grammar-students" / "records.jsonl", found)
    return place / "results"


@pytest.mark.parametrize("claim", STUDENTS_CLAIMS, ids=lambda claim: claim.name)
def test_what_claims_ask_of_students_is_recorded(of_students: Path, claim: Claim) -> None:
    results = read_results(CLAIMS.settings["translators-student"], of_students)
    for regime in claim.regimes:
        assert hard_runs(regime, results)
        assert regime_value(regime, results) > 0
    for name, test in claim.tests.items():
        outcome = judge(name, test, results)
        assert outcome.finding is not None, outcome.why
        (before,), (after,) = compared_runs(test, results)
        fitted = test.treated.temperature == "nll"
        expected = after.scored[fitted][test.figure] - before.scored[fitted][test.figure]
        assert outcome.finding.difference == pytest.approx(expected)
        assert before.taught == bool(test.sides[0].taught)


def test_students_of_translators_are_shown_by_bleu(of_students: Path) -> None:
    results = read_results(CLAIMS.settings["translators-student"], of_students)
    (table,) = (table for table in setting_tables(results) if table.title.startswith("Section 4"))
    shown = {column.key for column in table.shown}
    assert {"teacher_bleu", "bleu", "bleu difference", "gamma", "kl_to_truth fitted"} <= shown
    hard = results.runs(0.0)[0].scored[False]["bleu"]
    for row in table.rows:
        assert row["bleu difference"].difference == pytest.approx(row["bleu"] - hard)
    alphas, temperatures, values = accuracy_grid(results)
    assert (alphas, temperatures) == ([0.0, 0.1], [1.0, 2.0])
    assert values[0, 0] == table.rows[0]["bleu"]
    captions = {kind: (caption, figure) for kind, caption, figure in students_figures(results, None)}
    assert "BLEU by the mass that targets put" in captions["distillation"][0]
    assert captions["distillation"][1].axes[0].get_ylabel() == "BLEU"
    assert captions["distillation-grid"][1].axes[1].get_ylabel() == "BLEU"
