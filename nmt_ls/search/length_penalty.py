"""Length penalty: score = log p / lp(|Y|), where |Y| counts the end-of-sentence.

gnmt     ((5 + |Y|) / 6)^β     Wu et al. 2016, equation 14
average  |Y|^β                 fairseq's; β = 1 is the mean log-probability of a token
none     1

Log-probabilities are negative, so β > 0 favours long translations and β < 0 short ones.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

PenaltyKind = Literal["gnmt", "average", "none"]


def check_penalty(kind: str, beta: float) -> None:
    """ValueError unless this kind of penalty exists and β is finite."""
    if kind not in get_args(PenaltyKind):
        raise ValueError(f"length_penalty_kind must be one of {', '.join(get_args(PenaltyKind))}, got {kind!r}")
    if not math.isfinite(beta):
        raise ValueError(f"length_penalty must be a finite number, got {beta}")


def length_penalty(lengths: Tensor, kind: PenaltyKind, beta: float) -> Tensor:
    """lp of each length (1 or more): positive, float64, same shape. Monotone in the length, whatever β."""
    check_penalty(kind, beta)
    if kind == "gnmt":
        return ((5 + lengths.double()) / 6) ** beta
    if kind == "average":
        return lengths.double() ** beta
    return torch.ones_like(lengths, dtype=torch.float64)
