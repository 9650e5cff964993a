import io
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toy_regression import BATCHES, batches, loss, make_engine, same, train

from nmt_ls.experiment.checkpoint import load_checkpoint, load_weights
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.engine import EngineConfig, NonFiniteError, StepLoss
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.experiment.schedule import OptimizerConfig, ScheduleConfig

pytestmark = pytest.mark.usefixtures("quick")


def always_one(_):
    return {"nll": 1.0}


def test_gradient_is_the_sum_over_batches_divided_by_the_total_count(tmp_path):
    model, reference = nn.Linear(6, 1), nn.Linear(6, 1)
    reference.load_state_dict(model.state_dict())
    plain = {"optimizer_config": OptimizerConfig(kind="sgd", learning_rate=0.1)}
    schedule = ScheduleConfig(kind="constant")

    def linear_loss(model, batch):
        x, y = batch
        return StepLoss((model(x).squeeze(-1) - y).square().sum(), len(y))

    train(tmp_path / "a", model=model, loss=linear_loss, validate=always_one, accumulation=3, max_updates=3,
          schedule=schedule, clip_norm=0.5, **plain)  # fmt: skip
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    groups = [batches(1)[:3], batches(1)[3:6], batches(1)[6:]]  # the last update of an epoch takes what is left
    norms = []
    for group in groups:
        x, y = (torch.cat(parts) for parts in zip(*group, strict=True))
        optimizer.zero_grad()
        (reference(x).squeeze(-1) - y).square().mean().backward()
        norms.append(float(nn.utils.clip_grad_norm_(reference.parameters(), 0.5)))
        optimizer.step()
    assert min(norms) > 0.5  # clipping was at work
    torch.testing.assert_close(model.state_dict(), reference.state_dict())
    line = RunDirectory(tmp_path / "a").read_metrics()[0]
    assert line["grad_norm"] == pytest.approx(np.mean(norms), rel=1e-5)


def test_metrics_lines(tmp_path):
    train(tmp_path / "a", max_updates=10, log_every=4, validate_every=5)
    lines = RunDirectory(tmp_path / "a").read_metrics()
    assert [(line["step"], line["split"]) for line in lines] == [
        (4, "train"), (5, "validation"), (8, "train"), (10, "validation")
    ]  # fmt: skip
    assert list(lines[0]) == ["step", "split", "epoch", "loss", "absolute", "lr", "grad_norm", "rate", "elapsed"]
    assert (lines[0]["epoch"], lines[2]["epoch"]) == (1, 2)
    assert lines[0]["lr"] == pytest.approx(0.02)
    assert lines[2]["lr"] == pytest.approx(0.02 * math.sqrt(4 / 8))
    assert lines[0]["rate"] > 0
    assert list(lines[1]) == ["step", "split", "nll", "accuracy", "elapsed"]


def test_logged_loss_is_the_mean_over_examples_not_over_batches(tmp_path):
    model = nn.Linear(6, 1)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)

    def constant_loss(model, batch):  # each batch costs its size squared; the gradient is zero
        return StepLoss(model.bias.sum() * 0 + len(batch[1]) ** 2, len(batch[1]), {"ones": torch.tensor(len(batch[1]))})

    train(tmp_path / "a", model=model, loss=constant_loss, validate=always_one, max_updates=BATCHES,
          log_every=BATCHES, optimizer_config=OptimizerConfig(kind="sgd", learning_rate=0.1))  # fmt: skip
    sizes = [len(y) for _, y in batches(1)]
    line = RunDirectory(tmp_path / "a").read_metrics()[1]
    assert line["loss"] == pytest.approx(sum(n * n for n in sizes) / sum(sizes))
    assert line["ones"] == 1.0


def test_validation_leaves_random_numbers_and_modes_alone(tmp_path):
    def restless(model):
        random.random(), np.random.rand(), torch.rand(7)
        model.layers[1].train()
        return {"nll": 1.0}

    train(tmp_path / "a", validate=restless, max_updates=12, validate_every=2)
    train(tmp_path / "b", validate=always_one, max_updates=12, validate_every=4)
    same(load_weights(tmp_path / "a/checkpoints/last"), load_weights(tmp_path / "b/checkpoints/last"))
    state_a, state_b = (load_checkpoint(tmp_path / f"{name}/checkpoints/last")[1]["random"] for name in "ab")
    same(state_a, state_b)


