"""Fresh text of the embedded corpus, with the true distribution of every next piece: what exact figures are made of.

Pairs are drawn from the grammar's test stream, whose sources are never trained on, after those that the corpus itself
took. The draw is the same for every run of a corpus, so that runs are compared on equal tokens; as it takes longer than
a small model's pass over it, it is kept beside the corpus.

Shapes: S pairs, N target tokens (end-of-sentence included), E entries (a token, and a piece that may truly come next).
"""

from __future__ import annotations

import contextlib
import functools
import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.grammar import Grammar, PieceFilter
from nmt_ls.batching import EncodedPairs, Sequences
from nmt_ls.corpus import Corpus
from nmt_ls.experiment.atomic import atomic_write
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.vocabulary import EOS

PORTION = 500
"""Pairs that are drawn between two reports of progress."""
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class FreshText:
    """S pairs in piece ids, laid end to end, and the entries of their N tokens, token by token."""

    source_ids: NDArray[np.int32]
    source_lengths_S: NDArray[np.int64]
    target_ids: NDArray[np.int32]
    target_lengths_S: NDArray[np.int64]  # end-of-sentence not counted
    entry_counts_N: NDArray[np.int64]  # how many pieces may follow
    entry_ids_E: NDArray[np.int32]
    entry_probs_E: FloatArray

    @functools.cached_property
    def pairs(self) -> EncodedPairs:
        """To be batched as a split is."""
        sides = ((self.source_ids, self.source_lengths_S), (self.target_ids, self.target_lengths_S))
        source, target = (Sequences([ids], [_borders(lengths)]) for ids, lengths in sides)
        return EncodedPairs(name="fresh", source=source, target=target)

    @functools.cached_property
    def first_tokens(self) -> NDArray[np.int64]:
        """[S], the place of each pair's first token among all N."""
        return _borders(self.target_lengths_S + 1)[:-1]

    @functools.cached_property
    def _first_entries(self) -> NDArray[np.int64]:
        return _borders(self.entry_counts_N)[:-1]

    def entries(self, tokens_M: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Of M tokens by their places: (row among them, piece, probability) of every entry."""
        counts_M = self.entry_counts_N[tokens_M]
        rows = np.repeat(np.arange(len(tokens_M)), counts_M)
        at = np.arange(len(rows)) - _borders(counts_M)[:-1][rows] + self._first_entries[tokens_M][rows]
        ids = self.entry_ids_E[at].astype(np.int64)
        return torch.from_numpy(rows), torch.from_numpy(ids), torch.from_numpy(self.entry_probs_E[at])

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.entry_counts_N)


def _borders(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def fresh_pairs(corpus: Corpus) -> Iterator[tuple[str, str]]:
    """Pairs of the grammar's test stream after those that are in the corpus."""
    settings = corpus.manifest["recipe"]["settings"]
    return islice(Grammar(settings["seed"]).pairs("test"), settings["test"], None)


def fresh_text(corpus: Corpus, count: int, on_progress: Callable[[int], object] | None = None) -> FreshText:
    """The first of `fresh_pairs` that hold `count` tokens or more; read from beside the corpus if it is there.

    on_progress: called with the number of tokens that were drawn. A corpus that cannot be written to is no error.
    """
    file = corpus.directory / f"fresh-{count}.npz"
    key = f"{FORMAT} {corpus.checksum}"
    kept = _read(file, key)
    if kept is not None:
        return kept
    drawn = _draw(corpus, count, on_progress)
    content = io.BytesIO()
    np.savez(content, key=np.array(key), **{entry.name: getattr(drawn, entry.name) for entry in fields(drawn)})
    with contextlib.suppress(OSError):  # then the next run draws it again
        atomic_write(file, content.getvalue())
    return drawn


def _read(file: Path, key: str) -> FreshText | None:
    """What was kept; None if there is nothing, or what is damaged or of another corpus."""
    try:
        with np.load(file, allow_pickle=False) as found:
            if str(found["key"]) != key:
                return None
            return FreshText(**{name: found[name] for name in found.files if name != "key"})
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def _draw(corpus: Corpus, count: int, on_progress: Callable[[int], object] | None) -> FreshText:
    grammar, segment = Grammar(), functools.cache(corpus.target_vocabulary.encode)
    sources, targets = list[list[int]](), list[list[int]]()
    counts, ids, probs = list[NDArray[np.int64]](), list[NDArray[np.int64]](), list[FloatArray]()
    done = reported = 0
    for source, target in fresh_pairs(corpus):
        sources.append(corpus.source_vocabulary.encode(source))
        targets.append(corpus.target_vocabulary.encode(target))
        found = PieceFilter(grammar, source, segment, EOS).distributions(targets[-1])
        counts.append(np.bincount(found.positions, minlength=len(targets[-1]) + 1))
        ids.append(found.ids)
        probs.append(found.probs)
        done += len(targets[-1]) + 1
        if on_progress is not None and (len(targets) % PORTION == 0 or done >= count):
            on_progress(done - reported)
            reported = done
        if done >= count:
            break
    return FreshText(
        source_ids=np.concatenate([np.array(row, dtype=np.int32) for row in sources]),
        source_lengths_S=np.array([len(row) for row in sources]),
        target_ids=np.concatenate([np.array(row, dtype=np.int32) for row in targets]),
        target_lengths_S=np.array([len(row) for row in targets]),
        entry_counts_N=np.concatenate(counts),
        entry_ids_E=np.concatenate(ids).astype(np.int32),
        entry_probs_E=np.concatenate(probs),
    )
