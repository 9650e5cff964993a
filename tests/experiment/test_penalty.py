"""The L2 penalty: its sum and gradient, the layers it is of, and settings that do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.penalty import L2Config, SumOfSquares, penalised_weights


def test_sum_and_gradient_by_hand() -> None:
    weights = [torch.tensor([[1.0, -2.0]], requires_grad=True), torch.tensor([[3.0], [0.5]], requires_grad=True)]
    total = SumOfSquares.apply(*weights)
    assert total.item() == pytest.approx(1 + 4 + 9 + 0.25)
    (0.1 * total).backward()
    for weight in weights:
        torch.testing.assert_close(weight.grad, 0.2 * weight.detach())


def test_layers_are_named_or_all_that_multiply() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    assert penalised_weights(model, L2Config()) == []
    assert [p.shape for p in penalised_weights(model, L2Config(weight=0.1, layers=("all",)))] == [(3, 2), (1, 3)]
    (weight,) = penalised_weights(model, L2Config(weight=0.1, layers=("2",)))
    assert weight is model[2].weight
    with pytest.raises(UserError, match=r"l2\.layers: the model has no layer 'last'; choose all, or among 0, 1, 2"):
        penalised_weights(model, L2Config(weight=0.1, layers=("last",)))


def test_weight_and_layers_go_together() -> None:
    with pytest.raises(ValueError, match="weight must not be negative, not -1"):
        L2Config(weight=-1.0, layers=("all",))
    for alone in ({"weight": 0.1}, {"layers": ("all",)}):
        with pytest.raises(ValueError, match="weight and layers go together"):
            L2Config(**alone)  # type: ignore[arg-type]
