"""Batches of token ids: bucketed by length, collated without loops over tokens, ordered by (seed, epoch) alone.

Shapes: B sentences of a batch, S source pieces (end of sentence included), T target pieces (likewise), N sentences.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nmt_ls.experiment.command_line import UserError
from nmt_ls.vocabulary import BOS, EOS, Vocabulary

Ints = npt.NDArray[np.integer[Any]]
Result = TypeVar("Result")


class Sequences:
    """N lists of token ids, stored end to end in one or more flat arrays (a memory-mapped Arrow column, say).

    Attributes:
        lengths_N: number of ids of each, end of sentence not counted.
    """

    def __init__(self, values: Sequence[Ints], offsets: Sequence[Ints]) -> None:
        """values: the flat arrays; offsets: for each of them the n + 1 borders of its n lists."""
        self._values = list(values)
        counts = [len(borders) - 1 for borders in offsets]
        self._first_row = np.cumsum([0, *counts[:-1]])
        none = [np.zeros(0, dtype=np.int64)]
        self._starts_N = np.concatenate(none + [borders[:-1].astype(np.int64) for borders in offsets])
        self.lengths_N = np.concatenate(none + [np.diff(borders).astype(np.int64) for borders in offsets])

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[int]]) -> Sequences:
        """Keep lists of ids in memory."""
        lists = list(lists)
        flat = np.fromiter((piece for ids in lists for piece in ids), dtype=np.int32)
        return cls([flat], [np.cumsum([0] + [len(ids) for ids in lists])])

    def __len__(self) -> int:
        return len(self.lengths_N)

    def __getitem__(self, row: int) -> list[int]:
        return [int(piece) for piece in self.flat(np.array([row]))]

    def flat(self, rows_B: Ints) -> Ints:
        """The ids of these rows, one after another."""
        if len(rows_B) == 0:
            return np.zeros(0, dtype=np.int32)
        chunks = np.searchsorted(self._first_row, rows_B, side="right") - 1
        starts = self._starts_N[rows_B]
        ends = starts + self.lengths_N[rows_B]
        values = self._values
        slices = zip(chunks.tolist(), starts.tolist(), ends.tolist(), strict=True)
        return np.concatenate([values[chunk][start:end] for chunk, start, end in slices])

    def arrays(self) -> Iterator[tuple[Ints, Ints]]:
        """Flat ids and lengths, part by part: what a pass over everything reads."""
        borders = [*self._first_row.tolist(), len(self)]
        for values, begin, end in zip(self._values, borders[:-1], borders[1:], strict=True):
            lengths = self.lengths_N[begin:end]
            if end > begin:
                start = int(self._starts_N[begin])
                yield values[start : start + int(lengths.sum())], lengths


class Pairs(Protocol):
    """What can be batched: a split of a prepared corpus, or pairs encoded on the spot."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> Sequences: ...
    @property
    def target(self) -> Sequences: ...


@dataclass(frozen=True)
class EncodedPairs:
    """Pairs held in memory."""

    name: str
    source: Sequences
    target: Sequences


