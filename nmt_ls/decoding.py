"""What `decode` does: where lines come from, in which portions they are translated, and what is written of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from nmt_ls.corpus import Corpus
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.run_directory import RunDirectory, newest_finished_run
from nmt_ls.lines import PORTION, Writer, portions_of, read_lines, read_references
from nmt_ls.metrics.temperature import check_temperature
from nmt_ls.metrics.translation import MetricName, TranslationScores, translation_scores
from nmt_ls.scoring import fitted_temperature, split_batches
from nmt_ls.search import SearchConfig
from nmt_ls.training import choose_device
from nmt_ls.translator import MAX_SOURCE_PIECES, CheckpointName, Translator

SCORED: tuple[MetricName, ...] = ("bleu", "bleu_lowercase", "chrf")


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """What to translate, with which run, and what to write.

    run: a run's directory; left out, the newest finished one under runs/.
    split: of the run's corpus, test if nothing else is named. input: a file of lines instead, or - for standard input.
    reference: files with the lines' reference translations, to be scored against; several are several references.
    prefix: a file with, a line each, the words that a translation has to begin with.
    output: a file for the translations (standard output if left out). json: a file for one JSON object a line with
    everything known of each: tokens with log-probabilities, word confidences, and search.alternatives.
    temperature: a number, or fitted: the one of lowest NLL on the run's validation split.
    """

    run: str | None = None
    checkpoint: CheckpointName = "best"
    split: str | None = None
    input: str | None = None
    reference: tuple[str, ...] = ()
    prefix: str | None = None
    output: str | None = None
    json: str | None = None
    temperature: float | Literal["fitted"] = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_tokens: int = 2048
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        if self.split is not None and self.input is not None:
            raise ValueError("split and input were both given; name one of them")
        if self.input is None and (self.reference or self.prefix):
            raise ValueError("reference and prefix belong to input; a split has its own references")
        if self.input == "-" and self.prefix is not None:
            raise ValueError("prefix pairs up with the lines of a file; it does not go with standard input")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be positive, got {self.max_tokens}")
        if self.temperature != "fitted":
            check_temperature(self.temperature)
        if self.search.temperature != 1.0:
            raise ValueError("search.temperature: give the temperature as --temperature")


def find_run(run: str | None) -> Path:
    """The run that was named, or the newest finished translation run, which is then announced on standard error."""
    if run is not None:
        if not RunDirectory(run).config_file.exists():
            raise UserError(
                f"run: {run} is not a run (it has no config.yaml); name a directory that nmt_ls.train wrote"
            )
        return Path(run)
    newest = newest_finished_run(accept=lambda found: "search" in found.read_config())
    if newest is None:
        raise UserError("run: there is no finished run under runs/; train one (python -m nmt_ls.train) or name one")
    print(f"run: {newest} (the newest finished one)", file=sys.stderr)
    return newest


def run_corpus(run: Path) -> Corpus:
    """The corpus that a run was trained on. Raises UserError where it has gone or has changed."""
    manifest = RunDirectory(run).read_manifest()
    corpus = Corpus.load(manifest["corpus"])
    if corpus.checksum != manifest["corpus_checksum"]:
        raise UserError(f"{corpus.directory}: no longer the corpus that {run} was trained on; prepare that one again")
    return corpus


def search_config(
    temperature: float | Literal["fitted"], search: SearchConfig, run: Path, translator: Translator
) -> SearchConfig:
    """The search at the temperature asked for; fitted ones are announced on standard error."""
    if temperature == "fitted":
        translator.precision.apply()
        try:
            temperature = fitted_temperature(translator.model, split_batches(run_corpus(run).split("validation")))
        except ValueError as error:
            raise UserError(f"temperature: cannot be fitted ({error}); give a number") from None
        print(f"temperature: {temperature:.4f} (lowest NLL on the validation split)", file=sys.stderr)
    return replace(search, temperature=float(temperature))


@dataclass(frozen=True, kw_only=True)
class Work:
    """What there is to translate: lines in portions, how many where that is known, and what goes with them."""

    portions: Iterator[list[str]]
    total: int | None
    prefixes: list[str] | None = None
    references: Sequence[Sequence[str]] | None = None


def find_work(config: DecodeConfig, run: Path) -> Work:
    """The lines of the split, of the file, or of standard input. References of a file are read first."""
    if config.input == "-":
        return Work(portions=portions_of(sys.stdin), total=None)
    if config.input is not None:
        lines = read_lines(config.input)
        references = read_references(config.reference, len(lines))
        prefixes = None
    else:
        corpus = run_corpus(run)
        split = corpus.split(config.split or "test")
        lines = [split.source_text(row) for row in range(len(split))]
        references = [split.references(row) for row in range(len(split))]
    prefixes = None if config.prefix is None else [row[0] for row in read_references([config.prefix], len(lines)) or []]
    portions = (lines[start : start + PORTION] for start in range(0, len(lines), PORTION))
    return Work(portions=portions, total=len(lines), prefixes=prefixes, references=references)


def decode(config: DecodeConfig) -> TranslationScores | None:
    """Translate and write; the scores of the first translation of each line where there are references.

    Raises UserError for runs, files and settings that do not fit.
    """
    run = find_run(config.run)
    translator = Translator.load(run, config.checkpoint, choose_device(config.device), config.precision)
    search = search_config(config.temperature, config.search, run, translator)
    work = find_work(config, run)
    first = 0
    hypotheses: list[str] = []
    with ExitStack() as stack:
        writer = Writer(config.output, config.json, search.samples or search.nbest, stack)
        # no bar where people read translations line by line
        bar = stack.enter_context(
            tqdm(total=work.total, unit=" lines", leave=False, disable=work.total is None or None)
        )
        for portion in work.portions:
            number = first

            def warn(line: int, number: int = number) -> None:
                tqdm.write(
                    f"warning: line {number + line + 1} has more than {MAX_SOURCE_PIECES} pieces: translated truncated",
                    file=sys.stderr,
                )

            prefixes = None if work.prefixes is None else work.prefixes[first : first + len(portion)]
            translations = translator.translate(
                portion,
                search,
                max_tokens=config.max_tokens,
                prefixes=prefixes,
                on_truncated=warn,
                on_progress=bar.update,
            )
            writer.write(portion, translations)
            first += len(portion)
            if config.reference or work.references is not None:
                hypotheses += [best[0].text if best else "" for best in translations]
    references = work.references if work.references is not None else read_references(config.reference, first)
    return translation_scores(hypotheses, references, SCORED) if references else None
