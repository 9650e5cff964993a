"""The cells of a sweep: how one is named, and what a results directory already holds of them.

A cell is a run's checkpoint on a split at one temperature, and for translations with one beam and length penalty. Its
figures are in records.jsonl, and what belongs to each sentence (sums that paired tests resample) is in the folder
sentences.parquet, a file or so a cell, all of one schema: `pandas.read_parquet` reads the folder as one table.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nmt_ls.experiment.atomic import fsync
from nmt_ls.experiment.checkpoint import CHECKSUMS, WEIGHTS
from nmt_ls.experiment.command_line import UserError, load_config
from nmt_ls.experiment.records import Record, append_records, read_records
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.metrics.calibration import MOMENTS
from nmt_ls.metrics.translation import BLEU_STATISTICS
from nmt_ls.runs import find_run
from nmt_ls.scoring import BINS
from nmt_ls.search import SearchConfig
from nmt_ls.training import TrainConfig
from nmt_ls.translator import CheckpointName

TEACHER_FORCED = ("nll", "ece", "squared_l2")
DECODED = ("bleu", "chrf", "length_ratio", "brevity_penalty")
DIGITS = 9
"""Of a temperature, wherever two are compared."""
KEPT_BITS = 12
"""Of the mantissa of a sentence's bin sums: a file is 40% smaller, and an ECE computed from it changes by 2e-6."""
_SWEPT = ("temperature", "beam", "length_penalty", "length_penalty_kind")
SENTENCES = pa.schema(
    [
        ("run", pa.string()),
        ("checkpoint", pa.string()),
        ("weights", pa.string()),  # of their SHA-256
        ("split", pa.string()),
        ("alpha", pa.float64()),
        ("seed", pa.int64()),
        ("kind", pa.string()),  # teacher-forced or decoded
        ("temperature", pa.float64()),
        ("beam", pa.int32()),
        ("length_penalty", pa.string()),
        ("search", pa.string()),  # JSON: what else of the search was not the default
        ("sentence", pa.int32()),  # row of the split
        ("nll", pa.float64()),  # nats, summed over the sentence
        ("tokens", pa.int32()),
        ("bin_sums", pa.list_(pa.float32(), MOMENTS * BINS)),  # [6, B], see metrics.calibration; KEPT_BITS of each
        ("hypothesis", pa.string()),
        ("log_prob", pa.float64()),  # of the hypothesis, nats
        ("hypothesis_tokens", pa.int32()),
        ("bleu_statistics", pa.list_(pa.int32(), BLEU_STATISTICS)),  # see metrics.translation
    ]
)


def rounded_temperature(inverse: float) -> float:
    """The temperature of an inverse one, as cells are named by it."""
    return round(1.0 / inverse, DIGITS)


@dataclass(frozen=True, kw_only=True)
class SweptRun:
    """A run as a sweep knows it: what it was asked, and the checkpoint that is measured."""

    path: Path
    config: TrainConfig
    manifest: Mapping[str, Any]
    updates: int
    checkpoint: CheckpointName
    weights: str  # of their SHA-256

    @classmethod
    def open(cls, path: Path, checkpoint: CheckpointName) -> SweptRun:
        """Raises UserError where it is no run of ours, is unfinished, or has no such checkpoint."""
        run = RunDirectory(path)
        config = load_config(TrainConfig, run.read_config(), where=f"{path}/config.yaml")
        folder = run.checkpoints / checkpoint
        try:
            weights = str(json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))[WEIGHTS])
        except (OSError, ValueError, KeyError):
            raise UserError(f"{folder}: the run has no such checkpoint, or it is damaged; name another") from None
        updates = int(run.read_summary()["updates"])
        return cls(
            path=path,
            config=config,
            manifest=run.read_manifest(),
            updates=updates,
            checkpoint=checkpoint,
            weights=weights[:16],
        )

    def identity(self, split: str) -> dict[str, Any]:
        """What tells the cells of this run from those of any other."""
        return {"run": self.path.name, "checkpoint": self.checkpoint, "weights": self.weights, "split": split}


