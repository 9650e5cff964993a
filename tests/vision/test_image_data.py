"""Images read: what preparation wrote, subsets, batches, and what does not fit named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_images import CLASSES, made_folder

from data_prep.images import ImagesConfig, main
from nmt_ls.experiment.array_store import array_checksum
from nmt_ls.experiment.command_line import UserError
from vision_ls import data as data_module
from vision_ls.data import (
    EmbeddedSizes,
    _remarks,
    balanced_rows,
    embedded_images,
    epoch_batches,
    load_images,
    spread_rows,
)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    main(ImagesConfig(source=str(made_folder(tmp_path / "made")), out=str(tmp_path / "out")))
    return tmp_path / "out"


def test_prepared_images_are_read(prepared: Path) -> None:
    data = load_images(prepared)
    assert data.classes == CLASSES
    assert data.image_shape == (3, 8, 8)
    train = data.split("train")
    assert train.images_NCHW.shape == (24, 3, 8, 8)
    assert train.images_NCHW.dtype == torch.uint8
    assert train.labels_N.dtype == torch.int64
    torch.testing.assert_close(torch.tensor(data.mean), (train.images_NCHW / 255).mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    assert not data.embedded
    with pytest.raises(UserError, match="no split 'dev'"):
        data.split("dev")


def test_large_splits_stay_on_disk(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_images(prepared).split("train").images_NCHW
    monkeypatch.setattr(data_module, "RESIDENT_BYTES", 1)
    mapped = load_images(prepared).split("train")
    assert mapped.on(torch.device("cpu")) is mapped
    assert torch.equal(mapped.select(torch.tensor([3, 1])).images_NCHW, whole[[3, 1]])


def test_damage_and_labels_outside_are_refused(prepared: Path) -> None:
    path = prepared / "train" / "images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"images\.npy: changed since"):
        load_images(prepared).split("train")
    labels = np.load(prepared / "test" / "labels.npy", mmap_mode="r+")
    labels[2] = 7
    labels.flush()
    with pytest.raises(UserError, match=r"labels\.npy: changed since"):
        load_images(prepared).split("test")


def test_a_label_outside_the_classes_is_named(prepared: Path) -> None:
    """Where checksums agree: a store that was written so."""
    labels = np.load(prepared / "test" / "labels.npy", mmap_mode="r+")
    labels[2] = 7
    labels.flush()
    manifest = json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))
    manifest["splits"]["test"]["columns"]["labels"]["sha256"] = array_checksum(np.array(labels))
    (prepared / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match=r"test: image 2 has the label 7, none of 0 to 2; prepare the data again"):
        load_images(prepared).split("test")


def test_remarks_are_what_preparation_found() -> None:
    manifest = {
        "note": "own split",
        "duplicates": {
            "groups": 3,
            "groups_under_several_labels": 2,
            "validation_images_in_train": 1,
            "test_images_in_train": 4,
        },
        "splits": {"train": {"greyscale_converted": 5}, "test": {"greyscale_converted": 0}},
    }
    note, copies, grey = _remarks(manifest)
    assert note == "own split"
    assert copies == (
        "3 groups of identical images, 2 of them under several labels; in train too are 1 images of validation and "
        "4 of test"
    )
    assert grey == "greyscale images that were given three channels: train 5, test 0"
    clean = {"duplicates": {"groups": 0}, "splits": {"train": {"greyscale_converted": 0}}}
    assert _remarks(clean) == []


def test_a_note_goes_with_the_images(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_images(prepared).note == ""
    noted = ImagesConfig(source=str(tmp_path / "made"), out=str(tmp_path / "noted"), note="JPEG re-encoded")
    main(noted)
    assert "JPEG re-encoded" in capsys.readouterr().out
    data = load_images(tmp_path / "noted")
    assert data.note == data.remarks[0] == "JPEG re-encoded"
    assert data.checksum == load_images(prepared).checksum
    with pytest.raises(UserError, match="note is 'JPEG re-encoded' there, not 'own split'"):
        main(replace(noted, note="own split"))


def test_rows_are_spread_evenly() -> None:
    assert spread_rows(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert spread_rows(7, 3).tolist() == [0, 2, 4]
    rows = spread_rows(40_000, 10_000)
    assert len(rows) == 10_000
    assert rows[-1] == 39_996
    assert spread_rows(0, 3).tolist() == []


def test_class_names(prepared: Path) -> None:
    data = load_images(prepared)
    assert data.class_index("horse") == 2
    assert data.class_index("1") == 1
    with pytest.raises(UserError, match=r"class 'hors' is none of the 3 .*near ones are horse"):
        data.class_index("hors")
    synonyms = load_images(prepared)
    synonyms.classes = ("tench, Tinca tinca", "school_bus", "cat")
    for part, whole in (("Tench", "tench, Tinca tinca"), ("bus", "school_bus")):
        with pytest.raises(UserError, match=f"near ones are {whole};"):
            synonyms.class_index(part)
    with pytest.raises(UserError, match="the first ones are cat, dog, horse; numbers go from 0 to 2"):
        data.class_index("9")


def test_embedded_images_have_posteriors() -> None:
    data = embedded_images(EmbeddedSizes(train=50, validation=10, test=20))
    test = data.split("test")
    assert data.embedded
    assert test.posteriors_NK is not None
    assert test.posteriors_NK.shape == (20, len(data.classes))
    chosen = test.select(torch.tensor([4, 2]))
    assert chosen.posteriors_NK is not None
    assert torch.equal(chosen.posteriors_NK, test.posteriors_NK[[4, 2]])
    assert data.checksum == embedded_images(EmbeddedSizes(train=50, validation=10, test=20)).checksum
    assert data.checksum != embedded_images(EmbeddedSizes(train=51, validation=10, test=20)).checksum


def test_balanced_subsets_are_nested() -> None:
    labels = torch.tensor([0] * 9 + [1] * 6 + [2] * 5)
    small, large = (balanced_rows(labels, size, CLASSES, seed=0) for size in (7, 15))
    assert torch.bincount(labels[small]).tolist() == [3, 2, 2]
    assert torch.bincount(labels[large]).tolist() == [5, 5, 5]
    assert set(small.tolist()) < set(large.tolist())
    with pytest.raises(UserError, match="need 6 of class 'horse', which has 5; ask for 15 at most"):
        balanced_rows(labels, 18, CLASSES, seed=0)


def test_the_size_advised_for_a_balanced_subset_can_be_had() -> None:
    labels = torch.tensor([0] * 6 + [1] * 9 + [2] * 4)  # the first class falls short, and the last one more
    with pytest.raises(UserError, match="need 7 of class 'cat', which has 6; ask for 12 at most"):
        balanced_rows(labels, 21, CLASSES, seed=0)
    assert torch.bincount(labels[balanced_rows(labels, 12, CLASSES, seed=0)]).tolist() == [4, 4, 4]


def test_batches_are_full_and_a_function_of_seed_and_epoch() -> None:
    first, again, later = (epoch_batches(25, 8, 1, epoch) for epoch in (1, 1, 2))
    assert [len(rows) for rows in first] == [8, 8, 8]
    assert len(set(torch.cat(first).tolist())) == 24
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, again, strict=True))
    assert any(not torch.equal(ours, theirs) for ours, theirs in zip(first, later, strict=True))
    assert [len(rows) for rows in epoch_batches(5, 8, 1, 1)] == [5]  # fewer than a batch: all of them
