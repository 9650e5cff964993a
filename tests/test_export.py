"""Export to CTranslate2: what it scores and translates is what we score and translate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nmt_ls.corpus import Corpus
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.export import POSITIONS, ExportConfig, export, specs, transformer_spec
from nmt_ls.search import rescore
from nmt_ls.transformer import Transformer, TransformerConfig
from nmt_ls.translator import Translator
from nmt_ls.vocabulary import BOS, EOS, load_vocabularies

ROWS = 60
PIECES = ["<pad>", "<s>", "</s>", "<unk>", *map(str, range(4, ROWS))]


@pytest.mark.parametrize(
    ("norm", "share", "activation", "temperature"),
    [
        ("pre", "all", "relu", 1.0),
        ("pre", "none", "gelu", 1.4),
        ("post", "all", "gelu", 0.7),
        ("post", "target", "relu", 1.0),
    ],
)
def test_log_probabilities_equal_ours(
    norm: Any, share: Any, activation: Any, temperature: float, tmp_path: Path
) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    torch.manual_seed(3)
    sizes = {"encoder_layers": 2, "decoder_layers": 3, "width": 32, "feed_forward": 48, "heads": 4}
    shape = {"norm": norm, "share_embeddings": share, "activation": activation}
    model = Transformer(TransformerConfig(source_vocabulary=ROWS, target_vocabulary=ROWS, **sizes, **shape)).eval()
    with torch.no_grad():  # biases and norms away from 0 and 1, so that none could be left out unseen
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    spec = transformer_spec(model, PIECES, PIECES, temperature=temperature)
    spec.validate()
    spec.optimize()
    spec.save(str(tmp_path))
    source_BS, target_BT = torch.randint(4, ROWS, (5, 9)), torch.randint(4, ROWS, (5, 7))
    scored = ctranslate2.Translator(str(tmp_path), intra_threads=1).score_batch(
        [[PIECES[piece] for piece in row] for row in source_BS.tolist()],
        [[PIECES[piece] for piece in row] for row in target_BT.tolist()],
    )
    end_B1, begin_B1 = torch.full((5, 1), EOS), torch.full((5, 1), BOS)
    ours_BT = rescore(
        model,
        torch.cat((source_BS, end_B1), 1),
        torch.cat((begin_B1, target_BT), 1),
        torch.cat((target_BT, end_B1), 1),
        temperature,
    )
    torch.testing.assert_close(torch.tensor([row.log_probs for row in scored]), ours_BT, rtol=0, atol=1e-4)


def test_a_run_exported_translates_alike(small_run: RunDirectory, small_corpus: Corpus, tmp_path: Path) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    out = export(ExportConfig(run=str(small_run.path), out=str(tmp_path / "served"), temperature=0.8))
    translator, (source, target) = Translator.load(small_run.path), load_vocabularies(out)
    split = small_corpus.split("test")
    lines = [split.source_text(row) for row in range(len(split))]
    longest = 60
    theirs = ctranslate2.Translator(str(out), intra_threads=1).translate_batch(
        [source.pieces(ids) for ids in source.encode_all(lines)],
        beam_size=3,
        length_penalty=1.0,
        max_decoding_length=longest,
    )
    numbers = {piece: number for number, piece in enumerate(target.pieces(range(target.size)))}
    texts = [target.decode([numbers[piece] for piece in row.hypotheses[0]]) for row in theirs]
    ours = translator.translate(
        lines, beam=3, temperature=0.8, stop="early", max_length_factor=0.0, max_length_offset=longest + 1
    )
    same = sum(text == row[0].text for text, row in zip(texts, ours, strict=True))
    assert same >= 0.9 * len(lines)
    assert len(set(texts)) > len(lines) // 4


def test_the_directory_must_be_free(small_run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "something").write_text("mine")
    with pytest.raises(UserError, match="exists; choose another place"):
        export(ExportConfig(run=str(small_run.path), out=str(tmp_path)))
    assert (tmp_path / "something").read_text() == "mine"


def test_without_ctranslate2_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2.specs", None)
    with pytest.raises(UserError, match=r"pip install 'nmt-ls\[export\]'"):
        specs()


def test_config_is_checked() -> None:
    with pytest.raises(ValueError, match="out has to be given"):
        ExportConfig(out="")
    with pytest.raises(ValueError, match="temperature"):
        ExportConfig(out="x", temperature=0.0)


def test_positions_reach_as_far_as_decode_does() -> None:
    assert POSITIONS > 2 * 1024 + 10
