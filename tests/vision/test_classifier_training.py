"""Training classifiers: the loss by hand, exact resume, several seeds, and what a run's files say."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from made_images import made_folder
from small_classifiers import small_training

from data_prep.images import ImagesConfig
from data_prep.images import main as prepare
from nmt_ls.experiment.checkpoint import load_checkpoint
from nmt_ls.experiment.command_line import UserError, load_config
from nmt_ls.experiment.engine import EngineConfig
from nmt_ls.experiment.penalty import L2Config
from nmt_ls.experiment.precision import Precision
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.losses import LossConfig
from vision_ls.augment import AugmentConfig
from vision_ls.data import EmbeddedSizes, ImageSplit, embedded_images, spread_rows
from vision_ls.models import ModelConfig
from vision_ls.scoring import predict, score_logits, training_accuracy
from vision_ls.train import main as train_command
from vision_ls.train_config import TrainConfig, new_model
from vision_ls.training import ClassificationTask, compiled, steps_to_reach, train, train_all


def task_of(config: TrainConfig) -> ClassificationTask:
    data = embedded_images(config.embedded)
    torch.manual_seed(0)
    model = new_model(config, data)
    return ClassificationTask(config, data, model, Precision(), torch.device("cpu"))


def test_loss_by_hand(tmp_path: Path) -> None:
    config = small_training(
        tmp_path / "run", loss_weight=3.0, l2=L2Config(weight=0.04, layers=("last",)), augment=AugmentConfig()
    )
    task = task_of(config)
    task.model.eval()
    rows = torch.tensor([3, 0, 50, 7])
    images = task.training.images_NCHW[rows]
    log_p = F.log_softmax(task.model(task.augmentation.evaluate(images)), 1)
    target = torch.full((4, 9), 0.1 / 9)
    target[torch.arange(4), task.training.labels_N[rows]] += 0.9
    smoothed = -(target * log_p).sum()
    penalty = 0.04 / 2 * task.model.last.weight.square().sum()
    found = task.loss(task.model, rows)
    torch.testing.assert_close(found.total, 3 * smoothed + 4 * penalty, rtol=1e-5, atol=1e-5)
    assert found.count == 4
    torch.testing.assert_close(found.extras["smoothed"], smoothed.detach(), rtol=1e-5, atol=1e-5)
    nll = -log_p[torch.arange(4), task.training.labels_N[rows]].sum()
    torch.testing.assert_close(found.extras["nll"], nll.detach(), rtol=1e-5, atol=1e-5)


def test_unigram_prior_is_of_the_training_labels(tmp_path: Path) -> None:
    task = task_of(small_training(tmp_path / "run", loss=LossConfig(alpha=0.1, prior="unigram")))
    counts = torch.bincount(task.training.labels_N, minlength=9)
    torch.testing.assert_close(task.prior, counts / 96)
    assert counts.max() > counts.min()


def test_training_on_a_subset(tmp_path: Path) -> None:
    task = task_of(small_training(tmp_path / "run", train_size=27))
    assert torch.bincount(task.training.labels_N, minlength=9).tolist() == [3] * 9
    with pytest.raises(UserError, match="train_size: 900 balanced images need 100 of class 'diamond'"):
        task_of(small_training(tmp_path / "run", train_size=900))


def test_a_run_and_its_files(small_classifier: RunDirectory) -> None:
    summary = small_classifier.read_summary()
    assert set(summary["checkpoints"]) == {"last", "best"}
    assert summary["ece"] == summary["checkpoints"]["last"]["ece"]
    assert 0 <= summary["train_accuracy"] <= 1
    assert summary["exact_ece"] >= 0
    assert 0 < summary["entropy"] < 1
    lines = small_classifier.read_metrics()
    assert {"accuracy", "nll", "ece", "loss"} <= set(next(line for line in lines if line["split"] == "validation"))
    assert {"smoothed", "nll", "accuracy"} <= set(next(line for line in lines if line["split"] == "train"))
    manifest = small_classifier.read_manifest()
    assert manifest["corpus"] == "embedded shapes"
    assert manifest["classes"][0] == "diamond"
    config = load_config(TrainConfig, small_classifier.read_config())
    assert config == small_training(small_classifier.path)


def test_steps_to_reach_by_hand(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step, accuracy in zip((10, 20, 30, 40, 50), (0.5, 0.97, 0.985, 0.99, 1.0), strict=True):
        run.append_metrics({"split": "train", "step": step - 5, "accuracy": 1.0})
        run.append_metrics({"split": "validation", "step": step, "accuracy": accuracy})
    assert steps_to_reach(run) == {"steps_to_98": 30, "steps_to_99": 40}


def test_steps_to_reach_are_of_the_last_accuracy_not_of_the_best(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step, accuracy in ((1, 0.7), (2, 0.9), (3, 0.8)):
        run.append_metrics({"split": "validation", "step": step, "accuracy": accuracy})
    assert steps_to_reach(run) == {"steps_to_98": 2, "steps_to_99": 2}


def test_finished_runs_are_left_alone(small_classifier: RunDirectory) -> None:
    outcome = train(small_training(small_classifier.path))
    assert outcome.already_finished
    with pytest.raises(UserError, match=r"loss\.alpha was 0\.1, now 0\.2"):
        train(small_training(small_classifier.path, loss=LossConfig(alpha=0.2)))


class StoppedError(Exception):
    """Ends a run as a kill would, between two checkpoints."""


COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++) to compile kernels with")


@pytest.mark.parametrize(
    ("name", "widths", "settings"),
    [
        ("small_cnn", (8, 8, 8), {"precision": "fp32"}),
        ("small_cnn", (8, 8, 8), {"precision": "bf16"}),
        # kernels of convolutions take long to compile
        pytest.param("mnist_student", (8, 8), {"precision": "bf16", "compile": True}, marks=COMPILER),
        ("mnist_teacher", (16, 16), {"precision": "fp32"}),
        ("alexnet", (), {"precision": "fp32"}),
        ("resnet20", (8, 8, 8), {"precision": "fp32", "l2": L2Config(weight=1e-4, layers=("all",))}),
    ],
    ids=["cnn-fp32", "cnn-bf16", "mlp-compiled", "mlp", "alexnet", "resnet"],
)
def test_a_resumed_run_ends_bit_for_bit_as_one_in_one_piece(
    name: str, widths: tuple[int, ...], settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With augmentation and dropout, which draw from the generators that the checkpoint holds."""
    model = ModelConfig(name=name, widths=widths, dropout=0.3)  # type: ignore[arg-type]
    augment = AugmentConfig(crop=22, flip=True, brightness=30, contrast=(0.5, 1.5), normalise="image")
    settings = {"model": model, "augment": augment, **settings}
    train(small_training(tmp_path / "whole", **settings))
    real, calls = ClassificationTask.loss, []

    def dies(self: ClassificationTask, model: torch.nn.Module, rows: torch.Tensor) -> object:
        calls.append(1)
        if len(calls) == 7:
            raise StoppedError
        return real(self, model, rows)

    monkeypatch.setattr(ClassificationTask, "loss", dies)
    with pytest.raises(StoppedError):
        train(small_training(tmp_path / "parts", **settings))
    train(small_training(tmp_path / "parts", **settings))
    whole, parts = (load_checkpoint(tmp_path / name / "checkpoints" / "last") for name in ("whole", "parts"))
    assert whole[0].keys() == parts[0].keys()
    assert all(torch.equal(whole[0][key], parts[0][key]) for key in whole[0])
    assert torch.equal(whole[1]["random"]["torch"], parts[1]["random"]["torch"])