@dataclass(frozen=True)
class Batch:
    """A batch of sentence pairs, padded on the right with 0.

    Attributes:
        source_BS: x and end of sentence.
        target_in_BT: beginning of sentence and y: what the decoder is fed.
        target_out_BT: y and end of sentence: what it has to predict.
        indices_B: which sentences of the split these are.
        tokens: non-padding entries of target_out_BT.
    """

    source_BS: Tensor
    target_in_BT: Tensor
    target_out_BT: Tensor
    indices_B: Tensor
    tokens: int

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; indices stay where they are."""
        return Batch(
            source_BS=self.source_BS.to(device, non_blocking=True),
            target_in_BT=self.target_in_BT.to(device, non_blocking=True),
            target_out_BT=self.target_out_BT.to(device, non_blocking=True),
            indices_B=self.indices_B,
            tokens=self.tokens,
        )


def collate(pairs: Pairs, rows_B: Ints) -> Batch:
    """Gather these sentences into a padded batch."""
    source_BS = _padded(pairs.source, rows_B, before=0)
    target_BT = _padded(pairs.target, rows_B, before=1)
    rows, lengths_B = np.arange(len(rows_B)), pairs.target.lengths_N[rows_B]
    source_BS[rows, pairs.source.lengths_N[rows_B]] = EOS
    target_in_BT = np.ascontiguousarray(target_BT[:, :-1])
    target_in_BT[:, 0] = BOS
    target_out_BT = np.ascontiguousarray(target_BT[:, 1:])
    target_out_BT[rows, lengths_B] = EOS
    return Batch(
        source_BS=torch.from_numpy(source_BS),
        target_in_BT=torch.from_numpy(target_in_BT),
        target_out_BT=torch.from_numpy(target_out_BT),
        indices_B=torch.from_numpy(np.asarray(rows_B, dtype=np.int64)),
        tokens=int(lengths_B.sum()) + len(rows_B),
    )


def _padded(sequences: Sequences, rows_B: Ints, *, before: int) -> npt.NDArray[np.int64]:
    """Ids with `before` columns of padding on their left and at least one on their right."""
    lengths_B = sequences.lengths_N[rows_B]
    width = int(lengths_B.max(initial=0))
    ids = np.zeros((len(rows_B), before + width + 1), dtype=np.int64)
    ids[:, before : before + width][np.arange(width) < lengths_B[:, None]] = sequences.flat(rows_B)
    return ids


class EpochBatches(Sequence[Batch]):
    """The batches of an epoch, collated when they are asked for: an index is all that a resume needs."""

    def __init__(self, pairs: Pairs, rows: Sequence[Ints]) -> None:
        self._pairs = pairs
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> EpochBatches: ...
    def __getitem__(self, index: int | slice) -> Batch | EpochBatches:
        if isinstance(index, slice):
            return EpochBatches(self._pairs, self._rows[index])
        return collate(self._pairs, self._rows[index])

    def padding(self) -> float:
        """Share of the entries of source_BS and target_out_BT that are padding."""
        filled = padded = 0
        for rows_B in self._rows:
            for sequences in (self._pairs.source, self._pairs.target):
                lengths_B = sequences.lengths_N[rows_B] + 1
                filled += int(lengths_B.sum())
                padded += int(lengths_B.max()) * len(rows_B)
        return 1 - filled / padded if padded else 0.0


def epoch_batches(
    pairs: Pairs, *, max_tokens: int, seed: int, epoch: int, shuffle: bool = True, rows_multiple: int = 1
) -> EpochBatches:
    """Cut a split into batches of sentences of like length.

    Sentences are sorted by the longer side, then by the difference of the sides (up and down by turns, so that
    neighbours are alike there too), ties in an order drawn anew each epoch; the batches follow one another in an order
    drawn likewise. Both are pure functions of (seed, epoch). Without shuffle: by length, ties by index.

    Args:
        max_tokens: no batch has more than this many rows times the longer of its two padded widths, end of sentence
            included.
        rows_multiple: round the rows of a batch down to a multiple of this where there are as many.

    Raises:
        UserError: a sentence alone is longer than max_tokens.
    """
    if max_tokens < 1 or rows_multiple < 1:
        raise UserError(f"max_tokens and rows_multiple must be positive, not {max_tokens} and {rows_multiple}")
    source_N, target_N = pairs.source.lengths_N + 1, pairs.target.lengths_N + 1
    longer_N = np.maximum(source_N, target_N)
    if len(longer_N) and longer_N.max() > max_tokens:
        row = int(longer_N.argmax())
        raise UserError(
            f"sentence {row} of split {pairs.name!r} has {longer_N[row]} pieces, more than a batch may hold: "
            f"raise max_tokens ({max_tokens}), or prepare the corpus with a lower filters.max_pieces"
        )
    draws_N = random_draws(len(longer_N), seed, epoch, stream=0) if shuffle else np.arange(len(longer_N))
    slope_N = np.where(longer_N % 2 == 0, source_N - target_N, target_N - source_N)
    order_N = np.lexsort((draws_N, slope_N, longer_N))
    starts = _batch_starts(longer_N[order_N], max_tokens, rows_multiple)
    rows = np.split(order_N, starts[1:]) if len(order_N) else []
    if shuffle:
        rows = [rows[number] for number in np.argsort(random_draws(len(rows), seed, epoch, stream=1), kind="stable")]
    return EpochBatches(pairs, rows)


def _batch_starts(longer_N: Ints, max_tokens: int, rows_multiple: int) -> list[int]:
    """Where batches begin in an ascending list of lengths."""
    lengths: list[int] = longer_N.tolist()
    starts, begin = [], 0
    while begin < len(lengths):
        starts.append(begin)
        most = min(max_tokens // lengths[begin], len(lengths) - begin)
        # rows times the length of the last grows with the rows: bisection finds the most that fit
        rows = bisect_right(range(1, most + 1), max_tokens, key=partial(_padded_tokens, lengths, begin))
        if rows >= rows_multiple:
            rows -= rows % rows_multiple
        begin += rows
    return starts


def _padded_tokens(lengths: list[int], begin: int, rows: int) -> int:
    return rows * lengths[begin + rows - 1]


def random_draws(count: int, seed: int, epoch: int, *, stream: int) -> npt.NDArray[np.uint64]:
    """Pseudo-random 64-bit numbers: SplitMix64 (Steele et al., 2014) at the counters 1 … count of a keyed stream.

    Not numpy's generator, whose streams may change with its version: the order of batches is part of a run.
    """
    key: npt.NDArray[np.uint64] = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch, stream):
        key = _mix(key + np.array(part % 2**64, dtype=np.uint64))
    counters: npt.NDArray[np.uint64] = np.arange(1, count + 1).astype(np.uint64)
    return _mix(key + counters)


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = state * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@dataclass(frozen=True)
class SourceBatch:
    """Sentences to translate: x and end of sentence, padded on the right with 0; indices_B say which lines they are."""

    source_BS: Tensor
    indices_B: Tensor


@dataclass(frozen=True)
class EncodedLines:
    """Lines of text as ids.

    Attributes:
        ids: ids of each line, end of sentence not included.
        truncated: the lines (counted from 0) that had more pieces than allowed and lost the rest.
        empty: the lines that have no piece at all; no batch has them.
    """

    ids: Sequences
    truncated: tuple[int, ...]
    empty: tuple[int, ...]

    def batches(self, max_tokens: int, max_lines: int | None = None) -> Iterator[SourceBatch]:
        """Batches of lines of like length, the longest first: what does not fit into memory shows at once.

        A line longer than max_tokens gets a batch of its own.
        """
        most = len(self.ids) if max_lines is None else max(1, max_lines)
        order_N = np.argsort(-self.ids.lengths_N, kind="stable")
        order_N = order_N[self.ids.lengths_N[order_N] > 0]
        begin = 0
        while begin < len(order_N):
            width = int(self.ids.lengths_N[order_N[begin]]) + 1
            rows_B = order_N[begin : begin + min(most, max(1, max_tokens // width))]
            source_BS = _padded(self.ids, rows_B, before=0)
            source_BS[np.arange(len(rows_B)), self.ids.lengths_N[rows_B]] = EOS
            yield SourceBatch(source_BS=torch.from_numpy(source_BS), indices_B=torch.from_numpy(rows_B))
            begin += len(rows_B)

    def in_order(
        self, results: Iterable[tuple[SourceBatch, Sequence[Result]]], empty: Callable[[], Result]
    ) -> list[Result]:
        """Put what came of each batch's rows back into the order of the lines; empty lines get empty()."""
        found: dict[int, Result] = {}
        for batch, values in results:
            found.update(zip(batch.indices_B.tolist(), values, strict=True))
        return [found[line] if line in found else empty() for line in range(len(self.ids))]


def encode_lines(vocabulary: Vocabulary, lines: Sequence[str], max_pieces: int) -> EncodedLines:
    """Encode lines for translation, cutting each after max_pieces pieces."""
    encoded = vocabulary.encode_all([line.strip() for line in lines])
    return EncodedLines(
        ids=Sequences.from_lists(ids[:max_pieces] for ids in encoded),
        truncated=tuple(line for line, ids in enumerate(encoded) if len(ids) > max_pieces),
        empty=tuple(line for line, ids in enumerate(encoded) if not ids),
    )


def encode_pairs(
    source_vocabulary: Vocabulary, target_vocabulary: Vocabulary, sources: Sequence[str], targets: Sequence[str]
) -> EncodedPairs:
    """Encode pairs of lines, to be scored as a split would be."""
    if len(sources) != len(targets):
        raise UserError(f"there are {len(sources)} sources but {len(targets)} targets; they must pair up")
    return EncodedPairs(
        name="given pairs",
        source=Sequences.from_lists(source_vocabulary.encode_all([line.strip() for line in sources])),
        target=Sequences.from_lists(target_vocabulary.encode_all([line.strip() for line in targets])),
    )