def test_a_module_kept_in_eval_mode_by_the_loss_stays_there_after_validation(tmp_path):
    modes = []

    def freezing(model, batch):
        if not modes:
            model.layers[1].eval()
        modes.append((model.training, model.layers[1].training))
        return loss(model, batch)

    train(tmp_path / "a", loss=freezing, max_updates=4, validate_every=2)
    assert modes == [(True, False)] * 4


def figures(*values):
    """A validation that says these figures one after the other."""
    left = list(values)
    return lambda _: {"nll": left.pop(0), "bleu": 1.0}


def test_best_is_kept_and_patience_stops(tmp_path):
    result = train(tmp_path / "a", validate=figures(3.0, 2.0, 2.0, 2.5, 1.0), patience=2, max_updates=100)
    assert (result.stopped_by, result.update) == ("patience", 20)
    assert result.best == {"step": 10, "nll": 2.0, "bleu": 1.0}
    assert result.latest == {"step": 20, "nll": 2.5, "bleu": 1.0}
    weights, state = load_checkpoint(tmp_path / "a/checkpoints/best")
    assert (state["step"], state["figures"]["nll"]) == (10, 2.0)
    train(tmp_path / "b", max_updates=10)
    same(weights, load_weights(tmp_path / "b/checkpoints/last"))
    again = train(tmp_path / "a", validate=figures(), patience=2, max_updates=100)
    assert (again.stopped_by, again.update, again.best) == ("patience", 20, result.best)


def test_a_better_figure_gives_patience_back(tmp_path):
    result = train(tmp_path / "a", validate=figures(3.0, 4.0, 2.0, 3.0, 3.0, 1.0), patience=2, max_updates=100)
    assert (result.stopped_by, result.update, result.best["step"]) == ("patience", 25, 15)


@pytest.mark.parametrize(
    ("monitor", "mode", "best"), [("nll", "auto", 5), ("nll", "max", 10), ("accuracy", "auto", 10), ("bleu", "min", 5)]
)
def test_mode_says_which_way_is_better(tmp_path, monitor, mode, best):
    values = iter([1.0, 2.0])
    result = train(tmp_path / "a", validate=lambda _: {monitor: next(values)}, monitor=monitor, mode=mode,
                   max_updates=10)  # fmt: skip
    assert result.best["step"] == best


def test_averaged_is_the_mean_of_the_last_validations(tmp_path):
    train(tmp_path / "a", max_updates=20, average_last=3)
    parts = []
    for step in (10, 15, 20):
        train(tmp_path / str(step), max_updates=step, average_last=0)
        parts.append(load_weights(tmp_path / str(step) / "checkpoints/last"))
        assert not (tmp_path / str(step) / "checkpoints/averaged").exists()
    averaged = load_weights(tmp_path / "a/checkpoints/averaged")
    for name, value in averaged.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, torch.stack([part[name] for part in parts]).mean(0))


def test_the_end_is_validated_even_between_two_intervals(tmp_path):
    result = train(tmp_path / "a", max_updates=7, validate_every=5)
    assert result.latest["step"] == 7
    result = train(tmp_path / "b", max_updates=3, validate_every=5)
    assert result.best["step"] == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_loss_stops_and_names_update_and_batch(tmp_path, bad):
    def breaking(model, batch, calls=[0]):  # noqa: B006 (a counter)
        calls[0] += 1
        good = loss(model, batch)
        return good._replace(total=good.total * bad) if calls[0] == 14 else good

    with pytest.raises(NonFiniteError, match=r"loss is (nan|inf) in update 8 \(batch 6 of epoch 2\)"):
        train(tmp_path / "a", loss=breaking, accumulation=2, validate_every=3)
    weights, state = load_checkpoint(tmp_path / "a/checkpoints/last")
    assert state["step"] == 6
    assert all(value.isfinite().all() for value in weights.values())
    train(tmp_path / "b", accumulation=2, max_updates=6, validate_every=3)
    same(weights, load_weights(tmp_path / "b/checkpoints/last"))


