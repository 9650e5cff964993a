"""What `sweep` measures: runs at many temperatures, cell by cell, each written as it ends and never measured twice.

Two kinds of cells. *Teacher-forced*: NLL and calibration at every temperature of a grid even in 1/T; a run's logits
are computed once for all of them. *Decoded*: translations at one temperature, beam and length penalty, with BLEU,
chrF, length ratio and brevity penalty, since temperature moves lengths too.

What decoded cells of a run share: up to TOGETHER temperatures of one beam and penalty are decoded together, for their
searches have most of their prefixes in common; and what the encoder made of a batch of sources serves all searches,
whatever their temperature, beam and penalty (as long as batches are the same: very wide beams have smaller ones).

What a kill costs: the cells in work, which are one run's teacher-forced ones, or the up to TOGETHER temperatures that
are being decoded together, since these are written when the whole split has been translated at all of them. Smaller
groups would lose less and have less in common. A session that is shorter than a group never gets beyond it: then name
fewer temperatures a call.

Shapes: S sentences, J temperatures, N tokens, B bins.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from nmt_ls.corpus import Corpus, Split
from nmt_ls.experiment.checkpoint import CheckpointName
from nmt_ls.experiment.precision import Precision, choose_precision
from nmt_ls.experiment.processor import choose_device
from nmt_ls.experiment.records import Record, command, prepare_results
from nmt_ls.measured_run import MeasuredRun, search_keys
from nmt_ls.metrics.calibration import MOMENTS, ece_from_sums, unbiased_squared_l2_from_sums
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.slices import sliced_sums
from nmt_ls.metrics.temperature import check_temperature
from nmt_ls.metrics.temperature_grid import inverse_temperature_grid, temperature_grid_statistics
from nmt_ls.metrics.translation import bleu_statistics, translation_scores
from nmt_ls.prefix_decoder import KeptEncodings
from nmt_ls.runs import run_corpus
from nmt_ls.scoring import BINS, slabs, split_batches
from nmt_ls.search import SearchConfig, shareable
from nmt_ls.sweep_cells import (
    DECODED,
    DIGITS,
    TEACHER_FORCED,
    Ledger,
    find_runs,
    forced_table,
    list_column,
    part_stem,
    rounded_temperature,
    sentence_table,
    short_hash,
)
from nmt_ls.translator import Hypothesis, Translator

Say = Callable[[str], object]
TOGETHER = 12
"""Temperatures decoded together at most. Their cells are written when all are done, so this is what a kill costs: the
time of some five searches."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Which runs to sweep, over what, and where the figures go.

    All runs are searched alike: their own search settings, which score and decode take, are not looked at.

    runs: directories of runs, or patterns such as 'runs/m30k-*'; left out, the newest finished run under runs/.
    data: where the runs' corpus lies, if not where they say.
    temperatures: of the translations: numbers, and grids first:last:step; none translates nothing.
    inverse_temperatures: of NLL and ECE: first:last:count, even in 1/T; 1 is always added.
    beams, length_penalties: of the translations, each with each. Beam 1 is refused beside several temperatures: no
    temperature changes what greedy search finds.
    results: the directory of records.jsonl, sentences.parquet and figures/; what is there already is not done again.
    Translations at up to 12 temperatures are written together, so a kill costs as much as some five searches.
    name: of the table's and the figure's files, where one directory has those of several sweeps.
    summarise: print the table and draw the figures; without, only measure (a study does so run by run).
    precision: of the search; auto takes what is fast here. NLL and calibration are in fp32 always.
    """

    runs: tuple[str, ...] = ()
    checkpoint: CheckpointName = "best"
    split: str = "validation"
    data: str | None = None
    temperatures: tuple[str, ...] = ("0.8:1.4:0.1",)
    inverse_temperatures: str = "0.5:1.6:45"
    beams: tuple[int, ...] = (5,)
    length_penalties: tuple[float, ...] = (1.0,)
    results: str = "results/sweep"
    name: str = ""
    summarise: bool = True
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        temperatures = self.decoded_temperatures
        _ = self.inverse_grid
        self._check_search()
        for key in ("beams", "length_penalties"):
            if not getattr(self, key) or len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"{key}: give at least one, and each only once")
        if 1 in self.beams and len(temperatures) > 1:
            raise ValueError(
                "beams: 1 is greedy search, whose translations no temperature changes; give a beam of 2 or more, "
                "or one temperature"
            )
        if self.threads < 0:
            raise ValueError(f"threads must not be negative, got {self.threads}")

    def _check_search(self) -> None:
        """Every beam and length penalty makes a search, and the rest of it is a sweep's."""
        for name, key in (("temperature", "temperatures"), ("beam", "beams"), ("length_penalty", "length_penalties")):
            if getattr(self.search, name) != getattr(SearchConfig(), name):
                raise ValueError(f"search.{name}: give it as --{key}")
        if self.search.samples or self.search.nbest > 1:
            raise ValueError(
                "search: a sweep looks for one translation of each sentence; samples and nbest are not its"
            )
        for name, key in (("beam", "beams"), ("length_penalty", "length_penalties")):
            for value in getattr(self, key):
                try:
                    replace(self.search, **{name: value})
                except ValueError as error:
                    raise ValueError(f"{key}: {error}") from None

    @cached_property
    def decoded_temperatures(self) -> list[float]:
        """The temperatures of the translations, rising."""
        if self.temperatures == ("none",):
            return []
        found = {value for text in self.temperatures for part in text.split(",") for value in _grid(part)}
        return sorted(found)

    @cached_property
    def inverse_grid(self) -> list[float]:
        """The inverse temperatures of NLL and ECE."""
        parts = self.inverse_temperatures.split(":")
        try:
            first, last, count = float(parts[0]), float(parts[1]), int(parts[2])
        except (ValueError, IndexError):
            parts = []
        if len(parts) != 3:
            raise ValueError(f"inverse_temperatures must be first:last:count, not {self.inverse_temperatures!r}")
        return [round(value, DIGITS) for value in inverse_temperature_grid(first, last, count)]

    @property
    def whole_inverse_grid(self) -> list[float]:
        """The same with 1, in rising order."""
        return sorted({*self.inverse_grid, 1.0})

    @cached_property
    def arithmetic(self) -> Precision:
        """What `precision` comes to here."""
        return choose_precision(self.precision, choose_device(self.device))

    def searches(self) -> Iterator[SearchConfig]:
        """The search of every decoded cell of a run."""
        for beam in self.beams:
            for penalty in self.length_penalties:
                for temperature in self.decoded_temperatures:
                    yield replace(self.search, beam=beam, length_penalty=penalty, temperature=temperature)


