"""Translator: a trained run that translates and scores; what the commands and a notebook all call.

Shapes: B sentences, S source positions, T target positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from nmt_ls.batching import EncodedLines, SourceBatch, encode_lines, encode_pairs, epoch_batches
from nmt_ls.experiment.checkpoint import CheckpointName, checkpoint_exists, load_weights
from nmt_ls.experiment.command_line import UserError, load_config
from nmt_ls.experiment.precision import Precision, choose_precision
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.int8 import Int8Decoder, int8_precision
from nmt_ls.metrics.temperature import check_temperature
from nmt_ls.prefix_decoder import KeptEncodings, PrefixDecoder
from nmt_ls.search import (
    Found,
    SearchConfig,
    beam_search,
    beam_search_at,
    maximum_lengths,
    rescore,
    sample,
    shareable,
)
from nmt_ls.transformer import Transformer, TransformerConfig
from nmt_ls.vocabulary import EOS, PAD, WORD_START, Vocabulary, load_vocabularies

MAX_SOURCE_PIECES = 1024
"""Longer lines are translated truncated, and the caller is told which."""
MAX_TOKENS = 8192
"""Source tokens in a batch: a step costs 2 ms whatever the rows, so 1,000 lines take 15% longer in batches of 2,048."""
MAX_LOGITS = 1 << 25
"""Logits of a step, 128 MiB in fp32: what limits batches where the beam is wide or the vocabulary large."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One translation.

    Attributes:
        text: detokenised.
        pieces: its SentencePiece pieces, end-of-sentence not included.
        score: what ranks it, log-probability over the length penalty.
        token_log_probs: nats at the temperature in force, one a piece and one for end-of-sentence.
        alternatives: at each of those positions the most probable pieces with their log-probabilities, if asked for.
    """

    text: str
    pieces: list[str]
    score: float
    token_log_probs: list[float]
    alternatives: list[list[tuple[str, float]]] | None = None

    @property
    def log_prob(self) -> float:
        """log p(translation | source) in nats, end-of-sentence included."""
        return math.fsum(self.token_log_probs)

    def word_confidences(self) -> list[tuple[str, float]]:
        """Each word with the product of its pieces' probabilities: p(its pieces | source, what precedes them)."""
        words: list[tuple[str, float]] = []
        for piece, log_prob in zip(self.pieces, self.token_log_probs, strict=False):
            if piece.startswith(WORD_START) or not words:
                words.append((piece.removeprefix(WORD_START), log_prob))
            else:
                word, before = words[-1]
                words[-1] = (word + piece, before + log_prob)
        return [(word, math.exp(log_prob)) for word, log_prob in words]


EMPTY = Hypothesis(text="", pieces=[], score=0.0, token_log_probs=[])
"""What an empty line is translated to."""


