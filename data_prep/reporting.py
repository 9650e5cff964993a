"""What every preparation command does around write_corpus: look whether it is done already, and say what was done."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from nmt_ls.corpus import Corpus
from nmt_ls.corpus_writer import CorpusConfig, Origin, existing_corpus, write_corpus


def prepare(
    directory: str | Path, splits: Mapping[str, Iterable[tuple[str, str]]], origin: Origin, config: CorpusConfig
) -> Corpus:
    """Write a corpus unless the same recipe has made it already, and print what it holds.

    Raises UserError as write_corpus does.
    """
    corpus = existing_corpus(directory, origin, config)
    if corpus is not None:
        print(f"{directory} is there already, made by the same recipe: nothing to do")
    else:
        corpus = write_corpus(directory, splits, origin, config)
    print(describe(corpus))
    return corpus


def describe(corpus: Corpus) -> str:
    """A few lines for people: counts, what was left out and why, vocabulary, checksum."""
    manifest = corpus.manifest
    lines = [
        f"{corpus.directory}: {corpus.source_language} -> {corpus.target_language}, licence: {manifest['licence']}"
    ]
    for name, split in manifest["splits"].items():
        sentences, rows = split["sentences"], split["rows"]
        line = f"  {name:<11}{sentences:>10,} sentences"
        dropped = {reason: count for reason, count in split.get("dropped", {}).items() if count}
        if dropped:
            line += f" of {rows:,} (left out: {', '.join(f'{reason} {count:,}' for reason, count in dropped.items())})"
        if split.get("references", sentences) != sentences:
            line += f" with {split['references']:,} references"
        if sentences:
            source, target = split["source_pieces"] / sentences, split["target_pieces"] / sentences
            line += f"; {source:.1f} and {target:.1f} pieces each"
        if split.get("sources_in_train"):
            line += f"; in train too: sources {split['sources_in_train']:,}, pairs {split['pairs_in_train']:,}"
        lines.append(line)
    models = ", ".join(f"{name} ({model['size']:,} pieces)" for name, model in manifest["vocabulary"].items())
    return "\n".join([*lines, f"  vocabulary {models}", f"  checksum   {corpus.checksum}"])


def file_checksum(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
