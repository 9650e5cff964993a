"""SentencePiece vocabularies: training, encoding and decoding.

Special ids are fixed everywhere: padding 0, beginning of sentence 1, end of sentence 2, unknown 3.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from nmt_ls.experiment.command_line import UserError

PAD, BOS, EOS, UNK = 0, 1, 2, 3
WORD_START = "\u2581"
"""SentencePiece's sign for the white space before a word."""
JOINT_MODEL, SOURCE_MODEL, TARGET_MODEL = "spm.model", "spm.source.model", "spm.target.model"

# The unigram trainer adds up its expectations thread by thread: their number shapes the result, so it is fixed.
TRAINER_THREADS = 16
# The trainer runs in a process of its own: it can be interrupted at once, and its checks cannot take us down with it.
TRAINER = "import json, sys, sentencepiece; sentencepiece.SentencePieceTrainer.train(**json.loads(sys.argv[1]))"


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """How the SentencePiece model is trained."""

    kind: Literal["bpe", "unigram"] = "bpe"
    """byte-pair encoding or the unigram language model"""
    size: int = 10_000
    """pieces, the four special ones included; of each model where they are separate"""
    joint: bool = True
    """one model for both languages, or one for each"""
    character_coverage: float = 1.0
    """share of the characters of the text that get a piece; the rest become unknown"""
    sample: int = 1_000_000
    """sentences of each language to train on, drawn at random (0: all)"""
    seed: int = 1
    """seed of that draw"""
    normalisation: Literal["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "identity"] = "nmt_nfkc"
    """SentencePiece's rule; identity leaves every character as it is"""
    like: str | None = None
    """a prepared corpus, or a run, whose vocabulary to take in place of training one, to go on from that run's weights
    or to have its model for a teacher; the other settings of a vocabulary are then not looked at"""

    def __post_init__(self) -> None:
        if self.kind not in ("bpe", "unigram"):
            raise ValueError(f"vocabulary.kind is 'bpe' or 'unigram', not {self.kind!r}")
        if self.size < 8:
            raise ValueError(f"vocabulary.size must be at least 8 (four pieces are special), not {self.size}")
        if not 0.9 <= self.character_coverage <= 1.0:
            raise ValueError(f"vocabulary.character_coverage lies in [0.9, 1], not {self.character_coverage}")
        if self.sample < 0:
            raise ValueError(f"vocabulary.sample is a number of sentences, or 0 for all, not {self.sample}")
        if self.seed < 0:
            raise ValueError(f"vocabulary.seed must not be negative, not {self.seed}")
        if self.normalisation not in ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "identity"):
            raise ValueError(
                "vocabulary.normalisation is 'nmt_nfkc', 'nfkc', 'nmt_nfkc_cf' or 'identity', "
                f"not {self.normalisation!r}"
            )

    def recipe(self, taken: Sequence[str] | None = None) -> dict[str, Any]:
        """What decides about the vocabulary: of one that is taken its checksums, wherever it lies.

        taken: those of the one that was taken here before, from a place that may have gone.

        Raises UserError where there is none to take.
        """
        if self.like is not None and taken is not None and not Path(self.like).exists():
            return {"like": list(taken)}
        if self.like is not None:
            return {"like": [vocabulary.checksum() for vocabulary in dict.fromkeys(load_vocabularies(self.like))]}
        return {key: value for key, value in asdict(self).items() if key != "like"}