class Translator:
    """A model with its vocabularies, ready to translate and to score.

    >>> Translator.load("runs/X").translate(["A dog runs."], beam=5, temperature=1.13)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Transformer,
        source_vocabulary: Vocabulary,
        target_vocabulary: Vocabulary,
        precision: Precision | None = None,
    ) -> None:
        self.model = model
        self.source_vocabulary = source_vocabulary
        self.target_vocabulary = target_vocabulary
        self.precision = precision or Precision()
        self.device = next(model.parameters()).device

    @cached_property
    def _int8_decoder(self) -> Int8Decoder:
        return Int8Decoder(self.model)

    @classmethod
    def load(
        cls,
        run: str | Path,
        checkpoint: CheckpointName = "best",
        device: str | torch.device = "cpu",
        precision: Precision | Literal["auto", "fp32", "bf16", "int8"] = "fp32",
    ) -> Self:
        """The model of a run, on the CPU unless another device is named.

        Raises UserError where there is no such run or checkpoint, where something in it is damaged, or where the
        device cannot compute in the precision asked for.
        """
        directory = RunDirectory(run)
        config = _model_config(directory)
        source_vocabulary, target_vocabulary = load_vocabularies(directory.path)
        weights_directory = directory.checkpoints / checkpoint
        if not checkpoint_exists(weights_directory):
            raise UserError(f"{weights_directory}: the run has no such checkpoint yet; train further or name another")
        if not isinstance(precision, Precision):
            precision = int8_precision(device) if precision == "int8" else choose_precision(precision, device)
        model = Transformer(with_vocabularies(config, source_vocabulary, target_vocabulary))
        weights = load_weights(weights_directory)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            what = " ".join(str(error).split())[:160]
            raise UserError(
                f"{weights_directory}: not the weights of the model in {directory.config_file} ({what}); restore it"
            ) from None
        return cls(model.to(device).eval(), source_vocabulary, target_vocabulary, precision)

    def translate(
        self,
        lines: Sequence[str],
        config: SearchConfig | None = None,
        *,
        max_tokens: int = MAX_TOKENS,
        prefixes: Sequence[str] | None = None,
        first_line: int = 0,
        on_truncated: Callable[[int], None] | None = None,
        on_progress: Callable[[int], object] | None = None,
        **changes: Any,
    ) -> list[list[Hypothesis]]:
        """The n best translations of each line, best first; an empty line's translation is empty.

        Args:
            config: how to search; `changes` replace single fields: beam, temperature, length_penalty, nbest, …
            max_tokens: source tokens in a batch, padding included; without influence on the translations, and less
                where a step would have more than 32 million logits.
            prefixes: text that each translation has to begin with.
            first_line: the place of the first of these lines among all, from 0; samples are drawn by place.
            on_truncated: called with the number (from 0) of each line that has more than 1,024 pieces.
            on_progress: called with the number of lines that a batch has finished.

        Raises:
            ValueError: a setting out of its range. UserError: a setting or a prefix that this model cannot do.
        """
        config = replace(config or SearchConfig(), **changes)
        self.check_search(config)
        encoded = encode_lines(self.source_vocabulary, lines, MAX_SOURCE_PIECES)
        for line in encoded.truncated:
            if on_truncated is not None:
                on_truncated(line)
        forced = None if prefixes is None else self._forced(encoded, prefixes, config, "prefix")

        max_lines = MAX_LOGITS // (config.width * self.target_vocabulary.size)

        def results() -> Iterator[tuple[SourceBatch, list[list[Hypothesis]]]]:
            for batch in encoded.batches(max_tokens, max_lines):
                prefix_BP = None if forced is None else forced[batch.indices_B]
                yield (
                    batch,
                    [
                        [self._hypothesis(found) for found in best]
                        for best in self._search(batch, config, prefix_BP, first_line)
                    ],
                )
                if on_progress is not None:
                    on_progress(len(batch.indices_B))

        self.precision.apply()
        return encoded.in_order(results(), empty=lambda: [EMPTY])

    def translate_at(
        self,
        temperatures: Sequence[float],
        lines: Sequence[str],
        config: SearchConfig | None = None,
        *,
        max_tokens: int = 2048,
        encodings: KeptEncodings | None = None,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[list[list[Hypothesis]]]:
        """For each temperature, what `translate` finds at it; what the searches have in common is computed once.

        The same up to rounding. Where they can have nothing in common (samples, alternatives, int8, one temperature)
        they are made one after the other.

        Args:
            config: how to search; its temperature is not read.
            max_tokens: as in `translate`; keys are kept of more prefixes than those of one search, so it is smaller.
            encodings: of this translator's sources, to be used and added to: for further searches in the same lines.
            on_progress: called with the number of translations (lines times temperatures) that a batch has finished.

        Raises ValueError and UserError as `translate` does.
        """
        config = config or SearchConfig()
        if len(temperatures) < 2 or not shareable(config) or self.precision.kind == "int8":
            return [self.translate(lines, config, temperature=t, on_progress=on_progress) for t in temperatures]
        encoded = encode_lines(self.source_vocabulary, lines, MAX_SOURCE_PIECES)
        max_lines = MAX_LOGITS // (3 * config.width * self.target_vocabulary.size)  # 2 to 3 times those of one search

        def results() -> Iterator[tuple[SourceBatch, list[list[list[Hypothesis]]]]]:
            for batch in encoded.batches(max_tokens, max_lines):
                of_sentences = zip(*self._search_at(temperatures, batch, config, encodings), strict=True)
                yield (
                    batch,
                    [[[self._hypothesis(one) for one in best] for best in sentence] for sentence in of_sentences],
                )
                if on_progress is not None:
                    on_progress(len(batch.indices_B) * len(temperatures))

        self.precision.apply()
        rows = encoded.in_order(results(), empty=lambda: [[EMPTY]] * len(temperatures))
        return [[row[place] for row in rows] for place in range(len(temperatures))]

    def check_search(self, config: SearchConfig) -> None:
        """Raises UserError naming the setting that this model cannot do."""
        if config.alternatives > self.target_vocabulary.size:
            raise UserError(
                f"search.alternatives: {config.alternatives} is more than the {self.target_vocabulary.size} pieces of "
                "the vocabulary; ask for fewer"
            )

    def check_prefixes(
        self, lines: Sequence[str], prefixes: Sequence[str], config: SearchConfig, where: str = "prefix"
    ) -> None:
        """Raises UserError naming `where:number` (from 1) of a prefix that leaves a translation no room to end."""
        self._forced(encode_lines(self.source_vocabulary, lines, MAX_SOURCE_PIECES), prefixes, config, where)

    def score(
        self, sources: Sequence[str], targets: Sequence[str], temperature: float = 1.0, *, max_tokens: int = 4096
    ) -> list[Tensor]:
        """Teacher-forced log-probability (nats) of each target's pieces and its end-of-sentence, given its source.

        Raises ValueError for a temperature that is not above 0, UserError where the model's logits are not numbers.
        """
        check_temperature(temperature)
        pairs = encode_pairs(self.source_vocabulary, self.target_vocabulary, sources, targets)
        longest = int(max(pairs.source.lengths_N.max(initial=0), pairs.target.lengths_N.max(initial=0))) + 1
        found: dict[int, Tensor] = {}
        self.precision.apply()
        for batch in epoch_batches(pairs, max_tokens=max(max_tokens, longest), seed=0, epoch=0, shuffle=False):
            with torch.inference_mode(), self.precision.autocast(self.device.type):
                on_device = batch.to(self.device)
                tensors = on_device.source_BS, on_device.target_in_BT, on_device.target_out_BT
                try:
                    rows = rescore(self.model, *tensors, temperature=temperature)
                except ValueError as error:
                    raise UserError(f"{error}; take another checkpoint") from None
            lengths = (batch.target_out_BT != PAD).sum(1).tolist()
            for index, row_T, length in zip(batch.indices_B.tolist(), rows.cpu(), lengths, strict=True):
                found[index] = row_T[:length]
        return [found[index] for index in range(len(sources))]

    def _search(
        self, batch: SourceBatch, config: SearchConfig, prefix_BP: Tensor | None, first_line: int
    ) -> list[list[Found]]:
        source_BS = batch.source_BS.to(self.device)
        max_lengths_B = maximum_lengths(source_BS, config)
        if prefix_BP is not None:
            prefix_BP = prefix_BP.to(self.device)
        with torch.inference_mode(), self.precision.autocast(self.device.type):
            decoder = self._int8_decoder if self.precision.kind == "int8" else self.model
            stepper = decoder.start(source_BS, config.width, int(max_lengths_B.max()))
            try:
                if config.samples:
                    return sample(
                        stepper,
                        max_lengths_B=max_lengths_B,
                        config=config,
                        prefix_BP=prefix_BP,
                        sentence_ids_B=batch.indices_B + first_line,
                    )
                return beam_search(stepper, max_lengths_B=max_lengths_B, config=config, prefix_BP=prefix_BP)
            except ValueError as error:
                raise UserError(
                    f"search at temperature {config.temperature:g}: {error}; "
                    "take a temperature nearer to 1, or another checkpoint"
                ) from None

    def _search_at(
        self,
        temperatures: Sequence[float],
        batch: SourceBatch,
        config: SearchConfig,
        encodings: KeptEncodings | None,
    ) -> list[list[list[Found]]]:
        source_BS = batch.source_BS.to(self.device)
        max_lengths_B = maximum_lengths(source_BS, config)
        with torch.inference_mode(), self.precision.autocast(self.device.type):
            try:
                stepper = PrefixDecoder(self.model, source_BS, encodings)
                return beam_search_at(temperatures, stepper, max_lengths_B=max_lengths_B, config=config)
            except ValueError as error:
                raise UserError(
                    f"search at temperatures {min(temperatures):g} to {max(temperatures):g}: {error}; "
                    "take temperatures nearer to 1, or another checkpoint"
                ) from None

    def _forced(self, encoded: EncodedLines, prefixes: Sequence[str], config: SearchConfig, where: str) -> Tensor:
        """Ids of the prefixes, right-padded: lines by pieces."""
        count = len(encoded.ids)
        if len(prefixes) != count:
            raise UserError(f"there are {count} lines but {len(prefixes)} prefixes; give one a line (it may be empty)")
        ids = self.target_vocabulary.encode_all(list(prefixes))
        too_long: dict[int, int] = {}
        for batch in encoded.batches(MAX_SOURCE_PIECES):
            longest_B = maximum_lengths(batch.source_BS, config).tolist()
            for line, longest in zip(batch.indices_B.tolist(), longest_B, strict=True):
                if len(ids[line]) >= longest:
                    too_long[line] = longest
        if too_long:
            line = min(too_long)
            raise UserError(
                f"{where}:{line + 1}: its {len(ids[line])} pieces and the end-of-sentence are more than the "
                f"{too_long[line]} that the translation may have; shorten it, or raise search.max_length_offset"
            )
        rows = [torch.tensor(row, dtype=torch.int64) for row in ids]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)

    def _hypothesis(self, found: Found) -> Hypothesis:
        ids = [piece for piece in found.ids if piece != EOS]
        names = self.target_vocabulary.pieces
        alternatives = None
        if found.alternatives is not None:
            alternatives = [
                list(zip(names([piece for piece, _ in row]), [log_prob for _, log_prob in row], strict=True))
                for row in found.alternatives
            ]
        return Hypothesis(
            text=self.target_vocabulary.decode(ids),
            pieces=names(ids),
            score=found.score,
            token_log_probs=found.token_log_probs,
            alternatives=alternatives,
        )


@dataclass(frozen=True, kw_only=True)
class _ModelPart:
    """The part of a run's config.yaml that is the model's."""

    model: TransformerConfig


def _model_config(run: RunDirectory) -> TransformerConfig:
    """The model of a run's config.yaml; the form of attention that it was trained with stays."""
    config = run.read_config()
    if "model" not in config:
        raise UserError(f"{run.config_file}: has no model; is {run.path} a run of nmt_ls.train?")
    model = load_config(_ModelPart, {"model": config["model"]}, where=str(run.config_file)).model
    if model.attention == "auto" and run.manifest_file.exists():
        model = replace(model, attention=run.read_manifest().get("attention", {}).get("form", "auto"))
    return model


def with_vocabularies(config: TransformerConfig, source: Vocabulary, target: Vocabulary) -> TransformerConfig:
    """The same shape, its sizes written out, with these vocabularies.

    Raises UserError where they are two and the shape asks for one.
    """
    if source is not target and config.share_embeddings == "all":
        raise UserError(
            "model.share_embeddings: all embeddings cannot be one where source and target have a vocabulary each; "
            "give --model.share_embeddings target (or none)"
        )
    try:
        return replace(config.sized(), source_vocabulary=source.size, target_vocabulary=target.size)
    except ValueError as error:
        raise UserError(f"model: {error}") from None
