"""Translator: what a notebook and the commands call."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nmt_ls import Translator
from nmt_ls.corpus import Corpus
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.search import SearchConfig
from nmt_ls.translator import EMPTY, MAX_SOURCE_PIECES, Hypothesis
from nmt_ls.vocabulary import BOS, EOS


@pytest.fixture(scope="module")
def translator(small_run: RunDirectory) -> Translator:
    return Translator.load(small_run.path)


@pytest.fixture(scope="module")
def sources(small_corpus: Corpus) -> list[str]:
    split = small_corpus.split("test")
    return [split.source_text(row) for row in range(8)]


@pytest.mark.parametrize("temperature", [1.0, 1.13])
@pytest.mark.parametrize("beam", [1, 4])
def test_token_probabilities_equal_teacher_forced_rescoring(
    translator: Translator, sources: list[str], temperature: float, beam: int
) -> None:
    """Of the pieces as the search spelt them, which need not be how their text is segmented."""
    size = translator.target_vocabulary.size
    ids = {piece: number for number, piece in enumerate(translator.target_vocabulary.pieces(list(range(size))))}
    for source, row in zip(sources, translator.translate(sources, beam=beam, temperature=temperature), strict=True):
        rescored = forced(translator, source, [ids[piece] for piece in row[0].pieces], temperature)
        torch.testing.assert_close(rescored, torch.tensor(row[0].token_log_probs), rtol=0, atol=1e-4)
        assert row[0].log_prob == pytest.approx(float(rescored.sum()), abs=1e-3)


def forced(translator: Translator, source: str, target: list[int], temperature: float) -> torch.Tensor:
    """Log-probabilities of a target's pieces and its end, one sentence at a time."""
    source_BS = torch.tensor([[*translator.source_vocabulary.encode(source), EOS]])
    hidden_BTD = translator.model(source_BS, torch.tensor([[BOS, *target]]))
    log_probs_TV = (translator.model.logits(hidden_BTD)[0] / temperature).log_softmax(-1)
    return log_probs_TV.gather(1, torch.tensor([*target, EOS])[:, None])[:, 0].detach()


def test_score_is_of_the_texts_pieces(translator: Translator, sources: list[str], small_corpus: Corpus) -> None:
    targets = [small_corpus.split("test").references(row)[0] for row in range(8)]
    for source, target, found in zip(sources, targets, translator.score(sources, targets, 1.13), strict=True):
        expected = forced(translator, source, translator.target_vocabulary.encode(target), 1.13)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_score_is_the_log_probability_over_the_length(translator: Translator, sources: list[str]) -> None:
    (hypothesis,) = translator.translate(sources[:1], beam=3, length_penalty_kind="average", length_penalty=0.7)[0]
    length = len(hypothesis.token_log_probs)
    assert length == len(hypothesis.pieces) + 1
    assert hypothesis.score == pytest.approx(hypothesis.log_prob / length**0.7, rel=1e-5)


def test_order_and_batches_change_no_translation(translator: Translator, sources: list[str]) -> None:
    together = translator.translate(sources, beam=3)
    one_by_one = [translator.translate([source], beam=3)[0] for source in sources]
    backwards = translator.translate(sources[::-1], beam=3, max_tokens=40)[::-1]
    for rows in (one_by_one, backwards):
        for expected, found in zip(together, rows, strict=True):
            # in float32 another batch may round another way: only ties below 1e-4 may differ
            same_score = abs(expected[0].score - found[0].score) < 1e-4
            assert same_score
            assert expected[0].text == found[0].text or abs(expected[0].log_prob - found[0].log_prob) < 1e-4


