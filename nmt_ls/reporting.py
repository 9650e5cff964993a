"""What `score` does: the figures of a run on a split, of given probabilities, or of given translations beside a
baseline's; their recipe, and diagrams of them."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from tqdm import tqdm

from nmt_ls.corpus import Corpus, Split
from nmt_ls.decoding import search_config
from nmt_ls.exact import check_exact, estimator_diagram, exact_figures, exact_tokens
from nmt_ls.experiment.checkpoint import CheckpointName
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.distillation import OF_TEACHER
from nmt_ls.experiment.processor import choose_device
from nmt_ls.experiment.records import FITTED_ON, prepare_results, temperature_recipe, warn_of_flattery
from nmt_ls.fresh_text import fresh_text
from nmt_ls.given_records import (
    calibrated,
    calibrator_recipe,
    read_token_records,
    record_diagrams,
    record_figures,
    record_recipe,
)
from nmt_ls.given_translations import compare, comparison_table, read_translations, translations_recipe
from nmt_ls.measured_run import MeasuredRun
from nmt_ls.metrics.logit_gaps import LogitGaps
from nmt_ls.metrics.slices import sliced_sums
from nmt_ls.metrics.temperature import check_temperature
from nmt_ls.runs import find_run, run_corpus
from nmt_ls.score_figures import (
    OutputTokens,
    Watcher,
    forced_figures,
    gap_diagram,
    gap_figures,
    nbest_figures,
    reliability,
    risks,
    sentence_figures,
    slice_figures,
    translation_figures,
)
from nmt_ls.score_records import Figures, figure_table
from nmt_ls.scoring import BINS, Evaluation, evaluate, label_prior
from nmt_ls.search_changes import SearchChanges
from nmt_ls.sweep_cells import DIGITS, forced_table
from nmt_ls.translator import Translator

GIVEN = {"records": ("fit_on", "same_split"), "translations": ("baseline", "reference")}
"""What may be scored in the place of a run, and the settings that belong to it alone."""
ANYWHERE = {"records": ("results", "figure", "slices"), "translations": ("results",)}
"""Of the settings of a run, those that go with it too."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Which run to score, on what, and where the figures go.

    run: a run's directory; left out, the newest finished one under runs/.
    records: instead of a run, a JSON-lines file with any toolkit's probabilities, a token or a sentence a line:
        sentence, position, confidence, correct, and log_prob if known (see the README); - is standard input.
    fit_on: another file of records, to which an isotonic calibrator is fitted that is applied to those of records.
    same_split: whether fit_on may hold the very tokens of records, which flatters the calibrated figures.
    translations: instead of a run, a file of any system's translations, a line each, to be compared with a baseline's.
    baseline: the other system's translations of the same lines.
    reference: files with the reference translations of the same lines; several are several references.
    data: where the corpus of the run lies, if no longer where it was trained.
    checkpoint: which weights of the run.
    split: of the run's corpus.
    temperature: a number, or fitted (the one of lowest NLL on the validation split); left out, the run's own.
    results: a directory to whose records.jsonl every figure is appended that is not there yet.
    figure: whether to draw diagrams there too.
    slices: whether to give calibration apart by position, predicted frequency and end, and source length.
    exact_tokens: on the embedded corpus, how many fresh tokens (a million, say) to hold against the truth; 0 is none.
    precision: of the search; auto takes what is fast here. Likelihood and calibration are in fp32 always.
    device: auto takes CUDA where there is a GPU.
    """

    run: str | None = None
    records: str | None = None
    fit_on: str | None = None
    same_split: bool = False
    translations: str | None = None
    baseline: str | None = None
    reference: tuple[str, ...] = ()
    data: str | None = None
    checkpoint: CheckpointName = "best"
    split: str = "test"
    temperature: float | Literal["fitted"] | None = None
    results: str | None = None
    figure: bool = True
    slices: bool = True
    exact_tokens: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    search: SearchChanges = field(default_factory=SearchChanges)

    def __post_init__(self) -> None:
        if self.temperature is not None and self.temperature != "fitted":
            check_temperature(self.temperature)
        if self.exact_tokens < 0:
            raise ValueError(f"exact_tokens must not be negative, got {self.exact_tokens}")
        if self.search.samples:
            raise ValueError("search.samples: score translates by search; samples belong to decode")
        if self.records is not None and self.temperature is not None:
            raise ValueError(
                f"temperature: {self.temperature} needs logits, and records hold one probability a token: none can be "
                "fitted or applied; leave it out, apply it in the toolkit that wrote them, or calibrate with fit_on"
            )
        self._check_given()

    def _check_given(self) -> None:
        """Beside given files stands nothing that needs a model, and what belongs to them does not stand alone."""
        changed = {
            entry.name
            for entry in fields(self)
            if getattr(self, entry.name) != (entry.default if entry.default is not MISSING else SearchChanges())
        }
        for files, own in GIVEN.items():
            if files not in changed:
                for name in sorted(changed & set(own)):
                    raise ValueError(f"{name}: belongs to {files}, which was not given; name that file too")
                continue
            for name in sorted(changed - {files, *own, *ANYWHERE[files]}):
                owner = next((other for other, its in GIVEN.items() if name in (other, *its)), "a run")
                raise ValueError(f"{name}: belongs to {owner}, but {files} was given; name one of the two")
        for name in GIVEN["translations"]:
            if "translations" in changed and name not in changed:
                raise ValueError(f"{name}: not given; translations are compared with a baseline, by references")
        if self.same_split and self.fit_on is None:
            raise ValueError("same_split: belongs to fit_on, which was not given; name that file too")
        if self.records == self.fit_on == "-":
            raise ValueError("fit_on: records is standard input already; name a file")


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Figures with their recipe, and diagrams by the names of their files. title: of what they are. table: as they are
    printed. sentences: the sums of every sentence, which tests resample, where the temperature was fitted; those at
    others are a sweep's."""

    title: str
    table: str
    groups: list[Figures]
    recipe: dict[str, Any]
    diagrams: dict[str, Figure]
    sentences: pa.Table | None = None


