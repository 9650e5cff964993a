"""python -m benchmarks.scaling: how cost grows with the corpus, the vocabulary, the beam, and how two cores are used.

corpus: preparing pairs of the embedded grammar, and one epoch of training on them: seconds and peak memory, each in a
process of its own. vocabulary: a training step. beam: a forced translation of a batch. Each beside the first of its
sizes. cores: one run of two threads beside two runs of one thread at the same time, in updates a second of both
together: in each round all runs of a way begin at once, and it ends with the last of them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.beam_search import BenchmarkConfig as SearchBenchmarkConfig
from benchmarks.beam_search import build_model, build_sources, search_forced
from benchmarks.common import (
    arithmetic_here,
    best_gemm_rates,
    describe_machine,
    print_table,
    ratio,
    take_turns,
    write_records,
)
from benchmarks.metrics_speed import memory
from benchmarks.training_step import build
from nmt_ls.batching import Batch, epoch_batches
from nmt_ls.corpus import Corpus
from nmt_ls.embedded import EmbeddedSizes, prepare_embedded
from nmt_ls.experiment.command_line import run_command
from nmt_ls.experiment.training_run import bound_kernel_cache
from nmt_ls.transformer import TransformerConfig

PARTS = ("corpus", "vocabulary", "beam", "cores")
ALPHA = 0.1
VOCABULARY = 1_000
"""Pieces of the embedded corpora."""
WAYS = ((1, 2), (1, 1), (2, 1))
"""Runs at the same time, and threads of each."""
CORES_SIZES = {"vocabulary": 10_000, "sentences": 256}
"""What those runs train on."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
        parts: of the four tables.
        pairs: sizes of the corpus; a million takes about 20 minutes.
        vocabularies: rows of the embeddings.
        beams: hypotheses a sentence.
        arithmetic: of all: fp32, medium, bf16, or auto: bf16, but fp32 where bf16 is emulated.
        updates: of each run in the table of cores.
        repeats: rounds of vocabulary, beam and cores.
        out: where the records go; empty for nowhere.
    """

    parts: tuple[str, ...] = PARTS
    pairs: tuple[int, ...] = (1_000, 10_000, 100_000)
    vocabularies: tuple[int, ...] = (1_000, 4_000, 16_000, 64_000)
    beams: tuple[int, ...] = (1, 2, 4, 8, 16)
    arithmetic: str = "auto"
    updates: int = 8
    repeats: int = 3
    out: str = "results/speed/scaling.jsonl"

    def __post_init__(self) -> None:
        if wrong := sorted(set(self.parts) - set(PARTS)):
            raise ValueError(f"parts must be among {', '.join(PARTS)}, not {', '.join(wrong)}")
        if self.arithmetic not in ("auto", "fp32", "medium", "bf16"):
            raise ValueError(f"arithmetic must be auto, fp32, medium or bf16, not {self.arithmetic!r}")
        if min(self.pairs, default=VOCABULARY) < VOCABULARY:
            raise ValueError(f"pairs must be at least {VOCABULARY:,}: fewer have no vocabulary of so many pieces")
        if min(self.updates, self.repeats, *self.vocabularies, *self.beams) < 1:
            raise ValueError("sizes, updates and repeats must be positive")


def in_a_process(work: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Figures of work in a fresh process, with its peak memory."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sender, work, arguments))
    process.start()
    sender.close()
    try:
        return dict(receiver.recv())
    finally:
        process.join()


def _report(sender: Connection, work: Callable[..., dict[str, float]], arguments: tuple[Any, ...]) -> None:
    figures = work(*arguments)
    # not getrusage: its peak counts what the parent had when it forked
    sender.send(figures | {"peak MiB": memory("VmHWM") / 2**20})


def prepare(directory: Path, pairs: int) -> dict[str, float]:
    """Prepare the embedded corpus of this size."""
    start = time.perf_counter()
    prepare_embedded(directory, 0, EmbeddedSizes(train=pairs, validation=100, test=100, vocabulary=VOCABULARY))
    return {"seconds": time.perf_counter() - start}


def model_config(rows: int) -> TransformerConfig:
    """The tiny preset with a vocabulary of this size."""
    return TransformerConfig(source_vocabulary=rows, target_vocabulary=rows, norm="post")


def train_epoch(directory: Path, arithmetic: str, updates: int = 0) -> dict[str, float]:
    """One epoch of the tiny model (or so many updates of it)."""
    bound_kernel_cache()
    corpus = Corpus.load(directory)
    step = build(f"ours-{arithmetic}", model_config(corpus.source_vocabulary.size), ALPHA)
    start = time.perf_counter()
    batches = epoch_batches(corpus.split("train"), max_tokens=4096, seed=1, epoch=1)
    tokens = 0
    for number in range(min(updates or len(batches), len(batches))):
        batch = batches[number]
        step(batch)
        tokens += batch.tokens
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "tokens/s": tokens / seconds}


def scale_corpus(config: BenchmarkConfig) -> list[dict[str, Any]]:
    """A row a size and stage."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for pairs in config.pairs:
            directory = Path(folder) / str(pairs)
            rows.append({"pairs": pairs, "stage": "prepare", **in_a_process(prepare, directory, pairs)})
            trained = in_a_process(train_epoch, directory, config.arithmetic)
            rows.append({"pairs": pairs, "stage": "epoch", **trained})
            for row, first in zip(rows[-2:], rows[:2], strict=True):
                row["microseconds/pair"] = 1e6 * row["seconds"] / pairs
                row["to the first"] = row["microseconds/pair"] / first["microseconds/pair"]
                row["MiB above the first"] = row["peak MiB"] - first["peak MiB"]
    return rows