def test_several_temperatures_together_are_each_alone(translator: Translator, sources: list[str]) -> None:
    temperatures, lines, done = [0.8, 1.0, 1.3], ["", *sources], list[int]()
    config = SearchConfig(beam=3, nbest=2)
    together = translator.translate_at(temperatures, lines, config, max_tokens=40, on_progress=done.append)
    assert sum(done) == 3 * len(sources)
    assert len(done) > 1
    for temperature, rows in zip(temperatures, together, strict=True):
        assert rows[0] == [EMPTY]
        for found, expected in zip(rows, translator.translate(lines, config, temperature=temperature), strict=True):
            assert [one.text for one in found] == [one.text for one in expected]
            assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-4)
    # one after the other where they have nothing in common
    assert translator.translate_at([1.3], lines, config) == [translator.translate(lines, config, temperature=1.3)]
    others = translator.translate_at([0.8, 1.3], lines, SearchConfig(beam=2, alternatives=1))
    assert others[1] == translator.translate(lines, beam=2, alternatives=1, temperature=1.3)


def test_logits_that_are_nan_name_the_temperatures(translator: Translator, sources: list[str]) -> None:
    with pytest.raises(UserError, match=r"search at temperatures 1e-38 to 1: .*NaN.*take temperatures nearer to 1"):
        translator.translate_at([1.0, 1e-38], sources)


def test_empty_lines_stay_empty_and_long_ones_are_reported(translator: Translator, sources: list[str]) -> None:
    long = " ".join([sources[0]] * MAX_SOURCE_PIECES)
    reported: list[int] = []
    rows = translator.translate(
        ["", sources[0], "   ", long], beam=1, max_length_factor=0.0, on_truncated=reported.append
    )
    assert [len(row) for row in rows] == [1, 1, 1, 1]
    assert rows[0][0].text == rows[2][0].text == ""
    assert rows[1][0].text
    assert reported == [3]


def test_nbest_is_in_order_and_distinct(translator: Translator, sources: list[str]) -> None:
    for row in translator.translate(sources, beam=4, nbest=4):
        assert len(row) == 4
        assert [one.score for one in row] == sorted((one.score for one in row), reverse=True)
        assert len({tuple(one.pieces) for one in row}) == 4


def test_a_forced_prefix_begins_the_translation(translator: Translator, sources: list[str]) -> None:
    rows = translator.translate(sources[:3], beam=2, prefixes=["Der Hund", "", "Die"])
    assert rows[0][0].text.startswith("Der Hund")
    assert rows[2][0].text.startswith("Die")
    with pytest.raises(UserError, match="prefixes"):
        translator.translate(sources[:3], prefixes=["Der"])


def test_a_prefix_without_room_names_its_line(translator: Translator, sources: list[str]) -> None:
    """The user's line, though batches are sorted by length."""
    lines = ["A dog.", "", sources[0], "A cat."]
    prefixes = ["", "Der " * 300, "", "Der " * 300]  # an empty line is not translated
    with pytest.raises(UserError, match=r"^prefix:4: its \d+ pieces"):
        translator.translate(lines, prefixes=prefixes, max_tokens=20)
    with pytest.raises(UserError, match=r"^forced\.txt:4: "):
        translator.check_prefixes(lines, prefixes, SearchConfig(), where="forced.txt")
    room = SearchConfig(max_length_factor=0.0, max_length_offset=4)
    pieces = translator.target_vocabulary.encode("der Hund läuft und läuft")
    fits, too_long = (translator.target_vocabulary.decode(pieces[:count]) for count in (3, 4))
    assert translator.translate(["A dog."], room, prefixes=[fits])[0][0].text.startswith(fits)
    with pytest.raises(UserError, match=r"prefix:1: its 4 pieces .* the 4 that"):
        translator.translate(["A dog."], room, prefixes=[too_long])


def test_more_alternatives_than_pieces_are_refused(translator: Translator) -> None:
    size = translator.target_vocabulary.size
    with pytest.raises(UserError, match=rf"search\.alternatives: {size + 1} is more than the {size} pieces"):
        translator.translate(["A dog."], beam=1, alternatives=size + 1)


