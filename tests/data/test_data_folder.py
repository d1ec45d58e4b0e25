"""Folders and lists of images: layouts, labels that agree between splits, and everything odd a disk can hold."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fgssl.config.schema import DataConfig
from fgssl.data import available_splits, default_split, load_images
from fgssl.data.images import Concatenated, ImageSet, Subset
from fgssl.data.sources.files import PackedNames
from fgssl.data.sources.open import open_source
from fgssl.errors import FgsslError, SettingError, UnreadableImage
from fgssl.runtime.text import shown


def put(root: Path, *names: str) -> Path:
    """Small images whose colour follows their place in the list."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 6), (number, 0, 0)).save(path, "PNG")
    return root


def opened(root: Path | str, split: str = "all") -> ImageSet:
    return load_images(DataConfig(source=str(root)), split)


def names(images: ImageSet, root: Path) -> list[str]:
    return [os.path.relpath(images.identifier(index), root) for index in range(len(images))]


def error(source: Path | str, split: str = "all") -> str:
    with pytest.raises(FgsslError) as caught:
        opened(source, split)
    assert "\n" not in str(caught.value) and caught.value.remedy
    return str(caught.value)


def defaults(source: Path | str) -> tuple[str | None, str | None]:
    data = DataConfig(source=str(source))
    return default_split(data, "train"), default_split(data, "test")


def test_class_folders(tmp_path: Path) -> None:
    put(tmp_path, "wren/b.jpg", "wren/a.JPG", "jay/deep/er/c.png", "owl/d.webp")
    (tmp_path / "empty class").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    images = opened(tmp_path)
    assert isinstance(images, ImageSet)
    assert names(images, tmp_path) == ["jay/deep/er/c.png", "owl/d.webp", "wren/a.JPG", "wren/b.jpg"]
    assert images.class_names == ("jay", "owl", "wren")
    assert images.labels is not None and images.labels.dtype == np.int64 and images.labels.tolist() == [0, 1, 2, 2]
    assert available_splits(DataConfig(source=str(tmp_path))) == ("all",)
    assert defaults(tmp_path) == ("all", None)
    assert images.load(2).getpixel((0, 0)) == (1, 0, 0) and images.load(0).size == (9, 6)


def test_split_folders_share_one_mapping(tmp_path: Path) -> None:
    put(tmp_path, "train/b/1.jpg", "train/c/2.jpg", "test/a/3.jpg", "test/c/4.jpg", "Val/b/5.jpg")
    put(tmp_path, "annotations/drawing.png")
    assert available_splits(DataConfig(source=str(tmp_path))) == ("Val", "test", "train")
    train, test, val = (opened(tmp_path, split) for split in ("train", "test", "val"))
    assert train.class_names == test.class_names == val.class_names == ("a", "b", "c")
    assert [list(s.labels) for s in (train, test, val)] == [[1, 2], [0, 2], [1]]  # type: ignore[arg-type]
    assert defaults(tmp_path) == ("train", "test")
    both = opened(tmp_path, "train+test")
    assert both.split == "train+test" and list(both.labels) == [1, 2, 0, 2]  # type: ignore[arg-type]
    assert "no split 'dev'; its splits are: Val, test, train" in error(tmp_path, "dev")
    given_splits = DataConfig(source=str(tmp_path), train_split="x", test_split="y")
    assert (default_split(given_splits, "train"), default_split(given_splits, "test")) == ("x", "y")


@pytest.mark.parametrize(
    ("folders", "train", "test"),
    [
        (("training", "testing"), "training", "testing"),
        (("train", "validation"), "train", "validation"),
        (("train", "dev"), "train", "dev"),
        (("train", "val", "test"), "train", "test"),
        (("train",), "train", None),
        (("test",), None, "test"),
    ],
)
def test_default_splits(tmp_path: Path, folders: tuple[str, ...], train: str | None, test: str | None) -> None:
    put(tmp_path, *(f"{folder}/{kind}/1.jpg" for folder in folders for kind in "ab"))
    assert defaults(tmp_path) == (train, test)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    put(tmp_path, "bus/1.jpg", "car/2.jpg", "train/3.jpg")
    assert opened(tmp_path).class_names == ("bus", "car", "train")


@pytest.mark.parametrize(
    "files",
    [
        ("a.jpg", "b.jpg"),
        ("a.jpg", "sub/b.jpg", "other/c.jpg"),
        ("photos/a.jpg", "photos/b.jpg"),  # one folder is a wrapper, not a class
        ("photos/2024/a.jpg",),
    ],
)
def test_unlabelled_folders(tmp_path: Path, files: tuple[str, ...]) -> None:
    images = opened(put(tmp_path, *files))
    assert images.labels is None and images.class_names is None and len(images) == len(files)