def _grid(text: str) -> list[float]:
    """A number, or first:last:step with the last included."""
    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        return [round(check_temperature(numbers[0]), DIGITS)]
    if len(numbers) != 3:
        raise ValueError(f"temperatures: {text!r} is neither a number nor a grid first:last:step")
    first, last, step = numbers
    if not step > 0 or last < first:
        raise ValueError(f"temperatures: the grid {text} needs a step above 0 and a last value not below the first")
    count = int((last - first) / step + 1e-9) + 1
    return [round(check_temperature(first + step * index), DIGITS) for index in range(count)]


class Sweep:
    """Measures one run's cells that are not there yet."""

    def __init__(self, run: MeasuredRun, config: SweepConfig, ledger: Ledger, say: Say) -> None:
        self.run, self.config, self.ledger, self.say = run, config, ledger, say
        self.encodings = KeptEncodings()

    @cached_property
    def corpus(self) -> Corpus:
        return run_corpus(self.run.path, self.config.data)

    @cached_property
    def split(self) -> Split:
        return self.corpus.split(self.config.split)

    @cached_property
    def translator(self) -> Translator:
        config = self.config
        translator = Translator.load(self.run.path, config.checkpoint, choose_device(config.device), config.arithmetic)
        translator.precision.apply()
        return translator

    def missing_inverses(self) -> list[float]:
        """Inverse temperatures whose NLL and ECE are not there yet."""
        identity = self.run.identity(self.config.split)
        return [
            inverse
            for inverse in self.config.whole_inverse_grid
            if not self.ledger.holds({**identity, "temperature": rounded_temperature(inverse)}, TEACHER_FORCED)
        ]

    def missing_searches(self) -> list[SearchConfig]:
        """Searches whose translations are not there yet."""
        identity = self.run.identity(self.config.split)
        return [
            search
            for search in self.config.searches()
            if not self.ledger.holds({**identity, **search_keys(search, self.config.arithmetic.kind)}, DECODED)
        ]

    def missing_groups(self) -> Iterator[list[SearchConfig]]:
        """The same, those together that differ only in temperature, at most TOGETHER of them."""
        for _, group in groupby(self.missing_searches(), lambda search: replace(search, temperature=1.0)):
            searches = list(group)
            most = TOGETHER if shareable(searches[0]) else 1
            for first in range(0, len(searches), most):
                yield searches[first : first + most]

    def teacher_forced(self, inverses: list[float]) -> None:
        """NLL and calibration at these inverse temperatures, from one pass over the split."""
        temperatures = [rounded_temperature(inverse) for inverse in inverses]
        nll_JS, tokens_S, sums_JSMB = sentence_sums(self.translator, self.split, inverses)
        records, tables = list[Record](), list[pa.Table]()
        recipe = self._signature(SearchConfig(), self.config.arithmetic.of_likelihood) | {"bins": BINS}
        for key in ("beam", "length_penalty"):  # nothing is searched
            del recipe[key]
        for j, temperature in enumerate(temperatures):
            total = sums_JSMB[j].sum(0)
            values = {
                "nll": float(nll_JS[j].sum() / tokens_S.sum()),
                "ece": float(ece_from_sums(total)),
                "squared_l2": float(unbiased_squared_l2_from_sums(total)),
            }
            signature = recipe | {"temperature": temperature}
            records += [Record(name=n, value=v, signature=signature, command=command()) for n, v in values.items()]
            cell = self.run.cell(self.config.split) | {"temperature": temperature}
            tables.append(forced_table(cell, nll_JS[j], tokens_S, sums_JSMB[j]))
        self.ledger.add(f"{self._stem()}-{short_hash(temperatures)}-teacher-forced", pa.concat_tables(tables), records)
        at_one = [f": NLL {r.value:.4f}" for r in records if r.name == "nll" and r.signature["temperature"] == 1.0]
        self.say(f"{self.run.path}: NLL and ECE at {len(inverses)} temperatures" + "".join(at_one))

    def decoded(self, searches: Sequence[SearchConfig], on_progress: Callable[[int], object]) -> None:
        """Translations of the whole split by searches that differ only in temperature, and their scores."""
        temperatures = [search.temperature for search in searches]
        sources = [self.split.source_text(row) for row in range(len(self.split))]
        together = self.translator.translate_at(
            temperatures, sources, searches[0], encodings=self.encodings, on_progress=on_progress
        )
        for search, found in zip(searches, together, strict=True):
            self._translated(search, [hypotheses[0] for hypotheses in found])

    def _translated(self, search: SearchConfig, best: Sequence[Hypothesis]) -> None:
        """The cell of one search."""
        split, keys = self.split, search_keys(search, self.config.arithmetic.kind)
        references = [split.references(row) for row in range(len(split))]
        texts = [hypothesis.text for hypothesis in best]
        scores = translation_scores(texts, references, ("bleu", "chrf"))
        values = {
            **scores.scores,
            "length_ratio": scores.length_ratio,
            "brevity_penalty": scores.brevity_penalty,
        }
        signature = self._signature(search, self.config.arithmetic)
        records = [
            Record(
                name=name,
                value=value,
                signature=signature | ({"sacrebleu": scores.signatures[name]} if name in scores.signatures else {}),
                command=command(),
            )
            for name, value in values.items()
        ]
        columns = {
            "hypothesis": pa.array(texts),
            "log_prob": pa.array([hypothesis.log_prob for hypothesis in best]),
            "hypothesis_tokens": pa.array([len(hypothesis.token_log_probs) for hypothesis in best], pa.int32()),
            "bleu_statistics": list_column(bleu_statistics(texts, references).astype(np.int32)),
        }
        cell = {
            **self.run.cell(self.config.split),
            "kind": "decoded",
            **{key: value if key != "search" else json.dumps(value, sort_keys=True) for key, value in keys.items()},
        }
        name = f"T{search.temperature:g}-beam{search.beam}-{short_hash(keys)}"
        self.ledger.add(f"{self._stem()}-{name}", sentence_table(len(split), cell, columns), records)
        self.say(
            f"{self.run.path}: T {search.temperature:g}, beam {search.beam}, length penalty {keys['length_penalty']}: "
            f"BLEU {scores.bleu:.2f}, length ratio {scores.length_ratio:.3f}"
        )

    def _stem(self) -> str:
        return part_stem(self.run.identity(self.config.split))

    def _signature(self, search: SearchConfig, precision: Precision) -> dict[str, Any]:
        return self.run.recipe(search, precision, split=self.config.split, device=self.translator.device)


