from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from nmt_ls.experiment.command_line import UserError
from nmt_ls.vocabulary import (
    BOS,
    EOS,
    PAD,
    UNK,
    Vocabulary,
    VocabularyConfig,
    load_vocabularies,
    save_vocabularies,
    train_vocabulary,
)

SENTENCES = [
    f"the {adjective} {noun} {verb} the {other} slowly ."
    for adjective in ("little", "old", "tired", "clever")
    for noun in ("dog", "doctor", "teacher", "painter")
    for verb in ("teaches", "paints", "finds", "founds")
    for other in ("painting", "teaching", "finding", "foundation")
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    path = tmp_path_factory.mktemp("vocabulary") / "spm.model"
    return train_vocabulary(SENTENCES, path, VocabularyConfig(size=70, normalisation="identity"))


def test_special_pieces_have_fixed_ids(vocabulary: Vocabulary) -> None:
    assert (PAD, BOS, EOS, UNK) == (0, 1, 2, 3)
    assert vocabulary.size == 70
    assert vocabulary.pieces([1, 2]) == ["<s>", "</s>"]
    assert vocabulary.encode("q")[-1] == UNK


def test_what_is_encoded_is_decoded_again_without_specials(vocabulary: Vocabulary) -> None:
    for sentence in SENTENCES[::17]:
        ids = vocabulary.encode(sentence)
        assert not {PAD, BOS, EOS} & set(ids)
        assert vocabulary.decode([BOS, *ids, EOS, PAD, PAD]) == sentence
        assert "".join(vocabulary.pieces(ids)) == "▁" + sentence.replace(" ", "▁")
    assert vocabulary.encode_all(SENTENCES) == [vocabulary.encode(sentence) for sentence in SENTENCES]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet="thedogcatfindßé.", min_size=1, max_size=9), min_size=1, max_size=6))
def test_segmentation_is_local_to_words(vocabulary: Vocabulary, words: list[str]) -> None:
    word_by_word = [piece for word in words for piece in vocabulary.encode(word)]
    assert vocabulary.encode(" ".join(words)) == word_by_word


def test_no_piece_crosses_white_space_and_word_starts_are_known(vocabulary: Vocabulary) -> None:
    names = vocabulary.pieces(range(vocabulary.size))
    assert all("▁" not in name[1:] for name in names)
    starts = vocabulary.starts_word()
    ids = vocabulary.encode("the old painter")
    assert sum(starts[piece] for piece in ids) == 3
    assert not any(starts[:4])


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_same_text_gives_the_same_file_wherever_it_lies(tmp_path: Path, kind: str) -> None:
    config = VocabularyConfig(kind=kind, size=35)
    models = []
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
        models.append(train_vocabulary(iter(SENTENCES), tmp_path / name / "spm.model", config))
    assert models[0].path.read_bytes() == models[1].path.read_bytes()
    assert models[0].checksum() == models[1].checksum()
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["spm.model"]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_too_large_a_size_is_told_the_largest_possible(tmp_path: Path, kind: str) -> None:
    def train(size: int) -> Vocabulary:
        return train_vocabulary(SENTENCES, tmp_path / "spm.model", VocabularyConfig(kind=kind, size=size))

    with pytest.raises(UserError, match=r"vocabulary\.size 5000 is more than the training text allows") as error:
        train(5000)
    largest = int(re.findall(r"set it to (\d+) or less", str(error.value))[0])
    assert train(largest).size == largest
    with pytest.raises(UserError, match=f"set it to {largest} or less"):
        train(largest + 1)


def test_too_small_a_size_is_told_the_smallest_possible(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no room for the characters") as error:
        train_vocabulary(SENTENCES, tmp_path / "spm.model", VocabularyConfig(size=8))
    smallest = int(re.findall(r"set it to (\d+) or more", str(error.value))[0])
    trained = train_vocabulary(SENTENCES, tmp_path / "spm.model", VocabularyConfig(size=smallest))
    assert trained.size == smallest


def test_text_without_a_word_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="SentencePiece could not train"):
        train_vocabulary([""], tmp_path / "spm.model", VocabularyConfig(size=8))
    assert not list(tmp_path.iterdir())


def test_joint_and_separate_vocabularies_are_saved_and_found(tmp_path: Path, vocabulary: Vocabulary) -> None:
    other = train_vocabulary(SENTENCES[:100], tmp_path / "other.model", VocabularyConfig(size=50))
    for name, pair in {"joint": (vocabulary, vocabulary), "separate": (vocabulary, other)}.items():
        (tmp_path / name).mkdir()
        save_vocabularies(*pair, tmp_path / name)
        source, target = load_vocabularies(tmp_path / name)
        assert (source is target) == (name == "joint")
        assert (source.checksum(), target.checksum()) == (pair[0].checksum(), pair[1].checksum())
    with pytest.raises(UserError, match="holds no vocabulary"):
        load_vocabularies(tmp_path)


def test_a_vocabulary_survives_pickling(vocabulary: Vocabulary) -> None:
    assert pickle.loads(pickle.dumps(vocabulary)).encode(SENTENCES[0]) == vocabulary.encode(SENTENCES[0])


def test_unfit_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.model: there is no such vocabulary"):
        Vocabulary(tmp_path / "missing.model")
    (tmp_path / "damaged.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"damaged\.model: not a SentencePiece model"):
        Vocabulary(tmp_path / "damaged.model")
    # SentencePiece's own numbering: unk 0, bos 1, eos 2, no padding
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(tmp_path / "foreign"),
        vocab_size=36,
        model_type="bpe",
        minloglevel=2,
    )
    with pytest.raises(UserError, match=r"foreign\.model: pad, bos, eos, unk are \(-1, 1, 2, 0\)"):
        Vocabulary(tmp_path / "foreign.model")


@pytest.mark.parametrize(
    ("key", "make"),
    [
        ("vocabulary.kind", lambda: VocabularyConfig(kind="word")),  # type: ignore[arg-type]
        ("vocabulary.size", lambda: VocabularyConfig(size=7)),
        ("vocabulary.character_coverage", lambda: VocabularyConfig(character_coverage=1.5)),
        ("vocabulary.sample", lambda: VocabularyConfig(sample=-1)),
        ("vocabulary.seed", lambda: VocabularyConfig(seed=-1)),
        ("vocabulary.normalisation", lambda: VocabularyConfig(normalisation="none")),  # type: ignore[arg-type]
    ],
)
def test_a_refused_setting_is_named(key: str, make: Callable[[], VocabularyConfig]) -> None:
    with pytest.raises(ValueError, match=re.escape(key)):
        make()
