"""Trained runs, found and read: which one is meant, and the corpus that it was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nmt_ls.corpus import MANIFEST, Corpus, Split
from nmt_ls.experiment import run_directory
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.vocabulary import load_vocabularies


def find_run(run: str | None, option: str = "run") -> Path:
    """The run that was named, or the newest finished translator's; see experiment.run_directory.find_run."""
    return run_directory.find_run(run, kind="translator", key="search", trainer="nmt_ls.train", option=option)


def check_vocabularies(run: Path, corpus: Corpus) -> None:
    """Raises UserError where there is no run, or it was trained with other vocabularies than the corpus has."""
    ours = corpus.source_vocabulary, corpus.target_vocabulary
    if [vocabulary.checksum() for vocabulary in load_vocabularies(run)] != [each.checksum() for each in ours]:
        raise UserError(
            f"{run} was trained with another vocabulary than {corpus.directory}; prepare the corpus with its "
            f"(--vocabulary.like {run})"
        )


class VerifiedCorpus(Corpus):
    """A corpus each of whose splits is held against its checksum when it is first read."""

    def split(self, name: str) -> Split:
        """As of a corpus. Raises UserError also where the split is no longer what its manifest says."""
        known = name in self._splits
        split = super().split(name)
        if not known and split.checksum() != self.manifest["splits"][name]["sha256"]:
            del self._splits[name]
            raise UserError(
                f"{self.directory / name}: changed since the corpus was prepared (its SHA-256 is not the one in "
                f"{self.directory / MANIFEST}); prepare the corpus again"
            )
        return split


def run_corpus(run: Path, data: str | None = None) -> Corpus:
    """The corpus that a run was trained on, its splits verified as they are read.

    data: where it lies; None looks where the run's manifest says, taken as it is, then from the directories above
    the run. Raises UserError where it has gone or has changed.
    """
    manifest = RunDirectory(run).read_manifest()
    if data is not None:
        corpus = VerifiedCorpus.load(data)
        if corpus.checksum != manifest["corpus_checksum"]:
            raise UserError(f"data: {data} is not the corpus that {run} was trained on (its checksum is another)")
        return corpus
    found = [VerifiedCorpus.load(place) for place in _places(run, manifest["corpus"])]
    for corpus in found:
        if corpus.checksum == manifest["corpus_checksum"]:
            return corpus
    if found:
        raise UserError(
            f"{found[0].directory}: no longer the corpus that {run} was trained on; prepare that one again, "
            "or name its place with --data"
        )
    raise UserError(
        f"{manifest['corpus']}: the corpus that {run} was trained on is neither there nor above the run; "
        "name its place with --data"
    )


def _places(run: Path, stored: str) -> Iterator[Path]:
    for above in (Path(), *run.resolve().parents):
        if (above / stored / MANIFEST).is_file():
            yield above / stored