def sentence_sums(
    translator: Translator, split: Split, inverses: Sequence[float]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Of every sentence, given its reference: NLL (nats) [J, S], tokens [S], and sums for every bin [J, S, 6, B].

    Tokens are those of the target that are not padding, end-of-sentence included. Logits are computed once.
    """
    model = translator.model
    parts: list[tuple[torch.Tensor, ...]] = []
    with torch.no_grad():
        for slab in slabs(model, split_batches(split)):
            found = temperature_grid_statistics(model.logits(slab.hidden_ND), slab.targets_N, inverses)
            parts.append((found.log_probs.cpu(), found.confidences.cpu(), found.correct.cpu(), slab.sentences_N))
    log_probs_JN, confidences_JN, correct_N, sentences_N = (
        torch.cat(column, -1).numpy() for column in zip(*parts, strict=True)
    )
    rows = len(split)
    tokens_S = np.bincount(sentences_N, minlength=rows).astype(np.float64)
    nll_JS: FloatArray = np.stack(
        [np.bincount(sentences_N, -row_N.astype(np.float64), rows) for row_N in log_probs_JN]
    ).astype(np.float64)
    sums_JSMB = np.stack([sliced_sums(row_N, correct_N, sentences_N, rows, BINS) for row_N in confidences_JN])
    assert sums_JSMB.shape == (len(inverses), rows, MOMENTS, BINS)
    return nll_JS, tokens_S, sums_JSMB


def sweep(config: SweepConfig) -> tuple[list[MeasuredRun], Ledger]:
    """Measure every cell that the results do not hold yet; the runs, and what the results hold now.

    Raises UserError for runs and a results directory that do not do, before any work; for a run's corpus in its turn.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    runs, results = find_runs(config.runs, config.checkpoint), Path(config.results)
    prepare_results(results)
    ledger = Ledger(results)

    def sweeps() -> Iterator[Sweep]:  # one at a time, for each holds its run's model
        return (Sweep(run, config, ledger, _say) for run in runs)

    left = sum(len(each.missing_searches()) + bool(each.missing_inverses()) for each in sweeps())
    whole = len(runs) * (len(list(config.searches())) + 1)
    print(f"{whole - left} of {whole} cells were measured before; {left} to go", file=sys.stderr)
    with tqdm(total=left, unit=" cells", leave=False, disable=None) as cells:
        for each in sweeps():
            if inverses := each.missing_inverses():
                each.teacher_forced(inverses)
                cells.update()
            for searches in each.missing_groups():
                whole = len(each.split) * len(searches)
                with tqdm(total=whole, unit=" translations", leave=False, disable=None) as bar:
                    each.decoded(searches, bar.update)
                cells.update(len(searches))
    return runs, ledger


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
