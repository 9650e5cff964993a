"""Stores of arrays: whole or absent, memory-mapped, checked, and made once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmt_ls.experiment.array_store import ArrayStore, new_array, write_store
from nmt_ls.experiment.command_line import UserError

RECIPE = {"seed": 1, "size": 4}


def build(folder: Path) -> Mapping[str, Any]:
    new_array(folder / "train" / "numbers.npy", (4, 2), np.uint8)[:] = np.arange(8).reshape(4, 2)
    new_array(folder / "train" / "labels.npy", (4,), np.int64)[:] = [0, 1, 0, 1]
    return {"about": {"names": ["a", "b"]}, "splits": {"train": {"rows": 4}}, "licence": "none"}


def write(place: Path, recipe: Mapping[str, Any] = RECIPE, build: Any = build) -> ArrayStore:
    return write_store(place, "numbers", recipe, build, "make numbers")


def test_written_and_read(tmp_path: Path) -> None:
    store = write(tmp_path / "store")
    numbers = store.column("train", "numbers")
    assert isinstance(numbers, np.memmap)
    np.testing.assert_array_equal(numbers, np.arange(8).reshape(4, 2))
    assert store.manifest["licence"] == "none"
    assert store.manifest["splits"]["train"]["rows"] == 4
    store.verify("train")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_checksum_is_of_content_and_meaning(tmp_path: Path) -> None:
    def renamed(folder: Path) -> Mapping[str, Any]:
        return {**build(folder), "about": {"names": ["b", "a"]}}

    def changed(folder: Path) -> Mapping[str, Any]:
        said = build(folder)
        new_array(folder / "train" / "labels.npy", (4,), np.int64)[:] = [0, 1, 1, 1]
        return said

    places = (
        write(tmp_path / name, build=how) for name, how in zip("abcd", (build, build, renamed, changed), strict=True)
    )
    first, again, other_names, other_labels = (store.checksum for store in places)
    assert first == again
    assert len({first, other_names, other_labels}) == 3


def test_made_once(tmp_path: Path) -> None:
    write(tmp_path / "store")

    def never(folder: Path) -> Mapping[str, Any]:
        raise AssertionError(folder)

    assert write(tmp_path / "store", build=never).splits == ["train"]
    with pytest.raises(UserError, match="prepared otherwise \\(size is 4 there, not 5\\)"):
        write(tmp_path / "store", {"seed": 1, "size": 5})


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> Mapping[str, Any]:
        build(folder)
        raise UserError("row 3 is damaged")

    with pytest.raises(UserError, match="row 3"):
        write(tmp_path / "store", build=fails)
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make numbers prepares it"):
        ArrayStore.load(tmp_path / "none", "numbers", "make numbers")
    store = write(tmp_path / "store")
    with pytest.raises(UserError, match="holds no images"):
        ArrayStore.load(tmp_path / "store", "images", "make images")
    with pytest.raises(UserError, match="no split 'test': choose one of train"):
        store.column("test", "numbers")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not prepared data"):
        write(tmp_path / "full")


def test_damage_is_noticed(tmp_path: Path) -> None:
    store = write(tmp_path / "store")
    path = tmp_path / "store" / "train" / "numbers.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"numbers\.npy: changed"):
        store.verify("train")
    path.write_bytes(whole[:-3])
    with pytest.raises(UserError, match=r"numbers\.npy: missing or damaged"):
        store.column("train", "numbers")
