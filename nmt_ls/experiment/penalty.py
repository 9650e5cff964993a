"""The L2 penalty that is part of the loss: on which weights, and its sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nmt_ls.experiment.command_line import UserError


@dataclass(frozen=True, kw_only=True)
class L2Config:
    """A penalty on the weights (not biases) of named layers: weight · ½ Σ w², added to the mean loss.

    layers: their names, or [all] for every weight of two dimensions or more (no normalisation). Being part of the loss,
    the penalty is inside the clipping of gradients, unlike the optimiser's weight decay.
    """

    weight: float = 0.0
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight must not be negative, not {self.weight}")
        if (self.weight > 0) != bool(self.layers):
            raise ValueError("weight and layers go together: give both, or neither")


class SumOfSquares(torch.autograd.Function):
    """Σ w² of all weights together: one by one, there and back, they are hundreds of calls for a ResNet."""

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(*weights)
        return torch.stack(torch._foreach_norm(weights)).square_().sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch._foreach_mul(ctx.saved_tensors, 2 * grad))


def penalised_weights(model: nn.Module, config: L2Config) -> list[nn.Parameter]:
    """The weights of the layers that `config` names. Raises UserError for one that the model has not."""
    if config.layers == ("all",):
        return [p for p in model.parameters() if p.ndim >= 2]
    weights = {name.removesuffix(".weight"): p for name, p in model.named_parameters() if name.endswith(".weight")}
    for layer in config.layers:
        if layer not in weights:
            raise UserError(f"l2.layers: the model has no layer {layer!r}; choose all, or among {', '.join(weights)}")
    return [weights[layer] for layer in config.layers]
