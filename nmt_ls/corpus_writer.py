"""The prepared corpus, written: pairs -> filters -> vocabulary -> Arrow splits of token ids and manifest.json.

The training split is never held in memory: its pairs pass through files, and what is kept of each is 16 bytes at first
(hashes, to find duplicates and what is held out too) and its lengths later. Held-out splits, where sources are gathered
with their references, are held while they are read. All of it is built in a hidden directory beside the final one and
renamed at the end.
"""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute

from nmt_ls.corpus import FORMAT, MANIFEST, Corpus, Split, corpus_checksum
from nmt_ls.encoding import encode_texts
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.progress import without_bars
from nmt_ls.experiment.staging import staging_directory
from nmt_ls.staged_texts import FilterConfig, StagedTexts, sample_rows, stage_held_out, stage_training
from nmt_ls.vocabulary import (
    JOINT_MODEL,
    SOURCE_MODEL,
    TARGET_MODEL,
    UNK,
    VocabularyConfig,
    load_vocabularies,
    save_vocabularies,
    train_vocabulary,
)

TRAIN = "train"


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """How pairs become a prepared corpus."""

    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    group_references: bool = True
    """rows of a held-out split that share a source become one entry with several references, in place of the first"""
    workers: int = 0
    """processes that encode (0: as many as pay); the result does not depend on it"""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers is a number of processes, or 0 to choose, not {self.workers}")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where pairs come from: it goes into the manifest.

    Attributes:
        source: Hub id, folder or generator.
        licence: terms of the data.
        settings: whatever else decides which pairs there are (revision, split names, seed).
        files: SHA-256 of local files by name; where they are given, `source` may move without making another corpus.
    """

    source: str
    source_language: str
    target_language: str
    licence: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def recipe(self, config: CorpusConfig, taken: Sequence[str] | None = None) -> dict[str, Any]:
        """All that decides what the prepared corpus holds (a sample only where one is drawn: older recipes lack it);
        taken: see VocabularyConfig.recipe."""
        filters = asdict(config.filters)
        if not filters["sample"]:
            del filters["sample"]
        recipe = {
            "source": "local files" if self.files else self.source,
            "source_language": self.source_language,
            "target_language": self.target_language,
            "settings": dict(self.settings),
            "files": dict(self.files),
            "vocabulary": config.vocabulary.recipe(taken),
            "filters": filters,
            "group_references": config.group_references,
        }
        return json.loads(json.dumps(recipe))  # type: ignore[no-any-return]


def existing_corpus(directory: str | Path, origin: Origin, config: CorpusConfig) -> Corpus | None:
    """The corpus that the same recipe has already made here, or None where nothing is.

    Raises:
        UserError: something else lies there; the message names the first key that differs. Or there is no vocabulary
            to take.
    """
    directory = Path(directory)
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        origin.recipe(config)  # where it cannot be told, nothing is to be read
        return None
    if not (directory / MANIFEST).is_file():
        raise UserError(f"{directory} exists and is not a prepared corpus: choose another place, or remove it")
    corpus = Corpus.load(directory)
    recipe = corpus.manifest["recipe"]
    here, asked = _flat(recipe), _flat(origin.recipe(config, recipe["vocabulary"].get("like")))
    for key in sorted(here.keys() | asked.keys()):
        if here.get(key) != asked.get(key):
            raise UserError(
                f"{directory} holds a corpus prepared otherwise ({key} is {here.get(key)!r} there, not "
                f"{asked.get(key)!r}): choose another place, or remove it"
            )
    return corpus


def write_corpus(
    directory: str | Path,
    splits: Mapping[str, Iterable[tuple[str, str]]],
    origin: Origin,
    config: CorpusConfig,
) -> Corpus:
    """Prepare a corpus from (source, target) pairs: `train`, and held-out splits by whatever names.

    Text is stripped at its edges, and a line break within it becomes a space; the rest is SentencePiece's affair. Where
    the same recipe has already made the corpus, that one is opened and the pairs are not read.

    Raises:
        UserError: see existing_corpus; no pair is left, a split is empty, a text holds a NUL or broken Unicode, or the
            vocabulary does not fit the text. Nothing is left behind, nor when interrupted or terminated.
    """
    directory = Path(directory)
    corpus = existing_corpus(directory, origin, config)
    if corpus is not None:
        return corpus
    if TRAIN not in splits:
        raise UserError(f"a corpus needs a split named {TRAIN!r}; there are {', '.join(splits) or 'none'}")
    with staging_directory(directory) as staging:
        _build(staging.path, splits, origin, config)
        # where someone else was quicker, theirs will do if it is the same
        if not staging.publish() and existing_corpus(directory, origin, config) is None:
            raise UserError(f"{directory} changed while the corpus was prepared; try again")
    return Corpus.load(directory)


def _build(
    directory: Path, splits: Mapping[str, Iterable[tuple[str, str]]], origin: Origin, config: CorpusConfig
) -> None:
    scratch = directory / "scratch"
    scratch.mkdir()
    staged = {
        name: stage_training(scratch / name, pairs, config.filters)
        if name == TRAIN
        else stage_held_out(scratch / name, pairs, config.group_references)
        for name, pairs in splits.items()
    }
    _make_vocabularies(directory, staged[TRAIN], config.vocabulary)
    summaries = {name: _write_split(directory / name, split, config) for name, split in staged.items()}
    for name, split in staged.items():
        if name != TRAIN:
            summaries[name] |= split.also_in(staged[TRAIN])
    shutil.rmtree(scratch)
    _write_manifest(directory, summaries, origin, config)


def _make_vocabularies(directory: Path, staged: StagedTexts, config: VocabularyConfig) -> None:
    if config.like is not None:
        save_vocabularies(*load_vocabularies(config.like), directory)
        return
    if sys.stderr.isatty():
        print(f"training a {config.kind} vocabulary of {config.size:,} pieces …", file=sys.stderr)
    wanted_N = staged.keep_N
    if config.sample:
        wanted_N = sample_rows(wanted_N, config.sample, config.seed, stream=2)
    if config.joint:
        both = (text for pair in staged.texts(wanted_N) for text in pair)
        train_vocabulary(both, directory / JOINT_MODEL, config)
    else:
        train_vocabulary((source for source, _ in staged.texts(wanted_N)), directory / SOURCE_MODEL, config)
        train_vocabulary((target for _, target in staged.texts(wanted_N)), directory / TARGET_MODEL, config)


def _write_split(directory: Path, staged: StagedTexts, config: CorpusConfig) -> dict[str, Any]:
    """Encode, filter by pieces, write; what there is to say about the split."""
    encoded = encode_texts(staged.path, directory.parent, config.workers)
    if directory.name == TRAIN:
        _filter_by_pieces(staged, encoded.data.table, config.filters)
    if not staged.keep_N.all():
        encoded = encoded.select(np.flatnonzero(staged.keep_N))
    with without_bars():
        encoded.save_to_disk(str(directory))
    return _summary(Split(directory.name, directory), staged)


def _filter_by_pieces(staged: StagedTexts, table: pyarrow.Table, filters: FilterConfig) -> None:
    source_N, target_N = (
        pyarrow.compute.list_value_length(table.column(name)).to_numpy() for name in ("source_ids", "target_ids")
    )
    longer_N, shorter_N = np.maximum(source_N, target_N), np.minimum(source_N, target_N)
    faults = {"no piece on a side": shorter_N == 0}
    if filters.max_pieces:
        faults[f"more than {filters.max_pieces} pieces"] = longer_N > filters.max_pieces
    if filters.max_ratio:
        faults[f"length ratio above {filters.max_ratio:g}"] = longer_N > filters.max_ratio * shorter_N
    for reason, fault_N in faults.items():
        count = int((staged.keep_N & fault_N).sum())
        if count or reason != "no piece on a side":
            staged.dropped[reason] = count
        staged.keep_N &= ~fault_N
    if not staged.keep_N.any():
        raise staged.nothing_left()


def _summary(split: Split, staged: StagedTexts) -> dict[str, Any]:
    summary: dict[str, Any] = {"rows": staged.rows, "sentences": len(split)}
    if split.name == TRAIN:
        summary["dropped"] = staged.dropped
    else:
        summary["references"] = sum(len(split.references(row)) for row in range(len(split)))
    for side, sequences in (("source", split.source), ("target", split.target)):
        summary[f"{side}_pieces"] = int(sequences.lengths_N.sum())
        summary[f"{side}_longest"] = int(sequences.lengths_N.max())
        summary[f"{side}_unknown"] = sum(int((values == UNK).sum()) for values, _ in sequences.arrays())
    summary["sha256"] = split.checksum()
    return summary


def _write_manifest(
    directory: Path, summaries: dict[str, dict[str, Any]], origin: Origin, config: CorpusConfig
) -> None:
    source, target = load_vocabularies(directory)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "checksum": "",
        "source": origin.source,
        "licence": origin.licence or "not stated",
        "source_language": origin.source_language,
        "target_language": origin.target_language,
        "splits": summaries,
        "vocabulary": {
            model.path.name: {"size": model.size, "sha256": model.checksum()}
            for model in dict.fromkeys((source, target))
        },
        "recipe": origin.recipe(config),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("sentencepiece", "datasets", "pyarrow", "numpy")},
        },
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    manifest["checksum"] = corpus_checksum(manifest, source, target)
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
