"""python -m benchmarks.beam_search: beam search beside CTranslate2 and Hugging Face, with the same weights.

Forced: random weights, and every translation has exactly `steps` tokens; target tokens a second, counting one
translation a sentence. Free (with --run): the test split of a trained run from text to text, by the peers' stop rule
(a sentence ends with `beam` finished hypotheses); sentences a second and BLEU.

CTranslate2 and ours are each also given as two workers of one thread: theirs threads (inter_threads), ours processes,
each with half of the sentences (in the free part ours are those of `nmt_ls.decode --workers 2`).

On a GPU (--device cuda): the forced part, ours beside Hugging Face.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import (
    Products,
    arithmetic_here,
    best_gemm_rates,
    check_clock,
    describe_machine,
    in_its_own_process,
    need_device,
    precision_of,
    print_table,
    ratio,
    take_turns,
    write_records,
)
from benchmarks.free_running import (
    HUGGING_FACE,
    PEERS_MAX_TOKENS,
    Race,
    ours_in_this_process,
    race_on_text,
)
from benchmarks.marian import attention_mask, marian_of
from benchmarks.profiles import PROFILE_COLUMNS, take_apart
from nmt_ls.experiment.command_line import run_command
from nmt_ls.export import transformer_spec
from nmt_ls.int8 import Int8Decoder, has_int8
from nmt_ls.search import SearchConfig, beam_search
from nmt_ls.transformer import Transformer, TransformerConfig
from nmt_ls.translator import MAX_TOKENS
from nmt_ls.vocabulary import BOS, EOS, PAD

PEERS = {"ct2": "to CTranslate2's best", "hf": "to Hugging Face's best"}
"""By the beginning of contestants' names: the title of the ratio."""
FAITHFUL = "to CTranslate2's best of fp32's BLEU"
SAME_BLEU = 0.1
"""How far from ours in fp32 a mode's BLEU may be to count as the same."""
VOCABULARIES = {"tiny": 10000, "small": 7800, "base": 32000}
ALIASES = ("int8_float32",)
"""CTranslate2's names left out: int8_float32 is what int8 means for weights in float32, as ours are."""


def compute_types() -> list[str]:
    """What CTranslate2 can compute in on this processor, without ALIASES; nothing where it is not installed."""
    try:
        import ctranslate2
    except ImportError:
        return []
    return sorted(set(ctranslate2.get_supported_compute_types("cpu")) - set(ALIASES))


def all_contestants(device: str = "cpu") -> tuple[str, ...]:
    """Every contestant of this machine, on its processor or its GPU."""
    if device == "cuda":
        return ("ours-fp32", "ours-bf16", "hf-fp32", "hf-bf16")
    ours = [f"ours-{arithmetic}" for arithmetic in ("fp32", "medium", "bf16")]
    ours += ["ours-int8"] if has_int8() else []
    theirs = [f"ct2-{compute_type}" for compute_type in compute_types()]
    once = ours + theirs
    return (*once, *(f"{name}-2x1" for name in once), "hf-fp32", "hf-bf16")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
        device: cpu or cuda.
        sizes: presets of the model: small with V 7,800, base with V 32,000 (tiny with 10,000).
        contestants: ours, ct2 (CTranslate2), hf (Hugging Face); the arithmetic; 2x1 for two workers of one thread.
            Empty for all, without 2x1 where there are not two threads, and without bf16 where it is emulated.
        run: a finished run, for the free-running part; without one it is left out.
        checkpoint: of the run.
        beam: hypotheses a sentence.
        sentences: of a batch of the forced part.
        limit: how many of the test split are translated in the free-running part; 0 is all.
        source_length: pieces of every source in the forced part, end-of-sentence included.
        steps: length of every translation there.
        repeats: rounds, interleaved.
        profile: whether to take a step of ours apart.
        threads: of each contestant; 0 leaves PyTorch's choice. Only with 2 of them is there 2x1.
        clock: wall, or cpu (processor time, on a machine that others use too; needs threads 1, and no 2x1).
        out: where the records go; empty for nowhere.
    """

    device: str = "cpu"
    sizes: tuple[str, ...] = ("small", "base")
    contestants: tuple[str, ...] = ()
    run: str | None = None
    checkpoint: str = "best"
    beam: int = 4
    sentences: int = 64
    limit: int = 0
    source_length: int = 16
    steps: int = 24
    repeats: int = 5
    profile: bool = True
    threads: int = 0
    clock: str = "wall"
    out: str = "results/speed/beam_search.jsonl"

    def __post_init__(self) -> None:
        check_clock(self.clock, self.threads, self.device)
        if self.device == "cuda" and (self.run is not None or self.profile):
            raise ValueError(
                "device cuda: the forced part only, without run, and profile false (it sees the CPU alone)"
            )
        known = all_contestants(self.device)
        if wrong := sorted(set(self.contestants) - set(known)):
            raise ValueError(f"contestants must be among {', '.join(known)}, not {', '.join(wrong)}")
        split = any(name.endswith("2x1") for name in self.contestants)
        if split and (self.clock == "cpu" or (self.threads or torch.get_num_threads()) != 2):
            raise ValueError("2x1 needs threads 2 and clock wall: name contestants without it")
        if wrong := sorted(set(self.sizes) - set(VOCABULARIES)):
            raise ValueError(f"sizes must be among {', '.join(VOCABULARIES)}, not {', '.join(wrong)}")
        if self.limit < 0:
            raise ValueError("limit must not be negative")
        if min(self.beam, self.sentences, self.source_length, self.steps, self.repeats) < 1:
            raise ValueError("beam, sentences, source_length, steps and repeats must be positive")

    def chosen(self) -> tuple[str, ...]:
        """The contestants' names."""
        two_threads = (self.threads or torch.get_num_threads()) == 2
        everyone = all_contestants(self.device)
        return self.contestants or tuple(n for n in everyone if two_threads or not n.endswith("2x1"))


