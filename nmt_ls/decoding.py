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
from nmt_ls.experiment.checkpoint import CheckpointName
from nmt_ls.experiment.command_line import UserError, load_config
from nmt_ls.experiment.processor import choose_device
from nmt_ls.experiment.records import Signature
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.experiment.staging import terminate_as_exit
from nmt_ls.lines import (
    PORTION,
    Writer,
    check_count,
    portions_of,
    read_lines,
    read_references,
    standard_input,
)
from nmt_ls.measured_run import figure_signature
from nmt_ls.metrics.temperature import check_temperature
from nmt_ls.metrics.translation import MetricName, TranslationScores, translation_scores
from nmt_ls.runs import find_run, run_corpus
from nmt_ls.scoring import first_text, fitted_temperature, split_batches
from nmt_ls.search import SearchConfig
from nmt_ls.search_changes import SearchChanges
from nmt_ls.training import TrainConfig
from nmt_ls.translator import MAX_SOURCE_PIECES, MAX_TOKENS, Translator
from nmt_ls.workers import Workers

__all__ = ["DecodeConfig", "decode", "find_run", "run_corpus", "search_config"]

SCORED: tuple[MetricName, ...] = ("bleu", "bleu_lowercase", "chrf", "ter")


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """What to translate, with which run, and what to write.

    run: a run's directory; left out, the newest finished one under runs/.
    data: where the corpus of the run lies, if no longer where it was trained.
    checkpoint: which weights of the run.
    split: of the run's corpus; test if neither split nor input is named.
    input: a file of lines to translate instead of a split, or - for standard input.
    reference: files with the lines' reference translations, to be scored against; several are several references.
    prefix: a file with, a line each, the words that a translation has to begin with.
    output: a file for the translations (standard output if left out).
    json: a file for one JSON object a line with everything known of each: tokens with log-probabilities, word
        confidences, and search.alternatives.
    temperature: a number, or fitted (the one of lowest NLL on the run's validation split); left out, the run's own.
    precision: of the arithmetic; auto takes what is fast here, of fp32 and bf16. int8 rounds the decoder's weights and
        activations to 8 bits (weights to 7 on a processor with AVX2 alone).
    device: auto takes CUDA where there is a GPU.
    max_tokens: source tokens in a batch, padding included; without influence on the translations.
    workers: processes of one thread each that share the lines; 1 is this process with all of its threads.
    """

    run: str | None = None
    data: str | None = None
    checkpoint: CheckpointName = "best"
    split: str | None = None
    input: str | None = None
    reference: tuple[str, ...] = ()
    prefix: str | None = None
    output: str | None = None
    json: str | None = None
    temperature: float | Literal["fitted"] | None = None
    precision: Literal["auto", "fp32", "bf16", "int8"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_tokens: int = MAX_TOKENS
    workers: int = 1
    search: SearchChanges = field(default_factory=SearchChanges)

    def __post_init__(self) -> None:
        if self.split is not None and self.input is not None:
            raise ValueError("split and input were both given; name one of them")
        if self.input is None and (self.reference or self.prefix):
            raise ValueError("reference and prefix belong to input; a split has its own references")
        if self.input == "-" and self.prefix is not None:
            raise ValueError("prefix pairs up with the lines of a file; it does not go with standard input")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be positive, got {self.max_tokens}")
        if self.workers < 1:
            raise ValueError(f"workers must be positive, got {self.workers}")
        if self.temperature is not None and self.temperature != "fitted":
            check_temperature(self.temperature)
        self._check_outputs()

    def _check_outputs(self) -> None:
        """What is written is neither read nor written twice."""
        inputs = [("input", self.input if self.input != "-" else None), ("prefix", self.prefix)]
        inputs += [("reference", path) for path in self.reference]
        for key, path in (("output", self.output), ("json", self.json)):
            if path is None:
                continue
            for other, taken in [*inputs, *([("json", self.json)] if key == "output" else [])]:
                if taken is not None and Path(path).resolve() == Path(taken).resolve():
                    raise ValueError(f"{key} and {other} are the same file, {path}; give {key} another name")


def trained_config(run: Path) -> TrainConfig:
    """What a run was asked for. Raises UserError naming file and key where it is no translation run's."""
    return load_config(TrainConfig, RunDirectory(run).read_config(), where=f"{run}/config.yaml")


def search_config(
    temperature: float | Literal["fitted"],
    search: SearchConfig,
    run: Path,
    translator: Translator,
    corpus: Corpus | None = None,
) -> SearchConfig:
    """The search at the temperature asked for; standard error announces a fitted one, and says of greedy search that
    no temperature changes its translations.

    corpus: the run's, where it is open already.
    """
    if temperature == "fitted":
        translator.precision.apply()
        validation = (corpus or run_corpus(run)).split("validation")
        try:
            temperature = fitted_temperature(translator.model, split_batches(validation))
        except ValueError as error:
            raise UserError(f"temperature: cannot be fitted ({error}); give a number") from None
        print(f"temperature: {temperature:.4f} (lowest NLL on the validation split)", file=sys.stderr)
    if search.width == 1 and not search.samples and temperature != 1:
        print(
            "note: beam 1 is greedy search: the temperature changes probabilities, but no translation", file=sys.stderr
        )
    return replace(search, temperature=float(temperature))


@dataclass(frozen=True, kw_only=True)
class Work:
    """What there is to translate: lines in portions, how many where that is known, and what goes with them.

    references: one list a line for a split; for lines, the columns that the files hold, which pair up with them.
    """

    portions: Iterator[list[str]]
    total: int | None
    lines: Sequence[str] = ()
    prefixes: Sequence[str] | None = None
    references: Sequence[Sequence[str]] | None = None
    columns: Sequence[Sequence[str]] = ()


def find_work(config: DecodeConfig, corpus: Corpus | None) -> Work:
    """The lines of the split, of the file, or of standard input; what goes with them is read first.

    Raises UserError for files that cannot be read or do not pair up.
    """
    if config.input is None:
        assert corpus is not None
        split = corpus.split(config.split or "test")
        lines = [split.source_text(row) for row in range(len(split))]
        references = [split.references(row) for row in range(len(split))]
        # in one portion, so that the batches are those of the run's summary
        return Work(portions=iter([lines]), total=len(lines), lines=lines, references=references)
    columns = read_references(config.reference)
    if config.input == "-":
        return Work(portions=portions_of(standard_input()), total=None, columns=columns)
    lines = read_lines(config.input)
    prefixes = None if config.prefix is None else read_lines(config.prefix)
    pairs = [*zip(config.reference, columns, strict=True), *([(config.prefix, prefixes)] if config.prefix else [])]
    for path, column in pairs:
        check_count(str(path), column or [], len(lines))
    portions = (lines[start : start + PORTION] for start in range(0, len(lines), PORTION))
    return Work(portions=portions, total=len(lines), lines=lines, prefixes=prefixes, columns=columns)


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What came of it: the recipe, and the scores of each line's first translation where there are references."""

    signature: Signature
    scores: TranslationScores | None


def decode(config: DecodeConfig) -> Decoded:
    """Translate and write.

    Whatever the user gave is opened before the model is loaded. Raises UserError for runs, files and settings that
    do not fit.
    """
    run = find_run(config.run)
    trained = trained_config(run)
    search = config.search.applied_to(trained.search)
    temperature = search.temperature if config.temperature is None else config.temperature
    reads_corpus = config.input is None or temperature == "fitted"
    corpus = run_corpus(run, config.data) if reads_corpus or config.data is not None else None
    if corpus is not None and temperature == "fitted":
        corpus.split("validation")
    work = find_work(config, corpus)
    with terminate_as_exit(), ExitStack() as stack:
        writer = Writer(config.output, config.json, search.samples or search.nbest, stack)
        translator = Translator.load(run, config.checkpoint, choose_device(config.device), config.precision)
        translator.check_search(search)
        if work.prefixes is not None:
            translator.check_prefixes(work.lines, work.prefixes, search, where=str(config.prefix))
        search = search_config(temperature, search, run, translator, corpus)
        who: Translator | Workers = translator
        if config.workers > 1:
            who = stack.enter_context(
                Workers(config.workers, run, config.checkpoint, translator.device, translator.precision)
            )
        hypotheses = translate_work(work, who, search, config.max_tokens, writer)
    split = None if config.input is not None else config.split or "test"
    manifest = RunDirectory(run).read_manifest()
    signature = figure_signature(trained, manifest, search, translator.precision, split=split, device=translator.device)
    source = {} if config.input is None else {"input": config.input}
    extras = {"run": run.name, **signature.extras, **source}
    signature = replace(signature, checkpoint=config.checkpoint, bins=None, extras=extras)  # nothing was binned
    return Decoded(signature=signature, scores=score_work(config, work, hypotheses))


def translate_work(
    work: Work, translator: Translator | Workers, search: SearchConfig, max_tokens: int, writer: Writer
) -> list[str]:
    """Translate portion by portion, and write each; the first translation of every line, if they can be scored."""
    hypotheses, first = list[str](), 0
    # no bar where people read translations line by line
    with tqdm(total=work.total, unit=" lines", leave=False, disable=work.total is None or None) as bar:
        for portion in work.portions:

            def warn(line: int, first: int = first) -> None:
                tqdm.write(
                    f"warning: line {first + line + 1} has more than {MAX_SOURCE_PIECES} pieces: translated truncated",
                    file=sys.stderr,
                )

            translations = translator.translate(
                portion,
                search,
                max_tokens=max_tokens,
                prefixes=None if work.prefixes is None else work.prefixes[first : first + len(portion)],
                first_line=first,
                on_truncated=warn,
                on_progress=bar.update,
            )
            writer.write(portion, translations)
            first += len(portion)
            if work.references or work.columns:
                hypotheses += map(first_text, translations)
    return hypotheses


def score_work(config: DecodeConfig, work: Work, hypotheses: list[str]) -> TranslationScores | None:
    """The scores where there are references; those of standard input, whose lines are now counted, may not pair up."""
    for path, column in zip(config.reference, work.columns, strict=True):
        check_count(path, column, len(hypotheses))
    references = work.references or [list(row) for row in zip(*work.columns, strict=True)]
    return translation_scores(hypotheses, references, SCORED) if references else None