def test_a_bad_gradient_under_a_good_loss_stops_before_the_update(tmp_path):
    def breaking(model, batch, calls=[0]):  # noqa: B006 (a counter)
        calls[0] += 1
        good = loss(model, batch)
        if calls[0] < 6:
            return good
        return good._replace(total=good.total + torch.sqrt(model.output.bias.sum() * 0))  # 0 with slope inf · 0

    with run_at(tmp_path / "a") as run:
        engine = make_engine(run, loss=breaking)
        with pytest.raises(NonFiniteError, match=r"gradient norm is nan in update 6 \(batch 5 of epoch 1\)"):
            engine.fit()
        assert all(parameter.isfinite().all() for parameter in engine.model.parameters())


def run_at(path: Path) -> RunDirectory:
    return RunDirectory.open(path, {}, {})[0]


def test_a_bad_validation_figure_stops_and_saves_nothing(tmp_path):
    with pytest.raises(NonFiniteError, match="nll in validation is nan at update 10"):
        train(tmp_path / "a", validate=figures(1.0, float("nan")))
    assert load_checkpoint(tmp_path / "a/checkpoints/last")[1]["step"] == 5


def test_user_errors(tmp_path):
    with pytest.raises(UserError, match="epoch 1 has no batches"):
        train(tmp_path / "a", batches=lambda _: [])
    with pytest.raises(UserError, match=r"update 1 \(batch 0 of epoch 1\) has nothing to learn from"):
        train(tmp_path / "b", loss=lambda model, batch: loss(model, batch)._replace(count=0))
    with pytest.raises(UserError, match="validation gives no chrf, only nll, accuracy"):
        train(tmp_path / "c", monitor="chrf")
    train(tmp_path / "d", max_updates=5)
    with pytest.raises(UserError, match="checkpoints/last: not of this model"):
        train(tmp_path / "d", max_updates=10, model=nn.Linear(6, 1))


@pytest.mark.parametrize(
    "wrong",
    [{"max_updates": 0}, {"accumulation": 0}, {"clip_norm": -1.0}, {"clip_norm": math.nan}, {"patience": -1},
     {"monitor": "loss"}, {"monitor": "smoothed_loss"}, {"average_last": -1}, {"log_every": 0}],
)  # fmt: skip
def test_config_names_the_wrong_key(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EngineConfig(**wrong)


def test_plain_lines_and_a_bar(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream in (io.StringIO(), Terminal()):
        train(tmp_path / str(stream.isatty()), stream=stream, unit="tokens", max_updates=12, validate_every=6)
        text = stream.getvalue()
        assert "validation at update 6: nll " in text
        assert "tokens/s" in text
        assert ("\r" in text) == stream.isatty()
        if not stream.isatty():
            assert "update 3/12  epoch 1  loss " in text
            assert "0:00 left" in text


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path / "a", max_updates=6, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "a/tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [3, 6]
    assert [event.step for event in events.Scalars("validation/nll")] == [5, 6]


def test_tensorboard_absent_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"engine.tensorboard: .* pip install 'nmt-ls\[track\]'"):
        train(tmp_path / "a", tensorboard=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, where the guard looks one update late")
def test_on_cuda_a_bad_loss_is_found_one_update_late_and_before_anything_is_saved(tmp_path):
    model = nn.Linear(6, 1).cuda()

    def breaking(model, batch, calls=[0]):  # noqa: B006 (a counter)
        calls[0] += 1
        x, y = (part.cuda() for part in batch)
        total = (model(x).squeeze(-1) - y).square().sum()
        return StepLoss(total * float("nan") if calls[0] in (10, 11) else total, len(y))

    with pytest.raises(NonFiniteError, match=r"loss is nan in update 10 \(batch 2 of epoch 2\)"):
        train(tmp_path / "a", model=model, loss=breaking, validate=always_one, validate_every=5)
    assert load_checkpoint(tmp_path / "a/checkpoints/last")[1]["step"] == 5
