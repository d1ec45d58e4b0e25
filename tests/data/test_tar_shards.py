"""WebDataset's tar shards as a source: what is read where it lies, and what is wrong with a shard said in a line.

The oracle is the standard library's own extraction, and the pictures that were written.
"""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgssl.config.schema import DataConfig
from fgssl.data import available_splits, default_split, load_images
from fgssl.data.order import BLOCK, local_order
from fgssl.errors import FgsslError, UnreadableImage

Member = tuple[str, bytes]


def picture(level: int, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 0, 0)).save(stream, form)
    return stream.getvalue()


def write(path: Path, members: Sequence[Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(first: int, count: int, ending: str = "cls") -> list[Member]:
    """Pictures whose red is their number, of classes 2 and 10 by turns."""
    numbers = range(first, first + count)
    return [
        member
        for n in numbers
        for member in ((f"{n:04d}.png", picture(n)), (f"{n:04d}.{ending}", b"10" if n % 2 else b"2\n"))
    ]


def opened(folder: Path, split: str = "train", **settings: str):
    return load_images(DataConfig(source=str(folder), **settings), split)


def reds(images, rows: Sequence[int] | None = None) -> list[int]:
    return [images.load(row).getpixel((0, 0))[0] for row in (range(len(images)) if rows is None else rows)]


def problem(folder: Path, split: str = "all") -> str:
    with pytest.raises(FgsslError) as caught:
        opened(folder, split)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_shards_are_rows_in_the_order_of_shards(tmp_path: Path) -> None:
    write(tmp_path / "birds-train-000001.tar", samples(3, 2))
    write(tmp_path / "birds-train-000000.tar", samples(0, 3))
    write(tmp_path / "birds-val-000000.tar", samples(5, 2))
    data = DataConfig(source=str(tmp_path))
    assert set(available_splits(data)) == {"train", "val"}
    assert (default_split(data, "train"), default_split(data, "test")) == ("train", "val")
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert reds(train) == [0, 1, 2, 3, 4] and reds(val) == [5, 6]
    assert train.class_names == val.class_names == ("2", "10")  # as numbers, alike in both splits
    assert train.labels.tolist() == [0, 1, 0, 1, 0] and val.labels.tolist() == [1, 0]
    assert train.name(3) == str(tmp_path / "birds-train-000001.tar/0003.png")
    assert not train.remarks
    folders = tmp_path / "folders"
    write(folders / "train/0.tar", samples(0, 2))
    write(folders / "test/0.tar", samples(2, 1))
    assert set(available_splits(DataConfig(source=str(folders)))) == {"train", "test"}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_format(tmp_path: Path, form: int) -> None:
    name = f"{'deep/' * 15}{'x' * 40}é"
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for ending, content in (("png", picture(7)), ("txt", "Rotkehlchen é".encode())):
            member = tarfile.TarInfo(f"{name}.{ending}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    images = opened(tmp_path, "all")
    assert reds(images) == [7] and images.class_names == ("Rotkehlchen é",)
    assert images.name(0).endswith(f"{name}.png")


def test_content_is_what_tarfile_extracts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", samples(0, 4))
    images = opened(tmp_path, "all")
    with tarfile.open(path) as tar:
        expected = [tar.extractfile(member).read() for member in tar if member.name.endswith("png")]
    assert [images.content(row) for row in range(4)] == expected


def read_all(images) -> list[int]:
    return reds(images)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_several_processes_read_the_same_file(tmp_path: Path, method: str) -> None:
    write(tmp_path / "a.tar", samples(0, 12))
    images = opened(tmp_path, "all")
    assert reds(images, [0]) == [0]  # the file is open when the others begin
    if method == "spawn":  # what a spawned loader is handed
        assert reds(pickle.loads(pickle.dumps(images))) == list(range(12))
        return
    with multiprocessing.get_context(method).Pool(3) as pool:
        assert pool.map(read_all, [images] * 6) == [list(range(12))] * 6


def test_local_order_reads_shards_nearly_as_they_lie() -> None:
    """A process of two reads its own half of the lanes, each of neighbouring blocks."""
    order = local_order(64 * 8 * BLOCK, seed=1, epoch=0)
    lane = order[0::64][: 8 * BLOCK] // BLOCK
    assert len(set(lane.tolist())) == 8  # of 512 blocks: those that are open together


def test_labels_in_json_and_by_name(tmp_path: Path) -> None:
    def told(n: int) -> bytes:
        return json.dumps({"label": n % 2, "species": f"s{n % 3}", "width": 8}).encode()

    members = [m for n in range(4) for m in ((f"{n}.png", picture(n)), (f"{n}.json", told(n)), (f"{n}.txt", b"a"))]
    write(tmp_path / "a.tar", members)
    images = opened(tmp_path, "all")
    assert images.labels.tolist() == [0, 1, 0, 1] and "not .txt" in images.remarks[0].text
    assert opened(tmp_path, "all", label_column="species").class_names == ("s0", "s1", "s2")
    assert opened(tmp_path, "all", label_column="txt").class_names == ("a",)
    lacking = opened(tmp_path, "all", label_column="genus")
    assert lacking.labels is None and "no .genus or .json" in lacking.unlabelled
    assert lacking.unlabelled.endswith("beside them there is .json, label, species, width, .txt")


def test_captions_are_no_classes(tmp_path: Path) -> None:
    members = [m for n in range(70) for m in ((f"{n}.png", picture(n)), (f"{n}.txt", b"a photo of %d" % n))]
    write(tmp_path / "a.tar", members)
    assert opened(tmp_path, "all").labels is None


def test_missing_labels_leave_the_split_unlabelled(tmp_path: Path) -> None:
    write(tmp_path / "train-0.tar", samples(0, 4))
    write(tmp_path / "test-0.tar", [*samples(4, 2), ("9.png", picture(9)), ("9.cls", b"-1")])
    assert opened(tmp_path).labels is not None
    test = opened(tmp_path, "test")
    assert test.labels is None and "missing in 1 of 3" in test.unlabelled


def test_pictures_of_a_sample(tmp_path: Path) -> None:
    write(
        tmp_path / "a.tar",
        [
            ("0.seg.png", picture(90)), ("0.png", picture(0)),  # a part beside the picture
            ("1.webp", picture(1, "WEBP")), ("1.png", picture(91)),  # two pictures
            ("2.cls", b"1"),  # none
            ("3.left.png", picture(3)), ("3.right.png", picture(93)),
            ("README", b"x"), (".hidden.png", picture(99)),
        ],
    )  # fmt: skip
    images = opened(tmp_path, "all")
    assert [images.name(row).rpartition("/")[2] for row in range(3)] == ["0.png", "1.webp", "3.left.png"]
    told = " ".join(remark.text for remark in images.remarks)
    assert "1 times a sample without a picture, such as 2" in told and "1 times several pictures" in told
    assert reds(opened(tmp_path, "all", image_column="right.png")) == [93]


def test_what_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in [*samples(0, 2), ("0000.png", picture(77)), ("../../evil.png", b"x"), ("/abs.png", b"x")]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("0009.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    images = opened(tmp_path, "all")
    assert reds(images) == [0, 1]
    told = " ".join(remark.text for remark in images.remarks)
    assert "2 times a name that leads out of the shard" in told
    assert "1 times no regular file, such as 0009.png" in told and "1 times occurs twice" in told


def test_bad_shards_are_one_line(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole/a.tar", samples(0, 6)).read_bytes()
    for name, content in {
        "cut": whole[: 3 * 512 + 20],
        "text": b"this is no tar " * 100,
        "nothing": b"",
        "spoilt": whole[:2048] + b"\xff" * 512 + whole[2560:],
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.tar").write_bytes(content)
        assert "a.tar is broken or cut off" in problem(tmp_path / name)
    (tmp_path / "whole/a.tar").write_bytes(whole[: 4 * 1024])  # where a member ends
    assert "1 times without a mark of its end" in opened(tmp_path / "whole", "all").remarks[0].text
    for name, file in {"packed": "a.tar", "named": "a.tar.gz"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(gzip.compress(whole))
        assert "compressed" in problem(tmp_path / name) and "gunzip" in problem(tmp_path / name)
    write(tmp_path / "labels/a.tar", [("0.cls", b"1"), ("1.cls", b"1")])
    assert "no image in the 1 shards" in problem(tmp_path / "labels")
    (tmp_path / "single.tar").write_bytes(whole)
    assert "give the folder it lies in" in problem(tmp_path / "single.tar")


def test_an_index_is_kept_and_made_anew_when_a_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "data/a.tar", samples(0, 3))
    first = opened(tmp_path / "data", "all")
    kept = list((tmp_path / "cache/shards").glob("*.npz"))
    assert len(kept) == 1
    monkeypatch.setattr(tarfile, "open", None)  # it is not looked through again
    again = opened(tmp_path / "data", "all")
    monkeypatch.undo()
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "cache"))
    assert again.fingerprint() == first.fingerprint() and np.array_equal(again.labels, first.labels)
    kept[0].write_bytes(b"PK damaged")
    assert len(opened(tmp_path / "data", "all")) == 3
    write(path, samples(0, 5))
    other = opened(tmp_path / "data", "all")
    assert len(other) == 5 and other.fingerprint() != first.fingerprint()
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UnreadableImage, match="cut off since"):
        other.content(4)
