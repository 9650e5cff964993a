import math

import pytest
import torch
from torch import nn

from nmt_ls.experiment.schedule import OptimizerConfig, ScheduleConfig, build_optimizer, learning_rate


def rates(config, *updates, peak=1.0):
    return [learning_rate(config, peak, update) for update in updates]


def test_inverse_sqrt_is_equation_3_of_vaswani():
    width, warmup = 512, 4000
    config = ScheduleConfig(kind="inverse_sqrt", warmup_updates=warmup)
    for step in (1, 10, 3999, 4000, 4001, 100000):
        expected = width**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert learning_rate(config, (width * warmup) ** -0.5, step) == pytest.approx(expected, rel=1e-12)


def test_inverse_sqrt_warms_up_from_warmup_init():
    config = ScheduleConfig(warmup_updates=4, warmup_init=0.2)
    assert rates(config, 1, 2, 3, 4, 16) == pytest.approx([0.4, 0.6, 0.8, 1.0, 0.5])
    assert rates(ScheduleConfig(), 1, 4) == [1.0, 0.5]


def test_linear():
    config = ScheduleConfig(kind="linear", warmup_updates=2, total_updates=10, floor=0.2)
    assert rates(config, 1, 2, 6, 10, 11, 99) == pytest.approx([0.5, 1.0, 0.6, 0.2, 0.2, 0.2])
    assert learning_rate(ScheduleConfig(kind="linear", total_updates=10), 3.0, 10) == 0.0


def test_cosine():
    config = ScheduleConfig(kind="cosine", warmup_updates=2, total_updates=10)
    assert rates(config, 1, 2, 4, 6, 10, 11) == pytest.approx([0.5, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, 0, 0])


def test_steps():
    config = ScheduleConfig(kind="steps", milestones=(3, 5), gamma=0.1)
    assert rates(config, 1, 3, 4, 5, 6, 99, peak=2.0) == pytest.approx([2, 2, 0.2, 0.2, 0.02, 0.02])


def test_constant():
    assert rates(ScheduleConfig(kind="constant", warmup_updates=2), 1, 2, 1000) == [0.5, 1.0, 1.0]


def test_updates_are_counted_from_one():
    with pytest.raises(ValueError, match="counted from 1"):
        learning_rate(ScheduleConfig(), 1.0, 0)


def test_total_updates_stands_for_max_updates_where_it_is_needed():
    assert ScheduleConfig(kind="cosine").resolved(70).total_updates == 70
    assert ScheduleConfig(kind="cosine", total_updates=50).resolved(70).total_updates == 50
    assert ScheduleConfig(kind="steps", milestones=(3,)).resolved(70).total_updates == 0
    with pytest.raises(ValueError, match="total_updates"):
        learning_rate(ScheduleConfig(kind="linear"), 1.0, 5)
    with pytest.raises(ValueError, match="max_updates"):
        ScheduleConfig(kind="linear", warmup_updates=70).resolved(70)


@pytest.mark.parametrize(
    "wrong",
    [
        {"warmup_updates": -1},
        {"warmup_init": -0.1},
        {"total_updates": -1},
        {"total_updates": 5, "warmup_updates": 5, "kind": "linear"},
        {"floor": 1.5, "kind": "linear"},
        {"gamma": 0.0},
        {"milestones": (), "kind": "steps"},
        {"milestones": (5, 5), "kind": "steps"},
        {"milestones": (0,), "kind": "steps"},
    ],
)
def test_schedule_config_names_the_wrong_key(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ScheduleConfig(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0},
        {"learning_rate": math.inf},
        {"betas": (0.9, 1.0)},
        {"eps": 0.0},
        {"weight_decay": -1.0},
        {"momentum": 1.0, "kind": "sgd"},
        {"momentum": 0.9},
        {"nesterov": True, "kind": "sgd"},
    ],
)
def test_optimizer_config_names_the_wrong_key(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OptimizerConfig(**wrong)


def one_step(config):
    """The parameters 1 and 2 (a matrix) after a step with gradients 0.5 and -0.25."""
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.full((1, 1), 2.0))
    a.grad, b.grad = torch.full((1,), 0.5), torch.full((1, 1), -0.25)
    optimizer = build_optimizer([a, b], config)
    optimizer.step()
    return a.item(), b.item()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (OptimizerConfig(kind="sgd", learning_rate=0.1), (0.95, 2.025)),
        (OptimizerConfig(kind="sgd", learning_rate=0.1, momentum=0.5, nesterov=True), (0.925, 2.0375)),
        (OptimizerConfig(kind="sgd", learning_rate=0.1, weight_decay=0.2), (0.93, 1.985)),
        (OptimizerConfig(kind="sgd", learning_rate=0.1, weight_decay=0.2, decay="matrices"), (0.95, 1.985)),
        (OptimizerConfig(kind="adam", learning_rate=0.1), (0.9, 2.1)),  # the first step of Adam is lr · sign
        (OptimizerConfig(kind="adam", learning_rate=0.1, weight_decay=1.0), (0.9, 1.9)),  # decay is in the gradient
        (OptimizerConfig(kind="adamw", learning_rate=0.1, weight_decay=0.5), (0.85, 2.0)),  # and here beside it
        (OptimizerConfig(kind="adamw", learning_rate=0.1, weight_decay=0.5, decay="matrices"), (0.9, 2.0)),
    ],
)
def test_first_step_by_hand(config, expected):
    assert one_step(config) == pytest.approx(expected, rel=1e-6)


def test_frozen_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerConfig())
    assert [p.shape for group in optimizer.param_groups for p in group["params"]] == [(2, 2)]
    model.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters"):
        build_optimizer(model, OptimizerConfig())