def test_wrappers_and_mixed_splits(tmp_path: Path) -> None:
    put(tmp_path / "one", "data/set/train/a/1.jpg", "data/set/train/b/2.jpg", "data/set/test/b/3.jpg")
    assert available_splits(DataConfig(source=str(tmp_path / "one"))) == ("test", "train")
    assert list(opened(tmp_path / "one", "test").labels) == [1]  # type: ignore[arg-type]
    put(tmp_path / "two", "train/a/1.jpg", "train/b/2.jpg", "test/3.jpg")
    assert opened(tmp_path / "two", "test").labels is None
    assert list(opened(tmp_path / "two", "train").labels) == [0, 1]  # type: ignore[arg-type]
    put(tmp_path / "three", "train/images/1.jpg", "test/images/2.jpg")  # one class tells nothing apart
    assert opened(tmp_path / "three", "train").labels is None


def test_order_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, *(f"{folder}/{number}.jpg" for folder in "cab" for number in (10, 2, 1)))
    expected = names(opened(tmp_path), tmp_path)
    assert expected == sorted(expected)
    real = os.scandir

    class Reversed:
        def __init__(self, path: bytes) -> None:
            with real(path) as entries:
                self.entries = list(entries)[::-1]

        def __iter__(self) -> Iterator[os.DirEntry[bytes]]:
            return iter(self.entries)

        def __enter__(self) -> Reversed:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert names(opened(tmp_path), tmp_path) == expected


def test_odd_things_on_the_disk(tmp_path: Path) -> None:
    root = put(tmp_path / "set", "a/ spaces .jpg", "a/🐦.jpg", "b/x.jpg/inside.png", "b/new\nline.jpg", "c/last.jpg")
    put(root, "a/.hidden.jpg", "__MACOSX/a.jpg", ".cache/b.jpg", "a/@eaDir/thumb.jpg")
    raw = os.fsencode(root) + b"/a/\xff\xfe.jpg"
    Path(os.fsdecode(raw)).write_bytes((root / "a/🐦.jpg").read_bytes())
    (root / "b/broken.jpg").symlink_to("nowhere.jpg")
    (root / "b/self.jpg").symlink_to("self.jpg")
    (root / "b/loop").symlink_to(root, target_is_directory=True)
    (root / "b/deep").mkdir()
    (root / "b/deep/up").symlink_to("..", target_is_directory=True)
    (root / "a/linked.jpg").symlink_to(root / "a/🐦.jpg")
    os.mkfifo(root / "a/pipe.jpg")
    images = opened(root)
    found = names(images, root)
    inside_a = ["a/ spaces .jpg", "a/linked.jpg", "a/🐦.jpg", "a/\\xff\\xfe.jpg"]
    inside_b = ["b/broken.jpg", "b/new\\nline.jpg", "b/self.jpg", "b/x.jpg/inside.png"]
    assert found == [*inside_a, *inside_b, "c/last.jpg"]  # links to folders listed elsewhere add nothing
    assert all(name.isprintable() for name in found)
    readable = {}
    for index in range(len(images)):
        try:
            readable[found[index]] = images.load(index).size
        except UnreadableImage as problem:
            assert "\n" not in str(problem) and found[index] in str(problem)
    assert set(found) - set(readable) == {"b/broken.jpg", "b/self.jpg"}
    assert any("pipe.jpg: not a regular file" in line for line in images.skipped)  # type: ignore[attr-defined]
    assert len(images.fingerprint()) == 32


def test_links_to_class_folders_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "pool", "jay/1.jpg", "owl/2.jpg", "wren/3.jpg")
    subset = tmp_path / "subset"
    subset.mkdir()
    for name in ("jay", "wren"):
        (subset / name).symlink_to(tmp_path / "pool" / name, target_is_directory=True)
    images = opened(subset)
    assert images.class_names == ("jay", "wren") and len(images) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_without_permission(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    (tmp_path / "c").chmod(0)
    try:
        images = opened(tmp_path)
        assert len(images) == 2
        (tmp_path / "a").chmod(0)
        assert "cannot list" in error(tmp_path / "a")
    finally:
        for name in "ac":
            (tmp_path / name).chmod(0o755)


def test_folder_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty is empty" in error(tmp_path / "empty")
    (tmp_path / "texts/deep").mkdir(parents=True)
    for number in range(3):
        (tmp_path / f"texts/deep/{number}.TXT").write_text("x")
    (tmp_path / "texts/README").write_text("x")
    message = error(tmp_path / "texts")
    assert "no image among the 4 files" in message and "3 .txt, 1 without extension" in message
    (tmp_path / "photos.zip").write_bytes(b"PK")
    assert "is an archive; unpack it" in error(tmp_path / "photos.zip")
    put(tmp_path, "one.jpg")
    assert "is a file, not a set of images" in error(tmp_path / "one.jpg")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert "link to something that does not exist" in error(tmp_path / "dangling")
    monkeypatch.chdir(tmp_path)
    assert "no such folder or file: cubs" in error("cubs") and "did you mean cub?" in error("cubs")
    assert "did you mean ./texts?" in error("./text")
    assert "no such folder or file" in error("a/b/c") and "preset" in error("nothing-like-it")
    assert "the data source is empty" in error("")


def test_local_folder_beside_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "cub/a/1.jpg", "cub/b/2.jpg", "owner/name/3.jpg")
    monkeypatch.chdir(tmp_path)
    assert opened("./cub").identifier(0) == "cub/a/1.jpg"  # written with ./ it is the folder
    assert len(opened("owner/name")) == 1  # what exists here beats a hub id
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(opened("~/cub")) == 2
    images = opened("./cub")
    monkeypatch.chdir("/")
    assert images.load(0).size == (9, 6)


