"""python -m benchmarks.training_step: target tokens a second of training, ours beside Hugging Face's Marian.

The same batches, spread evenly over one epoch of a prepared corpus, for everyone; a step is batch, forward pass,
smoothed loss, backward pass, norm of the gradient, optimiser. fairseq does not import on Python 3.11: its rates are
quoted. The second table says where the time of a step of ours goes, by kinds of operation (PyTorch's profiler).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.common import (
    arithmetic_here,
    best_gemm_rates,
    check_clock,
    describe_machine,
    precision_of,
    print_table,
    ratio,
    take_turns,
    write_records,
)
from benchmarks.marian import attention_mask, marian
from benchmarks.profiles import PROFILE_COLUMNS, take_apart
from nmt_ls.batching import Batch, epoch_batches
from nmt_ls.corpus import Corpus
from nmt_ls.experiment.command_line import run_command
from nmt_ls.experiment.precision import Precision
from nmt_ls.experiment.schedule import OptimizerConfig, build_optimizer
from nmt_ls.experiment.training_run import bound_kernel_cache
from nmt_ls.losses import fused_loss_and_nll
from nmt_ls.transformer import Transformer, TransformerConfig
from nmt_ls.vocabulary import PAD

FAIRSEQ = {"tiny": 5300.0, "small": 2200.0}
"""Target tokens a second of fairseq in fp32 on batches of 4,096 tokens of Multi30k, on one 2-core AMD machine with
AVX-512 (V = 9.6k), with two threads: quoted from there, not measured here."""
FAIRSEQ_GEMM = 230.0
"""GFLOP/s of the best fp32 product there, with two threads."""
FAIRSEQ_NOTE = "fairseq quoted, two threads: V 9.6k, dropout not stated"
CONTESTANTS = ("ours-fp32", "ours-medium", "ours-bf16", "hf-fp32", "hf-medium", "hf-bf16")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
        data: a prepared corpus.
        sizes: presets of the model.
        dropouts: of the model.
        contestants: ours or hf (Marian), each in fp32 (PyTorch's default kernels), medium (fp32 by oneDNN's) or bf16;
            empty for all, without bf16 where it is emulated.
        batches: of an epoch, evenly spaced from its first on, that make a round; more than it has: all.
        repeats: rounds, interleaved.
        max_tokens: of a batch, padding included.
        alpha: the smoothing.
        threads: 0 leaves PyTorch's choice.
        clock: wall, or cpu (processor time, on a machine that others use too; needs threads 1).
        profile: whether to take a step of ours apart.
        out: where the records go; empty for nowhere.
    """

    data: str = "data/multi30k-en-de"
    sizes: tuple[str, ...] = ("tiny", "small")
    dropouts: tuple[float, ...] = (0.1, 0.3)
    contestants: tuple[str, ...] = ()
    batches: int = 12
    repeats: int = 5
    max_tokens: int = 4096
    alpha: float = 0.1
    threads: int = 0
    clock: str = "wall"
    profile: bool = True
    out: str = "results/speed/training_step.jsonl"

    def __post_init__(self) -> None:
        check_clock(self.clock, self.threads)
        if wrong := sorted(set(self.contestants) - set(CONTESTANTS)):
            raise ValueError(f"contestants must be among {', '.join(CONTESTANTS)}, not {', '.join(wrong)}")
        if min(self.batches, self.repeats, self.max_tokens) < 1:
            raise ValueError("batches, repeats and max_tokens must be positive")


Step = Callable[[Batch], float]
"""Makes an update, and gives the loss before it, in nats a token."""


def our_step(model: Transformer, precision: Precision, alpha: float) -> Step:
    """An update as nmt_ls.experiment.engine makes it of nmt_ls.training's loss."""
    model.train()
    optimizer = build_optimizer(model, OptimizerConfig())

    def step(batch: Batch) -> float:
        precision.apply()
        with precision.autocast():
            hidden_ND = model(batch.source_BS, batch.target_in_BT).flatten(0, 1)
            targets_N = batch.target_out_BT.flatten()
            loss, _ = fused_loss_and_nll(
                hidden_ND, model.output_weight, targets_N, alpha, ignore_index=PAD, reduction="sum"
            )
        torch.autograd.backward(loss)
        _optimise(optimizer, batch.tokens)
        return float(loss.detach()) / batch.tokens

    return step


def marian_step(model: Any, precision: Precision, alpha: float) -> Step:
    """The same update of the same model in Hugging Face."""
    model.train()
    optimizer = build_optimizer(model, OptimizerConfig())

    def step(batch: Batch) -> float:
        precision.apply()
        with precision.autocast():
            logits_BTV = model(
                input_ids=batch.source_BS,
                attention_mask=attention_mask(batch.source_BS),
                decoder_input_ids=batch.target_in_BT,
                use_cache=False,
            ).logits
            logits_NV, targets_N = logits_BTV.flatten(0, 1), batch.target_out_BT.flatten()
            loss = F.cross_entropy(logits_NV, targets_N, ignore_index=PAD, label_smoothing=alpha, reduction="sum")
        torch.autograd.backward(loss)
        _optimise(optimizer, batch.tokens)
        return float(loss.detach()) / batch.tokens

    return step


