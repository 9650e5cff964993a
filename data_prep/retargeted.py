"""python -m data_prep.retargeted: a prepared corpus again, whose training targets are translations by some system.

For sequence-level distillation (Kim & Rush 2016, section 3.2): a student is trained on what its teacher makes of the
training sources. Vocabularies, filters and held-out splits are the corpus's own, so that students can be held against
it; only copies of a pair stay, as teachers repeat themselves, and pairs with an empty translation go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.reporting import file_checksum, prepare
from data_prep.text_files import lines
from nmt_ls.corpus import Corpus, Split
from nmt_ls.corpus_writer import TRAIN, CorpusConfig, Origin
from nmt_ls.experiment.command_line import UserError, run_command
from nmt_ls.staged_texts import FilterConfig
from nmt_ls.vocabulary import VocabularyConfig


@dataclass(frozen=True, kw_only=True)
class RetargetedConfig:
    """A prepared corpus, and other targets for its training sources."""

    corpus: str
    """directory of the prepared corpus"""
    targets: str
    """text file with a translation of every training source, a line each in their order, as python -m nmt_ls.decode
    --split train writes it; gzip too"""
    out: str
    """directory of the new one"""
    workers: int = 0
    """processes that encode (0: as many as pay); the result does not depend on it"""

    def __post_init__(self) -> None:
        CorpusConfig(workers=self.workers)


def pairs(split: Split) -> Iterator[tuple[str, str]]:
    """Every source of a split with each of its references."""
    for row in range(len(split)):
        for reference in split.references(row):
            yield split.source_text(row), reference


def retargeted(split: Split, targets: Path) -> Iterator[tuple[str, str]]:
    """Every source with its line. Raises UserError where there are more or fewer lines."""
    given = lines(targets)
    for row in range(len(split)):
        line = next(given, None)
        if line is None:
            raise UserError(_count(targets, f"{row:,}", split))
        yield split.source_text(row), line
    if next(given, None) is not None:
        raise UserError(_count(targets, "more", split))


def _count(targets: Path, found: str, split: Split) -> str:
    return (
        f"{targets} has {found} lines, and the corpus {len(split):,} training sources: there must be a line for each; "
        "python -m nmt_ls.decode --split train writes one"
    )


def main(config: RetargetedConfig) -> None:
    """Prepare the corpus that a configuration describes."""
    corpus, targets = Corpus.load(config.corpus), Path(config.targets)
    corpus.verify()
    if not targets.is_file():
        raise UserError(f"{targets}: {'a directory, not a' if targets.is_dir() else 'there is no such'} file")
    recipe = corpus.manifest["recipe"]
    origin = Origin(
        source=corpus.manifest["source"],
        source_language=corpus.source_language,
        target_language=corpus.target_language,
        licence=corpus.manifest["licence"],
        settings={**recipe["settings"], "retargeted": corpus.checksum, "targets": file_checksum(targets)},
    )
    held_out = {name: pairs(corpus.split(name)) for name in corpus.split_names if name != TRAIN}
    prepare(
        config.out,
        {TRAIN: retargeted(corpus.split(TRAIN), targets), **held_out},
        origin,
        CorpusConfig(
            vocabulary=VocabularyConfig(like=config.corpus),
            filters=FilterConfig(**{**recipe["filters"], "duplicates": False, "sample": 0}),
            group_references=recipe["group_references"],
            workers=config.workers,
        ),
    )


if __name__ == "__main__":
    run_command(
        main,
        RetargetedConfig,
        program="python -m data_prep.retargeted",
        description="Prepare a corpus again with other training targets, such as a teacher's translations.",
    )