def test_a_damaged_run_is_named_by_file_and_key(small_run: RunDirectory, tmp_path: Path) -> None:
    run = RunDirectory(shutil.copytree(small_run.path, tmp_path / "run"))
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("  width: 32", "  widht: 32"))
    with pytest.raises(UserError, match=r"run/config\.yaml.*model\.widht"):
        Translator.load(run.path)
    run.config_file.write_text(text.replace("  width: 32", "  width: 64"))
    with pytest.raises(UserError, match=r"checkpoints/best: not the weights of the model in .*config\.yaml"):
        Translator.load(run.path)
    run.config_file.write_text("dataset: mnist\n")
    with pytest.raises(UserError, match=r"config\.yaml: has no model"):
        Translator.load(run.path)


def test_the_form_that_training_measured_is_kept(small_run: RunDirectory, tmp_path: Path) -> None:
    run = RunDirectory(shutil.copytree(small_run.path, tmp_path / "run"))
    for form in ("fused", "explicit"):
        run.manifest_file.write_text(json.dumps({**run.read_manifest(), "attention": {"form": form}}))
        assert Translator.load(run.path).model.config.attention == form
    assert str(Translator.load(run.path).device) == "cpu"


def test_alternatives_name_the_most_probable_pieces(translator: Translator, sources: list[str]) -> None:
    (hypothesis,) = translator.translate(sources[:1], beam=1, alternatives=3)[0]
    assert hypothesis.alternatives is not None
    assert len(hypothesis.alternatives) == len(hypothesis.token_log_probs)
    assert all(len(row) == 3 for row in hypothesis.alternatives)
    # greedy search takes the most probable; the end is forced where the longest length is reached
    for row, piece, log_prob in zip(
        hypothesis.alternatives, hypothesis.pieces, hypothesis.token_log_probs, strict=False
    ):
        assert row[0] == (piece, pytest.approx(log_prob, abs=1e-5))
        assert row[0][1] >= row[1][1] >= row[2][1]


def test_word_confidences_multiply_their_pieces() -> None:
    hypothesis = Hypothesis(
        text="der Hund",
        pieces=["▁d", "er", "▁Hund"],
        score=0.0,
        token_log_probs=[math.log(0.5), math.log(0.5), math.log(0.8), math.log(0.9)],
    )
    assert hypothesis.word_confidences() == [("der", pytest.approx(0.25)), ("Hund", pytest.approx(0.8))]


def test_samples_depend_on_the_seed_alone(translator: Translator, sources: list[str]) -> None:
    config = SearchConfig(samples=3, seed=4)
    first, again = translator.translate(sources, config), translator.translate(sources, config, max_tokens=30)
    other = translator.translate(sources, config, seed=5)
    texts = [[one.text for one in row] for row in first]
    assert texts == [[one.text for one in row] for row in again]
    assert texts != [[one.text for one in row] for row in other]


def test_a_run_that_is_none_is_named(tmp_path: object) -> None:
    with pytest.raises(UserError, match=r"config\.yaml"):
        Translator.load(f"{tmp_path}/nothing")


def test_importing_the_package_brings_little_along_and_is_silent() -> None:
    """The package itself not even torch; Translator nothing that takes long beside torch, and no corpus or figures."""
    script = (
        "import sys, nmt_ls; print('torch' in sys.modules); import torch; before = set(sys.modules); "
        "from nmt_ls import Translator; print(torch.get_float32_matmul_precision()); "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)); "
        "print(*(name for name in set(sys.modules) - before if name.startswith('torch._')))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    torch_is_there, matmul, others, compilers = done.stdout.splitlines()
    assert torch_is_there == "False"
    assert matmul == "highest"
    slow = {"datasets", "matplotlib", "numba", "pandas", "pyarrow", "sacrebleu", "scipy", "tensorboard", "transformers"}
    assert not slow & set(others.split())
    assert not [name for name in compilers.split() if name.startswith(("torch._dynamo", "torch._inductor"))]
    assert done.stderr == ""
