"""A toy model for the tests of search: next-token logits that depend on the whole prefix, by hashing it."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import torch

from nmt_ls.search.stepper import BOS


@cache
def next_logits(seed: int, sentence: int, prefix: tuple[int, ...], vocabulary: int, peak: float = 2.0) -> np.ndarray:
    digest = hashlib.blake2b(repr((seed, sentence, prefix)).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big")).normal(size=vocabulary) * peak


def next_log_probs(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits / temperature
    return scaled - scaled.max() - np.log(np.exp(scaled - scaled.max()).sum())


class ToyStepper:
    """Implements search.Stepper with plain lists; `width_log` records how many sentences each step worked on."""

    def __init__(self, seed: int, sentences: list[int], width: int, vocabulary: int, dtype=torch.float64, model=None):
        self.model = model or (lambda sentence, prefix: next_logits(seed, sentence, prefix, vocabulary))
        self.sentences, self.dtype = list(sentences), dtype
        self.prefixes: list[list[tuple[int, ...]]] = [[()] * width for _ in sentences]
        self.width_log: list[int] = []

    def logits(self, last_tokens_BK: torch.Tensor) -> torch.Tensor:
        self.width_log.append(len(self.sentences))
        tokens = last_tokens_BK.tolist()
        assert len(tokens) == len(self.sentences)
        self.prefixes = [
            [prefix if token == BOS else (*prefix, token) for prefix, token in zip(row, new, strict=True)]
            for row, new in zip(self.prefixes, tokens, strict=True)
        ]
        rows = [
            np.stack([self.model(sentence, prefix) for prefix in row])
            for sentence, row in zip(self.sentences, self.prefixes, strict=True)
        ]
        return torch.tensor(np.stack(rows), dtype=self.dtype)

    def reorder(self, parents_BK: torch.Tensor) -> None:
        self.prefixes = [
            [row[parent] for parent in parents] for row, parents in zip(self.prefixes, parents_BK.tolist(), strict=True)
        ]

    def keep(self, rows_B: torch.Tensor) -> None:
        rows = rows_B.tolist()
        assert rows == sorted(set(rows))
        self.prefixes = [self.prefixes[row] for row in rows]
        self.sentences = [self.sentences[row] for row in rows]