def find_runs(names: Sequence[str], checkpoint: CheckpointName) -> list[SweptRun]:
    """The runs that were named, patterns expanded; the newest finished one if none was."""
    if not names:
        return [SweptRun.open(find_run(None), checkpoint)]
    paths: list[Path] = []
    for name in names:
        matches = [Path(name)]
        if any(sign in name for sign in "*?["):
            matches = sorted(path for path in Path().glob(name) if RunDirectory(path).summary_file.exists())
        if not matches:
            raise UserError(f"runs: no finished run matches {name}")
        paths += [find_run(str(path)) for path in matches]
    runs = [SweptRun.open(path, checkpoint) for path in dict.fromkeys(paths)]
    called = [run.path.name for run in runs]
    if doubles := [name for name in called if called.count(name) > 1]:
        raise UserError(f"runs: two of them are called {doubles[0]}; rename one directory")
    return runs


def cell_key(signature: Mapping[str, Any]) -> str:
    """The part of a recipe that names a cell: run, checkpoint, weights, split, temperature, and the search if any."""
    keys = ("run", "checkpoint", "weights", "split", "temperature", "beam", "length_penalty", "search")
    return json.dumps({key: signature[key] for key in keys if key in signature}, sort_keys=True)


def search_keys(search: SearchConfig) -> dict[str, Any]:
    """How a decoded cell was searched, as its records say it; of the rest only what is not the default."""
    unusual = {
        entry.name: getattr(search, entry.name)
        for entry in fields(SearchConfig)
        if entry.name not in _SWEPT and getattr(search, entry.name) != getattr(SearchConfig(), entry.name)
    }
    keys: dict[str, Any] = {
        "temperature": search.temperature,
        "beam": search.beam,
        "length_penalty": f"{search.length_penalty_kind}:{search.length_penalty:g}",
    }
    return {**keys, **({"search": unusual} if unusual else {})}


class Ledger:
    """What a results directory holds of a sweep."""

    def __init__(self, results: Path) -> None:
        self.results, self.records_file = results, results / "records.jsonl"
        self.sentences = results / "sentences.parquet"
        found = read_records(self.records_file) if self.records_file.exists() else []
        self.figures: dict[str, dict[str, float]] = {}
        for record in found:
            if "weights" in record.signature:
                self.figures.setdefault(cell_key(record.signature), {})[record.name] = record.value

    def holds(self, signature: Mapping[str, Any], names: Iterable[str]) -> bool:
        """Whether every figure of a cell is there."""
        return set(names) <= set(self.figures.get(cell_key(signature), {}))

    def add(self, part: str, table: pa.Table, records: Sequence[Record]) -> None:
        """Write a cell: its sentences first, since the records are what says that it is done."""
        self.sentences.mkdir(parents=True, exist_ok=True)
        for record in records:
            self.figures.setdefault(cell_key(record.signature), {})[record.name] = record.value
        new = self.sentences / f".{part}.{os.getpid()}.new"
        pq.write_table(table, new, compression="zstd", compression_level=9)
        fsync(new)
        new.replace(self.sentences / f"{part}.parquet")
        append_records(self.records_file, records)


def sentence_table(rows: int, cell: Mapping[str, Any], columns: Mapping[str, pa.Array]) -> pa.Table:
    """A cell's rows: what names it, repeated, its columns, and null in those of the other kind."""
    arrays = []
    for entry in SENTENCES:
        if entry.name == "sentence":
            arrays.append(pa.array(np.arange(rows), entry.type))
        elif entry.name in columns:
            arrays.append(columns[entry.name].cast(entry.type))
        elif entry.name in cell:
            arrays.append(pa.array([cell[entry.name]] * rows, entry.type))
        else:
            arrays.append(pa.nulls(rows, entry.type))
    return pa.Table.from_arrays(arrays, schema=SENTENCES)


def rounded_bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The nearest fp32 numbers whose mantissa has KEPT_BITS bits: whole numbers up to 2^13 stay as they are."""
    dropped = 23 - KEPT_BITS
    bits = values.astype(np.float32).view(np.uint32)
    return (bits + np.uint32(1 << (dropped - 1)) >> dropped << dropped).astype(np.uint32).view(np.float32)


def list_column(values_SC: np.ndarray[Any, Any]) -> pa.Array:
    """A column of lists of one length."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values_SC.ravel()), values_SC.shape[1])


def short_hash(value: Any) -> str:
    """A few characters that tell values apart, for file names."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=3).hexdigest()