def random_batch(rows: int, sentences: int = 256, length: int = 16) -> Batch:
    """4,096 tokens without padding."""
    generator = torch.Generator().manual_seed(3)
    source_BS, target_in_BT, target_out_BT = torch.randint(4, rows, (3, sentences, length), generator=generator)
    return Batch(
        source_BS=source_BS,
        target_in_BT=target_in_BT,
        target_out_BT=target_out_BT,
        indices_B=torch.arange(sentences),
        tokens=sentences * length,
    )


def scale_vocabulary(config: BenchmarkConfig) -> list[dict[str, Any]]:
    """A row a vocabulary: a training step of 4,096 tokens of the tiny model."""
    steps, batches = {}, {}
    for size in config.vocabularies:
        steps[size] = build(f"ours-{config.arithmetic}", model_config(size), ALPHA)
        batches[size] = random_batch(size)
    seconds = take_turns({str(n): lambda n=n: steps[n](batches[n]) for n in steps}, config.repeats)  # type: ignore[misc]
    return _rows("vocabulary", config.vocabularies, list(seconds.values()), 4096)


def _rows(key: str, sizes: Sequence[int], seconds: Sequence[list[float]], tokens: int) -> list[dict[str, Any]]:
    """A row a size; the ratio is of the time to that of the first."""
    return [
        {
            key: size,
            "seconds": statistics.median(values),
            "tokens/s": tokens / statistics.median(values),
            "to the first": ratio(values, seconds[0]),
        }
        for size, values in zip(sizes, seconds, strict=True)
    ]


def scale_beam(config: BenchmarkConfig) -> list[dict[str, Any]]:
    """A row a beam: 64 sentences, 24 forced steps of the small model."""
    model = build_model("small")

    def translate(beam: int) -> None:
        search = SearchBenchmarkConfig(beam=beam)
        search_forced(model, build_sources(search, "small"), search, config.arithmetic)

    seconds = take_turns({str(beam): lambda beam=beam: translate(beam) for beam in config.beams}, config.repeats)  # type: ignore[misc]
    return _rows("beam", config.beams, list(seconds.values()), 64 * 24)


