"""Hub data sets through the real loader, against a small server on this machine; tables on disk.

Each process of the first kind runs in its own interpreter: the hub's address is read when `datasets` is imported.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hub_server import HubServer, Repository, parquet, serve
from PIL import Image

from fgssl.config.schema import DataConfig
from fgssl.data import PRESETS, available_splits, default_split, load_images
from fgssl.data.images import ImageSet
from fgssl.errors import FgsslError, UnreadableImage

SCRIPT = """
import json, sys
from fgssl.config.schema import DataConfig
from fgssl.data import available_splits, default_split, load_images
from fgssl.errors import FgsslError
for options, split in json.loads(sys.argv[1]):
    data = DataConfig(**options)
    try:
        images = load_images(data, split)
    except FgsslError as error:
        answer = {"error": str(error)}
    else:
        answer = {
            "splits": available_splits(data),
            "train": default_split(data, "train"), "test": default_split(data, "test"),
            "name": images.identifier(0), "classes": images.class_names, "fingerprint": images.fingerprint(),
            "labels": None if images.labels is None else images.labels.tolist(),
            "remarks": [text for _, text in images.remarks],
            "red": [images.load(index).getpixel((0, 0))[0] for index in range(len(images))],
        }
    print(json.dumps(answer))
"""


def png(red: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (red, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def table(reds: list[int], feature: Any = None, **columns: list[Any]) -> datasets.Dataset:
    rows = {"picture": [{"bytes": png(red), "path": None} for red in reds], **columns}
    features = datasets.Features({"picture": datasets.Image()})
    for name, values in columns.items():
        features[name] = feature or datasets.Value("string" if isinstance(values[0], str) else "int64")
    return datasets.Dataset.from_dict(rows, features=features)


BIRDS = datasets.ClassLabel(names=["wren", "jay", "owl"])
TRAIN = table([10, 20, 30, 40], BIRDS, species=[2, 0, 1, 2])
TEST = table([50, 60], BIRDS, species=[1, 1])
FEWER = table([70, 80], datasets.ClassLabel(names=["owl", "wren"]), species=[0, 1])  # no jay: other ids
CARD = b"""---
configs:
- {config_name: small, data_files: [{split: train, path: small.parquet}]}
- {config_name: big, data_files: [{split: train, path: big.parquet}]}
---
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    datasets.disable_progress_bars()
    card = {"README.md": b"A test set."}
    shards = {"data/train-00000-of-00001.parquet": parquet(TRAIN), "data/test-00000-of-00001.parquet": parquet(TEST)}
    cub = {
        name: parquet(rows.rename_columns({"picture": "image", "species": "label"}))
        for name, rows in (("data/train-0.parquet", TRAIN), ("data/test-0.parquet", TEST))
    }
    repositories = {
        "owner/birds": Repository({**card, **shards}),
        PRESETS["cub"].hub_id: Repository({**card, **cub}),
        PRESETS["aircraft"].hub_id: Repository(card, refuse=403),  # gated
        PRESETS["aircraft"].others[0]: Repository({**card, **cub}),
        PRESETS["food"].hub_id: Repository(card, refuse=401),  # renamed, with nothing in its place
        "owner/asks": Repository(card, refuse=401),
        "owner/refuses": Repository(card, refuse=403),
        "owner/two": Repository({"README.md": CARD, "small.parquet": parquet(TEST), "big.parquet": parquet(TRAIN)}),
        "owner/code": Repository({**card, "code.py": b"raise SystemExit('this must never run')"}),
        "owner/nothing": Repository(card),
        "owner/cut": Repository({**card, "train.parquet": parquet(TRAIN)[:-200]}),
        "owner/numbers": Repository({**card, "data.csv": b"a,b\n1,2\n"}),
        "owner/differs": Repository({**card, "train.parquet": parquet(TRAIN), "test.parquet": parquet(FEWER)}),
    }
    with serve(repositories) as server:
        yield server
    datasets.enable_progress_bars()


