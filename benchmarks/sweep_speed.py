"""python -m benchmarks.sweep_speed: many temperatures beside one.

NLL and ECE come from one forward pass, end to end on a split: batches, forward pass, logits, statistics. The model is a
run's, or one of random weights on a prepared corpus. `directly` is a grid that is even in T and not in 1/T, where every
temperature costs its exponentials; `separately` is the time of one temperature times their number: what a loop over
temperatures would take.

Translations, of a run only, are decoded together at temperatures evenly from 0.8 to 1.4, text to text, beside the same
one after the other and beside one of them, T = 1.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.common import (
    Products,
    best_gemm_rates,
    check_clock,
    describe_machine,
    print_table,
    ratio,
    take_turns,
    write_records,
)
from nmt_ls.corpus import Corpus, Split
from nmt_ls.decoding import run_corpus
from nmt_ls.experiment.command_line import run_command
from nmt_ls.experiment.precision import choose_precision
from nmt_ls.metrics.temperature_grid import GridPoint, TemperatureGrid, inverse_temperature_grid
from nmt_ls.scoring import slabs, split_batches
from nmt_ls.search import SearchConfig
from nmt_ls.transformer import Transformer, TransformerConfig
from nmt_ls.translator import Translator


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
        data: a prepared corpus, for random weights; not read where run is given.
        size: preset of the model of random weights.
        run: a finished run.
        checkpoint: of the run.
        split: of the corpus.
        temperatures: how many, of NLL and ECE; 0 leaves them out.
        decodes: at how many temperatures a run translates; 0 leaves them out.
        sentences: how many of the split are translated; 0 is all.
        beam: of the translations.
        precision: of the translations.
        repeats: rounds, interleaved.
        threads: 0 leaves PyTorch's choice.
        clock: wall, or cpu (processor time, on a machine that others use too; needs threads 1).
        out: where the records go; empty for nowhere.
    """

    data: str = "data/multi30k-en-de"
    size: str = "tiny"
    run: str | None = None
    checkpoint: Literal["best", "last", "averaged"] = "best"
    split: str = "test"
    temperatures: int = 21
    decodes: int = 11
    sentences: int = 0
    beam: int = 5
    precision: Literal["fp32", "bf16"] = "fp32"
    repeats: int = 5
    threads: int = 0
    clock: str = "wall"
    out: str = "results/speed/sweep_speed.jsonl"

    def __post_init__(self) -> None:
        check_clock(self.clock, self.threads)
        if self.repeats < 1:
            raise ValueError("repeats must be positive")
        if min(self.temperatures, self.decodes, self.sentences) < 0:
            raise ValueError("temperatures, decodes and sentences must not be negative")


def load(config: BenchmarkConfig) -> tuple[Transformer, Split]:
    """The model, in evaluation mode, and the split."""
    if config.run is not None:
        return Translator.load(config.run, config.checkpoint).model, run_corpus(Path(config.run)).split(config.split)
    corpus = Corpus.load(config.data)
    torch.manual_seed(1)
    model = Transformer(
        TransformerConfig(
            preset=config.size,  # type: ignore[arg-type]
            source_vocabulary=corpus.source_vocabulary.size,
            target_vocabulary=corpus.target_vocabulary.size,
        )
    )
    return model.eval(), corpus.split(config.split)


@torch.no_grad()
def sweep(model: Transformer, split: Split, inverse_temperatures: Sequence[float]) -> list[GridPoint]:
    """One pass over the split."""
    grid = TemperatureGrid(inverse_temperatures)
    for slab in slabs(model, split_batches(split)):
        grid.update(model.logits(slab.hidden_ND), slab.targets_N)
    return grid.compute()


def contest(config: BenchmarkConfig) -> dict[str, Callable[[], object]]:
    """A pass without statistics, with one temperature, and with the grid, even in 1/T and even in T."""
    model, split = load(config)
    even = inverse_temperature_grid(0.6, 1.4, config.temperatures)
    uneven = [1 / value for value in inverse_temperature_grid(0.7, 1.7, config.temperatures)]

    @torch.no_grad()
    def logits_only() -> None:
        for slab in slabs(model, split_batches(split)):
            model.logits(slab.hidden_ND)

    return {
        "logits only": logits_only,
        "one": lambda: sweep(model, split, [1.0]),
        f"{config.temperatures} even in 1/T": lambda: sweep(model, split, even),
        f"{config.temperatures} directly": lambda: sweep(model, split, uneven),
    }