def _optimise(optimizer: torch.optim.Optimizer, tokens: int) -> None:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    torch.nn.utils.get_total_norm(gradients)
    torch._foreach_mul_(gradients, 1 / tokens)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def build(contestant: str, config: TransformerConfig, alpha: float) -> Step:
    """The step of a contestant."""
    who, arithmetic = contestant.split("-")
    torch.manual_seed(1)
    if who == "ours":
        return our_step(Transformer(config), precision_of(arithmetic), alpha)
    return marian_step(marian(config), precision_of(arithmetic), alpha)


def race(
    steps: Mapping[str, Step], batches: Sequence[Batch], repeats: int, clock: str = "wall"
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, over all batches, which each makes anew in every round.

    They take turns round by round: batch by batch the kernels of one would push another's out of the cache.
    """
    return take_turns({name: partial(_all, step, batches) for name, step in steps.items()}, repeats, clock)


def rates(seconds: Mapping[str, list[float]], tokens: int) -> list[dict[str, Any]]:
    """A row a contestant: target tokens a second in the median and in the best round, and ratios to Marian.

    The ratios are of rates, medians of those within a round: to Marian in fp32 and in the same arithmetic, where these
    take part.
    """
    rows = []
    for name, taken in seconds.items():
        row: dict[str, Any] = {
            "contestant": name,
            "tokens/s": tokens / statistics.median(taken),
            "tokens/s at best": tokens / min(taken),
        }
        for title, peer in (("to hf-fp32", "hf-fp32"), ("to hf in the same", f"hf-{name.split('-')[1]}")):
            if peer in seconds:
                row[title] = ratio(seconds[peer], taken)
        rows.append(row)
    return rows


def compare_with_fairseq(rows: list[dict[str, Any]], size: str, threads: int, fp32_gflops: float) -> None:
    """Add the ratios to fairseq's quoted rate, where there is one for this size and number of threads.

    `by GEMM` divides each rate by the fp32 rate of its machine's products first: another machine may be faster.
    """
    if size not in FAIRSEQ or threads != 2:
        return
    for row in rows:
        row["to fairseq"] = row["tokens/s"] / FAIRSEQ[size]
        row["to fairseq by GEMM"] = (row["tokens/s"] / fp32_gflops) / (FAIRSEQ[size] / FAIRSEQ_GEMM)


def main(config: BenchmarkConfig) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    bound_kernel_cache()  # as training does
    products = best_gemm_rates(config.clock)
    print(describe_machine(products))
    contestants = arithmetic_here(config.contestants, CONTESTANTS, products)
    corpus = Corpus.load(config.data)
    epoch = epoch_batches(corpus.split("train"), max_tokens=config.max_tokens, seed=1, epoch=1)
    batches = epoch[:: max(1, len(epoch) // config.batches)][: config.batches]
    tokens = sum(batch.tokens for batch in batches)
    print(
        f"padding: {batches.padding():.1%} of these {len(batches)} batches, {epoch.padding():.1%} of all {len(epoch)}"
    )
    vocabulary = corpus.target_vocabulary.size
    recipe = {
        "batches": len(batches),
        "batches_of": len(epoch),
        "repeats": config.repeats,
        "clock": config.clock,
        "padding": round(batches.padding(), 4),
        "max_tokens": config.max_tokens,
        "vocabulary": vocabulary,
        "corpus": corpus.checksum,
        "alpha": config.alpha,
    }
    for size in config.sizes:
        for dropout in config.dropouts:
            model = TransformerConfig(
                preset=size,  # type: ignore[arg-type]
                source_vocabulary=vocabulary,
                target_vocabulary=vocabulary,
                dropout=dropout,
                norm="post",
            )
            steps = {name: build(name, model, config.alpha) for name in contestants}
            rows = rates(race(steps, batches, config.repeats, config.clock), tokens)
            compare_with_fairseq(rows, size, torch.get_num_threads(), products["fp32"].gflops)
            print_table(f"{size}, dropout {dropout}, V {vocabulary} ({FAIRSEQ_NOTE})", rows, _RATE_COLUMNS)
            about = {"size": size, "dropout": dropout, **recipe}
            named = [({**about, "contestant": row.pop("contestant")}, row) for row in rows]
            write_records(config.out, "training_step", named, products, fairseq=FAIRSEQ_NOTE)
            for name in contestants if config.profile else ():
                if name.startswith("ours"):
                    kinds = take_apart(partial(_all, steps[name], batches), len(batches))
                    print_table(f"{size}, dropout {dropout}, {name}: a step", kinds, PROFILE_COLUMNS)
                    figures = {f"ms in {row['kind']}": row["ms"] for row in kinds}
                    write_records(config.out, "training_step", [({**about, "contestant": name}, figures)], products)


def _all(step: Step, batches: Sequence[Batch]) -> None:
    for batch in batches:
        step(batch)


_RATE_COLUMNS = {
    "contestant": "",
    "tokens/s": ",.0f",
    "tokens/s at best": ",.0f",
    "to hf-fp32": ".2f",
    "to hf in the same": ".2f",
    "to fairseq": ".2f",
    "to fairseq by GEMM": ".2f",
}


if __name__ == "__main__":
    run_command(
        main,
        BenchmarkConfig,
        program="python -m benchmarks.training_step",
        description="Target tokens a second of training, beside Hugging Face's Marian and fairseq's quoted rates.",
    )