def build_model(size: str) -> Transformer:
    """Random weights, the same in every process."""
    torch.manual_seed(1)
    rows = VOCABULARIES[size]
    config = TransformerConfig(
        preset=size,  # type: ignore[arg-type]
        source_vocabulary=rows,
        target_vocabulary=rows,
        norm="post",
    )
    return Transformer(config).eval()


def build_sources(config: BenchmarkConfig, size: str) -> Tensor:
    """Random sources of equal length."""
    generator = torch.Generator().manual_seed(2)
    shape = (config.sentences, config.source_length)
    source_BS = torch.randint(EOS + 2, VOCABULARIES[size], shape, generator=generator)
    source_BS[:, -1] = EOS
    return source_BS


def decoder_of(model: Transformer, arithmetic: str) -> Transformer | Int8Decoder:
    """What decodes in this arithmetic."""
    return Int8Decoder(model) if arithmetic == "int8" else model


def search_forced(
    decoder: Transformer | Int8Decoder, source_BS: Tensor, config: BenchmarkConfig, arithmetic: str
) -> list[int]:
    """Ours: lengths of the translations, which are all `steps`."""
    precision = precision_of(arithmetic, config.device)
    precision.apply()
    search = SearchConfig(beam=config.beam, min_length=config.steps, stop="early")
    max_lengths_B = torch.full((len(source_BS),), config.steps, device=source_BS.device)
    with torch.inference_mode(), precision.autocast(config.device):
        stepper = decoder.start(source_BS, config.beam, config.steps)
        found = beam_search(stepper, max_lengths_B=max_lengths_B, config=search)
    return [len(best[0].ids) for best in found]


_decoders: dict[str, Transformer | Int8Decoder] = {}
"""Of a worker process, by arithmetic."""


def _start_worker(size: str, arithmetics: set[str]) -> None:
    torch.set_num_threads(1)
    model = build_model(size)
    _decoders.update({arithmetic: decoder_of(model, arithmetic) for arithmetic in arithmetics})


def _work(source_BS: Tensor, config: BenchmarkConfig, arithmetic: str) -> list[int]:
    return search_forced(_decoders[arithmetic], source_BS, config, arithmetic)


def two_workers(pool: Pool, source_BS: Tensor, config: BenchmarkConfig, arithmetic: str) -> list[int]:
    """Ours in two processes of one thread, each with half of the batch."""
    halves = pool.starmap(_work, [(half, config, arithmetic) for half in source_BS.chunk(2)], chunksize=1)
    return [length for half in halves for length in half]