def answers(environment: dict[str, str], *cases: tuple[dict[str, str], str]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(cases)],
        env={**os.environ, "HF_TOKEN": "", **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0 and "Retrying" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(cases)
    return found


def test_hub_online_then_offline(hub: HubServer, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path)
    commit = Repository({}).commit
    cases: list[tuple[dict[str, str], str]] = [
        ({"source": "owner/birds"}, "train"),
        ({"source": "owner/birds"}, "train+test"),
        ({"source": "cub"}, "test"),
        ({"source": "owner/two", "subset": "big"}, "train"),
        ({"source": "owner/two", "subset": "small"}, "train"),
    ]
    birds, both, cub, big, small = answers(environment, *cases)
    assert birds["splits"] == ["train", "test"] and (birds["train"], birds["test"]) == ("train", "test")
    assert birds["red"] == [10, 20, 30, 40] and birds["labels"] == [2, 0, 1, 2]
    assert birds["classes"] == ["wren", "jay", "owl"] and birds["name"] == "owner/birds[train]#0"
    assert both["red"] == [10, 20, 30, 40, 50, 60] and both["labels"] == [2, 0, 1, 2, 1, 1]
    assert cub["red"] == [50, 60] and cub["labels"] == [1, 1] and cub["name"] == "cub[test]#0"
    assert (cub["train"], cub["test"]) == ("train", "test")
    assert big["red"] == [10, 20, 30, 40] and small["red"] == [50, 60] and small["test"] is None

    seen = len(hub.requests)
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        for change in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": nobody}):
            again, never, other, revision = answers(
                {**environment, **change},
                cases[0],
                ({"source": "owner/never"}, "train"),
                ({"source": "cars"}, "train"),
                ({"source": "owner/birds", "revision": commit}, "train"),
            )
            assert again == birds  # the same, the fingerprint included
            assert "cannot be reached and owner/never is not in the cache" in never["error"]
            assert "cars (tanganke/stanford_cars) is not in the cache" in other["error"]
            assert f"not known to be revision {commit!r}" in revision["error"]
    assert len(hub.requests) == seen


def test_hub_errors_are_one_clear_line(hub: HubServer, tmp_path: Path) -> None:
    expected = {
        "owner/missing": ["no hub data set owner/missing, and no local path", "log in"],
        "timm/oxford-iiit-pets": ["did you mean pets (timm/oxford-iiit-pet)?"],
        "me/food101": ["did you mean food (ethz/food101)?"],
        "owner/asks": ["owner/asks is gated", "huggingface.co/datasets/owner/asks", "hf auth login"],
        "owner/refuses": ["owner/refuses is gated"],
        "owner/two": ["has several subsets", "one of: small, big"],
        "owner/code": ["is a script, and code of data sets is never run"],
        "owner/nothing": ["holds no data files"],
        "owner/cut": ["damaged or inconsistent file"],
        "owner/differs": ["class names of the column 'species' differ", "download its parquet files"],
        "owner/numbers": ["no image column in owner/numbers (its columns: a, b)"],
    }
    more = [
        ({"source": "owner/birds"}, "val", "owner/birds has no split 'val'; its splits are: train, test"),
        (
            {"source": "owner/two", "subset": "huge"},
            "train",
            "no subset 'huge'; --set data.subset=NAME, one of: small",
        ),
        ({"source": "owner/birds", "revision": "v9"}, "train", "has no revision 'v9'"),
        ({"source": "owner/birds", "image_column": "img"}, "train", "no column 'img'"),
        (
            {"source": "owner/birds", "image_column": "species"},
            "train",
            "column 'species' of owner/birds holds no",
        ),
        ({"source": "owner/birds", "label_column": "kind"}, "train", "its columns are: picture, species"),
        ({"source": "owner/birds", "label_column": "picture"}, "train", "holds no classes (it is Image)"),
    ]
    cases = [({"source": source}, "train") for source in expected] + [(options, split) for options, split, _ in more]
    found = answers(hub.environment(tmp_path), *cases)
    for answer, parts in zip(found, [*expected.values(), *([text] for *_, text in more)], strict=True):
        assert all(part in answer["error"] for part in parts), answer
        assert "; " in answer["error"] and "\n" not in answer["error"]


def opened(source: Path, split: str, **options: str) -> ImageSet:
    return load_images(DataConfig(source=str(source), **options), split)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    # tables on disk are converted into the cache, which must not be the user's
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_parquet_file_and_shards(tmp_path: Path) -> None:
    (tmp_path / "birds.parquet").write_bytes(parquet(TRAIN))
    alone = opened(tmp_path / "birds.parquet", "all")
    assert isinstance(alone, ImageSet) and len(alone) == 4 and alone.class_names == ("wren", "jay", "owl")
    assert default_split(DataConfig(source=str(tmp_path / "birds.parquet")), "train") == "all"
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    for number, rows in enumerate((TRAIN.select([0, 1]), TRAIN.select([2, 3]))):
        (folder / f"train-{number:05d}-of-00002.parquet").write_bytes(parquet(rows))
    (folder / "test-00000-of-00001.parquet").write_bytes(parquet(TEST))
    data = DataConfig(source=str(tmp_path / "set"))
    assert set(available_splits(data)) == {"train", "test"}
    assert (default_split(data, "train"), default_split(data, "test")) == ("train", "test")
    train = load_images(data, "train")
    assert [train.load(i).getpixel((0, 0))[0] for i in range(4)] == [10, 20, 30, 40]
    assert train.labels is not None and train.labels.tolist() == [2, 0, 1, 2]
    assert train.fingerprint() == load_images(data, "train").fingerprint() != load_images(data, "test").fingerprint()
    again = pickle.loads(pickle.dumps(train))
    assert again.identifier(3) == f"{tmp_path / 'set'}[train]#3" and again.load(3).tobytes() == train.load(3).tobytes()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(FgsslError, match=r"cannot read the table .*bad\.parquet"):
        opened(tmp_path / "bad.parquet", "all")


@pytest.mark.parametrize("name", ["label", "labels", "target", "variant", "cls", "fine_label", "class", "category"])
def test_text_and_number_labels_share_one_mapping(name: str, tmp_path: Path) -> None:
    datasets.DatasetDict(
        train=table([1, 2, 3], **{"note": ["x", "y", "z"], name: ["b", "d", "b"]}),
        test=table([4, 5], **{"note": ["x", "y"], name: ["a", "d"]}),
    ).save_to_disk(tmp_path / "text")
    train, test = opened(tmp_path / "text", "train"), opened(tmp_path / "text", "test")
    assert train.class_names == test.class_names == ("a", "b", "d")
    assert train.labels.tolist() == [1, 2, 1] and test.labels.tolist() == [0, 2]  # type: ignore[union-attr]
    if name == "label":
        table([1, 2, 3], **{name: [10, 2, 10]}).save_to_disk(tmp_path / "numbers")
        numbers = opened(tmp_path / "numbers", "all")
        assert numbers.class_names == ("2", "10") and numbers.labels.tolist() == [1, 0, 1]  # type: ignore[union-attr]
        other = opened(tmp_path / "text", "train", label_column="note")
        assert other.class_names == ("x", "y", "z")


def test_labels_that_are_missing(tmp_path: Path) -> None:
    hidden = table([1, 2], BIRDS, species=[-1, -1])
    datasets.DatasetDict(train=TRAIN, test=hidden).save_to_disk(tmp_path / "hidden")
    assert opened(tmp_path / "hidden", "test").labels is None
    assert opened(tmp_path / "hidden", "train").labels is not None
    table([1, 2]).save_to_disk(tmp_path / "none")
    assert opened(tmp_path / "none", "all").labels is None
    table([1, 2], label=["x", None]).save_to_disk(tmp_path / "some")
    assert opened(tmp_path / "some", "all").labels is None


def test_a_preset_takes_its_next_id_and_holds_counts_against_the_published(hub: HubServer, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, str], str]] = [({"source": name}, "test") for name in ("cub", "aircraft", "food")]
    cub, aircraft, food = answers(hub.environment(tmp_path), *cases)
    assert any("has 2 images in test, as published there are 5,794" in text for text in cub["remarks"])
    instead = [text for text in aircraft["remarks"] if "Donghyun99/FGVC-Aircraft is taken in its place" in text]
    assert len(instead) == 1 and PRESETS["aircraft"].hub_id in instead[0]
    assert aircraft["labels"] == [1, 1] and aircraft["red"] == [50, 60]  # its column is label, the other's variant
    assert "food:FOLDER" in food["error"] and PRESETS["food"].hub_id in food["error"]