def score_records(config: ScoreConfig) -> Scored:
    """The calibration report of the file `config.records`, and with `config.fit_on` of its calibrated confidences.

    Raises UserError for the first line that does not fit, and for what `calibrated` refuses.
    """
    tokens = read_token_records(str(config.records))
    title, reported = tokens.name, [(tokens, tokens.stem, dict[str, Any]())]
    if config.fit_on is not None:
        fitted = read_token_records(config.fit_on, "fit_on")
        title += f", and calibrated by isotonic regression on {fitted.name} ({len(fitted.correct):,} tokens)"
        after = calibrated(tokens, fitted, config.same_split)
        reported.append((after, f"{tokens.stem}-isotonic-{fitted.stem}", calibrator_recipe(tokens, fitted)))
    if config.results is not None:
        prepare_results(Path(config.results))
    groups, diagrams = list[Figures](), dict[str, Figure]()
    for each, name, own in reported:
        whole, *slices = record_figures(each)
        kept = [whole, *(slices if config.slices else [])]
        groups += [replace(group, recipe={**group.recipe, **own}) for group in kept]
        if config.figure and config.results is not None:
            diagrams |= record_diagrams(each, name)
    table = figure_table(groups)
    return Scored(title=title, table=table, groups=groups, recipe=record_recipe(tokens), diagrams=diagrams)


def score_translations(config: ScoreConfig) -> Scored:
    """Two systems' translations compared. Raises UserError for files that cannot be read or do not pair up."""
    files = str(config.translations), str(config.baseline), config.reference
    given = read_translations(*files)
    if config.results is not None:
        prepare_results(Path(config.results))
    comparisons = compare(given)
    return Scored(
        title=f"{files[0]} (ours) and {files[1]} (baseline), {len(given.ours):,} lines",
        table=comparison_table(comparisons),
        groups=[one.figures() for one in comparisons],
        recipe=translations_recipe(*files),
        diagrams={},
    )


def score(config: ScoreConfig) -> Scored:
    """Score a run on a split, or what is given in its place.

    Raises UserError for runs, corpora, files and settings that do not fit, before any work.
    """
    if config.records is not None:
        return score_records(config)
    if config.translations is not None:
        return score_translations(config)
    path = find_run(config.run)
    run = MeasuredRun.open(path, config.checkpoint)
    search = config.search.applied_to(run.config.search)
    if search.samples:
        raise UserError(f"search.samples: {path} draws its translations; search for them, with --search.samples 0")
    temperature = search.temperature if config.temperature is None else config.temperature
    corpus = run_corpus(path, config.data)
    split = corpus.split(config.split)
    if temperature == "fitted":
        corpus.split(FITTED_ON)
    if config.exact_tokens:
        check_exact(corpus)
    if config.results is not None:
        prepare_results(Path(config.results))
    translator = Translator.load(path, config.checkpoint, choose_device(config.device), config.precision)
    translator.check_search(search)
    prior = label_prior(run.config.loss, corpus, translator.device)
    if temperature == "fitted":
        warn_of_flattery(config.split)
    search = search_config(temperature, search, path, translator, corpus)
    watcher = Watcher(len(split), search.temperature)
    with tqdm(total=len(split), unit=" sentences", leave=False, disable=None) as bar:
        evaluation = evaluate(
            translator, split, search, loss=run.config.loss, prior=prior, on_progress=bar.update, watch=watcher
        )
    exact = against_truth(translator, corpus, config.exact_tokens, search.temperature) if config.exact_tokens else []
    found = Found(
        run=run,
        corpus=corpus,
        split=split,
        evaluation=evaluation,
        watcher=watcher,
        exact=exact,
        fitted=temperature == "fitted",
    )
    shown = "fitted" if temperature == "fitted" else search.temperature
    in_fp32 = translator.precision.of_likelihood.label()
    groups = [
        group if group.searched else replace(group, recipe={"precision": in_fp32, **group.recipe})
        for group in found.groups(config.slices)
    ]
    return Scored(
        title=f"{path}, {config.checkpoint} checkpoint, {config.split} split",
        table=figure_table(groups),
        groups=groups,
        recipe={
            **run.recipe(search, translator.precision, split=config.split, device=translator.device),
            **temperature_recipe(temperature),
            "training_command": run.manifest["command"],
            "training_threads": run.manifest["threads"],
        },
        diagrams=found.diagrams(f"T{shown}") if config.figure and config.results is not None else {},
        sentences=(
            found.sentences(search.temperature) if temperature == "fitted" and config.results is not None else None
        ),
    )


