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
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nmt_ls.experiment.atomic import fsync
from nmt_ls.experiment.checkpoint import CheckpointName
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import Record, append_records, read_records
from nmt_ls.experiment.run_directory import RunDirectory, check_names
from nmt_ls.measured_run import MeasuredRun
from nmt_ls.metrics.calibration import MOMENTS
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.translation import BLEU_STATISTICS
from nmt_ls.runs import find_run
from nmt_ls.scoring import BINS

SENTENCES_FOLDER = "sentences.parquet"
TEACHER_FORCED = ("nll", "ece", "squared_l2")
DECODED = ("bleu", "chrf", "length_ratio", "brevity_penalty")
DIGITS = 9
"""Of a temperature, wherever two are compared."""
COMPRESSION = 9
"""Of zstd: results are committed, and written once."""
KEPT_BITS = 12
"""Of the mantissa of a sentence's bin sums: a file is 40% smaller, and an ECE computed from it changes by 2e-6."""
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


def find_runs(names: Sequence[str], checkpoint: CheckpointName) -> list[MeasuredRun]:
    """The runs that were named, patterns expanded; the newest finished one if none was."""
    if not names:
        return [_open_finished(find_run(None, "runs"), checkpoint)]
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        matches = [path]
        if any(sign in name for sign in "*?["):
            found = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
            matches = sorted(match for match in found if RunDirectory(match).summary_file.exists())
        if not matches:
            raise UserError(f"runs: no finished run matches {name}; name runs that have a summary.json")
        paths += [find_run(str(path), "runs") for path in matches]
    runs = [_open_finished(path, checkpoint) for path in dict.fromkeys(paths)]
    check_names([run.path for run in runs])
    return runs


def _open_finished(path: Path, checkpoint: CheckpointName) -> MeasuredRun:
    RunDirectory(path).read_summary()  # raises UserError where there is none yet
    return MeasuredRun.open(path, checkpoint)


def cell_key(signature: Mapping[str, Any]) -> str:
    """The part of a recipe that names a cell: run, checkpoint, weights, split, temperature, and the search if any."""
    keys = ("run", "checkpoint", "weights", "split", "temperature", "beam", "length_penalty", "search")
    return json.dumps({key: signature[key] for key in keys if key in signature}, sort_keys=True)


class Ledger:
    """What a results directory holds of a sweep."""

    def __init__(self, results: Path) -> None:
        self.results, self.records_file = results, results / "records.jsonl"
        self.sentences = results / SENTENCES_FOLDER
        found = read_records(self.records_file) if self.records_file.exists() else []
        self.records: dict[str, dict[str, Record]] = {}  # the last of each cell and name
        for record in found:
            # what `score` wrote (it says how its temperature was chosen) has no sentences here for paired tests
            if "weights" in record.signature and "temperature_is" not in record.signature:
                self._note(record)

    def _note(self, record: Record) -> None:
        self.records.setdefault(cell_key(record.signature), {})[record.name] = record

    def holds(self, signature: Mapping[str, Any], names: Iterable[str]) -> bool:
        """Whether every figure of a cell is there."""
        return set(names) <= set(self.records.get(cell_key(signature), {}))

    def add(self, part: str, table: pa.Table, records: Sequence[Record]) -> None:
        """Write a cell: its sentences first, since the records are what says that it is done."""
        for record in records:
            self._note(record)
        write_sentences(self.results, part, table)
        append_records(self.records_file, records)


def write_sentences(results: Path, part: str, table: pa.Table) -> None:
    """Write a part of sentences.parquet, in one piece."""
    folder = results / SENTENCES_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f".{part}.{os.getpid()}.new"
    pq.write_table(table, new, compression="zstd", compression_level=COMPRESSION)
    fsync(new)
    new.replace(folder / f"{part}.parquet")


def part_stem(identity: Mapping[str, Any]) -> str:
    """How the files of a run's cells on a split begin."""
    return "-".join(
        str(part) for part in (*(identity[key] for key in ("run", "checkpoint", "split")), identity["weights"][:8])
    )


_KINDS = {
    "nll": "teacher-forced",
    "tokens": "teacher-forced",
    "bin_sums": "teacher-forced",
    "bleu_statistics": "decoded",
}


def read_sentences(folder: Path, cell: Mapping[str, Any], column: str, temperatures: Sequence[float]) -> FloatArray:
    """A column of the sentences of a run's cells, in order of temperature, then of sentence: [J · S, 1 or more].

    folder: sentences.parquet. cell: the run's identity and, of translations, the keys of their search. What is not
    there leaves no rows.
    """
    filters = [
        (key, "=", json.dumps(value, sort_keys=True) if key == "search" else value) for key, value in cell.items()
    ]
    stem = part_stem(cell) + "-"
    parts = sorted(path for path in folder.glob("*.parquet") if path.name.startswith(stem)) if folder.is_dir() else []
    if not parts:
        return np.zeros((0, 1))
    table = pq.read_table(
        parts,
        schema=SENTENCES,
        columns=["temperature", "sentence", "search", column],
        filters=[*filters, ("temperature", "in", list(temperatures)), ("kind", "=", _KINDS[column])],
    )
    if not len(table):
        return np.zeros((0, 1))
    scalars = table.select(["temperature", "sentence", "search"]).to_pandas()
    keep = ~scalars.duplicated()  # a cell that was killed before its records were written is there twice
    if "search" not in cell:
        keep &= scalars["search"].isna()
    rows = np.flatnonzero(keep.to_numpy())
    place = {temperature: index for index, temperature in enumerate(temperatures)}
    at = scalars["temperature"].map(place).to_numpy()[rows]
    rows = rows[np.lexsort((scalars["sentence"].to_numpy()[rows], at))]
    values = table.column(column).combine_chunks()
    flat = values.flatten() if pa.types.is_fixed_size_list(values.type) else values
    array: FloatArray = np.asarray(flat.to_numpy(zero_copy_only=False))
    return array.reshape(len(table), -1)[rows]


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


def forced_table(cell: Mapping[str, Any], nll_S: FloatArray, tokens_S: FloatArray, sums_SMB: FloatArray) -> pa.Table:
    """Teacher-forced sums of every sentence at one temperature: NLL in nats, tokens, and sums of every bin."""
    columns = {
        "nll": pa.array(nll_S),
        "tokens": pa.array(tokens_S.astype(np.int32)),
        "bin_sums": list_column(rounded_bits(sums_SMB).reshape(len(tokens_S), -1)),
    }
    return sentence_table(len(tokens_S), {**cell, "kind": "teacher-forced"}, columns)


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
