from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data_prep.iwslt14 import Iwslt14Config
from data_prep.multi30k import Multi30kConfig
from data_prep.parallel import ParallelConfig, SplitNames, main
from data_prep.tatoeba import TatoebaConfig
from data_prep.wmt14 import Wmt14Config
from nmt_ls.corpus import Corpus
from nmt_ls.experiment.command_line import UserError
from nmt_ls.vocabulary import VocabularyConfig

Row = dict[str, Any]
VOCABULARY = VocabularyConfig(size=75)
ROWS: list[Row] = [
    {"en": f"the {en} {verb[0]} {n} times .", "de": f"{de} {verb[1]} {n} Mal ."}
    for en, de in (("dog", "der Hund"), ("cat", "die Katze"))
    for verb in (("sings", "singt"), ("sleeps", "schläft"))
    for n in range(12)
]
# one test source has two translations
SPLITS = {"train": ROWS, "validation": ROWS[:4], "test": [*ROWS[4:9], {**ROWS[5], "de": "noch eine"}]}


def nested(rows: list[Row]) -> list[Row]:
    return [{"translation": row} for row in rows]


def write_jsonl(folder: Path, splits: dict[str, list[Row]] = SPLITS) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in splits.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def write_parquet(folder: Path, splits: dict[str, list[Row]] = SPLITS) -> Path:
    folder.mkdir()
    for name, rows in splits.items():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{name}-00000-of-00001.parquet")
    return folder


def config(source: Path, out: Path, **settings: Any) -> ParallelConfig:
    return ParallelConfig(source=str(source), out=str(out), **{"vocabulary": VOCABULARY, **settings})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    directory = tmp_path_factory.mktemp("data")
    main(config(write_jsonl(directory / "source"), directory / "out"))
    return Corpus.load(directory / "out")


def test_json_lines_become_a_corpus(corpus: Corpus) -> None:
    assert (corpus.source_language, corpus.target_language) == ("en", "de")
    for name in ("train", "validation"):
        split = corpus.split(name)
        texts = [{"en": split.source_text(row), "de": split.references(row)[0]} for row in range(len(split))]
        assert texts == SPLITS[name]
    assert [path.name for path in corpus.directory.parent.iterdir() if path.name.startswith(".")] == []


def test_rows_of_a_test_source_are_its_references(corpus: Corpus) -> None:
    split = corpus.split("test")
    assert len(split) == 5
    assert split.references(1) == [ROWS[5]["de"], "noch eine"]
    summary = corpus.manifest["splits"]["test"]
    assert (summary["rows"], summary["references"]) == (6, 6)


@pytest.mark.parametrize("layout", ["parquet", "nested json lines", "nested parquet", "gzip", "subfolders"])
def test_the_layout_of_the_source_makes_no_difference(tmp_path: Path, corpus: Corpus, layout: str) -> None:
    source = tmp_path / "source"
    inner = {name: nested(rows) for name, rows in SPLITS.items()}
    if layout == "parquet":
        write_parquet(source)
    elif layout == "nested json lines":
        write_jsonl(source, inner)
    elif layout == "nested parquet":
        write_parquet(source, inner)
    else:
        write_jsonl(source)
        for name in SPLITS:
            path = source / f"{name}.jsonl"
            if layout == "gzip":
                import gzip

                (source / f"{name}.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
                path.unlink()
            else:
                (source / name).mkdir()
                path.rename(source / name / "part.jsonl")
    main(config(source, tmp_path / "out"))
    assert Corpus.load(tmp_path / "out").checksum == corpus.checksum


def test_languages_may_be_turned_round_and_other_columns_ignored(tmp_path: Path) -> None:
    rows = {name: [{**row, "id": 7, "fr": None} for row in rows] for name, rows in SPLITS.items()}
    main(config(write_jsonl(tmp_path / "source", rows), tmp_path / "{src}-{tgt}", src="de", tgt="en"))
    corpus = Corpus.load(tmp_path / "de-en")
    assert corpus.split("train").source_text(0) == ROWS[0]["de"]


def test_splits_may_be_named_and_sliced(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "source", {"train": ROWS, "dev": ROWS[:6]})
    splits = SplitNames(train="train[8:]", validation="validation", test="train[:8]")
    main(config(source, tmp_path / "out", splits=splits))  # `datasets` calls dev validation
    corpus = Corpus.load(tmp_path / "out")
    assert [len(corpus.split(name)) for name in corpus.split_names] == [40, 6, 8]
    assert corpus.split("train").source_text(0) == ROWS[8]["en"]


def test_a_second_run_does_nothing_and_changed_data_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path / "source")
    main(config(source, tmp_path / "out"))
    capsys.readouterr()
    moved = source.rename(tmp_path / "moved")
    main(config(moved, tmp_path / "out"))
    assert "is there already, made by the same recipe: nothing to do" in capsys.readouterr().out
    write_jsonl(moved, {"test": ROWS[:2]})
    with pytest.raises(UserError, match=r"\(files\.test\.jsonl is .*: choose another place, or remove it"):
        main(config(moved, tmp_path / "out"))


