"""The check of a data set: what it counts is what is there, and copies are found whoever looks."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import ArrayImages, make_picture
from PIL import Image
from running import fgssl, flat_photos, make_photos, photos

from fgssl.check import check_source
from fgssl.check.pictures import examine, perceptual_hash, sweep
from fgssl.check.similar import NEAR_BITS, near_pairs
from fgssl.config.schema import DataConfig
from fgssl.data.archives.rehearsal import draw_archive


def no_progress(done: int, total: int) -> None:
    """Nobody watches."""


def found_pairs(hashes: np.ndarray, thumbs: np.ndarray) -> list[tuple[int, int]]:
    return [(int(i), int(j)) for block in near_pairs(hashes, thumbs, no_progress) for i, j in zip(*block, strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_near_pairs_are_those_of_a_search_through_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, 6, dtype=np.uint64)
    hashes = np.array(
        [
            int(centres[rng.integers(6)]) ^ sum(1 << int(bit) for bit in rng.permutation(64)[: rng.integers(0, 9)])
            for _ in range(150)
        ],
        dtype=np.uint64,
    )
    thumbs = np.tile(rng.integers(0, 256, 30, dtype=np.uint8), (150, 1))  # all alike: the hashes alone decide
    expected = [
        (i, j) for i in range(150) for j in range(i + 1, 150) if bin(int(hashes[i] ^ hashes[j])).count("1") <= NEAR_BITS
    ]
    assert len({hashes[i] for i, _ in expected}) > 50  # several distances, equal hashes among them
    assert sorted(found_pairs(hashes, thumbs)) == expected


def test_likeness_of_hashes_is_confirmed_by_colour() -> None:
    red, blue = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    red[:2, :, 0], blue[:2, :, 2] = 200, 200
    thumbs = np.stack([red, red + 3, blue, np.full_like(red, 40), np.full_like(red, 44), np.full_like(red, 90)])
    hashes = np.zeros(6, np.uint64)
    assert sorted(found_pairs(hashes, thumbs.reshape(6, -1))) == [(0, 1), (3, 4)]  # plain ones by their colour


def test_a_crowd_with_one_hash_ends() -> None:
    thumbs = np.tile(np.arange(27, dtype=np.uint8) * 9, (3000, 1))
    pairs = found_pairs(np.full(3000, 7, np.uint64), thumbs)
    assert {i for i, _ in pairs} == set(range(2999)) and len(pairs) == len(set(pairs))  # a chain at least


def bits_between(first: Image.Image, second: Image.Image) -> int:
    return bin(perceptual_hash(first) ^ perceptual_hash(second)).count("1")


def recoded(picture: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def test_the_hash_stays_under_recompression_and_resizing_and_tells_pictures_apart() -> None:
    pictures = [make_picture(seed, 160, 120) for seed in range(12)]
    for picture in pictures:
        assert bits_between(picture, recoded(picture, 30)) <= NEAR_BITS
        assert bits_between(picture, picture.resize((80, 60), Image.Resampling.LANCZOS)) <= NEAR_BITS
        assert bits_between(picture, picture.point(lambda value: value * 0.7)) <= NEAR_BITS
    between = [bits_between(a, b) for n, a in enumerate(pictures) for b in pictures[:n]]
    assert min(between) > NEAR_BITS and 28 < np.mean(between) < 36  # as unrelated bits: half of 64
    assert perceptual_hash(Image.new("RGB", (50, 50), "red")) == 0


@pytest.fixture
def doubtful(tmp_path: Path) -> Path:
    """A labelled folder with one of each: exact copy, leak, near leak, conflict, lone class, unreadable, tiny."""
    folder = make_photos(tmp_path / "set" / "train", 30) and tmp_path / "set"
    make_photos(folder / "test", 12, seed=100)
    train, test = folder / "train", folder / "test"
    shutil.copy(train / "class 0" / "00.jpg", train / "class 0" / "copy of 00.jpg")
    shutil.copy(train / "class 0" / "03.png", train / "class 1" / "other class.png")
    shutil.copy(train / "class 1" / "01.png", test / "class 1" / "leaked.png")
    with Image.open(train / "class 2" / "02.jpg") as picture:
        recoded(picture.resize((120, 120)), 60).save(test / "class 2" / "near leak.jpg")
    (test / "lone").mkdir()
    make_picture(900, 300, 30).save(test / "lone" / "wide.png")
    (train / "class 0" / "empty.jpg").touch()
    return folder


def test_everything_doubtful_in_a_folder_is_found(doubtful: Path) -> None:
    report = fgssl("data", "check", doubtful, "--json", "--image-size", "41").json()
    start = f"{doubtful}/"

    def short(names: list[str]) -> list[str]:
        return [name.removeprefix(start) for name in names]

    train, test = report["splits"]
    assert (train["name"], train["images"], train["unreadable"], train["classes"]) == ("train", 33, 1, 3)
    assert (test["name"], test["images"], test["unreadable"], test["classes"]) == ("test", 15, 0, 4)
    assert train["formats"] == {"JPEG": 16, "PNG": 16} and train["modes"] == {"RGB": 32}
    assert test["width"]["max"] == 300 and test["aspect"]["max"] == 10 and test["elongated"] == 1
    sides = [min(40 + i % 9, 48 - i % 7) for i in [*range(30), 0, 3]]
    assert train["smaller"] == sum(side < 41 for side in sides)
    assert report["classes"] == {
        "class 0": {"train": 12, "test": 4}, "class 1": {"train": 11, "test": 5},
        "class 2": {"train": 10, "test": 5}, "lone": {"train": 0, "test": 1},
    }  # fmt: skip
    assert report["unreadable"] == [
        {"split": "train", "image": f"{start}train/class 0/empty.jpg", "reason": "is empty (0 bytes)"}
    ]
    assert [short(group) for group in report["exact_duplicates"]] == [
        ["train/class 0/00.jpg", "train/class 0/copy of 00.jpg"],
        ["train/class 0/03.png", "train/class 1/other class.png"],
        ["train/class 1/01.png", "test/class 1/leaked.png"],
    ]
    assert [short(group) for group in report["near_duplicates"]] == [
        ["train/class 2/02.jpg", "test/class 2/near leak.jpg"]
    ]
    assert [(short([x["image"], x["original"]]), x["kind"]) for x in report["leaks"]] == [
        (["test/class 1/leaked.png", "train/class 1/01.png"], "exact"),
        (["test/class 2/near leak.jpg", "train/class 2/02.jpg"], "near"),
    ]
    assert [[x["class"] for x in group] for group in report["label_conflicts"]] == [["class 0", "class 1"]]
    words = " | ".join(finding["text"] for finding in report["findings"])
    for text in ("2 of 15 pictures of test are in train", "1 picture of train cannot be read", "single picture (lone)",
                 "train has no picture of 1 class (lone)", "3 exact copies of other pictures (3 groups)",
                 "different classes (1 group)", "is longer than 4:1"):  # fmt: skip
        assert text in words, text
    assert report["verdict"] == "usable"


def test_terminal_names_what_json_holds(doubtful: Path) -> None:
    outcome = fgssl("data", "check", doubtful)
    assert outcome.code == 0 and outcome.err == ""
    for text in ("empty.jpg: is empty (0 bytes)", "test/class 1/leaked.png = train/class 1/01.png", "verdict: usable",
                 "test/class 2/near leak.jpg ~ train/class 2/02.jpg", "03.png (class 0) = "):  # fmt: skip
        assert text in outcome.out, text


def test_healthy_unlabelled_and_single_splits(tmp_path: Path) -> None:
    healthy = fgssl("data", "check", photos(), "--image-size", "32", "--json")
    assert healthy.code == 0 and healthy.json()["verdict"] == "healthy" and healthy.json()["findings"] == []
    flat = fgssl("data", "check", flat_photos(), "--json", "--image-size", "32").json()
    assert flat["classes"] == {} and flat["splits"][0]["classes"] is None and flat["verdict"] == "healthy"
    assert "no labels" in flat["findings"][0]["text"]
    only = fgssl("data", "check", photos(), "--split", "test", "--json").json()
    assert [split["name"] for split in only["splits"]] == ["test"]
    listing = tmp_path / "some.txt"
    listing.write_text("".join(f"{path}\t{path.parent.name}\n" for path in sorted(photos().rglob("*.jpg"))))
    assert fgssl("data", "check", listing, "--json").json()["splits"][0]["formats"] == {"JPEG": 18}


def test_tables_are_checked_like_folders(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    stored = []
    for picture in (make_picture(0, 50, 40), make_picture(1, 50, 40), make_picture(0, 50, 40)):
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        stored.append({"bytes": stream.getvalue(), "path": None})
    rows = {"image": [*stored, {"bytes": b"<html>", "path": None}], "label": ["a", "b", "b", "a"]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "set.parquet")
    outcome = fgssl("data", "check", tmp_path / "set.parquet", "--json")
    report = outcome.json()
    assert [[name[-2:] for name in group] for group in report["exact_duplicates"]] == [["#0", "#2"]]
    assert [[x["class"] for x in group] for group in report["label_conflicts"]] == [["a", "b"]]
    assert report["unreadable"][0]["reason"] == "is an HTML page, not an image"
    # a quarter is unreadable: training would stop, and the exit code says so
    assert report["verdict"] == "unusable" and outcome.code == 1
    assert "1 of 4 pictures" in outcome.error() and "more than a tenth" in outcome.error()


def test_processes_and_progress_change_nothing(tmp_path: Path) -> None:
    make_photos(tmp_path, 140)
    data = DataConfig(source=str(tmp_path))
    steps: list[tuple[str, int, int]] = []
    reports = [check_source(data, workers=n, progress=lambda *step: steps.append(step)) for n in (0, 2)]
    assert reports[0].to_dict() == reports[1].to_dict()
    assert [step for step in steps if step[0] == "reading all"] == [("reading all", n + 1, 140) for n in range(140)] * 2
    assert steps[-1][1] == steps[-1][2]


def test_sweep_of_a_set_with_unreadable_pictures() -> None:
    images = ArrayImages([make_picture(i, 30 + i, 60) for i in range(5)], broken=(1, 4))
    facts = sweep(images, workers=0, progress=no_progress)
    assert facts.sizes.tolist() == [[30, 60], [0, 0], [32, 60], [33, 60], [0, 0]]
    assert facts.reasons == {1: "unreadable image memory#1: is broken", 4: "unreadable image memory#4: is broken"}
    assert isinstance(examine(images, 1), str)


@pytest.mark.parametrize("arguments", [("data", "check", "nowhere"), ("data", "check", ".", "--split", "tset")])
def test_mistakes_are_one_line(arguments: tuple[str, ...], doubtful: Path) -> None:
    assert fgssl(*arguments, cwd=doubtful).error()


def test_boxes_parts_and_segmentations_are_held_against_the_pictures(tmp_path: Path) -> None:
    folder = draw_archive("cub", tmp_path / "cub", classes=2, images=3, size=32)
    report = check_source(DataConfig(source=f"cub:{folder}"), workers=0)
    texts = [finding.text for finding in report.findings]
    assert "train of 6 pictures has boxes on 6, parts on 6, segmentations on 6" in texts
    next((folder / "segmentations/001.Drawn_Bird_1").iterdir()).unlink()
    boxes = folder / "bounding_boxes.txt"
    boxes.write_text("1 20 20 40 5\n" + "".join(boxes.read_text().splitlines(keepends=True)[2:]))  # out, and missing
    texts = [finding.text for finding in check_source(DataConfig(source=f"cub:{folder}"), workers=0).findings]
    assert any(text.startswith("1 boxes of train reach out of their pictures") for text in texts)
    assert any(text.startswith("1 pictures of train have no boxes") for text in texts)
    assert any("have no segmentations" in text for text in texts)
