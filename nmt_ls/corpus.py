"""The prepared corpus, read: vocabularies, manifest, and memory-mapped splits of token ids.

A prepared corpus is a directory: `spm.model` (or `spm.source.model` and `spm.target.model`), one Arrow data set a
split, written by `datasets`, and `manifest.json`. `nmt_ls.corpus_writer` writes it, `nmt_ls.batching` cuts it into
batches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nmt_ls.batching import Batch, EpochBatches, Sequences, epoch_batches
from nmt_ls.experiment.command_line import UserError
from nmt_ls.vocabulary import EOS, Vocabulary, first_line, load_vocabularies, save_vocabularies

__all__ = ["Batch", "Corpus", "EpochBatches", "Split", "epoch_batches"]

MANIFEST = "manifest.json"
FORMAT = 1


class Split:
    """One split: N sentences with their token ids (memory-mapped) and texts.

    A held-out split has one entry for each distinct source: its target ids are those of the first reference, which is
    what teacher-forced scores use; BLEU may use all of them.

    Attributes:
        name: its name in the corpus.
        source, target: token ids, end of sentence not included.
    """

    def __init__(self, name: str, directory: Path) -> None:
        """Raises UserError where the directory is missing or damaged."""
        import datasets  # not at the top: it takes longer to import than everything else here

        self.name = name
        try:
            self._table = datasets.load_from_disk(str(directory)).data.table
            self.source = self._sequences("source_ids")
            self.target = self._sequences("target_ids")
        except (OSError, KeyError, ValueError) as error:
            raise UserError(
                f"{directory}: split {name!r} is missing or damaged; prepare the corpus again ({first_line(error)})"
            ) from None

    def __len__(self) -> int:
        return len(self.source)

    def source_ids(self, row: int) -> list[int]:
        """Ids of a source, without end of sentence."""
        return self.source[row]

    def target_ids(self, row: int) -> list[int]:
        """Ids of the first reference, without end of sentence."""
        return self.target[row]

    def source_text(self, row: int) -> str:
        """A source as text."""
        text: str = self._table.column("source")[row].as_py()
        return text

    def references(self, row: int) -> list[str]:
        """The translations of a source: one, or several where a held-out source had several."""
        texts: list[str] = self._table.column("references")[row].as_py()
        return texts

    def checksum(self) -> str:
        """SHA-256 of the content, however it is cut into files and record batches."""
        digest = hashlib.sha256()
        for sequences in (self.source, self.target):
            ids, lengths = hashlib.sha256(), hashlib.sha256()
            for values, counts in sequences.arrays():
                ids.update(np.ascontiguousarray(values, dtype="<i4").tobytes())
                lengths.update(np.ascontiguousarray(counts, dtype="<i8").tobytes())
            digest.update(ids.digest() + lengths.digest())
        for batch in self._table.select(["source", "references"]).to_batches(max_chunksize=10_000):
            for source, references in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                digest.update("\0".join([source, *references, ""]).encode())
        return digest.hexdigest()

    def _sequences(self, column: str) -> Sequences:
        chunks = self._table.column(column).chunks
        return Sequences(
            [chunk.values.to_numpy(zero_copy_only=True) for chunk in chunks],
            [chunk.offsets.to_numpy(zero_copy_only=True) for chunk in chunks],
        )


class Corpus:
    """A prepared corpus.

    Attributes:
        directory: where it lies.
        manifest: what manifest.json says: source, licence, counts, what was dropped and why, settings, versions.
        source_vocabulary, target_vocabulary: the same object where they are joint.
    """

    def __init__(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        self.directory = directory
        self.manifest = manifest
        self.source_vocabulary, self.target_vocabulary = load_vocabularies(directory)
        self._splits: dict[str, Split] = {}

    @classmethod
    def load(cls, directory: str | Path) -> Corpus:
        """Open a prepared corpus. Raises UserError where there is none, or one of another format."""
        directory = Path(directory)
        try:
            manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{directory} is not a prepared corpus (no {MANIFEST}); python -m data_prep.parallel prepares one"
            ) from None
        except ValueError:
            raise UserError(f"{directory / MANIFEST} is damaged; prepare the corpus again") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise UserError(f"{directory} was prepared in another format than {FORMAT}; prepare the corpus again")
        return cls(directory, manifest)

    @property
    def checksum(self) -> str:
        """Of vocabularies and splits; it depends on neither paths nor times."""
        return str(self.manifest["checksum"])

    @property
    def source_language(self) -> str:
        """As given when the corpus was prepared."""
        return str(self.manifest["source_language"])

    @property
    def target_language(self) -> str:
        """As given when the corpus was prepared."""
        return str(self.manifest["target_language"])

    @property
    def joint(self) -> bool:
        """Whether both languages share one vocabulary."""
        return self.source_vocabulary is self.target_vocabulary

    @property
    def split_names(self) -> list[str]:
        """The splits that there are."""
        return list(self.manifest["splits"])

    def split(self, name: str) -> Split:
        """A split by name. Raises UserError where there is no such split."""
        if name not in self.manifest["splits"]:
            raise UserError(f"{self.directory} has no split {name!r}: choose one of {', '.join(self.split_names)}")
        if name not in self._splits:
            self._splits[name] = Split(name, self.directory / name)
        return self._splits[name]

    def unigram_prior(self) -> Tensor:
        """Relative frequencies of the target labels of the training split, end of sentence included: float64, V."""
        counts = np.zeros(self.target_vocabulary.size, dtype=np.int64)
        target = self.split("train").target
        for values, _ in target.arrays():
            counts += np.bincount(values, minlength=len(counts))
        counts[EOS] += len(target)
        return torch.from_numpy(counts / counts.sum())

    def copy_vocabulary(self, directory: str | Path) -> None:
        """Copy the vocabularies into a run's directory, where load_vocabularies finds them."""
        save_vocabularies(self.source_vocabulary, self.target_vocabulary, directory)

    def verify(self) -> None:
        """Read everything and compare with the manifest. Raises UserError that names what differs."""
        for name in self.split_names:
            if self.split(name).checksum() != self.manifest["splits"][name]["sha256"]:
                raise UserError(f"{self.directory / name} differs from its checksum; prepare the corpus again")
        if corpus_checksum(self.manifest, self.source_vocabulary, self.target_vocabulary) != self.checksum:
            raise UserError(f"the vocabulary of {self.directory} differs from its checksum; prepare the corpus again")


def corpus_checksum(manifest: Mapping[str, Any], source: Vocabulary, target: Vocabulary) -> str:
    """SHA-256 over languages, vocabularies and the splits' checksums."""
    parts = [
        manifest["source_language"],
        manifest["target_language"],
        source.checksum(),
        target.checksum(),
        *(f"{name} {split['sha256']}" for name, split in sorted(manifest["splits"].items())),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
