"""Several processes that share the batches of an update: two forked ones, over gloo, as torchrun would set them up."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dying import fork, status_of
from toy_regression import BATCHES, Toy, assert_same_run, batches, loss, train

from nmt_ls.experiment.checkpoint import load_weights
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.distributed import Team
from nmt_ls.experiment.precision import Precision
from nmt_ls.experiment.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("quick")


def toy(dropout: float) -> Toy:
    torch.manual_seed(5)
    model = Toy()
    model.layers[3].p = dropout
    return model


def in_two_processes(action: Callable[[Team], object]) -> list[int]:
    """Fork two processes that join a team; their exit statuses, the leader's first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def member(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        try:
            with Team.join(torch.device("cpu")) as team:
                action(team)
        except UserError as error:
            os.write(2, f"error: {error}\n".encode())
            os._exit(2)

    return [status_of(child) for child in [fork(lambda rank=rank: member(rank)) for rank in range(2)]]


def train_in_two(path: Path, *, dropout: float, accumulation: int = 2, follower_loss=loss, **options) -> list[int]:
    def action(team: Team) -> None:
        if team.leads:
            team.start({"hello": 1}, accumulation)
            train(path, model=toy(dropout), accumulation=accumulation, team=team, **options)
            team.finish()
            return
        for greeting in team.runs():
            assert greeting == {"hello": 1}
            precision = Precision(kind="fp32", matmul="highest")
            team.follow(toy(dropout), batches=batches, loss=follower_loss, precision=precision, seed=1)

    return in_two_processes(action)


def test_two_processes_train_as_one_does(tmp_path):
    settings = {"max_updates": 12, "log_every": 3, "clip_norm": 1.0}
    assert BATCHES % 2 == 1  # the last update of an epoch leaves the follower without a batch
    train(tmp_path / "one", model=toy(0.0), accumulation=2, **settings)
    assert train_in_two(tmp_path / "two", dropout=0.0, **settings) == [0, 0]
    one, two = (load_weights(tmp_path / name / "checkpoints/last") for name in ("one", "two"))
    statistics = [name for name in one if "running" in name or "tracked" in name]
    assert statistics  # of batch normalisation: each process has seen its own batches only
    for name in set(one) - set(statistics):
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-6)
    lines = [
        [line for line in RunDirectory(tmp_path / name).read_metrics() if line["split"] == "train"]
        for name in ("one", "two")
    ]
    for mine, theirs in zip(*lines, strict=True):
        for name in ("step", "epoch", "loss", "absolute", "grad_norm"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4), name


def test_two_processes_go_on_bit_for_bit(tmp_path):
    assert train_in_two(tmp_path / "whole", dropout=0.3, max_updates=20) == [0, 0]
    for updates in (10, 20):
        assert train_in_two(tmp_path / "parts", dropout=0.3, max_updates=updates) == [0, 0]
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_followers_draw_other_dropout_than_the_leader(tmp_path):
    def loss_of_the_mask(model, batch):
        (tmp_path / f"mask{os.environ['RANK']}").write_text(str(model.layers[3](torch.ones(1, 64)).tolist()))
        return loss(model, batch)

    train_in_two(tmp_path / "a", dropout=0.5, max_updates=1, loss=loss_of_the_mask, follower_loss=loss_of_the_mask)
    assert (tmp_path / "mask0").read_text() != (tmp_path / "mask1").read_text()


def test_a_follower_that_dies_is_missed(tmp_path, capfd):
    def doomed(*_):
        os._exit(7)

    assert train_in_two(tmp_path / "a", dropout=0.0, max_updates=4, follower_loss=doomed) == [2, 7]
    assert "error: process 0 of 2 lost another one (" in capfd.readouterr().err


def test_a_leader_that_fails_sends_the_followers_away(tmp_path):
    def not_a_number(model, batch):
        found = loss(model, batch)
        return found._replace(total=found.total * float("nan"))

    assert train_in_two(tmp_path / "a", dropout=0.0, max_updates=4, follower_loss=not_a_number) == [2, 0]


def test_a_leader_that_fails_in_an_update_is_missed(tmp_path, capfd):
    def broken(*_):
        raise MemoryError

    assert train_in_two(tmp_path / "a", dropout=0.0, max_updates=4, loss=broken) == [1, 2]
    assert "error: process 1 of 2 lost another one (" in capfd.readouterr().err


def test_an_update_that_cannot_be_shared_is_refused(capfd):
    def action(team: Team) -> None:
        if team.leads:
            team.start({}, 3)
        assert list(team.runs()) == []

    assert in_two_processes(action) == [2, 0]
    error = capfd.readouterr().err
    assert (
        "error: engine.accumulation: 2 processes cannot share the 3 batches of an update; make it a multiple" in error
    )


@pytest.mark.parametrize("module", ["nmt_ls.train", "vision_ls.train"])
def test_training_commands_under_torchrun(tmp_path, module):
    small = {
        "nmt_ls.train": ["--embedded.train", "60", "--embedded.validation", "10", "--embedded.test", "10",
                         "--engine.accumulation", "2", "--max_tokens", "400", "--checkpoints", "last"],
        "vision_ls.train": ["--embedded.train", "300", "--embedded.validation", "50", "--embedded.test", "50",
                            "--engine.accumulation", "2", "--seeds", "1", "2"],
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", module]
    command += [
        *small[module],
        "--max_updates",
        "2",
        "--schedule.kind",
        "constant",
        "--out",
        str(tmp_path / "run"),
        "--precision",
        "fp32",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    end = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert end.returncode == 0, end.stderr
    assert end.stdout.count("next: python -m ") == 1  # one process speaks
    runs = sorted(path.parent for path in tmp_path.glob("run*/summary.json"))
    assert len(runs) == (2 if module == "vision_ls.train" else 1)
    for run in runs:
        assert json.loads((run / "manifest.json").read_text())["processes"] == 2
