"""The texts of a corpus in preparation: cleaned, filtered by what shows without a vocabulary, and kept on disk."""

from __future__ import annotations

import array
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow
from tqdm import tqdm

from nmt_ls.batching import random_draws
from nmt_ls.experiment.command_line import UserError

STAGING_ROWS = 10_000
SAMPLE_SEED = 0
LINE_BREAKS = re.compile(r"[\r\n]+")


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Which training pairs are left out; one with an empty side always is. Held-out splits are never filtered."""

    max_pieces: int = 250
    """leave out pairs with more pieces on either side (0: any number)"""
    max_ratio: float = 0.0
    """leave out pairs whose longer side has over so many times the pieces of the shorter (0: any ratio)"""
    duplicates: bool = True
    """leave out the second and later copies of a pair"""
    copies: bool = False
    """leave out pairs whose source equals their target"""
    sample: int = 0
    """keep a random sample of so many pairs, of those without an empty side, copies and duplicates; drawn before the
    vocabulary is trained and pieces are counted (0: all of them)"""

    def __post_init__(self) -> None:
        if self.sample < 0:
            raise ValueError(f"filters.sample is a number of pairs, or 0 for all of them, not {self.sample}")
        if self.max_pieces < 0:
            raise ValueError(f"filters.max_pieces is a number of pieces, or 0 for any, not {self.max_pieces}")
        if self.max_ratio != 0 and not self.max_ratio >= 1:
            raise ValueError(f"filters.max_ratio is at least 1, or 0 for any ratio, not {self.max_ratio}")


@dataclass
class StagedTexts:
    """A split's texts in an Arrow file of its own: columns source (string) and references (list of strings).

    Attributes:
        path: the file.
        rows: number of pairs read.
        keep_N: which of the N rows of the file are still wanted.
        dropped: numbers of those that are not, or never got into the file, by reason.
        sources_N, pairs_N: 64-bit hashes of the sources, and of the sources with their first references.
    """

    path: Path
    rows: int
    keep_N: npt.NDArray[np.bool_]
    dropped: dict[str, int]
    sources_N: npt.NDArray[np.uint64]
    pairs_N: npt.NDArray[np.uint64]

    def write(self, entries: Iterable[tuple[str, list[str]]]) -> None:
        """Write sources with their references, a block at a time."""
        schema = pyarrow.schema([("source", pyarrow.string()), ("references", pyarrow.list_(pyarrow.string()))])
        remaining = iter(entries)
        with pyarrow.OSFile(str(self.path), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
            while block := list(itertools.islice(remaining, STAGING_ROWS)):
                sources, references = zip(*block, strict=True)
                writer.write_batch(pyarrow.record_batch([sources, references], schema=schema))

    def also_in(self, training: StagedTexts) -> dict[str, int]:
        """How many of these sentences have a source, and how many are a pair, that is wanted in training too."""
        keep_N = training.keep_N
        return {
            "sources_in_train": int(np.isin(self.sources_N, training.sources_N[keep_N]).sum()),
            "pairs_in_train": int(np.isin(self.pairs_N, training.pairs_N[keep_N]).sum()),
        }

    def nothing_left(self) -> UserError:
        """The complaint that the filters left no pair."""
        reasons = "".join(f"; {reason}: {count}" for reason, count in self.dropped.items() if count)
        return UserError(f"no training pair is left of the {self.rows} read{reasons}")

    def texts(self, wanted_N: npt.NDArray[np.bool_]) -> Iterator[tuple[str, str]]:
        """Source and first reference of the wanted rows."""
        begin = 0
        with pyarrow.memory_map(str(self.path)) as file, pyarrow.ipc.open_stream(file) as reader:
            for batch in reader:
                chosen = batch.filter(pyarrow.array(wanted_N[begin : begin + len(batch)]))
                for source, references in zip(*(column.to_pylist() for column in chosen.columns), strict=True):
                    yield source, references[0]
                begin += len(batch)


def stage_training(path: Path, pairs: Iterable[tuple[str, str]], filters: FilterConfig) -> StagedTexts:
    """Filter by text: empty sides and copies as they pass, duplicates by 64-bit hashes at the end.

    Among n pairs two different ones share a hash with probability n²/2⁶⁵: one in a million for six million pairs.
    """
    staged = _nothing_yet(path)
    staged.dropped["empty side"] = 0
    if filters.copies:
        staged.dropped["source equals target"] = 0
    sources, pairs_of = array.array("Q"), array.array("Q")

    def entries() -> Iterator[tuple[str, list[str]]]:
        for source, target in _clean(path.name, pairs):
            staged.rows += 1
            if not source or not target:
                staged.dropped["empty side"] += 1
            elif filters.copies and source == target:
                staged.dropped["source equals target"] += 1
            else:
                sources.append(_hash(source))
                pairs_of.append(_hash(source, target))
                yield source, [target]

    staged.write(entries())
    staged.sources_N, staged.pairs_N = (np.frombuffer(hashes, dtype=np.uint64) for hashes in (sources, pairs_of))
    staged.keep_N = np.ones(len(staged.pairs_N), dtype=bool)
    if filters.duplicates:
        first = np.unique(staged.pairs_N, return_index=True)[1]
        staged.keep_N[:] = False
        staged.keep_N[first] = True
        staged.dropped["duplicate pair"] = len(staged.pairs_N) - len(first)
    if not staged.keep_N.any():
        raise staged.nothing_left()
    if filters.sample:
        _keep_sample(staged, filters.sample)
    return staged


def _keep_sample(staged: StagedTexts, size: int) -> None:
    """Keep a random sample of the wanted rows. Raises UserError where there are fewer."""
    kept = int(staged.keep_N.sum())
    if size > kept:
        raise UserError(f"filters.sample: {size:,} training pairs were asked for, and there are {kept:,}")
    staged.keep_N = sample_rows(staged.keep_N, size, SAMPLE_SEED, stream=3)
    staged.dropped["not in the sample"] = kept - size


def sample_rows(wanted_N: npt.NDArray[np.bool_], size: int, seed: int, stream: int) -> npt.NDArray[np.bool_]:
    """A random sample of so many of the wanted rows, or all of them where there are no more."""
    kept = np.flatnonzero(wanted_N)
    order = np.argsort(random_draws(len(kept), seed, 0, stream=stream), kind="stable")
    sample_N = np.zeros_like(wanted_N)
    sample_N[kept[order[:size]]] = True
    return sample_N


def stage_held_out(path: Path, pairs: Iterable[tuple[str, str]], group: bool) -> StagedTexts:
    """Keep every row; rows of one source become one entry with its distinct references, if asked."""
    staged = _nothing_yet(path)
    entries: dict[str | int, tuple[str, list[str]]] = {}
    for source, target in _clean(path.name, pairs):
        references = entries.setdefault(source if group else staged.rows, (source, []))[1]
        if target not in references:
            references.append(target)
        staged.rows += 1
    if not entries:
        raise UserError(f"split {path.name!r} has no rows")
    staged.write(entries.values())
    staged.keep_N = np.ones(len(entries), dtype=bool)
    staged.sources_N = np.array([_hash(source) for source, _ in entries.values()], dtype=np.uint64)
    first = [_hash(source, references[0]) for source, references in entries.values()]
    staged.pairs_N = np.array(first, dtype=np.uint64)
    return staged


def _nothing_yet(path: Path) -> StagedTexts:
    none = np.zeros(0, dtype=np.uint64)
    return StagedTexts(path=path, rows=0, keep_N=np.ones(0, dtype=bool), dropped={}, sources_N=none, pairs_N=none)


def _clean(split: str, pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for number, pair in enumerate(tqdm(pairs, desc=f"reading {split}", unit=" pairs", disable=None), 1):
        for text in pair:
            fault = text_fault(text)
            if fault:
                raise UserError(f"split {split!r}, pair {number}: {fault}; mend the text")
        yield _tidy(pair[0]), _tidy(pair[1])


def text_fault(text: str) -> str | None:
    """What makes a text unfit for a corpus, or None."""
    if "\0" in text:
        return "it holds a NUL byte"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "it is not valid Unicode (half of a surrogate pair)"
    return None


def _tidy(text: str) -> str:
    text = text.strip()
    return LINE_BREAKS.sub(" ", text) if "\n" in text or "\r" in text else text


def _hash(*texts: str) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(texts).encode(), digest_size=8).digest(), "little")