def test_fingerprint_follows_names_sizes_and_times(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.jpg")
    first = opened(tmp_path).fingerprint()
    assert opened(tmp_path).fingerprint() == first
    os.utime(tmp_path / "a.jpg", ns=(1, 1))
    second = opened(tmp_path).fingerprint()
    (tmp_path / "b.jpg").rename(tmp_path / "c.jpg")
    third = opened(tmp_path).fingerprint()
    assert len({first, second, third}) == 3


def test_subset_concatenated_and_pickle(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test/b/3.jpg", "test/4.jpg")
    train, test = opened(tmp_path, "train"), opened(tmp_path, "test")
    part = Subset(train, [1, 1])
    assert len(part) == 2 and list(part.labels) == [1, 1] and part.identifier(0) == train.identifier(1)  # type: ignore[arg-type]
    assert part.fingerprint() not in (train.fingerprint(), Subset(train, [1]).fingerprint())
    joined = Concatenated([train, test])
    assert [joined.identifier(i) for i in range(4)] == [s.identifier(i) for s in (train, test) for i in range(2)]
    assert joined.labels is None  # the test split has none
    for images in (train, part, joined):
        again = pickle.loads(pickle.dumps(images))
        assert again.identifier(1) == images.identifier(1) and again.load(1).tobytes() == images.load(1).tobytes()
        assert again.fingerprint() == images.fingerprint() and isinstance(images, ImageSet)
    with pytest.raises(IndexError):
        joined.load(4)
    with pytest.raises(IndexError):
        Subset(train, [2])
    with pytest.raises(FgsslError):
        Concatenated([])


def test_text_lists(tmp_path: Path) -> None:
    root = put(tmp_path / "data", "x/a b.jpg", "c.jpg", "ü.jpg")
    plain = root / "some.txt"
    plain.write_bytes(
        "\ufeff# mine\r\n\r\nx/a b.jpg\r\n  c.jpg \r\nmissing.jpg\r\n".encode() + os.fsencode(root / "ü.jpg")
    )
    images = opened(plain)
    assert images.labels is None and len(images) == 4 and defaults(plain) == ("all", None)
    assert images.load(0).getpixel((0, 0)) == (0, 0, 0) and images.load(3).getpixel((0, 0)) == (2, 0, 0)
    with pytest.raises(UnreadableImage, match=r"missing\.jpg: does not exist"):
        images.load(2)
    labelled = root / "labelled.lst"
    labelled.write_text("c.jpg\t10\nx/a b.jpg\t 2\nc.jpg\t2\n")
    images = opened(labelled)
    assert images.class_names == ("2", "10") and list(images.labels) == [1, 0, 0]  # type: ignore[arg-type]
    labelled.write_text("c.jpg\twren\nc.jpg\tjay\n")
    assert opened(labelled).class_names == ("jay", "wren")
    labelled.write_text("c.jpg\twren\nc.jpg jay\n")
    assert "none on the line 'c.jpg jay'" in error(labelled)
    labelled.write_text("\n# nothing\n")
    assert "names no image" in error(labelled)
    labelled.write_bytes(b"\0\1\2")
    assert "not a text file" in error(labelled)


@given(st.lists(st.binary(max_size=40), max_size=50))
def test_packed_names_hold_what_went_in(items: list[bytes]) -> None:
    packed = PackedNames(iter(items))
    assert [packed[index] for index in range(len(packed))] == items
    with pytest.raises(IndexError):
        packed[len(items)]


@given(st.binary(max_size=30))
def test_printable_names(raw: bytes) -> None:
    text = shown(raw)
    assert text == shown(os.fsdecode(raw)) and text.encode("utf-8").decode() == text
    assert not any(character in text for character in "\n\r\t\x1b\x7f\u202e")
    plain = "Žluťoučký kůň 👩‍👧 ok.jpg"
    assert shown(plain) == plain and shown("lone \ud800") == "lone \\ud800"


def test_a_million_names_stay_small() -> None:
    tracemalloc.start()
    packed = PackedNames(b"class_%03d/photo_%07d.jpg" % (number // 5000, number) for number in range(200_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(packed) == 200_000 and packed[123_456] == b"class_024/photo_0123456.jpg"
    assert peak < 20_000_000  # 100 bytes a name: a million are 100 MB at the very most


@pytest.mark.parametrize("column", ["image_column", "label_column"])
def test_a_column_of_a_source_without_any_is_refused(column: str, tmp_path: Path) -> None:
    """Left unused it would not have been noticed."""
    folder, listed = tmp_path / "photos", tmp_path / "list.txt"
    (folder / "a").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(folder / "a" / "0.png")
    listed.write_text("photos/a/0.png\n")
    for source in (folder, listed, "demo"):
        with pytest.raises(SettingError, match=f"data.{column} species names nothing: .*; leave it out"):
            open_source(DataConfig(source=str(source), **{column: "species"}))
