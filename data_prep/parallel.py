"""python -m data_prep.parallel: prepare any parallel data set that `datasets` can load, from a folder or the Hub.

The two languages are columns of text (`en`, `de`), or keys of a `translation` column ({"en": ..., "de": ...}).
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.reporting import file_checksum, prepare
from nmt_ls.corpus_writer import CorpusConfig, Origin, existing_corpus
from nmt_ls.experiment.command_line import UserError, run_command
from nmt_ls.experiment.progress import without_bars
from nmt_ls.experiment.staging import terminate_as_exit
from nmt_ls.staged_texts import text_fault
from nmt_ls.vocabulary import first_line

DATA_SUFFIXES = {".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt", ".arrow"}
LINE_SUFFIXES = {".jsonl", ".csv", ".tsv", ".txt"}
PACKED_SUFFIXES = {".gz", ".zst", ".xz", ".bz2", ".zip"}
ROWS_AT_A_TIME = 1_000
SHORT_NAMES = {
    "vocab_size": "vocabulary.size",
    "max_pieces": "filters.max_pieces",
    "max_ratio": "filters.max_ratio",
    "train_size": "filters.sample",
}


@dataclass(frozen=True, kw_only=True)
class SplitNames:
    """What the data set calls its splits; slices such as train[1000:] make splits where it has none."""

    train: str = "train"
    validation: str = "validation"
    test: str = "test"


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(CorpusConfig):
    """A parallel data set to prepare."""

    source: str
    """a local folder (JSON lines, Parquet, CSV) or a Hub id"""
    out: str
    """directory of the prepared corpus; {src} and {tgt} stand for the languages"""
    src: str = "en"
    """source language: its column, or its key in the translation column"""
    tgt: str = "de"
    """target language, likewise"""
    name: str = ""
    """the data set's configuration, such as de-en"""
    revision: str = ""
    """branch, tag or commit on the Hub"""
    splits: SplitNames = field(default_factory=SplitNames)
    licence: str = ""
    """terms of the data, for the manifest"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.source:
            raise ValueError("source has to be given: a local folder or a Hub id")
        if self.src == self.tgt:
            raise ValueError(f"src and tgt are both {self.src!r}: a translation needs two columns")

    @property
    def directory(self) -> Path:
        """Where the corpus goes."""
        return Path(self.out.replace("{src}", self.src).replace("{tgt}", self.tgt))

    def origin(self) -> Origin:
        """Where the pairs come from. Raises UserError where a folder is meant but missing."""
        folder = local_folder(self.source)
        settings: dict[str, Any] = {"splits": asdict(self.splits), "name": self.name}
        if folder is None:
            settings["revision"] = self.revision
        return Origin(
            source=self.source,
            source_language=self.src,
            target_language=self.tgt,
            licence=self.licence,
            settings=settings,
            files={} if folder is None else {str(p.relative_to(folder)): file_checksum(p) for p in data_files(folder)},
        )


def local_folder(source: str) -> Path | None:
    """The folder that a source names, or None for a Hub id. Raises UserError where it looks like a path but is none."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{source} is a file: name the folder that holds it, or use python -m data_prep.text_files")
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UserError(f"{source}: there is no such folder; name one with a file a split, or a Hub id (owner/name)")
    return None