def test_rows_that_cannot_be_decoded_and_plain_bytes(tmp_path: Path) -> None:
    good = [{"bytes": png(7), "path": None}, {"bytes": b"<html>", "path": "x.jpg"}, {"bytes": b"", "path": None}, None]
    rows = datasets.Dataset.from_dict({"image": good}, features=datasets.Features({"image": datasets.Image()}))
    rows.save_to_disk(tmp_path / "rows")
    images = opened(tmp_path / "rows", "all")
    assert images.load(0).getpixel((0, 0)) == (7, 0, 0)
    for index, reason in ((1, "is an HTML page"), (2, "is empty"), (3, "holds no image")):
        with pytest.raises(UnreadableImage, match=rf"#{index}: .*{reason}"):
            images.load(index)
    for number, stored in enumerate(([png(9)], [{"bytes": png(9), "path": "a.png"}])):  # written by other tools
        datasets.Dataset.from_dict({"id": [0], "image": stored}).save_to_disk(tmp_path / f"plain{number}")
        assert opened(tmp_path / f"plain{number}", "all").load(0).getpixel((0, 0)) == (9, 0, 0)


def test_presets_are_complete() -> None:
    assert set(PRESETS) == {"cub", "cars", "aircraft", "pets", "flowers", "dogs", "food"}
    for name, preset in PRESETS.items():
        assert preset.name == name and preset.hub_id.count("/") == 1 and preset.classes > 30 and preset.note
        data = DataConfig(source=name)
        assert default_split(data, "train") == "train" and default_split(data, "test") == preset.test_split
    assert default_split(DataConfig(source="cub", test_split="dev"), "test") == "dev"


def test_demo_is_a_source() -> None:
    data = DataConfig()
    assert default_split(data, "train") == "train" and default_split(data, "test") == "test"
    images = load_images(data, "test")
    assert isinstance(images, ImageSet) and images.labels is not None and images.labels.dtype == np.int64


