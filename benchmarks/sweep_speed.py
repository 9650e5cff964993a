"""python -m benchmarks.sweep_speed: NLL and ECE at many temperatures from one forward pass, beside one temperature.

End to end on a split: batches, forward pass, logits, statistics. The model is a run's, or one of random weights on a
prepared corpus. `directly` is a grid that is even in T and not in 1/T, where every temperature costs its exponentials;
`separately` is the time of one temperature times their number: what a loop over temperatures would take.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.common import (
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
from nmt_ls.metrics.temperature_grid import GridPoint, TemperatureGrid, inverse_temperature_grid
from nmt_ls.scoring import slabs, split_batches
from nmt_ls.transformer import Transformer, TransformerConfig
from nmt_ls.translator import Translator


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
        data: a prepared corpus, for random weights; not read where run is given.
        size: preset of the model of random weights.
        run: a finished run.
        split: of the corpus.
        temperatures: how many.
        repeats: rounds, interleaved.
        threads: 0 leaves PyTorch's choice.
        clock: wall, or cpu (processor time, on a machine that others use too; needs threads 1).
        out: where the records go; empty for nowhere.
    """

    data: str = "data/multi30k-en-de"
    size: str = "tiny"
    run: str | None = None
    split: str = "test"
    temperatures: int = 21
    repeats: int = 5
    threads: int = 0
    clock: str = "wall"
    out: str = "results/speed/sweep_speed.jsonl"

    def __post_init__(self) -> None:
        check_clock(self.clock, self.threads)
        if min(self.temperatures, self.repeats) < 1:
            raise ValueError("temperatures and repeats must be positive")


def load(config: BenchmarkConfig) -> tuple[Transformer, Split]:
    """The model, in evaluation mode, and the split."""
    if config.run is not None:
        return Translator.load(config.run).model, run_corpus(Path(config.run)).split(config.split)
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


def main(config: BenchmarkConfig) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision("medium")
    gemm = best_gemm_rates(config.clock)
    print(describe_machine(gemm))
    seconds = take_turns(contest(config), config.repeats, config.clock)
    rows = [
        {
            "what": name,
            "seconds": statistics.median(values),
            "seconds at best": min(values),
            "to one": ratio(values, seconds["one"]),
            "to one at best": min(values) / min(seconds["one"]),
        }
        for name, values in seconds.items()
    ]
    separately = config.temperatures * statistics.median(seconds["one"])
    rows.append({"what": f"{config.temperatures} separately", "seconds": separately, "to one": config.temperatures})
    what = config.run or f"{config.size}, random weights, {config.data}"
    columns = {"what": "", "seconds": ".2f", "seconds at best": ".2f", "to one": ".2f", "to one at best": ".2f"}
    print_table(f"NLL and ECE at {config.temperatures} temperatures: {what}, {config.split}", rows, columns)
    about = {
        "model": Path(config.run).name if config.run else f"{config.size}, random weights",
        "split": config.split,
        "temperatures": config.temperatures,
        "repeats": config.repeats,
        "clock": config.clock,
    }
    write_records(config.out, "sweep_speed", [({**about, "what": row.pop("what")}, row) for row in rows])


if __name__ == "__main__":
    run_command(
        main,
        BenchmarkConfig,
        program="python -m benchmarks.sweep_speed",
        description="NLL and ECE at many temperatures from one forward pass.",
    )