def data_files(folder: Path) -> list[Path]:
    """The data files below a folder, compressed or not, in a fixed order; those of a kind that `datasets` reads."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and (DATA_SUFFIXES | PACKED_SUFFIXES) & set(path.suffixes[-2:])
    ]


class ParallelSource:
    """The pairs of a data set's splits, read when they are asked for.

    A local folder is converted in a temporary directory, a Hub data set in the cache of `datasets`.
    """

    def __init__(self, config: ParallelConfig, scratch: Path) -> None:
        self._config = config
        self._folder = local_folder(config.source)
        self._scratch = scratch
        self._splits: dict[str, Any] = {}

    def pairs(self, split: str) -> Iterator[tuple[str, str]]:
        """(source, target) of each row. Raises UserError that names file and line, or split and row, of a fault."""
        if not self._splits:
            with without_log(), contextlib.nullcontext() if sys.stderr.isatty() else without_bars():
                self._splits = self._load()
        data, config = self._splits[split], self._config
        columns = data.column_names
        nested = "translation" in columns and not {config.src, config.tgt} <= set(columns)
        self._check_columns(split, data, nested)
        data = data.select_columns(["translation"] if nested else [config.src, config.tgt])
        row = 0
        try:
            for block in data.iter(batch_size=ROWS_AT_A_TIME):
                if nested:
                    block = {key: [cell.get(key) for cell in block["translation"]] for key in (config.src, config.tgt)}
                for source, target in zip(block[config.src], block[config.tgt], strict=True):
                    row += 1
                    yield self._checked(source, split, row, config.src), self._checked(target, split, row, config.tgt)
        except UnicodeDecodeError as error:
            raise self._fault(f"split {split!r}, after row {row}: not valid UTF-8 ({error.reason})") from None

    def _load(self) -> dict[str, Any]:
        import datasets

        config, wanted = self._config, asdict(self._config.splits)
        try:
            loaded = datasets.load_dataset(
                config.source if self._folder is None else str(self._folder),
                self._configuration(),
                split=list(wanted.values()),
                revision=config.revision or None if self._folder is None else None,
                cache_dir=None if self._folder is None else str(self._scratch),
            )
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise self._explain(error) from None
        return dict(zip(wanted, loaded, strict=True))

    def _configuration(self) -> str | None:
        """The configuration to load: not a preset's from the Hub where a bare folder has no such thing."""
        import datasets

        name = self._config.name or None
        if self._folder is not None and name not in datasets.get_dataset_config_names(str(self._folder)):
            return None
        return name

    def _explain(self, error: Exception) -> UserError:
        config, reason = self._config, first_line(error.__cause__ or error)
        if "Unknown split" in reason:
            return UserError(f"{config.source}: {reason} Name others with --splits.train, .validation and .test")
        if self._folder is None:
            return UserError(
                f"{config.source}: not a local folder, and the Hub does not give it ({reason}); "
                "to work offline, name a folder with a file a split"
            )
        if not data_files(self._folder):
            return UserError(f"{config.source} holds no data files; it needs one a split, such as train.jsonl")
        return self._fault(f"{config.source} cannot be read: {reason}")

    def _check_columns(self, split: str, data: Any, nested: bool) -> None:
        config = self._config
        there = data.features["translation"] if nested else data.features
        for language in (config.src, config.tgt):
            if isinstance(there, dict) and language not in there:
                raise UserError(
                    f"{config.source}, split {split!r}: no column {language!r}; there are {', '.join(there)}. "
                    "Choose with --src and --tgt"
                )

    def _checked(self, text: Any, split: str, row: int, language: str) -> str:
        """The text of a cell: a missing one counts as empty in training data, and is an error elsewhere."""
        where = f"{self._config.source}, split {split!r}, row {row}"
        if text is None and split == "train":
            return ""
        if not isinstance(text, str):
            raise UserError(
                f"{where}: {language!r} is {'missing' if text is None else f'no text: {text!r}'}; mend the row"
            )
        fault = text_fault(text)
        if fault:
            raise self._fault(f"{where}: {fault} in {language!r}; mend the row")
        return text

    def _fault(self, otherwise: str) -> UserError:
        """The first faulty line of the folder's text files, by name and number, or what is known without."""
        files = data_files(self._folder) if self._folder is not None else []
        faults = (line_fault(path) for path in files if path.suffix in LINE_SUFFIXES)
        return UserError(next((fault for fault in faults if fault), otherwise))


@contextlib.contextmanager
def without_log() -> Iterator[None]:
    """Without the messages of `datasets` beside the exceptions that it raises."""
    from datasets.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def line_fault(path: Path) -> str | None:
    """What is wrong with the first faulty line of a text file: `file, line n: …`, or None."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                return (
                    f"{where}: not valid UTF-8 (byte {line[error.start]:#04x} at {error.start + 1}); convert the file"
                )
            fault = text_fault(text)
            if path.suffix == ".jsonl" and text.strip() and not fault:
                fault = _json_fault(text)
            if fault:
                return f"{where}: {fault}; mend the line"
    return None


def _json_fault(text: str) -> str | None:
    try:
        row = json.loads(text)
    except ValueError as error:
        return f"not JSON ({error})"
    cells = list(row.values()) if isinstance(row, dict) else []
    cells += [text for cell in cells if isinstance(cell, dict) for text in cell.values()]
    return next((fault for cell in cells if isinstance(cell, str) and (fault := text_fault(cell))), None)


def main(config: ParallelConfig) -> None:
    """Prepare the corpus that a configuration describes."""
    origin = config.origin()
    out = config.directory
    out.parent.mkdir(parents=True, exist_ok=True)
    existing_corpus(out, origin, config)  # refuse before anything is downloaded
    with terminate_as_exit(), tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.reading-") as scratch:
        source = ParallelSource(config, Path(scratch))
        prepare(out, {name: source.pairs(name) for name in asdict(config.splits)}, origin, config)


def command(config_class: type[ParallelConfig], program: str, description: str) -> None:
    """Run a preparation command; a preset is a subclass of ParallelConfig with other defaults."""
    run_command(main, config_class, program=f"python -m {program}", description=description, short_names=SHORT_NAMES)


if __name__ == "__main__":
    command(ParallelConfig, "data_prep.parallel", "Prepare a parallel corpus from a folder or the Hugging Face Hub.")
