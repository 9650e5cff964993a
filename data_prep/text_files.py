"""python -m data_prep.text_files: prepare a corpus from two aligned plain-text files a split, a sentence a line.

Files are UTF-8, plain or gzip (told by their content, not their name); lines end with LF or CR LF.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from data_prep.parallel import SHORT_NAMES
from data_prep.reporting import file_checksum, prepare
from nmt_ls.corpus_writer import CorpusConfig, Origin
from nmt_ls.experiment.command_line import UserError, run_command
from nmt_ls.staged_texts import text_fault

GZIP_MAGIC = b"\x1f\x8b"
BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True, kw_only=True)
class TextFilesConfig(CorpusConfig):
    """Aligned plain-text files to prepare."""

    train_source: str
    """text file, a sentence a line; gzip too"""
    train_target: str
    """its translation, line by line"""
    validation_source: str
    validation_target: str
    test_source: str
    test_target: str
    out: str
    """directory of the prepared corpus"""
    src: str = ""
    """source language (nothing given: the ending of train_source, as in train.en or train.en.gz)"""
    tgt: str = ""
    """target language, likewise"""
    licence: str = ""
    """terms of the data, for the manifest"""

    def files(self) -> dict[str, tuple[Path, Path]]:
        """Source and target file of each split."""
        return {
            "train": (Path(self.train_source), Path(self.train_target)),
            "validation": (Path(self.validation_source), Path(self.validation_target)),
            "test": (Path(self.test_source), Path(self.test_target)),
        }


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file, without their ends.

    Raises:
        UserError: the file is missing, not UTF-8, holds a NUL, or is a damaged gzip file; the message names the line.
    """
    number = 0
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == GZIP_MAGIC
        with gzip.open(path) if packed else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode()
                if number == 1:
                    text = text.removeprefix(BYTE_ORDER_MARK)
                fault = text_fault(text)
                if fault:
                    raise UserError(f"{path}, line {number}: {fault}; mend the line")
                yield text.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        byte = f"byte {error.object[error.start]:#04x} at {error.start + 1}"
        raise UserError(f"{path}, line {number}: not valid UTF-8 ({byte}); convert the file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}, after line {number}: damaged gzip file ({error}); fetch it again") from None


def aligned(source: Path, target: Path) -> Iterator[tuple[str, str]]:
    """Pairs of lines. Raises UserError as lines does, and where one file has more lines than the other."""
    for count, (source_line, target_line) in enumerate(zip_longest(lines(source), lines(target))):
        if source_line is None or target_line is None:
            longer, shorter = (target, source) if source_line is None else (source, target)
            total = sum(1 for _ in lines(longer))
            raise UserError(
                f"{longer} has {total} lines but {shorter} has {count}: line {count + 1} of {longer} has no partner; "
                "the two must be aligned line by line"
            )
        yield source_line, target_line


def language_of(path: Path, given: str, otherwise: str) -> str:
    """The language given, or the ending of the file's name."""
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return given or (suffixes[-1][1:] if suffixes else otherwise)


def main(config: TextFilesConfig) -> None:
    """Prepare the corpus that a configuration describes."""
    files = config.files()
    for paths in files.values():
        for path in paths:
            if not path.is_file():
                raise UserError(f"{path}: there is no such file")
    train_source, train_target = files["train"]
    origin = Origin(
        source=f"{train_source} and {train_target}",
        source_language=language_of(train_source, config.src, "source"),
        target_language=language_of(train_target, config.tgt, "target"),
        licence=config.licence,
        files={
            f"{split}.{side}": file_checksum(path)
            for split, paths in files.items()
            for side, path in zip(("source", "target"), paths, strict=True)
        },
    )
    prepare(config.out, {name: aligned(*paths) for name, paths in files.items()}, origin, config)


if __name__ == "__main__":
    run_command(
        main,
        TextFilesConfig,
        program="python -m data_prep.text_files",
        description="Prepare a parallel corpus from two aligned plain-text files a split.",
        short_names=SHORT_NAMES,
    )