def ctranslate2_forced(
    directory: str, compute_type: str, workers: int, threads: int, source_BS: Tensor, config: BenchmarkConfig
) -> Callable[[], list[int]]:
    """CTranslate2 on the exported weights; threads: of all workers together."""
    import ctranslate2

    translator = ctranslate2.Translator(
        directory, compute_type=compute_type, inter_threads=workers, intra_threads=max(1, threads // workers)
    )
    sources = [[str(piece) for piece in row[:-1]] for row in source_BS.tolist()]

    def translate() -> list[int]:
        found = translator.translate_batch(
            sources,
            beam_size=config.beam,
            max_batch_size=-(-len(sources) // workers),
            min_decoding_length=config.steps,
            max_decoding_length=config.steps,
            length_penalty=1.0,
        )
        return [len(row.hypotheses[0]) for row in found]

    return translate


def hugging_face_forced(theirs: Any, source_BS: Tensor, config: BenchmarkConfig) -> list[int]:
    """Marian's generate; the weights are in the arithmetic's type already."""
    torch.set_float32_matmul_precision("highest")
    with torch.inference_mode():
        found_BT = theirs.generate(
            input_ids=source_BS,
            attention_mask=attention_mask(source_BS),
            num_beams=config.beam,
            min_new_tokens=config.steps,
            max_new_tokens=config.steps,
            do_sample=False,
            early_stopping=True,
        )
    lengths: list[int] = (found_BT[:, 1:] != PAD).sum(1).tolist()
    return lengths


def contestants(config: BenchmarkConfig, size: str, stack: ExitStack) -> dict[str, Callable[[], list[int]]]:
    """By name, what translates the batch; processes and files live as long as the stack."""
    model, source_BS = build_model(size).to(config.device), build_sources(config, size).to(config.device)
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    pieces = [str(number) for number in range(VOCABULARIES[size])]
    pieces[PAD], pieces[BOS], pieces[EOS], pieces[EOS + 1] = "<pad>", "<s>", "</s>", "<unk>"
    if any(name.startswith("ct2") for name in config.chosen()):
        spec = transformer_spec(model, pieces, pieces)
        spec.validate()
        spec.optimize()
        spec.save(directory)
    pool = None
    result: dict[str, Callable[[], list[int]]] = {}
    for name in config.chosen():
        who, arithmetic, *split = name.split("-")
        workers = 2 if split else 1
        if who == "ct2":
            arguments = (directory, arithmetic, workers, torch.get_num_threads(), source_BS, config)
            result[name] = in_its_own_process(stack, config.clock, ctranslate2_forced, *arguments)
        elif who == "hf":
            theirs = marian_of(model).to(config.device, HUGGING_FACE[arithmetic])
            result[name] = partial(hugging_face_forced, theirs, source_BS, config)
        elif workers == 2:
            split_ours = {name.split("-")[1] for name in config.chosen() if name.startswith("ours") and "2x1" in name}
            pool = pool or stack.enter_context(get_context("spawn").Pool(2, _start_worker, (size, split_ours)))
            result[name] = partial(two_workers, pool, source_BS, config, arithmetic)
        else:
            result[name] = partial(search_forced, decoder_of(model, arithmetic), source_BS, config, arithmetic)
    return result


def fastest(names: Iterable[str], seconds: Mapping[str, list[float]]) -> str | None:
    """Of these contestants, by the median; None of none."""
    return min(names, key=lambda name: statistics.median(seconds[name]), default=None)


def figures(seconds: Mapping[str, list[float]], count: int, unit: str) -> list[dict[str, Any]]:
    """A row a contestant: rates by median and by minimum, and the median ratios to each peer's best mode."""
    best = {}
    for who, title in PEERS.items():
        theirs = [name for name in seconds if name.startswith(who)]
        best[title] = fastest(theirs, seconds)
    rows = []
    for name, values in seconds.items():
        row: dict[str, Any] = {"contestant": name, f"{unit}/s": count / statistics.median(values)}
        row[f"{unit}/s at best"] = count / min(values)
        row |= {title: ratio(seconds[peer], values) for title, peer in best.items() if peer is not None}
        rows.append(row)
    return rows


def compare_with_faithful(rows: list[dict[str, Any]], race: Race) -> None:
    """Add the ratios to CTranslate2's best mode of those whose BLEU is that of ours in fp32 within SAME_BLEU."""
    bleu = {name: race.quality[name]["BLEU"] for name in race.seconds}
    ours = bleu.get("ours-fp32", math.nan)
    faithful = [name for name in bleu if name.startswith("ct2") and abs(bleu[name] - ours) <= SAME_BLEU]
    best = fastest(faithful, race.seconds)
    if best is None:
        return
    for row in rows:
        row[FAITHFUL] = ratio(race.seconds[best], race.seconds[row["contestant"]])


def forced(config: BenchmarkConfig, size: str) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """The table of one size, and the profiles of ours; AssertionError where anyone gives another length than asked."""
    profiles: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        runs = contestants(config, size, stack)
        for name, run in runs.items():
            lengths = run()
            assert set(lengths) == {config.steps}, f"{name} gave lengths {sorted(set(lengths))}"
        seconds = take_turns(runs, config.repeats, config.clock)
        for name in config.chosen() if config.profile else ():
            if ours_in_this_process(name):
                profiles[name] = take_apart(runs[name], config.steps)
    return figures(seconds, config.sentences * config.steps, "tokens"), profiles


def forced_part(config: BenchmarkConfig, products: Mapping[str, Products], recipe: Mapping[str, Any]) -> None:
    """Measure, print and record every size."""
    threads = torch.get_num_threads()
    for size in config.sizes:
        rows, profiles = forced(config, size)
        assert torch.get_num_threads() == threads, "a contestant has changed the number of threads"
        print_table(f"forced {config.steps} steps, {size}, V {VOCABULARIES[size]}", rows, _columns("tokens"))
        about = {
            **recipe,
            "size": size,
            "vocabulary": VOCABULARIES[size],
            "sentences": config.sentences,
            "source_length": config.source_length,
            "steps": config.steps,
        }
        named = [({**about, "contestant": row.pop("contestant")}, row) for row in rows]
        for name, kinds in profiles.items():
            print_table(f"{size}, {name}: a step", kinds, PROFILE_COLUMNS)
            named.append(({**about, "contestant": name}, {f"ms in {row['kind']}": row["ms"] for row in kinds}))
        write_records(config.out, "beam_search/forced", named, products, config.device)


def free_part(config: BenchmarkConfig, products: Mapping[str, Products], recipe: Mapping[str, Any]) -> None:
    """Measure, print and record the translations of a run."""
    assert config.run is not None
    threads = torch.get_num_threads()
    searched = config.run, config.checkpoint, config.beam
    race = race_on_text(*searched, config.chosen(), config.repeats, config.clock, config.limit, config.profile)
    assert torch.get_num_threads() == threads, "a contestant has changed the number of threads"
    rows = [row | race.quality[row["contestant"]] for row in figures(race.seconds, race.sentences, "sentences")]
    compare_with_faithful(rows, race)
    title = f"free-running, {config.run}, {race.sentences} test sentences"
    columns = {**_columns("sentences"), FAITHFUL: ".2f", "BLEU": ".2f", "same as the first": ".3f"}
    print_table(title, rows, columns)
    about = {**recipe, "run": Path(config.run).name, "checkpoint": config.checkpoint, "corpus": race.corpus}
    about |= {"sentences": race.sentences, "max_tokens": MAX_TOKENS, "peers_max_tokens": PEERS_MAX_TOKENS}
    named = [({**about, "contestant": row.pop("contestant")}, row) for row in rows]
    for name, kinds in race.profiles.items():
        print_table(f"free-running, {name}: a sentence", kinds, {**PROFILE_COLUMNS, "ms": ".4f"})
        figures_of = {f"ms a sentence in {row['kind']}": row["ms"] for row in kinds}
        named.append(({**about, "contestant": name}, figures_of))
    write_records(config.out, "beam_search/free", named, products, config.device)


def main(config: BenchmarkConfig) -> None:
    """Both parts; AssertionError where a contestant leaves another number of threads than it found."""
    need_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    products = best_gemm_rates(config.clock, device=config.device)
    print(describe_machine(products, config.device))
    config = replace(config, contestants=arithmetic_here(config.contestants, config.chosen(), products))
    recipe = {"beam": config.beam, "repeats": config.repeats, "clock": config.clock}
    forced_part(config, products, recipe)
    if config.run is not None:
        free_part(config, products, recipe)


def _columns(unit: str) -> dict[str, str]:
    return {
        "contestant": "",
        f"{unit}/s": ",.0f",
        f"{unit}/s at best": ",.0f",
        **dict.fromkeys(PEERS.values(), ".2f"),
    }


if __name__ == "__main__":
    run_command(
        main,
        BenchmarkConfig,
        program="python -m benchmarks.beam_search",
        description="Beam search beside CTranslate2 and Hugging Face, with the same weights.",
    )
