"""The retrieve verb, scored: sources, splits, files of features, intervals, definitions and mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from running import fgssl, finished_run, flat_photos, make_photos, photos, plain_run
from safetensors.torch import save_file

from fgssl.config.values import parse_bytes
from fgssl.errors import FgsslError
from fgssl.evaluation.bootstrap import bootstrap_interval, metric_intervals
from fgssl.evaluation.retrieval.metrics import DEFINITIONS
from fgssl.runtime.machine import scratch_memory


def features(path: Path, rows: list[list[float]], labels: list[int] | None = None, **metadata: str) -> Path:
    tensors = {"features": torch.tensor(rows)}
    if labels is not None:
        tensors["labels"] = torch.tensor(labels)
    save_file(tensors, path, metadata=metadata)
    return path


def embedded(path: Path, *options: str | Path) -> Path:
    outcome = fgssl("embed", finished_run()[0], *options, "--output", path)
    assert outcome.code == 0, outcome.err
    return path


# ---- files of features


def test_features_of_any_model_are_scored_as_typed_by_hand(tmp_path: Path) -> None:
    # directions of 0, 10, 50 and 70 degrees, classes a b a b: the first positive of each stands at ranks 2, 3, 3, 2
    angles = torch.deg2rad(torch.tensor([0.0, 10, 50, 70]))
    rows = (torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [2], [3], [4]])).tolist()
    result = fgssl("retrieve", features(tmp_path / "f", rows, [0, 1, 0, 1]), "--json").json()
    assert result["mAP"] == pytest.approx(100 * (1 / 2 + 1 / 3 + 1 / 3 + 1 / 2) / 4)
    assert (result["rank1"], result["rank5"], result["queries"]) == (0, 100, 4)
    assert result["protocol"] == f"leave-one-out in {tmp_path / 'f'}" and result["pool"] is None


def test_embedded_features_score_as_their_encoder_does(tmp_path: Path) -> None:
    test, train = embedded(tmp_path / "test"), embedded(tmp_path / "train", "--split", "train")
    for files, options in (((test,), ()), ((test, "--gallery", train), ("--gallery-split", "train"))):
        ours = fgssl("retrieve", *files, "--json").json()
        encoders = fgssl("retrieve", finished_run()[0], *options, "--json").json()
        numbers = [key for key, value in encoders.items() if isinstance(value, float)]
        assert len(numbers) == 12 and ours["pool"] == "zoom"
        assert {key: ours[key] for key in numbers} == {key: encoders[key] for key in numbers}
        assert ours["intervals"] == encoders["intervals"]


def test_an_encoder_may_search_features(tmp_path: Path) -> None:
    train = embedded(tmp_path / "train.safetensors", "--split", "train", "--pool", "gap")
    result = fgssl("retrieve", finished_run()[0], "--gallery", train, "--json").json()
    same = fgssl("retrieve", finished_run()[0], "--gallery-split", "train", "--pool", "gap", "--json").json()
    assert result["pool"] == "gap" and result["mAP"] == pytest.approx(same["mAP"])
    assert result["protocol"] == f"test -> {train}"
    refused = fgssl("retrieve", finished_run()[0], "--gallery", train, "--pool", "rationale").error()
    assert "pooled by gap" in refused
    other = fgssl("retrieve", plain_run(), "--data", photos(), "--gallery", train).error()
    assert "another encoder" in other and str(finished_run()[0]) in other
    assert "no splits" in fgssl("retrieve", finished_run()[0], "--gallery", train, "--gallery-split", "test").error()


def test_classes_of_two_files_are_matched_by_name(tmp_path: Path) -> None:
    first = features(tmp_path / "a", [[1.0, 0], [0, 1], [1, 1]], [0, 1, 2], class_names='["ant", "bee", "cow"]')
    second = features(tmp_path / "b", [[1.0, 0], [0, 1]], [1, 0], class_names='["bee", "ant"]')
    outcome = fgssl("retrieve", first, "--gallery", second, "--json")
    assert (outcome.json()["rank1"], outcome.json()["queries"], outcome.json()["lone_queries"]) == (100, 2, 1)
    assert "1 classes of the queries have no image in the gallery (such as 'cow')" in outcome.err


@pytest.mark.parametrize(
    ("rows", "labels", "metadata", "expected"),
    [
        ([[1.0, 0, 0]], [0], {}, "2 wide"),
        ([[float("nan"), 0]], [0], {}, "NaN"),
        ([[1.0, 0]], None, {}, "has no labels"),
        ([[1.0, 0]], [7], {}, "no class in common"),
        ([[1.0, 0]], [0], {"class_names": '["ant"]'}, "class names"),
        ([[1.0, 0]], [0], {"pool": "gap"}, "different poolings"),
        ([[1.0, 0]], [0], {"encoder": "12"}, "different encoders"),
    ],
)
def test_galleries_that_do_not_fit(
    rows: list[list[float]], labels: list[int] | None, metadata: dict[str, str], expected: str, tmp_path: Path
) -> None:
    queries = features(tmp_path / "queries", [[1.0, 0], [0, 1]], [0, 1], pool="cls", encoder="34")
    gallery = features(tmp_path / "gallery", rows, labels, **metadata)
    error = fgssl("retrieve", queries, "--gallery", gallery).error()
    assert expected in error and str(gallery) in error


def test_a_file_that_holds_its_queries(tmp_path: Path) -> None:
    paths = json.dumps(["0.jpg", "1.jpg"])
    queries = features(tmp_path / "q", [[1.0, 0], [0, 1]], [0, 1], paths=paths)
    assert "holds the queries themselves (2 of 2" in fgssl("retrieve", queries, "--gallery", queries).error()
    # the same names for other pictures
    other = features(tmp_path / "g", [[1.0, 0.1], [0.1, 1]], [0, 1], paths=paths)
    assert fgssl("retrieve", queries, "--gallery", other, "--json").json()["rank1"] == 100


@pytest.mark.parametrize(
    "options",
    [("--data", "demo"), ("--split", "test"), ("--gallery-split", "a"), ("--pool", "gap"), ("--batch-size", "3")],
)
def test_options_without_meaning_for_features_are_wrong_usage(options: tuple[str, ...], tmp_path: Path) -> None:
    outcome = fgssl("retrieve", features(tmp_path / "f", [[1.0]], [0]), *options)
    assert outcome.code == 2 and "no meaning for a file of features" in " ".join(outcome.err.split())


# ---- sources and splits


def test_two_sources_are_matched_by_class_name_and_searched_whole(tmp_path: Path) -> None:
    gallery = make_photos(tmp_path / "more" / "train", 8, classes=2, seed=300).parent
    make_photos(gallery / "test", 6, classes=3, seed=400)
    shutil.rmtree(gallery / "test" / "class 2")
    outcome = fgssl("retrieve", finished_run()[0], "--gallery", gallery, "--json")
    result = outcome.json()
    assert (result["queries"], result["gallery"], result["lone_queries"]) == (8, 12, 4)  # class 2 has no counterpart
    assert result["protocol"] == f"test -> {gallery} [test+train]" and "'class 2'" in outcome.err
    one = fgssl("retrieve", finished_run()[0], "--gallery", gallery, "--gallery-split", "train", "--json").json()
    assert one["gallery"] == 8
    flat = fgssl("retrieve", finished_run()[0], "--gallery", flat_photos()).error()
    assert "has no labels" in flat and str(flat_photos()) in flat and "--query" in flat  # which needs none


def test_the_same_images_by_another_name_are_still_the_queries() -> None:
    error = fgssl("retrieve", finished_run()[0], "--gallery", f"{photos()}/../{photos().name}").error()
    assert "holds the queries themselves (12 of 12 of test)" in error


def test_query_split_and_split_are_one_option() -> None:
    results = [
        fgssl("retrieve", finished_run()[0], flag, "train", "--gallery-split", "test", "--json").json()
        for flag in ("--split", "--query-split")
    ]
    assert results[0] == results[1] and results[0]["queries"] == 24


def test_classes_of_one_image_cannot_be_retrieved(tmp_path: Path) -> None:
    error = fgssl("retrieve", finished_run()[0], "--data", make_photos(tmp_path / "few", 3)).error()
    assert "none of 3 queries" in error


# ---- what is told


def test_definitions_are_printed_and_stated() -> None:
    plain = fgssl("retrieve", finished_run()[0])
    explained = fgssl("retrieve", finished_run()[0], "--explain")
    assert explained.out.startswith(plain.out.rstrip("\n")) and DEFINITIONS["ties"] not in plain.out
    assert all(f"{name}: {meaning}" in explained.out for name, meaning in DEFINITIONS.items())
    result = fgssl("retrieve", finished_run()[0], "--json").json()
    assert result["definitions"] == DEFINITIONS
    named = {name.removeprefix("macro_") for name in result["intervals"]}
    assert named <= set(DEFINITIONS) and len(result["intervals"]) == 12


def test_intervals_hold_their_values_in_table_and_json() -> None:
    result = fgssl("retrieve", finished_run()[0], "--json").json()
    for name, (low, high) in result["intervals"].items():
        assert low <= result[name] <= high
    low, high = result["intervals"]["mAP"]
    assert f"{low:.2f} to {high:.2f}" in fgssl("retrieve", finished_run()[0]).out


def test_memory_bounds_change_nothing_and_are_read() -> None:
    whole = fgssl("retrieve", finished_run()[0], "--json").json()
    assert fgssl("retrieve", finished_run()[0], "--memory", "1K", "--json").json() == whole
    assert "'lots' is not an amount of memory" in fgssl("retrieve", finished_run()[0], "--memory", "lots").error(2)
    assert [parse_bytes(text) for text in ("7", "2G", "1.5 MiB", "3kb")] == [7, 2 * 2**30, 1572864, 3072]
    for text in ("0", "-1", "G", "1X", ""):
        with pytest.raises(FgsslError, match="memory"):
            parse_bytes(text)
    assert 64 * 2**20 <= scratch_memory() <= 2**30


# ---- intervals of several metrics


def test_intervals_of_one_metric_agree_with_those_of_the_normal_law() -> None:
    generator = np.random.default_rng(0)
    values = torch.from_numpy(generator.normal(size=(2000, 2)))
    labels = torch.arange(2000) % 4
    found = metric_intervals({"a": values[:, 0], "b": values[:, 1]}, labels, resamples=2000)
    for column, name in enumerate("ab"):
        single = bootstrap_interval(values[:, column], resamples=2000)
        width = 2 * 1.96 * float(values[:, column].std()) / 2000**0.5
        assert found[name].value == pytest.approx(single.value)
        assert found[name].high - found[name].low == pytest.approx(width, rel=0.06)
        # classes of equal size: the class mean varies as the mean does
        macro = found[f"macro_{name}"]
        assert macro.value == pytest.approx(single.value) and macro.high - macro.low == pytest.approx(width, rel=0.06)


def test_macro_intervals_equal_a_slow_loop() -> None:
    values, labels = np.array([0.0, 1, 1, 0, 1]), np.array([3, 1, 3, 3, 9])
    found = metric_intervals({"a": torch.from_numpy(values)}, torch.from_numpy(labels), resamples=500, seed=4)
    order = np.argsort(labels, kind="stable")
    values, labels = values[order], labels[order]
    means = []
    for draw in np.random.default_rng(4).integers(5, size=(500, 5), dtype=np.int32):
        classes = sorted(set(labels[draw]))
        means.append(np.mean([values[draw][labels[draw] == c].mean() for c in classes]))
    low, high = np.quantile(means, [0.025, 0.975])
    assert found["macro_a"] == pytest.approx(((1 / 3 + 1 + 1) / 3, low, high))