GOOD = b'{"en": "the dog sings .", "de": "der Hund singt ."}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"en": "the dog", "de": "für"}'.encode("latin-1"),
            r"train\.jsonl, line 3: not valid UTF-8 \(byte 0xfc at 27\)",
        ),
        (b'{"en": "the \\u0000dog", "de": "der Hund"}', r"train\.jsonl, line 3: it holds a NUL byte"),
        (b'{"en": "the \0dog", "de": "der Hund"}', r"train\.jsonl, line 3: it holds a NUL byte"),
        (b'{"en": "the \\ud800dog", "de": "der Hund"}', r"train\.jsonl, line 3: it is not valid Unicode"),
        (b'{"en": "the dog", "de": ', r"train\.jsonl, line 3: not JSON"),
        (b'{"en": "the dog", "de": ["der", "Hund"]}', r"source"),
    ],
)
def test_a_faulty_line_is_named_and_nothing_is_left(tmp_path: Path, line: bytes, message: str) -> None:
    source = write_jsonl(tmp_path / "source")
    (source / "train.jsonl").write_bytes(GOOD + GOOD + line + b"\n" + GOOD)
    with pytest.raises(UserError, match=message) as error:
        main(config(source, tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_missing_texts_are_empty_in_training_data_and_an_error_elsewhere(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "source", {**SPLITS, "train": [*ROWS, {"en": "a cat", "de": None}]})
    main(config(source, tmp_path / "out"))
    assert Corpus.load(tmp_path / "out").manifest["splits"]["train"]["dropped"]["empty side"] == 1
    write_jsonl(source, {"test": [*ROWS[:3], {"en": "a cat", "de": None}]})
    with pytest.raises(UserError, match=r"split 'test', row 4: 'de' is missing"):
        main(config(source, tmp_path / "other"))


def test_parquet_faults_are_named_by_split_and_row(tmp_path: Path) -> None:
    rows = [*ROWS[:6], {"en": "nul", "de": "hier\0"}]
    source = write_parquet(tmp_path / "source", {**SPLITS, "train": rows})
    with pytest.raises(UserError, match=r"source, split 'train', row 7: it holds a NUL byte in 'de'"):
        main(config(source, tmp_path / "out"))


@pytest.mark.parametrize(
    ("splits", "settings", "message"),
    [
        (
            {"train": ROWS, "test": ROWS},
            {},
            r"source: Unknown split .validation.*'train', 'test'.* --splits\.train, \.validation and \.test",
        ),
        (
            SPLITS,
            {"tgt": "cs"},
            r"source, split 'train': no column 'cs'; there are en, de\. Choose with --src and --tgt",
        ),
        (
            {name: nested(rows) for name, rows in SPLITS.items()},
            {"src": "nl"},
            r"source, split 'train': no column 'nl'; there are en, de",
        ),
        ({name: [{"en": "one", "de": 1}] * 3 for name in SPLITS}, {}, r"split 'train', row 1: 'de' is no text: 1"),
        ({}, {}, r"source holds no data files; it needs one a split, such as train\.jsonl"),
    ],
)
def test_an_unfit_data_set_says_why(tmp_path: Path, splits: dict[str, list[Row]], settings: Row, message: str) -> None:
    source = write_jsonl(tmp_path / "source", splits)
    with pytest.raises(UserError, match=message) as error:
        main(config(source, tmp_path / "out", **settings))
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_source_that_is_no_folder_says_what_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"nowhere: there is no such folder; name one with a file a split, or a Hub id"):
        main(config(tmp_path / "nowhere", tmp_path / "out"))
    (tmp_path / "corpus.tsv").write_text("a\tb\n")
    with pytest.raises(UserError, match=r"corpus\.tsv is a file: name the folder that holds it"):
        main(config(tmp_path / "corpus.tsv", tmp_path / "out"))

    import datasets

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        UserError, match=r"someone/something: not a local folder, and the Hub does not give it \(Couldn't"
    ):
        main(ParallelConfig(source="someone/something", out=str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("preset", "languages", "inner"),
    [
        (Multi30kConfig, ("en", "de"), False),
        (TatoebaConfig, ("en", "de"), False),
        (Wmt14Config, ("en", "de"), True),
        (Iwslt14Config, ("de", "en"), True),
    ],
)
def test_presets_prepare_a_local_folder_of_the_same_schema(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    preset: type[ParallelConfig],
    languages: tuple[str, str],
    inner: bool,
) -> None:
    splits = {name: nested(rows) for name, rows in SPLITS.items()} if inner else SPLITS
    source = write_jsonl(tmp_path / "source", splits)
    monkeypatch.chdir(tmp_path)
    settings = preset(source=str(source), vocabulary=VOCABULARY)
    main(settings)
    name = preset.__module__.rpartition(".")[2]
    corpus = Corpus.load(Path("data") / f"{name}-{languages[0]}-{languages[1]}")
    assert corpus.split("train").source_text(0) == ROWS[0][languages[0]]
    assert corpus.manifest["licence"] == settings.licence != ""


def test_refused_settings_are_named() -> None:
    with pytest.raises(ValueError, match="source has to be given"):
        TatoebaConfig()
    with pytest.raises(ValueError, match="src and tgt are both 'de'"):
        Multi30kConfig(src="de")
    with pytest.raises(ValueError, match="workers"):
        Multi30kConfig(workers=-2)


@pytest.mark.skipif("NMT_LS_DATA" not in os.environ, reason="NMT_LS_DATA does not name a folder with real data")
@pytest.mark.parametrize(
    ("preset", "train", "counts"),
    [
        (Multi30kConfig, "train", (28_997, 1_014, 1_000, 1_000)),
        (TatoebaConfig, "train[:20000]", (20_000, 1_629, 3_239, 4_002)),  # the whole takes several times as long
    ],
)
def test_real_data(tmp_path: Path, preset: type[ParallelConfig], train: str, counts: tuple[int, int, int, int]) -> None:
    name = preset.__module__.rpartition(".")[2]
    source, splits = str(Path(os.environ["NMT_LS_DATA"]) / name), SplitNames(train=train)
    main(preset(source=source, splits=splits, out=str(tmp_path / "out")))
    corpus = Corpus.load(tmp_path / "out")
    assert tuple(len(corpus.split(split)) for split in corpus.split_names) == counts[:3]
    assert corpus.manifest["splits"]["test"]["references"] == counts[3]
    corpus.verify()