def decoding_contest(config: BenchmarkConfig) -> dict[str, Callable[[], list[list[str]]]]:
    """The translations of the run at one temperature, at all together, and at all one after the other."""
    assert config.run is not None
    translator = Translator.load(config.run, config.checkpoint, precision=config.precision)
    split = run_corpus(Path(config.run)).split(config.split)
    lines = [split.source_text(row) for row in range(min(config.sentences or len(split), len(split)))]
    temperatures = torch.linspace(0.8, 1.4, config.decodes, dtype=torch.float64).tolist()
    search = SearchConfig(beam=config.beam)

    def alone(temperature: float) -> list[str]:
        return [best[0].text for best in translator.translate(lines, search, temperature=temperature)]

    def together() -> list[list[str]]:
        found = translator.translate_at(temperatures, lines, search)
        return [[best[0].text for best in rows] for rows in found]

    return {
        "one": lambda: [alone(1.0)],
        f"{config.decodes} together": together,
        f"{config.decodes} separately": lambda: [alone(temperature) for temperature in temperatures],
    }


def rows_of(seconds: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """Medians, minima, and their ratios to those of `one`."""
    return [
        {
            "what": name,
            "seconds": statistics.median(values),
            "seconds at best": min(values),
            "to one": ratio(values, seconds["one"]),
            "to one at best": min(values) / min(seconds["one"]),
        }
        for name, values in seconds.items()
    ]


def report(
    config: BenchmarkConfig, products: Mapping[str, Products], title: str, rows: list[dict[str, Any]], **about: Any
) -> None:
    """Print a table, and append its figures to the records."""
    what = config.run or f"{config.size}, random weights, {config.data}"
    columns = {"what": "", "seconds": ".2f", "seconds at best": ".2f", "to one": ".2f", "to one at best": ".2f"}
    columns |= {"same": ".4f"} if any("same" in row for row in rows) else {}
    print_table(f"{title}: {what}, {config.split}", rows, columns)
    about |= {
        "model": Path(config.run).name if config.run else f"{config.size}, random weights",
        "checkpoint": config.checkpoint if config.run else "",
        "corpus": (run_corpus(Path(config.run)) if config.run else Corpus.load(config.data)).checksum,
        "split": config.split,
        "repeats": config.repeats,
        "clock": config.clock,
    }
    write_records(config.out, "sweep_speed", [({**about, "what": row.pop("what")}, row) for row in rows], products)


def measure_scores(config: BenchmarkConfig, products: Mapping[str, Products]) -> None:
    """NLL and ECE."""
    choose_precision("fp32").apply()  # what a sweep computes with
    seconds = take_turns(contest(config), config.repeats, config.clock)
    separately = config.temperatures * statistics.median(seconds["one"])
    rows = rows_of(seconds)
    rows.append({"what": f"{config.temperatures} separately", "seconds": separately, "to one": config.temperatures})
    title = f"NLL and ECE at {config.temperatures} temperatures"
    report(config, products, title, rows, temperatures=config.temperatures)


def measure_decodes(config: BenchmarkConfig, products: Mapping[str, Products]) -> None:
    """Translations; and the share of them that is the same together and one after the other."""
    texts: dict[str, list[list[str]]] = {}

    def keep(name: str, find: Callable[[], list[list[str]]]) -> None:
        texts[name] = find()

    contestants = {name: partial(keep, name, find) for name, find in decoding_contest(config).items()}
    rows = rows_of(take_turns(contestants, config.repeats, config.clock))
    _, together, separately = texts.values()
    same = [
        a == b for ours, theirs in zip(together, separately, strict=True) for a, b in zip(ours, theirs, strict=True)
    ]
    rows[1]["same"] = sum(same) / len(same)
    title = f"Translations of {len(together[0])} sentences, beam {config.beam}, {config.precision}"
    report(
        config,
        products,
        title,
        rows,
        decodes=config.decodes,
        sentences=len(together[0]),
        beam=config.beam,
        precision=config.precision,
    )


def main(config: BenchmarkConfig) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    products = best_gemm_rates(config.clock)
    print(describe_machine(products))
    if config.temperatures:
        measure_scores(config, products)
    if config.decodes and config.run is not None:
        measure_decodes(config, products)


if __name__ == "__main__":
    run_command(
        main,
        BenchmarkConfig,
        program="python -m benchmarks.sweep_speed",
        description="NLL and ECE from one forward pass, and translations, at many temperatures beside one.",
    )
