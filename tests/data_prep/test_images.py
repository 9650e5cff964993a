"""Images prepared: decoded exactly, split by class, and what is wrong with them named before training."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_images import CLASSES, made_folder, picture, png, write_parquet
from PIL import Image

from data_prep.image_files import Decoder, Picture
from data_prep.images import KIND, PREPARE_WITH, ImagesConfig, SplitNames, main, stratified
from nmt_ls.experiment.array_store import ArrayStore
from nmt_ls.experiment.command_line import UserError


def prepare(source: Path, out: Path, **settings: object) -> ArrayStore:
    main(ImagesConfig(source=str(source), out=str(out), **settings))  # type: ignore[arg-type]
    return ArrayStore.load(out, KIND, PREPARE_WITH)


def rows(store: ArrayStore, split: str) -> tuple[np.ndarray, np.ndarray]:
    return store.column(split, "images"), store.column(split, "labels")


def test_pixels_labels_and_splits(tmp_path: Path) -> None:
    store = prepare(made_folder(tmp_path / "made"), tmp_path / "out")
    assert store.manifest["about"] == {"classes": list(CLASSES), "image_shape": [3, 8, 8]}
    sizes = {name: len(rows(store, name)[1]) for name in store.splits}
    assert sizes == {"train": 24, "validation": 6, "test": 6}  # as many as the test has, a fifth of train at most
    images, labels = rows(store, "test")
    np.testing.assert_array_equal(images[4], np.asarray(picture(1004)).transpose(2, 0, 1))
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert np.bincount(rows(store, "validation")[1]).tolist() == [2, 2, 2]
    # every training image is in one of the two, in the source's order
    found = {image.tobytes() for name in ("train", "validation") for image in rows(store, name)[0]}
    order = {np.asarray(picture(number)).transpose(2, 0, 1).tobytes(): number for number in range(30)}
    assert found == set(order)
    numbers = [order[image.tobytes()] for image in rows(store, "train")[0]]
    assert numbers == sorted(numbers)
    assert [number % 3 for number in numbers] == rows(store, "train")[1].tolist()
    values = rows(store, "train")[0] / 255
    np.testing.assert_allclose(store.manifest["train_pixels"]["mean"], values.mean((0, 2, 3)))
    np.testing.assert_allclose(store.manifest["train_pixels"]["std"], values.std((0, 2, 3)))


def test_made_once_wherever_the_source_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = made_folder(tmp_path / "made")
    first = prepare(made, tmp_path / "out")
    made.rename(tmp_path / "moved")
    assert prepare(tmp_path / "moved", tmp_path / "out").checksum == first.checksum
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="prepared otherwise \\(seed is 0 there, not 1\\)"):
        prepare(tmp_path / "moved", tmp_path / "out", seed=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved", "out"]


def test_cifar_and_greyscale_columns(tmp_path: Path) -> None:
    grey = [png(picture(number, mode="L")) for number in range(12)]
    for split in ("train", "test"):
        write_parquet(tmp_path / "made", split, grey, [n % 3 for n in range(12)], ("img", "fine_label"))
    store = prepare(tmp_path / "made", tmp_path / "out")
    assert store.manifest["about"]["image_shape"] == [1, 8, 8]
    assert store.manifest["splits"]["train"]["greyscale_converted"] == 0
    np.testing.assert_array_equal(rows(store, "test")[0][3, 0], np.asarray(picture(3, mode="L")))
    coloured = prepare(tmp_path / "made", tmp_path / "coloured", channels="3")
    assert coloured.manifest["splits"]["test"]["greyscale_converted"] == 12


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(("dtype", "kind"), [("<u2", "PNG"), ("<u2", "TIFF"), (">u2", "TIFF")])
@pytest.mark.parametrize("channels", ["1", "3"])
def test_sixteen_bits_are_scaled_to_eight(dtype: str, kind: str, channels: str) -> None:
    deep = np.array([[0, 128, 129, 257], [1000, 32768, 65406, 65535]], dtype=dtype)
    decoder = Decoder(0, 0, channels)
    picture = Picture("here", {"bytes": encoded(deep, kind)})
    decoder.settle([picture])
    pixels, greyscale = decoder.decode(picture)
    assert greyscale
    assert pixels.shape[0] == int(channels)
    for channel in pixels:
        assert channel.tolist() == [[0, 0, 1, 1], [4, 128, 254, 255]]


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_thirty_two_bits_are_refused_by_file(dtype: str, tmp_path: Path) -> None:
    for number in range(24):
        folder = tmp_path / "made" / CLASSES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02}.tiff").write_bytes(encoded(np.full((8, 8), 300 + number, dtype), "TIFF"))
    with pytest.raises(UserError, match=r"\.tiff.*32 bits a pixel.*save it with 8 bits"):
        prepare(tmp_path / "made", tmp_path / "out")


def test_copies_and_greyscale_are_counted_not_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [png(picture(number)) for number in range(12)]
    images[9] = png(picture(3))  # a copy under the same label
    images[10] = png(picture(2))  # and one under another
    images[11] = png(picture(50, mode="L"))
    write_parquet(tmp_path / "made", "train", images, [number % 3 for number in range(12)])
    write_parquet(tmp_path / "made", "test", [png(picture(2)), *images[4:6]], [2, 1, 2])
    store = prepare(tmp_path / "made", tmp_path / "out", validation=3)
    copies = store.manifest["duplicates"]
    assert copies["groups"] == 4
    assert copies["groups_under_several_labels"] == 1
    in_train = {image.tobytes() for image in rows(store, "train")[0]}
    expected = sum(image.tobytes() in in_train for image in rows(store, "test")[0])
    assert copies["test_images_in_train"] == expected
    assert sum(store.manifest["splits"][name]["greyscale_converted"] for name in ("train", "validation")) == 1
    said = capsys.readouterr().out
    assert "4 groups of identical images, 1 of them under several labels" in said
    assert "1 greyscale ones converted" in said


def test_held_out_splits_of_the_source(tmp_path: Path) -> None:
    made = made_folder(tmp_path / "made", train=30, test=6)
    (made / "test.parquet").rename(made / "validation.parquet")
    store = prepare(made, tmp_path / "as_test")
    assert store.manifest["splits"]["test"]["from"] == "validation"
    assert store.manifest["splits"]["validation"]["from"] == "train"
    write_parquet(made, "test", [png(picture(number)) for number in range(2000, 2004)], [0, 1, 2, 0])
    store = prepare(made, tmp_path / "both")
    assert {name: split["from"] for name, split in store.manifest["splits"].items()} == {
        "train": "train", "validation": "validation", "test": "test"
    }  # fmt: skip
    with pytest.raises(UserError, match="has no split 'dev', only"):
        prepare(made, tmp_path / "none", splits=SplitNames(test="dev"))


def test_folder_of_images(tmp_path: Path) -> None:
    for number in range(24):
        folder = tmp_path / "made" / CLASSES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / f"{number:02}.png")
    store = prepare(tmp_path / "made", tmp_path / "out")
    assert store.manifest["about"]["classes"] == ["cat", "dog"]
    sizes = {name: len(rows(store, name)[1]) for name in store.splits}
    assert sizes == {"train": 16, "validation": 4, "test": 4}
    for name in store.splits:
        for image, label in zip(*rows(store, name), strict=True):
            assert any((image == np.asarray(picture(n)).transpose(2, 0, 1)).all() for n in range(label, 24, 2))


def test_larger_images_are_scaled_and_cut(tmp_path: Path) -> None:
    wide = picture(0, (24, 8))
    write_parquet(
        tmp_path / "made", "train", [png(wide), *(png(picture(n, (9, 30))) for n in range(1, 12))], [0, 1, 2] * 4
    )
    write_parquet(tmp_path / "made", "test", [png(wide)] * 3, [0, 1, 2])
    with pytest.raises(UserError, match=r"row 2: 9 x 30 pixels where the first image has 24 x 8; .* --size"):
        prepare(tmp_path / "made", tmp_path / "out")
    store = prepare(tmp_path / "made", tmp_path / "out", size=8)
    np.testing.assert_array_equal(rows(store, "test")[0][0], np.asarray(wide).transpose(2, 0, 1)[:, :, 8:16])
    cut = prepare(tmp_path / "made", tmp_path / "cut", size=4, resize=8)
    np.testing.assert_array_equal(rows(cut, "test")[0][0], np.asarray(wide).transpose(2, 0, 1)[:, 2:6, 10:14])


def test_an_image_that_does_not_decode_is_named(tmp_path: Path) -> None:
    images = [png(picture(number)) for number in range(12)]
    images[7] = b"no image at all"
    write_parquet(tmp_path / "made", "train", images, [0, 1, 2] * 4)
    write_parquet(tmp_path / "made", "test", images[:3], [0, 1, 2])
    with pytest.raises(UserError, match=r"split 'train', row 8: does not decode \(not an image"):
        prepare(tmp_path / "made", tmp_path / "out")
    images[7] = png(picture(7))[:-40]
    write_parquet(tmp_path / "made", "train", images, [0, 1, 2] * 4)
    with pytest.raises(UserError, match=r"split 'train', row 8: does not decode"):
        prepare(tmp_path / "made", tmp_path / "out")
    for number in range(12):
        folder = tmp_path / "files" / CLASSES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / f"{number:02}.png")
    (tmp_path / "files" / "cat" / "04.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"cat/04\.png: does not decode"):
        prepare(tmp_path / "files", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_outside_the_classes_are_named(tmp_path: Path) -> None:
    images = [png(picture(number)) for number in range(12)]
    write_parquet(tmp_path / "made", "train", images, [0, 1, 2, 0, 3, *[1] * 7])
    write_parquet(tmp_path / "made", "test", images[:3], [-1, -1, -1])
    with pytest.raises(UserError, match=r"split 'train', row 5: label 3 is none of 0 to 2$"):
        prepare(tmp_path / "made", tmp_path / "out")
    write_parquet(tmp_path / "made", "train", images, [0, 1, 2] * 4)
    store = prepare(tmp_path / "made", tmp_path / "passed_over")
    assert store.manifest["splits"]["test"]["from"] == "train"
    with pytest.raises(UserError, match=r"row 1: label -1 is none of 0 to 2; .* without labels\? .*--splits\.test"):
        prepare(tmp_path / "made", tmp_path / "out", splits=SplitNames(test="test"))
    write_parquet(tmp_path / "made", "validation", images[:6], [0, 1, 2] * 2)
    store = prepare(tmp_path / "made", tmp_path / "as_imagenet")
    assert {name: split["from"] for name, split in store.manifest["splits"].items()} == {
        "train": "train", "validation": "train", "test": "validation"
    }  # fmt: skip


def test_labels_of_every_split_are_looked_at_before_any_image(tmp_path: Path) -> None:
    images = [b"no image at all"] * 12
    write_parquet(tmp_path / "made", "train", images, [0, 1, 2] * 4)
    write_parquet(tmp_path / "made", "test", images[:3], [0, 1, 7])
    with pytest.raises(UserError, match=r"split 'test', row 3: label 7 is none of 0 to 2$"):
        prepare(tmp_path / "made", tmp_path / "out")


def name_images(file: Path, names: Sequence[str]) -> None:
    """Have the images of a Parquet file say what they were called."""
    table = pq.read_table(file)
    cells = [{**cell, "path": name} for cell, name in zip(table["image"].to_pylist(), names, strict=True)]
    field = table.schema.field("image")
    pq.write_table(table.set_column(0, field, pa.array(cells, field.type)), file)


def test_an_image_is_named_by_what_is_known_of_it(tmp_path: Path) -> None:
    images = [png(picture(number)) for number in range(12)]
    damaged = [*images[:3], b"no image at all"]
    made = tmp_path / "made"
    write_parquet(made, "train-00000-of-00002", images[:8], [0, 1, 2, 0] * 2)
    write_parquet(made, "train-00001-of-00002", damaged, [0, 1, 2, 0])
    name_images(made / "train-00001-of-00002.parquet", [f"n{number}.JPEG" for number in range(4)])
    write_parquet(made, "test", images[:3], [0, 1, 2])
    with pytest.raises(
        UserError, match=r"split 'train', row 12 \(row 4 of train-00001-of-00002\.parquet, n3\.JPEG\): does not decode"
    ):
        prepare(made, tmp_path / "out")
    write_parquet(made, "train-00001-of-00002", images[:4], [0, 1, 5, 0])
    with pytest.raises(UserError, match=r"row 11 \(row 3 of train-00001-of-00002\.parquet\): label 5 is none"):
        prepare(made, tmp_path / "out")


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        prepare(tmp_path / "missing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: cannot be read as images"):
        prepare(tmp_path / "empty", tmp_path / "out")
    made = made_folder(tmp_path / "made")
    with pytest.raises(UserError, match=r"no column picture; there are image, label\. Choose with --image"):
        prepare(made, tmp_path / "out", image="picture")
    with pytest.raises(UserError, match="column 'label' holds no images"):
        prepare(made, tmp_path / "out", image="label")
    with pytest.raises(UserError, match="validation: 30 images cannot be cut from the 30 of train"):
        prepare(made, tmp_path / "out", validation=30)
    with pytest.raises(UserError, match=r"test: .*made has such a split already; leave --test out"):
        prepare(made, tmp_path / "out", test=3)


def test_stratified_keeps_shares() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 21])
    found = stratified(labels, 20, seed=0)
    assert np.bincount(labels[found]).tolist() == [10, 6, 4]
    assert (np.diff(found) > 0).all()
    np.testing.assert_array_equal(found, stratified(labels, 20, seed=0))
    assert (found != stratified(labels, 20, seed=1)).any()


@pytest.mark.parametrize(
    ("name", "columns", "classes", "mode"),
    [
        ("cifar10", ("img", "label"), 10, "RGB"),
        ("cifar100", ("img", "fine_label"), 100, "RGB"),
        ("mnist", ("image", "label"), 10, "L"),
    ],
)
def test_real_images(
    real_data: Path, tmp_path: Path, name: str, columns: tuple[str, str], classes: int, mode: str
) -> None:
    """Splits with the shares of their classes, and a test image as its file has it; CIFAR-100 by its fine labels."""
    source = every_tenth(real_data, name, tmp_path / "tenth")
    store = prepare(source, tmp_path / "out")
    splits = {split: found["by_class"] for split, found in store.manifest["splits"].items()}
    given = {}
    for split in ("train", "test"):
        tables = (pq.read_table(file, columns=[columns[1]]) for file in source.glob(f"{split}*"))
        given[split] = np.bincount(pa.concat_tables(tables)[columns[1]], minlength=classes)
    np.testing.assert_array_equal(splits["test"], given["test"])
    np.testing.assert_array_equal(np.add(splits["train"], splits["validation"]), given["train"])
    assert sum(splits["validation"]) == 1000
    assert np.abs(splits["validation"] - given["train"] * 1000 / given["train"].sum()).max() < 1
    assert store.manifest["about"]["image_shape"] == ([1, 28, 28] if mode == "L" else [3, 32, 32])
    check_third_test_image(store, source, tmp_path, columns, mode)


def every_tenth(real_data: Path, name: str, place: Path) -> Path:
    """A tenth of the rows of a data set of NMT_LS_DATA, as its files have them."""
    place.mkdir()
    for file in real_place(real_data, name).glob("*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.take(np.arange(0, len(table), 10)), place / file.name)
    return place


def real_place(real_data: Path, name: str) -> Path:
    """A data set of NMT_LS_DATA; the test is skipped where it has none of this name."""
    if not (real_data / name).is_dir():
        pytest.skip(f"NMT_LS_DATA has no {name}")
    return real_data / name


def check_third_test_image(
    store: ArrayStore, source: Path, tmp_path: Path, columns: tuple[str, str], mode: str
) -> None:
    """It is what PIL makes of the file."""
    import datasets

    data = datasets.load_dataset(str(source), split="test[:3]", cache_dir=str(tmp_path / "cache"))
    cell = data.cast_column(columns[0], datasets.Image(decode=False))[2]
    expected = np.asarray(Image.open(io.BytesIO(cell[columns[0]]["bytes"])).convert(mode))
    expected = expected[None] if mode == "L" else expected.transpose(2, 0, 1)
    np.testing.assert_array_equal(rows(store, "test")[0][2], expected)
    assert rows(store, "test")[1][2] == cell[columns[1]]


def test_real_tiny_imagenet(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = prepare(real_place(real_data, "tiny_imagenet_20"), tmp_path / "out")
    splits = store.manifest["splits"]
    assert {name: (split["images"], split["from"]) for name, split in splits.items()} == {
        "train": (9000, "train"), "validation": (1000, "train"), "test": (1000, "validation")
    }  # fmt: skip
    assert sum(split["greyscale_converted"] for split in splits.values()) == 86
    assert store.manifest["duplicates"]["groups_under_several_labels"] == 7
    assert "7 groups of identical images, 7 of them under several labels" in capsys.readouterr().out
