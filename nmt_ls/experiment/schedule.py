"""Optimisers and learning-rate schedules.

A schedule is a pure function of the number of the update, never an object with a memory: a resumed run cannot
come out of step with one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

SCHEDULES_WITH_AN_END = ("linear", "cosine")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Which optimiser and its constants; `learning_rate` is the peak that the schedule scales.

    `weight_decay` is added to the gradient for adam and sgd and decoupled for adamw (Loshchilov & Hutter 2019);
    it falls on `decay="all"` parameters, or on `"matrices"` only (two dimensions and more: no biases, no norms).
    """

    kind: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-9
    weight_decay: float = 0.0
    decay: Literal["all", "matrices"] = "all"
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate must be a finite number above 0, not {self.learning_rate}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must both be in [0, 1), not {self.betas}")
        if self.eps <= 0:
            raise ValueError(f"eps must be above 0, not {self.eps}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, not {self.weight_decay}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {self.momentum}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        if self.kind != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(f"momentum and nesterov belong to kind sgd; {self.kind} has betas instead")


def build_optimizer(
    model_or_parameters: nn.Module | Iterable[nn.Parameter], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """The optimiser of `config` over all trainable parameters.

    The fused form is taken on CPU and CUDA: one pass over parameter, gradient and moments (on one CPU core a quarter
    of the time of the foreach form for Adam), element by element, so its result does not depend on how it is split.
    """
    if isinstance(model_or_parameters, nn.Module):
        model_or_parameters = model_or_parameters.parameters()
    parameters = [p for p in model_or_parameters if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no trainable parameters")
    groups: list[dict[str, Any]]
    if config.decay == "matrices" and config.weight_decay > 0:
        matrices = [p for p in parameters if p.ndim >= 2]
        others = [p for p in parameters if p.ndim < 2]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
    else:
        groups = [{"params": parameters}]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    lr, decay = config.learning_rate, config.weight_decay
    if config.kind == "sgd":
        momentum, nesterov = config.momentum, config.nesterov
        return torch.optim.SGD(
            groups, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=decay, fused=fused or None
        )
    kind = torch.optim.Adam if config.kind == "adam" else torch.optim.AdamW
    return kind(groups, lr=lr, betas=config.betas, eps=config.eps, weight_decay=decay, fused=fused or None)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate moves, as a factor of its peak; see `learning_rate`.

    All kinds climb in a straight line from `warmup_init` (a rate, not a factor) to the peak over `warmup_updates`.
    `total_updates` is read by linear and cosine alone; 0 stands for the engine's max_updates, which a resumed run may
    then no longer raise. `floor` is the factor at which linear and cosine end.
    """

    kind: Literal["inverse_sqrt", "linear", "cosine", "steps", "constant"] = "inverse_sqrt"
    warmup_updates: int = 0
    warmup_init: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    total_updates: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup_updates < 0:
            raise ValueError(f"warmup_updates must not be negative, not {self.warmup_updates}")
        if self.warmup_init < 0:
            raise ValueError(f"warmup_init must not be negative, not {self.warmup_init}")
        if self.total_updates < 0:
            raise ValueError(f"total_updates must be 0 (the engine's max_updates) or more, not {self.total_updates}")
        if self.needs_total and 0 < self.total_updates <= self.warmup_updates:
            raise ValueError(
                f"total_updates ({self.total_updates}) must be more than warmup_updates ({self.warmup_updates})"
            )
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor is a factor of the peak, in [0, 1], not {self.floor}")
        if self.gamma <= 0:
            raise ValueError(f"gamma must be above 0, not {self.gamma}")
        if self.kind == "steps" and not self.milestones:
            raise ValueError("milestones must name at least one update for kind steps")
        if any(b <= a for a, b in zip((0, *self.milestones), self.milestones, strict=False)):
            raise ValueError(f"milestones must be positive and rise, not {self.milestones}")

    @property
    def needs_total(self) -> bool:
        """Whether the rate at an update depends on how many there will be."""
        return self.kind in SCHEDULES_WITH_AN_END

    def resolved(self, max_updates: int) -> ScheduleConfig:
        """The same schedule with total_updates filled in, where it is needed and was left at 0."""
        if not self.needs_total or self.total_updates:
            return self
        if max_updates <= self.warmup_updates:
            raise ValueError(f"max_updates ({max_updates}) must be more than warmup_updates ({self.warmup_updates})")
        return replace(self, total_updates=max_updates)


def learning_rate(config: ScheduleConfig, peak: float, update: int) -> float:
    """The rate of one update, counted from 1 (units: those of `peak`).

    With w warm-up updates and T total: update u ≤ w gets warmup_init + (peak - warmup_init)·u/w. After it
    - inverse_sqrt: peak·√(w/u), w taken as 1 if 0. With warmup_init 0 and peak (d·w)^-½ it is equation (3) of Vaswani
      et al. (2017); it is fairseq's inverse_sqrt, which counts updates from 0, one update ahead.
    - linear, cosine: from the peak at w to floor·peak at T in a straight line or half a cosine, and flat from there.
    - steps: peak·gamma^n after n milestones (the update after the milestone is the first with the new rate).
    - constant: peak.
    """
    if update < 1:
        raise ValueError(f"updates are counted from 1, not {update}")
    warmup = config.warmup_updates
    if update <= warmup:
        return config.warmup_init + (peak - config.warmup_init) * update / warmup
    if config.kind == "inverse_sqrt":
        return peak * math.sqrt(max(warmup, 1) / update)
    if config.kind == "steps":
        return peak * config.gamma ** sum(update > milestone for milestone in config.milestones)
    if config.kind == "constant":
        return peak
    if not config.total_updates:
        raise ValueError(f"total_updates must be above 0 for kind {config.kind}")
    progress = min(1.0, (update - warmup) / (config.total_updates - warmup))
    left = 1 - progress if config.kind == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (config.floor + (1 - config.floor) * left)