def against_truth(translator: Translator, corpus: Corpus, count: int, temperature: float) -> list[Figures]:
    """Exact figures on so many fresh tokens."""
    with tqdm(total=count, desc="drawing", unit=" tokens", leave=False, disable=None) as bar:
        text = fresh_text(corpus, count, bar.update)
    with tqdm(total=text.tokens, desc="against the truth", unit=" tokens", leave=False, disable=None) as bar:
        return exact_figures(exact_tokens(translator, text, count, temperature, bar.update))


@dataclass(frozen=True, kw_only=True)
class Found:
    """Everything that one pass of `score` found."""

    run: MeasuredRun
    corpus: Corpus
    split: Split
    evaluation: Evaluation
    watcher: Watcher
    exact: list[Figures]
    fitted: bool  # the temperature

    @cached_property
    def outputs(self) -> OutputTokens:
        """Of the model itself."""
        return OutputTokens(self.evaluation, self.split, self.corpus.target_vocabulary)

    @cached_property
    def gaps(self) -> LogitGaps:
        """Of every target token."""
        return self.watcher.gaps.compute()

    def groups(self, slices: bool) -> list[Figures]:
        """Every figure; those of slices if wanted."""
        evaluation = self.evaluation
        return [
            forced_figures(evaluation.teacher_forced),
            *(
                []
                if (step := self.run.best_validation_step()) is None
                else [Figures(values={"best_validation_step": step})]
            ),
            *self.of_teaching(),
            translation_figures(evaluation),
            gap_figures(self.gaps, self.run.config.loss),
            *([self.outputs.figures()] if len(self.outputs.confidences) else []),
            sentence_figures(evaluation, self.split, self.watcher.empty_S),
            *nbest_figures(evaluation, self.split),
            *self.exact,
            *(slice_figures(evaluation.teacher_forced.tokens, self.split, self.corpus) if slices else []),
        ]

    def of_teaching(self) -> list[Figures]:
        """Of a student, beside its figures on the test split at a temperature that was given: those of its teacher."""
        here = self.split.name == "test" and not self.fitted
        values = self.run.of_teaching() if here else {}
        return [Figures(values=values, recipe=OF_TEACHER)] if values else []

    def sentences(self, temperature: float) -> pa.Table:
        """Teacher-forced sums of every sentence of the split."""
        tokens, count = self.evaluation.teacher_forced.tokens, len(self.split)
        return forced_table(
            self.run.cell(self.split.name) | {"temperature": round(temperature, DIGITS)},
            np.bincount(tokens.sentences, weights=-tokens.log_probs, minlength=count).astype(np.float64),
            np.bincount(tokens.sentences, minlength=count).astype(np.float64),
            sliced_sums(tokens.confidences, tokens.correct, tokens.sentences, count, BINS),
        )

    def diagrams(self, temperature: str) -> dict[str, Figure]:
        """By the names of their files."""
        run, evaluation, forced = self.run, self.evaluation, self.evaluation.teacher_forced
        name = f"{run.path.name} ({run.checkpoint}), {self.split.name}"
        stem = f"{run.path.name}-{run.checkpoint}-{self.split.name}"
        ece, bleu = forced.calibration.ece, evaluation.translation.bleu
        gaps = gap_figures(self.gaps, run.config.loss)
        diagrams = {
            f"reliability-{stem}-{temperature}": reliability(
                name, forced, None, f"ECE {ece:.3f}, NLL {forced.likelihood.nll:.3f}, BLEU {bleu:.1f}"
            ),
            f"risk-coverage-{stem}-{temperature}": risks(evaluation, self.split, name),
            f"logit-gaps-{stem}": gap_diagram(f"α = {run.config.loss.alpha:g}", self.gaps, gaps, name),
        }
        if len(self.outputs.confidences):
            diagrams[f"inference-{stem}-{temperature}"] = reliability(name, forced, self.outputs, name)
        if self.exact:
            title = f"{run.path.name} ({run.checkpoint}): estimators of ECE"
            diagrams[f"exact-{run.path.name}-{run.checkpoint}-{temperature}"] = estimator_diagram(self.exact, title)
        return diagrams
