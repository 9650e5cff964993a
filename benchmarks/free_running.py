"""The free-running part of benchmarks.beam_search: a trained run translates its test split, text to text."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import in_its_own_process, precision_of, take_turns
from benchmarks.marian import attention_mask, marian_of, unlike_marian
from benchmarks.profiles import take_apart
from nmt_ls.batching import encode_lines
from nmt_ls.decoding import run_corpus
from nmt_ls.export import save
from nmt_ls.metrics.translation import translation_scores
from nmt_ls.search import SearchConfig
from nmt_ls.translator import MAX_SOURCE_PIECES, MAX_TOKENS, Translator
from nmt_ls.vocabulary import BOS, EOS, PAD
from nmt_ls.workers import Workers

PEERS_MAX_TOKENS = 2048
"""Source tokens of the peers' batches: with 8,192, as ours have, CTranslate2 translates a third fewer sentences/s."""
MAX_LENGTH = 100
HUGGING_FACE = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""The type of Marian's weights, by arithmetic."""

Translate = Callable[[], list[str]]


def ours_in_this_process(name: str) -> bool:
    """Whether the profiler can see what this contestant does."""
    return name.startswith("ours") and "2x1" not in name


def search_config(beam: int) -> SearchConfig:
    """The search that everyone makes: mean log-probability a token, stopping as toolkits do."""
    return SearchConfig(beam=beam, stop="early", max_length_factor=0.0, max_length_offset=MAX_LENGTH)


def _translate(translator: Translator, lines: list[str], beam: int) -> list[str]:
    return [best[0].text for best in translator.translate(lines, search_config(beam))]


def _translate_in_two(workers: Workers, lines: list[str], beam: int) -> list[str]:
    found = workers.translate(
        lines,
        search_config(beam),
        max_tokens=MAX_TOKENS,
        on_truncated=lambda _: None,
        on_progress=lambda _: None,
    )
    return [best[0].text for best in found]


def ctranslate2_contestant(
    directory: str,
    run: str,
    checkpoint: str,
    lines: list[str],
    beam: int,
    compute_type: str,
    workers: int,
    threads: int,
) -> Translate:
    """CTranslate2 on the exported model; the same SentencePiece model around it. threads: of all workers together."""
    import ctranslate2

    translator = Translator.load(run, checkpoint)  # type: ignore[arg-type]
    theirs = ctranslate2.Translator(
        directory, compute_type=compute_type, inter_threads=workers, intra_threads=max(1, threads // workers)
    )
    target = translator.target_vocabulary
    numbers = {piece: number for number, piece in enumerate(target.pieces(range(target.size)))}

    def translate() -> list[str]:
        source = translator.source_vocabulary
        found = theirs.translate_batch(
            [source.pieces(ids) for ids in source.encode_all(lines)],
            beam_size=beam,
            max_batch_size=PEERS_MAX_TOKENS,
            batch_type="tokens",
            length_penalty=1.0,
            max_decoding_length=MAX_LENGTH,
        )
        return [target.decode([numbers[piece] for piece in row.hypotheses[0]]) for row in found]

    return translate


def hugging_face_contestant(translator: Translator, lines: list[str], beam: int, arithmetic: str) -> Translate:
    """Marian's generate on batches of like length."""
    theirs = marian_of(translator.model).to(HUGGING_FACE[arithmetic])
    target = translator.target_vocabulary

    def translate() -> list[str]:
        torch.set_float32_matmul_precision("highest")
        encoded = encode_lines(translator.source_vocabulary, lines, MAX_SOURCE_PIECES)

        def results() -> Any:
            for batch in encoded.batches(PEERS_MAX_TOKENS):
                found_BT = theirs.generate(
                    input_ids=batch.source_BS,
                    attention_mask=attention_mask(batch.source_BS),
                    num_beams=beam,
                    max_new_tokens=MAX_LENGTH,
                    do_sample=False,
                    early_stopping=True,
                    length_penalty=1.0,
                    bad_words_ids=[[PAD], [BOS]],
                    eos_token_id=EOS,
                )
                yield batch, [target.decode(row) for row in found_BT.tolist()]

        with torch.inference_mode():
            return encoded.in_order(results(), empty=str)

    return translate


def contestant(
    name: str, run: str, checkpoint: str, beam: int, lines: list[str], stack: ExitStack, *, clock: str
) -> Translate:
    """What translates the lines under a name of benchmarks.beam_search; processes and files live with the stack."""
    translator = Translator.load(run, checkpoint)  # type: ignore[arg-type]
    who, arithmetic, *split = name.split("-")
    if who == "hf":
        return hugging_face_contestant(translator, lines, beam, arithmetic)
    if who == "ct2":
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        save(translator.model, translator.source_vocabulary, translator.target_vocabulary, Path(directory))
        workers, threads = 2 if split else 1, torch.get_num_threads()
        arguments = (directory, run, checkpoint, lines, beam, arithmetic, workers, threads)
        return in_its_own_process(stack, clock, ctranslate2_contestant, *arguments)
    precision = precision_of(arithmetic)
    if split:
        pool = stack.enter_context(Workers(2, run, checkpoint, "cpu", precision))  # type: ignore[arg-type]
        return partial(_translate_in_two, pool, lines, beam)
    translator.precision = precision
    return partial(_translate, translator, lines, beam)


@dataclass(frozen=True, kw_only=True)
class Race:
    """How it ended, by contestant: seconds of each round; BLEU and the share of sentences translated as the first one
    does; where the time of a sentence goes, of ours in this process. And how many sentences, of which corpus (its
    checksum).
    """

    seconds: dict[str, list[float]]
    quality: dict[str, dict[str, float]]
    profiles: dict[str, list[dict[str, Any]]]
    sentences: int
    corpus: str


def race_on_text(
    run: str,
    checkpoint: str,
    beam: int,
    names: Sequence[str],
    repeats: int,
    clock: str = "wall",
    sentences: int = 0,
    profile: bool = False,
) -> Race:
    """Everyone by turns translates the first `sentences` of the test split (0: all); Marian is left out, with the
    reason, of a model that is not like it."""
    peers = [name for name in names if name.startswith("hf")]
    if peers and (why := unlike_marian(Translator.load(run, checkpoint).model.config.sized())):  # type: ignore[arg-type]
        print(f"without {', '.join(peers)}: {why}", flush=True)
        names = [name for name in names if name not in peers]
    corpus = run_corpus(Path(run))
    split = corpus.split("test")
    rows = range(min(sentences or len(split), len(split)))
    lines, references = [split.source_text(row) for row in rows], [split.references(row) for row in rows]
    with ExitStack() as stack:
        runs = {name: contestant(name, run, checkpoint, beam, lines, stack, clock=clock) for name in names}
        texts = {name: translate() for name, translate in runs.items()}
        seconds = take_turns(runs, repeats, clock)
        ours = filter(ours_in_this_process, names if profile else ())
        profiles = {name: take_apart(runs[name], len(lines)) for name in ours}
    first = next(iter(texts.values()))
    quality = {
        name: {
            "BLEU": translation_scores(found, references).bleu,
            "same as the first": sum(a == b for a, b in zip(found, first, strict=True)) / len(first),
        }
        for name, found in texts.items()
    }
    return Race(seconds=seconds, quality=quality, profiles=profiles, sentences=len(lines), corpus=corpus.checksum)
