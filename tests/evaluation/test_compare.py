"""fgssl compare, and features of files in an encoder's place: against the single verbs and against known answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from running import BACKBONE, fgssl, finished_run, flat_photos, photos, plain_run
from safetensors.torch import save_file
from torch import Tensor

from fgssl.config.schema import DataConfig
from fgssl.data import load_images
from fgssl.errors import FgsslError
from fgssl.evaluation.bootstrap import paired_bootstrap
from fgssl.evaluation.compare import METRICS, Row, differences
from fgssl.evaluation.feature_file import FeatureTable, image_key, is_feature_table


def features_file(path: Path, features: Tensor, *, paths: list[str] | None = None, labels: Tensor | None = None,
                  names: list[str] | None = None) -> Path:  # fmt: skip
    """A file as another tool would write it."""
    tensors = {"features": features} if labels is None else {"features": features, "labels": labels}
    told = {"paths": paths, "class_names": names}
    save_file(tensors, path, metadata={key: json.dumps(value) for key, value in told.items() if value is not None})
    return path


def split_paths(split: str) -> tuple[list[str], Tensor]:
    images = load_images(DataConfig(source=str(photos())), split)
    assert images.labels is not None
    return [images.identifier(index) for index in range(len(images))], torch.from_numpy(images.labels)


def perfect_file(folder: Path) -> Path:
    """Features that are the class, for all images of `photos()`."""
    (train, train_labels), (test, test_labels) = split_paths("train"), split_paths("test")
    features = torch.eye(3)[torch.cat([train_labels, test_labels])]
    return features_file(folder / "perfect.safetensors", features, paths=train + test)


# ---- one table


def test_rows_equal_the_single_verbs() -> None:
    run = str(finished_run()[0])
    found = fgssl("compare", run, plain_run(), "--data", photos(), "--json").json()
    assert [(row["encoder"], row["pool"], row["width"]) for row in found["rows"]] == [
        (run, "gap", 288), (run, "rationale", 288), (run, "zoom", 3 * 288),
        (str(plain_run()), "gap", 288), (str(plain_run()), "zoom", 2 * 288),
    ]  # fmt: skip
    for row in found["rows"]:
        options = (row["encoder"], "--data", photos(), "--pool", row["pool"], "--json")
        alone = fgssl("retrieve", *options).json()
        searched = fgssl("retrieve", *options, "--gallery-split", "train").json()
        probe, knn = fgssl("probe", *options).json(), fgssl("probe", *options, "--protocol", "knn").json()
        expected = {
            "rank1": alone["rank1"], "mAP": alone["mAP"], "train_rank1": searched["rank1"],
            "train_mAP": searched["mAP"], "probe": probe["top1"], "knn": knn["top1"],
        }  # fmt: skip
        assert {key: row[key] for key in METRICS} == {
            key: pytest.approx(value, abs=1e-4) for key, value in expected.items()
        }
    assert (found["train_images"], found["test_images"]) == (24, 12)
    assert {(c["encoder"], c["pool"], c["metric"]) for c in found["comparisons"]} == {
        (row["encoder"], row["pool"], metric) for row in found["rows"][1:] for metric in METRICS
    }
    rows = {(row["encoder"], row["pool"]): row for row in found["rows"]}
    for c in found["comparisons"]:
        first = rows[c["against"]["encoder"], c["against"]["pool"]]
        assert c["difference"] == pytest.approx(
            rows[c["encoder"], c["pool"]][c["metric"]] - first[c["metric"]], abs=1e-4
        )
        assert c["low"] - 1e-9 <= c["difference"] <= c["high"] + 1e-9 and 0 < c["p"] <= 1


def test_a_gallery_split_is_searched_as_retrieve_searches_it(tmp_path: Path) -> None:
    perfect, page = perfect_file(tmp_path), tmp_path / "page.html"
    shared = ("compare", finished_run()[0], perfect, "--data", photos(), "--pool", "gap,zoom")
    both = fgssl(*shared, "--json").json()
    found = fgssl(*shared, "--json", "--gallery-split", "train", "--report", page).json()
    assert found["protocol"].startswith("test -> train; ") and list(found["definitions"]) == [
        "rank1", "mAP", "probe", "knn",
    ]  # fmt: skip
    assert "searching train" in found["definitions"]["rank1"] and "searching train" in page.read_text()
    for row, other in zip(found["rows"], both["rows"], strict=True):
        same = {"rank1": other["train_rank1"], "mAP": other["train_mAP"], "probe": other["probe"], "knn": other["knn"]}
        assert {key: row[key] for key in same} == same and "train_rank1" not in row
    retrieved = ("retrieve", finished_run()[0], "--data", photos(), "--pool", "zoom", "--json", "--gallery-split")
    assert found["rows"][1]["mAP"] == pytest.approx(fgssl(*retrieved, "train").json()["mAP"], abs=1e-4)
    assert "test -> train" in fgssl(*shared, "--gallery-split", "train").out


def test_a_gallery_split_that_is_not_the_train_split(tmp_path: Path) -> None:
    """A third split holds two of the three classes: queries of the other have nothing to find, and are told of."""
    root = tmp_path / "photos"
    shutil.copytree(photos(), root)
    shutil.copytree(root / "train", root / "val")
    shutil.rmtree(sorted((root / "val").iterdir())[-1])
    options = ("--data", root, "--pool", "gap", "--json", "--gallery-split", "val")
    outcome = fgssl("compare", plain_run(), *options)
    found, alone = outcome.json(), fgssl("retrieve", plain_run(), *options).json()
    for metric in ("rank1", "mAP"):
        assert found["rows"][0][metric] == pytest.approx(alone[metric], abs=1e-4)
    assert "1 classes of the queries have no image in the gallery" in outcome.err
    assert "holds the queries themselves" in fgssl("compare", plain_run(), *options[:-1], "test").error()
    assert "has no split" in fgssl("compare", plain_run(), *options[:-1], "none").error()
    unlabelled = fgssl("compare", plain_run(), "--data", flat_photos(), "--gallery-split", "all")
    assert "no labels to score by" in unlabelled.error()


def test_comparison_is_paired_over_images() -> None:
    """A row that is right wherever the first is and on a tenth more: unpaired the intervals would overlap."""
    first = (torch.arange(1000) % 2).double()
    better = torch.maximum(first, (torch.arange(1000) % 10 == 0).double())
    rows = [
        Row("a", "gap", 2, {}, dict.fromkeys(METRICS, first)),
        Row("b", "gap", 2, {}, dict.fromkeys(METRICS, better)),
    ]
    found = list(differences(rows))
    assert [metric for _, _, metric, _ in found] == list(METRICS)
    assert all(row is rows[1] and c == paired_bootstrap(100 * better, 100 * first) for row, _, _, c in found)
    assert found[0][3].difference == pytest.approx(10) and 7 < found[0][3].low < found[0][3].high < 13
    assert found[0][3].p < 0.01


def test_tables_and_markdown_hold_the_same_numbers(tmp_path: Path) -> None:
    arguments = ("compare", finished_run()[0], perfect_file(tmp_path), "--data", photos(), "--pool", "gap")
    found = fgssl(*arguments, "--json").json()
    table, markdown = fgssl(*arguments), fgssl(*arguments, "--markdown")
    for row in found["rows"]:
        for metric in METRICS:
            assert f"{row[metric]:.2f}" in table.out and f"{row[metric]:.2f}" in markdown.out
    lines = [line for line in markdown.out.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines[:4]} == {len(METRICS) + 4} and lines[1].startswith("| --- | --- | ---: |")
    for text in (table.out, markdown.out):
        assert "95 % interval" in text and "(+" in text and found["protocol"] in text
    assert "1 of 2" in table.err and "1 of 2" not in table.out


def test_perfect_features_are_perfect_and_beyond_chance(tmp_path: Path) -> None:
    perfect = perfect_file(tmp_path)
    found = fgssl("compare", finished_run()[0], perfect, "--data", photos(), "--pool", "gap", "--json").json()
    row = found["rows"][1]
    assert {row[metric] for metric in METRICS} == {100} and (row["width"], row["pool"]) == (3, None)
    against = {c["metric"]: c for c in found["comparisons"]}
    assert all(c["difference"] > 0 and c["p"] < 0.05 for c in against.values())


def test_files_of_two_splits_are_joined_and_equal_the_encoder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        options = ("--split", split, "--pool", "gap", "--output", tmp_path / f"{split}.safetensors")
        assert fgssl("embed", finished_run()[0], *options).code == 0
    joined = f"{tmp_path / 'train.safetensors'}+{tmp_path / 'test.safetensors'}"
    found = fgssl("compare", finished_run()[0], joined, "--data", photos(), "--pool", "gap", "--json").json()
    encoder, file = found["rows"]
    assert {key: file[key] for key in METRICS} == {key: pytest.approx(encoder[key]) for key in METRICS}
    assert file["pool"] == "gap"
    lone = fgssl("compare", tmp_path / "test.safetensors", "--data", photos())
    assert "no features of 24 of 24 images" in lone.error() and "join files" in lone.error()


def test_a_source_with_one_split_is_divided(tmp_path: Path) -> None:
    found = fgssl("compare", plain_run(), "--data", photos() / "train", "--pool", "gap", "--json").json()
    assert (found["train_images"], found["test_images"]) == (18, 6) and "80 to 20" in found["protocol"]
    assert found["comparisons"] == []


def test_pooling_that_an_encoder_lacks_is_left_out_or_refused() -> None:
    options = ("--data", photos(), "--json")
    outcome = fgssl("compare", finished_run()[0], plain_run(), *options, "--pool", "rationale,gap")
    assert [row["pool"] for row in outcome.json()["rows"]] == ["rationale", "gap", "gap"]
    assert "has no rationale pooling" in outcome.err
    assert "cannot pool by concat" in fgssl("compare", plain_run(), *options, "--pool", "concat").error()


def test_what_the_last_entry_lacks_is_told_before_anything_is_embedded(tmp_path: Path) -> None:
    train, labels = split_paths("train")
    part = features_file(tmp_path / "part.safetensors", torch.eye(3)[labels], paths=train)
    embedded = mock.patch("fgssl.evaluation.subject.embed", side_effect=AssertionError("embedded too early"))
    first = ("compare", finished_run()[0])
    for arguments, expected in (
        ((f"timm:{BACKBONE}",), "not on this machine"),
        ((part,), "no features of 12 of 12 images"),
        ((plain_run(), "--pool", "rationale"), "cannot pool by rationale"),
        ((plain_run(), "--k", "0"), "--k is 0"),
    ):
        with embedded:
            outcome = fgssl(*first, *arguments, "--data", photos())
        assert expected in outcome.error(2 if "--k" in arguments else 1) and "1 of 2" not in outcome.err


# ---- a probe of files


def test_probe_of_files_equals_the_probe_of_the_encoder(tmp_path: Path) -> None:
    files = {}
    for split in ("train", "test"):
        files[split] = tmp_path / f"{split}.safetensors"
        assert fgssl("embed", finished_run()[0], "--split", split, "--output", files[split]).code == 0
    expected = fgssl("probe", finished_run()[0], "--json").json()
    same = ("top1", "top5", "mean_per_class", "labels", "pool", "test_images", "results")
    found = fgssl("probe", files["test"], "--train", files["train"], "--json").json()
    by_path = fgssl("probe", f"{files['train']}+{files['test']}", "--data", photos(), "--json").json()
    for other in (found, by_path):
        assert {key: other[key] for key in same} == {key: expected[key] for key in same}
    assert "fitted on" in found["protocol"] and str(files["train"]) in found["protocol"]


def test_probe_of_one_foreign_file_divides_it(tmp_path: Path) -> None:
    labels = torch.arange(50) % 5
    path = features_file(tmp_path / "f.safetensors", torch.eye(5)[labels], labels=labels)
    found = fgssl("probe", path, "--json").json()
    assert (found["top1"], found["labels"], found["test_images"], found["pool"]) == (100, 40, 10, None)
    assert fgssl("probe", path, "--protocol", "knn", "--json").json()["top1"] == 100
    shots = fgssl("probe", path, "--protocol", "fewshot", "--shots", "1", "--json").json()
    assert shots["top1"] == 100 and shots["results"][0]["ways"] == 5


def test_classes_of_two_files_are_matched_by_name(tmp_path: Path) -> None:
    """The same three classes, numbered otherwise in each file."""
    truth = torch.arange(30) % 3
    train = features_file(tmp_path / "train", torch.eye(3)[truth], labels=truth, names=["a", "b", "c"])
    test = features_file(tmp_path / "test", torch.eye(3)[truth], labels=2 - truth, names=["c", "b", "a"])
    found = fgssl("probe", test, "--train", train, "--json").json()
    assert found["top1"] == 100 and found["results"][0]["per_class"] == {"a": 100, "b": 100, "c": 100}
    other = features_file(tmp_path / "other", torch.eye(3)[truth], labels=truth, names=["x", "y", "z"])
    assert "no class in common" in fgssl("probe", other, "--train", train).error()


# ---- without labels


def test_without_labels_two_views_tell(tmp_path: Path) -> None:
    first, second = str(plain_run()), str(finished_run()[0])
    names = [load_images(DataConfig(source=str(flat_photos())), "all").name(index) for index in range(12)]
    file = features_file(tmp_path / "f", torch.eye(12), paths=names)
    found = fgssl("compare", first, second, file, "--pool", "gap", "--json").json()
    rows = {row["encoder"]: row for row in found["rows"]}
    assert set(found["definitions"]) == {"effective_rank", "uniformity", "alignment", "neighbour_overlap"}
    for run in (first, second):
        views = fgssl("embed", run, "--data", flat_photos(), "--pool", "gap", "--stats", "--json").json()["stats"]
        if run == first:  # whose views they are
            assert rows[run]["alignment"] == pytest.approx(views["alignment"], rel=1e-4)
            assert rows[run]["neighbour_overlap"] == pytest.approx(100 * views["neighbour_overlap"])
    assert rows[str(file)]["effective_rank"] == pytest.approx(12) and "alignment" not in rows[str(file)]
    told = {(each["encoder"], each["metric"]): each for each in found["comparisons"]}
    assert set(told) == {(second, "alignment"), (second, "neighbour_overlap")}
    for (_, metric), each in told.items():
        assert each["difference"] == pytest.approx(rows[second][metric] - rows[first][metric], abs=1e-6)
    text = fgssl("compare", first, second, "--pool", "gap")
    assert text.code == 0 and "without labels" in text.out and "alignment: mean squared distance" in text.out


# ---- what is refused


def test_bad_files_are_one_line(tmp_path: Path) -> None:
    labels = torch.arange(20) % 2
    wide = features_file(tmp_path / "wide", torch.eye(20), labels=labels)
    narrow = features_file(tmp_path / "narrow", torch.ones(20, 3), labels=labels)
    unlabelled = features_file(tmp_path / "unlabelled", torch.ones(20, 3))
    nan = features_file(tmp_path / "nan", torch.full((20, 3), float("nan")), labels=labels)
    cases = [
        (("probe", wide, "--train", narrow), "different widths [3, 20]"),
        (("probe", unlabelled), "has no labels"),
        (("probe", narrow, "--train", unlabelled), "has no labels"),
        (("probe", nan), "holds NaN"),
        (("probe", narrow, "--protocol", "sgd"), "holds features only"),
        (("probe", f"{narrow}+{narrow}"), "several files"),
        (("probe", narrow, "--train", tmp_path / "none"), "no file of features"),
        (("compare", narrow), "name one with --data"),
        (("compare", narrow, "--data", photos()), "no features of 24 of 24 images"),
        (("compare", plain_run(), tmp_path / "none", "--data", photos()), "no checkpoint"),
    ]
    for arguments, expected in cases:
        outcome = fgssl(*arguments)
        assert expected in outcome.error(), arguments
        assert outcome.out == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--json", "--markdown"), "--markdown"),
        (("--pool", "mean"), "--pool"),
        (("A",), "named twice"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], expected: str) -> None:
    outcome = fgssl("compare", "A", *arguments)
    assert outcome.code == 2 and expected in outcome.err


def test_flags_that_mean_nothing_to_files_are_refused(tmp_path: Path) -> None:
    path = features_file(tmp_path / "f", torch.eye(4), labels=torch.arange(4) % 2)
    outcome = fgssl("probe", path, "--pool", "gap")
    assert outcome.code == 2 and "--pool" in outcome.err
    outcome = fgssl("probe", plain_run(), "--train", path)
    assert outcome.code == 2 and "--train" in outcome.err


def test_images_are_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(photos() / "test", tmp_path / "p")
    monkeypatch.chdir(tmp_path)
    assert image_key("p/class 0/00.jpg") == str(tmp_path / "p" / "class 0" / "00.jpg")
    assert image_key("cub[train]#17") == "cub[train]#17"
    assert fgssl("embed", plain_run(), "--data", "p", "--output", "f.safetensors").code == 0
    monkeypatch.chdir(tmp_path.parent)
    table = FeatureTable(str(tmp_path / "f.safetensors"))
    images = load_images(DataConfig(source=str(tmp_path / "p")), "all")
    assert len(table.embed(images).features) == 12
    assert not is_feature_table("nothing+nothing") and is_feature_table(f"{tmp_path / 'f.safetensors'}")


def test_one_image_with_two_features_is_refused(tmp_path: Path) -> None:
    path = features_file(tmp_path / "f", torch.eye(2), paths=["/a/b.jpg", "/a/b.jpg"])
    with pytest.raises(FgsslError, match="twice with different features"):
        FeatureTable(str(path))
