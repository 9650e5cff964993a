"""A run that was stopped, killed or grown ends like one that was left alone, bit for bit."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from dying import dies_at, fork, status_of
from toy_regression import assert_same_run, loss, make_engine, train, validate

from nmt_ls.experiment.checkpoint import load_checkpoint
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.experiment.schedule import ScheduleConfig

pytestmark = pytest.mark.usefixtures("quick")
STRIDE = int(os.environ.get("DEATHS_STRIDE", "17"))  # 1 tries every action on the disk, in a minute or two
TOY = Path(__file__).with_name("toy_regression.py")


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("cut", [1, 5, 8, 11])  # in an epoch, at a validation, past an epoch's end, in a log window
def test_n_steps_then_n_more_equal_all_at_once(tmp_path, kind, accumulation, cut):
    options = {"kind": kind, "accumulation": accumulation, "clip_norm": 1.0, "average_last": 3}
    train(tmp_path / "whole", max_updates=20, **options)

    def interrupting(model, batch, calls=[0]):  # noqa: B006 (a counter)
        calls[0] += 1
        if calls[0] == cut:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(model, batch)

    first = train(tmp_path / "halves", max_updates=20, loss=interrupting, **options)
    assert first.stopped_by == "signal"
    assert 0 < first.update < 20
    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # as another process would have them
    second = train(tmp_path / "halves", max_updates=20, **options)
    assert (second.update, second.stopped_by) == (20, "max_updates")
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


def test_a_run_grown_to_2n_equals_2n(tmp_path):
    train(tmp_path / "whole", max_updates=20)
    train(tmp_path / "grown", max_updates=10)
    train(tmp_path / "grown", max_updates=20)
    assert_same_run(tmp_path / "whole", tmp_path / "grown")


def test_a_schedule_that_ends_cannot_be_stretched(tmp_path):
    cosine = ScheduleConfig(kind="cosine")
    train(tmp_path / "a", max_updates=5, schedule=cosine)
    with pytest.raises(UserError, match=r"the cosine schedule of .* ends at update 5 and cannot be stretched to 10"):
        train(tmp_path / "a", max_updates=10, schedule=cosine)
    fixed = ScheduleConfig(kind="cosine", total_updates=10)
    train(tmp_path / "b", max_updates=5, schedule=fixed)
    train(tmp_path / "b", max_updates=10, schedule=fixed)
    train(tmp_path / "whole", max_updates=10, schedule=cosine)
    assert_same_run(tmp_path / "whole", tmp_path / "b")


def test_a_signal_during_validation_throws_it_away_and_it_is_made_again(tmp_path):
    calls = []

    def interrupted(model):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        return validate(model)

    began = time.perf_counter()
    result = train(tmp_path / "a", validate=interrupted)
    assert time.perf_counter() - began < 4
    assert (result.stopped_by, result.signal, result.update, result.latest["step"]) == ("signal", signal.SIGINT, 10, 5)
    train(tmp_path / "a")
    train(tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "a")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_validation_killed_before_it_was_saved_leaves_one_line(tmp_path):
    def interrupted(model):
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(model)

    train(tmp_path / "a", max_updates=9)
    assert train(tmp_path / "a", max_updates=10, validate=interrupted).latest["step"] == 9  # of ten updates, saved
    run = RunDirectory(tmp_path / "a")
    run.append_metrics({"step": 10, "split": "validation", "nll": 1.0})  # as the next session would, and die
    train(tmp_path / "a", max_updates=10)
    assert [line["step"] for line in run.read_metrics() if line["split"] == "validation"] == [5, 9, 10]


def test_what_may_change_the_last_bits_is_mentioned_on_resume(tmp_path):
    def go(threads, updates):
        stream = io.StringIO()
        manifest = {"threads": threads, "versions": {"torch": "2.13"}, "command": f"train {updates}"}
        run, _ = RunDirectory.open(tmp_path / "a", {"engine": {"max_updates": updates}}, manifest)
        with run:
            make_engine(run, max_updates=updates, stream=stream).fit()
        return stream.getvalue()

    go(1, 5)
    text = go(2, 10)
    assert "resumed at step 5\n" in text
    assert "note: begun with threads 1, resumed with 2: not bit for bit the same run\n" in text
    assert text.count("note:") == 1


def fork_into_a_loss(folder, seconds, max_updates):
    """A process that trains folder/a and is within a loss, each of which takes so long."""
    began = folder / "began"

    def slow(model, batch):
        began.touch()
        time.sleep(seconds)
        return loss(model, batch)

    child = fork(lambda: train(folder / "a", loss=slow, max_updates=max_updates))
    while not began.exists():
        time.sleep(0.01)
    return child


def wait_for_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(line["step"] >= step for line in RunDirectory(run).read_metrics()):
            return
        time.sleep(0.005)
    raise AssertionError(f"no step {step} in {run}")


def slow_loss(model, batch):
    time.sleep(0.003)
    return loss(model, batch)


def test_killed_and_killed_again_ends_like_one_left_alone(tmp_path):
    settings = {"max_updates": 40, "accumulation": 2, "checkpoint_every": 4, "clip_norm": 1.0}
    train(tmp_path / "whole", **settings)
    for step in (11, 26):
        child = fork(lambda: train(tmp_path / "killed", loss=slow_loss, **settings))
        wait_for_step(tmp_path / "killed", step)
        time.sleep(random.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        assert status_of(child) == -signal.SIGKILL
    # the last third in an interpreter of its own
    command = [sys.executable, str(TOY), str(tmp_path / "killed"), json.dumps(settings)]
    end = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert end.returncode == 0, end.stderr
    assert "resumed at step " in end.stdout
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_killed_before_any_action_on_the_disk_ends_like_one_left_alone(tmp_path):
    settings = {"max_updates": 6, "validate_every": 2, "checkpoint_every": 3, "average_last": 2, "patience": 9}
    train(tmp_path / "whole", **settings)
    deaths = 0
    for number in range(1, 1000, STRIDE):
        run = tmp_path / str(number)
        died = dies_at(number, lambda run=run: train(run, **settings))
        if died and number % 2:
            dies_at(number // 3 + 5, lambda run=run: train(run, **settings))
        train(run, **settings)
        assert_same_run(tmp_path / "whole", run)
        assert [path.name for path in run.rglob(".*")] == [".lock"]
        deaths += died
        if not died:
            break
    assert deaths > 8


def test_first_signal_saves(tmp_path, capfd):
    child = fork(lambda: sys.exit(train(tmp_path / "a", loss=slow_loss, max_updates=4000, stream=sys.stderr).signal))
    wait_for_step(tmp_path / "a", 3)
    os.kill(child, signal.SIGTERM)
    status_of(child)
    error = capfd.readouterr().err
    assert "SIGTERM: saving, then leaving" in error
    step = load_checkpoint(tmp_path / "a/checkpoints/last")[1]["step"]
    assert f"stopped by SIGTERM at update {step}, saved in {tmp_path / 'a/checkpoints/last'}" in error


def test_sigterm_to_the_group_and_passed_on_is_one_wish(tmp_path):
    """As Slurm, systemd and torchrun send it: to all, and what they started passes it on."""
    child = fork_into_a_loss(tmp_path, seconds=0.4, max_updates=4000)
    for _ in range(3):
        os.kill(child, signal.SIGTERM)
        time.sleep(0.05)
    assert status_of(child) == 0
    assert load_checkpoint(tmp_path / "a/checkpoints/last")[1]["step"] >= 1


def test_second_interrupt_leaves_at_once(tmp_path):
    train(tmp_path / "a", max_updates=5)
    child = fork_into_a_loss(tmp_path, seconds=20, max_updates=10)
    os.kill(child, signal.SIGINT)
    time.sleep(0.1)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it is waiting for the end of the update
    os.kill(child, signal.SIGINT)
    assert status_of(child) == -signal.SIGINT
    assert load_checkpoint(tmp_path / "a/checkpoints/last")[1]["step"] == 5