class Vocabulary:
    """A trained SentencePiece model. Segmentation is local to words: no piece crosses white space.

    Attributes:
        path: the model file.
        size: number of pieces V, special ones included.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises UserError where the file is missing, damaged, or numbers its special pieces otherwise."""
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{self.path}: there is no such vocabulary; name a prepared corpus or a run")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(self.path))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{self.path}: not a SentencePiece model, or a damaged one ({first_line(error)})") from None
        ids = (self._model.pad_id(), self._model.bos_id(), self._model.eos_id(), self._model.unk_id())
        if ids != (PAD, BOS, EOS, UNK):
            raise UserError(f"{self.path}: pad, bos, eos, unk are {ids} but must be (0, 1, 2, 3); train it anew")
        self.size: int = self._model.get_piece_size()

    def __reduce__(self) -> tuple[type[Vocabulary], tuple[Path]]:
        return Vocabulary, (self.path,)

    def encode(self, line: str) -> list[int]:
        """The ids of a line, without beginning or end of sentence."""
        ids: list[int] = self._model.encode(line, out_type=int)
        return ids

    def encode_all(self, lines: Sequence[str]) -> list[list[int]]:
        """As encode, for many lines at once."""
        ids: list[list[int]] = self._model.encode(list(lines), out_type=int)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; padding, beginning and end of sentence are dropped, an unknown piece shows as ⁇."""
        text: str = self._model.decode([int(piece) for piece in ids if piece not in (PAD, BOS, EOS)])
        return text

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The pieces' names; U+2581 stands for the white space before a word."""
        return [self._model.id_to_piece(int(piece)) for piece in ids]

    def starts_word(self) -> list[bool]:
        """For each of the V pieces whether it begins a word (specials: no)."""
        return [piece > UNK and name.startswith(WORD_START) for piece, name in enumerate(self.pieces(range(self.size)))]

    def checksum(self) -> str:
        """SHA-256 of the model file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def save_to(self, directory: str | Path, name: str = JOINT_MODEL) -> Path:
        """Copy the model file into a directory."""
        path = Path(directory) / name
        shutil.copyfile(self.path, path)
        return path


def load_vocabularies(directory: str | Path) -> tuple[Vocabulary, Vocabulary]:
    """Source and target vocabulary of a prepared corpus or a run: one and the same object where they are joint."""
    directory = Path(directory)
    if (directory / JOINT_MODEL).is_file():
        joint = Vocabulary(directory / JOINT_MODEL)
        return joint, joint
    if not (directory / SOURCE_MODEL).is_file():
        raise UserError(f"{directory} holds no vocabulary ({JOINT_MODEL}); name a prepared corpus or a run")
    return Vocabulary(directory / SOURCE_MODEL), Vocabulary(directory / TARGET_MODEL)


def save_vocabularies(source: Vocabulary, target: Vocabulary, directory: str | Path) -> None:
    """Copy a pair of vocabularies into a directory, where load_vocabularies finds them."""
    if source is target:
        source.save_to(directory, JOINT_MODEL)
    else:
        source.save_to(directory, SOURCE_MODEL)
        target.save_to(directory, TARGET_MODEL)


def train_vocabulary(sentences: Iterable[str], path: str | Path, config: VocabularyConfig) -> Vocabulary:
    """Train a SentencePiece model and write it to path (which ends in .model).

    The same sentences and settings give the same file, byte for byte, wherever it lies.

    Raises:
        UserError: the text does not hold so many pieces (the message has the largest size that it allows), or more
            characters than the vocabulary has room for.
    """
    path = Path(path)
    text = path.with_suffix(".sentences")
    with text.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(sentence + "\n" for sentence in sentences)
    settings = {
        # relative names: the model file remembers them, and must not depend on where it was made
        "input": text.name,
        "model_prefix": path.stem,
        "model_type": config.kind,
        "vocab_size": config.size,
        "character_coverage": config.character_coverage,
        "normalization_rule_name": config.normalisation,
        "pad_id": PAD,
        "bos_id": BOS,
        "eos_id": EOS,
        "unk_id": UNK,
        "num_threads": TRAINER_THREADS,
        "minloglevel": 1,
    }
    try:
        child = subprocess.run(
            [sys.executable, "-c", TRAINER, json.dumps(settings)],
            cwd=path.parent,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    finally:
        text.unlink()
    if child.returncode != 0:
        raise UserError(explain_trainer(child.stderr, config))
    path.with_suffix(".vocab").unlink()
    return Vocabulary(path)


def explain_trainer(output: str, config: VocabularyConfig) -> str:
    """One line for what SentencePiece's trainer said when it gave up."""
    too_high = re.search(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)", output)
    if too_high:
        return (
            f"vocabulary.size {config.size} is more than the training text allows ({config.kind}): "
            f"set it to {too_high[1]} or less"
        )
    too_low = re.search(r"smaller than required_chars\. \d+ vs (\d+)", output)
    if too_low:
        return (
            f"vocabulary.size {config.size} has no room for the characters of the training text: "
            f"set it to {too_low[1]} or more, or lower vocabulary.character_coverage"
        )
    lines = output.strip().splitlines() or ["it said nothing"]
    return f"SentencePiece could not train the vocabulary: {lines[-1]}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