def test_several_seeds_in_one_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = EngineConfig(max_updates=3, validate_every=3, log_every=3, monitor="accuracy", average_last=0)
    config = small_training(tmp_path / "run", seeds=(1, 2), engine=engine)
    assert train_command(config) == 0
    said = capsys.readouterr().out
    each, over = said.split("over 2 seeds, last checkpoint, test split")
    assert "top5_accuracy" in each  # of nine classes
    assert all(figure in over for figure in ("top5_accuracy", "debiased_ece", "steps_to_98", "steps_to_99"))
    assert "what the truth allows: NLL" in said
    named = f"--runs {tmp_path / 'run-s1'} {tmp_path / 'run-s2'} --results"
    assert said.splitlines()[-1] == f"next: python -m vision_ls.evaluate {named} results/mine"
    one, two = (json.loads((tmp_path / f"run-s{seed}" / "summary.json").read_text()) for seed in (1, 2))
    assert one["nll"] != two["nll"]
    # the run of one seed by itself is the same run
    assert train(replace(config, seeds=(), seed=2, out=str(tmp_path / "run-s2"))).already_finished
    assert config.with_seed(7).out == str(tmp_path / "run-s7")
    assert replace(config, out="a/{seed}/b").with_seed(7).out == "a/7/b"


def test_training_learns(tmp_path: Path) -> None:
    """A few images by heart: if loss, labels and augmentation fit together, it cannot fail to."""
    engine = EngineConfig(max_updates=150, validate_every=150, log_every=50, monitor="accuracy", average_last=0)
    config = small_training(
        tmp_path / "run", train_size=18, batch_size=18, model=ModelConfig(widths=(16, 32, 32)), engine=engine,
        augment=AugmentConfig(), loss=LossConfig(alpha=0.0),
    )  # fmt: skip
    (outcome,) = train_all(replace(config, schedule=replace(config.schedule, milestones=(140,))))
    assert outcome.summary is not None
    assert outcome.summary["train_accuracy"] > 0.9