class Team:
    """Runs of so many threads each, in processes of their own, which train whenever they are told to."""

    def __init__(self, runs: int, threads: int, arithmetic: str, updates: int) -> None:
        context = get_context("spawn")
        pipes = [context.Pipe() for _ in range(runs)]
        self._connections = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(
                target=_train_when_told, args=(theirs, threads, arithmetic, updates, CORES_SIZES), daemon=True
            )
            for _, theirs in pipes
        ]
        for process, (_, theirs) in zip(self._processes, pipes, strict=True):
            process.start()
            theirs.close()  # so that its end is seen

    def train(self) -> None:
        """All begin at once; returns when the last has made its updates."""
        for connection in self._connections:
            connection.send("begin")
        for connection in self._connections:
            connection.recv()

    def close(self) -> None:
        """End the processes, and wait for them."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join()


def _train_when_told(
    connection: Connection, threads: int, arithmetic: str, updates: int, sizes: dict[str, int]
) -> None:
    torch.set_num_threads(threads)
    rows = sizes["vocabulary"]
    step, batch = build(f"ours-{arithmetic}", model_config(rows), ALPHA), random_batch(rows, sizes["sentences"])
    with suppress(EOFError, ConnectionResetError):  # the parent has closed its end
        while connection.recv():
            for _ in range(updates):
                step(batch)
            connection.send("done")


def use_cores(config: BenchmarkConfig) -> list[dict[str, Any]]:
    """A row a way to use two cores: updates a second of all runs together, and their ratio to the first way's."""
    with ExitStack() as stack:
        teams = {way: Team(*way, config.arithmetic, config.updates) for way in WAYS}
        for team in teams.values():
            stack.callback(team.close)
        seconds = list(take_turns({str(way): team.train for way, team in teams.items()}, config.repeats).values())
    return [
        {
            "runs": runs,
            "threads of each": threads,
            "updates/s together": runs * config.updates / statistics.median(taken),
            "to the first": runs * ratio(seconds[0], taken),
        }
        for (runs, threads), taken in zip(WAYS, seconds, strict=True)
    ]


TABLES: dict[str, tuple[Callable[[BenchmarkConfig], list[dict[str, Any]]], tuple[str, ...], dict[str, str]]] = {
    "corpus": (
        scale_corpus,
        ("pairs", "stage"),
        {"seconds": ".1f", "microseconds/pair": ",.0f", "to the first": ".2f", "tokens/s": ",.0f"}
        | {"peak MiB": ",.0f", "MiB above the first": "+,.0f"},
    ),
    "vocabulary": (scale_vocabulary, ("vocabulary",), {"seconds": ".3f", "tokens/s": ",.0f", "to the first": ".2f"}),
    "beam": (scale_beam, ("beam",), {"seconds": ".3f", "tokens/s": ",.0f", "to the first": ".2f"}),
    "cores": (use_cores, ("runs", "threads of each"), {"updates/s together": ".2f", "to the first": ".2f"}),
}


def main(config: BenchmarkConfig) -> None:
    products = best_gemm_rates()
    print(describe_machine(products))
    if config.arithmetic == "auto":
        config = replace(config, arithmetic=arithmetic_here((), ("fp32", "bf16"), products)[-1])
    for part in config.parts:
        measure, keys, columns = TABLES[part]
        rows = measure(config)
        print_table(f"{part}, {config.arithmetic}", rows, dict.fromkeys(keys, "") | columns)
        named = [
            (
                {key.replace(" ", "_"): row[key] for key in keys} | {"arithmetic": config.arithmetic},
                {name: value for name, value in row.items() if name not in keys},
            )
            for row in rows
        ]
        write_records(config.out, f"scaling/{part}", named, products, updates=config.updates, repeats=config.repeats)


if __name__ == "__main__":
    run_command(
        main,
        BenchmarkConfig,
        program="python -m benchmarks.scaling",
        description="How cost grows with the corpus, the vocabulary and the beam, and how two cores are best used.",
    )
