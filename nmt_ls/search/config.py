"""What a search is told: one frozen config, used by beam search and by sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nmt_ls.metrics.temperature import check_temperature
from nmt_ls.search.length_penalty import PenaltyKind, check_penalty
from nmt_ls.search.stepper import PAD


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How translations are looked for. Lengths count pieces and the end-of-sentence.

    beam: hypotheses kept a sentence; 1 is greedy search, which ends with the first end-of-sentence.
    nbest: translations returned a sentence, at most `beam`.
    length_penalty_kind: how scores of different lengths compare: log p over ((5+|Y|)/6)^β, over |Y|^β, or log p itself.
    length_penalty: β.
    temperature: logits are divided by it.
    min_length: the shortest translation.
    max_length_factor: the longest translation is this times the source's pieces, plus max_length_offset.
    max_length_offset: see max_length_factor.
    no_repeat_ngram: n-grams of this order occur once; 0 is off.
    stop: exact goes on until nothing unfinished can still enter the n best; early stops a sentence as soon as
    `beam` hypotheses are finished, as toolkits do.
    allow_unknown: may the unknown symbol be generated.
    alternatives: report this many most probable tokens at each position, with their log-probabilities.
    samples: draw this many translations instead of searching; 0 searches.
    top_k: draw from this many most probable tokens; 0 is all.
    top_p: draw from the smallest set of most probable tokens that has this probability.
    seed: of the draws.
    """

    beam: int = 5
    nbest: int = 1
    length_penalty_kind: PenaltyKind = "average"
    length_penalty: float = 1.0
    temperature: float = 1.0
    min_length: int = 1
    max_length_factor: float = 2.0
    max_length_offset: int = 10
    no_repeat_ngram: int = 0
    stop: Literal["exact", "early"] = "exact"
    allow_unknown: bool = True
    alternatives: int = 0
    samples: int = 0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_penalty(self.length_penalty_kind, self.length_penalty)
        if self.beam < 1:
            raise ValueError(f"beam must be at least 1, got {self.beam}")
        if not 1 <= self.nbest <= self.beam:
            raise ValueError(f"nbest must be from 1 to beam ({self.beam}), got {self.nbest}")
        if self.min_length < 1:
            raise ValueError(f"min_length counts the end-of-sentence, so it is at least 1, got {self.min_length}")
        if self.max_length_factor < 0 or self.max_length_factor + self.max_length_offset < 1:
            raise ValueError(
                "max_length_factor must not be negative, nor leave a one-piece source without any translation: "
                f"got {self.max_length_factor} · pieces + {self.max_length_offset}"
            )
        if self.stop not in ("exact", "early"):
            raise ValueError(f"stop must be exact or early, got {self.stop!r}")
        for name in ("no_repeat_ngram", "alternatives", "samples", "top_k", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    @property
    def width(self) -> int:
        """Rows that a Stepper has to hold for each sentence."""
        return self.samples or self.beam


def maximum_lengths(source_BS: Tensor, config: SearchConfig) -> Tensor:
    """The longest translation of each source, end-of-sentence counted, never below min_length: int64, B.

    Sources end with the end-of-sentence, which is not a piece, and are padded by PAD.
    """
    pieces_B = (source_BS != PAD).sum(1) - 1
    longest_B = torch.floor(config.max_length_factor * pieces_B.double()).long() + config.max_length_offset
    return longest_B.clamp(min=max(1, config.min_length))