def test_importing_the_package_stays_light() -> None:
    code = "import sys, fgssl.data; print({'torch', 'datasets', 'PIL', 'numpy', 'timm'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def classes_of(images: ImageSet) -> list[str]:
    assert images.labels is not None and images.class_names is not None
    return [images.class_names[label] for label in images.labels]


def saved(folder: Path, **splits: datasets.Dataset) -> Path:
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


def shards(folder: Path, **files: datasets.Dataset) -> Path:
    folder.mkdir()
    for name, rows in files.items():
        (folder / f"{name.replace('_', '-')}.parquet").write_bytes(parquet(rows))
    return folder


@pytest.mark.parametrize("write", [saved, shards])
def test_classes_of_splits_are_matched_by_name(write: Any, tmp_path: Path) -> None:
    text = table([90], species=["jay"])
    for name, other, truth in (("fewer", FEWER, ["owl", "wren"]), ("text", text, ["jay"]), ("same", TEST, ["jay"] * 2)):
        folder = write(tmp_path / name, train=TRAIN, test=other)
        train, test = (opened(folder, split, label_column="species") for split in ("train", "test"))
        assert train.class_names == test.class_names == ("wren", "jay", "owl")
        assert classes_of(train) == ["owl", "wren", "jay", "owl"] and classes_of(test) == truth
    folder = write(tmp_path / "more", train=FEWER, test=TRAIN)  # a class that only the test split has
    assert classes_of(opened(folder, "test")) == ["owl", "wren", "jay", "owl"]
    assert classes_of(opened(folder, "train")) == ["owl", "wren"]


def test_shards_of_one_split_are_matched_by_name(tmp_path: Path) -> None:
    train = opened(shards(tmp_path / "set", train_0=TRAIN, train_1=FEWER, train_2=TRAIN), "train")
    assert classes_of(train) == ["owl", "wren", "jay", "owl", "owl", "wren", "owl", "wren", "jay", "owl"]
    assert [train.load(i).getpixel((0, 0))[0] for i in range(10)] == [10, 20, 30, 40, 70, 80, 10, 20, 30, 40]


@pytest.mark.parametrize("write", [saved, shards])
def test_numbers_and_names_cannot_be_matched(write: Any, tmp_path: Path) -> None:
    numbers = table([90, 91], species=[0, 1])
    folder = write(tmp_path / "set", train=TRAIN, test=numbers)
    with pytest.raises(FgsslError, match=r"'species' .* holds names in one split and numbers \(0\) in another"):
        opened(folder, "train")
    beyond = table([1], datasets.Value("int64"), species=[7]).cast_column("species", BIRDS)
    with pytest.raises(FgsslError, match=r"'species' .* holds 7, and has 3 class names"):
        opened(write(tmp_path / "beyond", train=beyond), "train")


def test_missing_labels_are_counted_by_column(tmp_path: Path) -> None:
    table([1, 2, 3], label=["x", None, "y"]).save_to_disk(tmp_path / "null")
    assert opened(tmp_path / "null", "all").unlabelled == "the column 'label' is missing (null or -1) in 1 of 3 rows"
    folder = saved(tmp_path / "mixed", train=TRAIN, test=table([1, 2]))
    lacking = "it has no column 'species'; its columns are: picture"
    assert opened(folder, "test").unlabelled == lacking and opened(folder, "train").labels is not None
    table([1], weight=[3]).save_to_disk(tmp_path / "other")
    assert "no column is named like one of classes: picture, weight" in opened(tmp_path / "other", "all").unlabelled


def test_the_column_taken_of_several_is_said(tmp_path: Path) -> None:
    two = table([1, 2], label=["a", "b"], variant=["x", "y"]).add_column("image", [png(9)] * 2)
    two = two.cast_column("image", datasets.Image())
    two.save_to_disk(tmp_path / "two")
    said = [remark.text for remark in opened(tmp_path / "two", "all").remarks]
    assert any("column 'label' is taken for the classes, not variant (--set data.label_column" in text for text in said)
    assert any("column 'picture' is taken for the pictures, not image" in text for text in said)
    assert opened(tmp_path / "two", "all", label_column="variant", image_column="image").remarks == ()


def test_pictures_beside_tables_are_strays(tmp_path: Path) -> None:
    folder = shards(tmp_path / "set", train=TRAIN, test=TEST, extra=TEST)
    (folder / "cover.jpg").write_bytes(png(1))
    images = opened(folder, "train")
    assert len(images) == 4 and available_splits(DataConfig(source=str(folder))) == ("all", "test", "train")
    said = [remark.text for remark in images.remarks]
    assert any("pictures beside them are left out: cover.jpg" in text for text in said)
    assert any("the split 'all'" in text and "extra.parquet" in text for text in said)