def test_prepared_images_are_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(ImagesConfig(source=str(made_folder(tmp_path / "made")), out=str(tmp_path / "data")))
    config = small_training(tmp_path / "run", data=str(tmp_path / "data"), batch_size=8, precision="bf16")
    assert train_command(config) == 0
    said = capsys.readouterr().out
    assert "what the truth allows" not in said
    assert "top5_accuracy" not in said  # there are three classes
    assert f"vision_ls.evaluate --run {tmp_path / 'run'} --results" in said
    summary = RunDirectory(tmp_path / "run").read_summary()
    assert "exact_ece" not in summary
    assert summary["signature"]["precision"].startswith("fp32")
    assert RunDirectory(tmp_path / "run").read_manifest()["precision"]["kind"] == "bf16"


def test_a_damaged_test_split_stops_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(ImagesConfig(source=str(made_folder(tmp_path / "made")), out=str(tmp_path / "data")))
    file = tmp_path / "data" / "test" / "images.npy"
    file.write_bytes(file.read_bytes()[:-1])
    monkeypatch.setattr(ClassificationTask, "loss", lambda *_: pytest.fail("it has begun to learn"))
    with pytest.raises(UserError, match=r"test/images\.npy: missing or damaged"):
        train(small_training(tmp_path / "run", data=str(tmp_path / "data"), batch_size=8))
    assert not (tmp_path / "run" / "config.yaml").exists()


@COMPILER
def test_a_compiled_step_is_the_same_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    rows = torch.tensor([3, 0, 50, 7])
    losses, gradients = [], []
    for compile_it in (False, True):
        task = task_of(small_training(tmp_path / "run", compile=compile_it))
        loss = task.loss(task.model, rows).total
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        gradients.append({name: p.grad for name, p in task.model.named_parameters()})
    assert any((tmp_path / "kernels").rglob("*.so"))  # it was compiled
    torch.testing.assert_close(*losses)
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][name], expected, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_compiler_may_have_a_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"ccache {sys.executable}")
    assert callable(compiled(new_model(TrainConfig(), embedded_images(EmbeddedSizes(train=9, validation=9, test=9)))))


def test_compiling_without_a_compiler_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"compile: needs a C\+\+ compiler, and there is no no-such-compiler here"):
        train(small_training(tmp_path / "run", compile=True))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"l2\.layers: the model has no layer 'dense3'; choose all, or among .*last"):
        train(small_training(tmp_path / "run", l2=L2Config(weight=0.1, layers=("dense3",))))
    with pytest.raises(UserError, match=r"augment\.crop: 40 pixels cannot be cut"):
        train(small_training(tmp_path / "run", augment=AugmentConfig(crop=40)))
    with pytest.raises(UserError, match="model: inception_v4 needs images of at least"):
        train(small_training(tmp_path / "run", model=ModelConfig(name="inception_v4")))
    with pytest.raises(UserError, match="is not prepared data"):
        train(small_training(tmp_path / "run", data=str(tmp_path)))
    train(small_training(tmp_path / "run"))  # each of them has left the place as it was


def test_settings_that_do_not_go_together() -> None:
    for settings, message in (
        ({"l2": {"weight": 0.1}}, "weight and layers go together"),
        ({"seeds": (1, 1)}, "seeds must be different"),
        ({"loss_weight": 0.0}, "loss_weight must be above 0"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"seed": 3, "seeds": (1, 2)}, "seed, seeds: give one seed, or several, not both"),
        ({"data": "data/mnist", "embedded": {"train": 50}}, "embedded: these are sizes of the embedded shapes"),
        ({"engine": {"monitor": "acc"}}, "engine.monitor: choose nll, accuracy, ece, not 'acc'"),
        ({"checkpoints": ("averaged",)}, "averaged needs engine.average_last"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(TrainConfig, settings)


def test_validation_looks_at_rows_of_the_whole_split(tmp_path: Path) -> None:
    task = task_of(small_training(tmp_path / "run", validation_images=7))
    whole, rows_N = task.data.split("validation"), spread_rows(len(task.data.split("validation")), 7)
    assert rows_N[-1] > len(whole) / 2
    logits_NK = predict(task.model, task.augmentation, whole)
    expected = score_logits(logits_NK[rows_N], whole.labels_N[rows_N], loss=LossConfig()).figures()
    found = task.validate(task.model)
    assert found["nll"] == pytest.approx(expected["nll"], rel=1e-5)
    assert found["accuracy"] == pytest.approx(expected["accuracy"])


def test_training_accuracy_by_hand() -> None:
    labels_N = torch.tensor([0, 1, 1, 0])
    images = ImageSplit(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), labels_N)
    predicted = torch.tensor([0, 1, 0, 0])
    assert training_accuracy(images, lambda rows_N: F.one_hot(predicted[rows_N], 2).float()) == 0.75


def test_prediction_keeps_the_mode_and_does_not_depend_on_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(small_training(tmp_path / "run"))
    task.model.train()
    whole = predict(task.model, task.augmentation, task.validation)
    assert task.model.training
    monkeypatch.setattr("vision_ls.scoring.EVALUATION_BATCH", 7)
    torch.testing.assert_close(predict(task.model, task.augmentation, task.validation), whole)
