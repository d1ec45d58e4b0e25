"""Features of any model: read back as they were written, refused in one line where they do not fit."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from running import fgssl, finished_run
from safetensors.torch import load_file, save_file

from fgssl.errors import FgsslError
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.feature_file import is_feature_file, read_features, save_features
from fgssl.evaluation.features import common_labels
from fgssl.runs.encoder_file import identity, load_encoder


def write(path: Path, *, metadata: dict[str, str] | None = None, **tensors: torch.Tensor) -> str:
    save_file(tensors, path, metadata=metadata)
    return str(path)


def test_a_round_trip_keeps_everything(tmp_path: Path) -> None:
    features = torch.randn(4, 3)
    labels = torch.tensor([1, 0, 1, 1])
    written = Embeddings(features, labels, ("a", "ü b", "c", "d"), ("x", "y"), np.arange(4), ())
    save_features(tmp_path / "f", written, source="photos", split="test", pool="gap", checkpoint="run", encoder="1f")
    read = read_features(str(tmp_path / "f"))
    assert torch.equal(read.embeddings.features, features) and torch.equal(read.embeddings.labels, labels)
    assert read.embeddings.identifiers == ("a", "ü b", "c", "d") and read.embeddings.class_names == ("x", "y")
    assert read[2:] == ("photos", "test", "gap", "run", "1f")


def test_embed_writes_what_is_read(tmp_path: Path) -> None:
    assert fgssl("embed", finished_run()[0], "--output", tmp_path / "f").code == 0
    read = read_features(str(tmp_path / "f"))
    encoder = load_encoder(str(finished_run()[0]))
    assert read.encoder == identity(encoder) and read.pool == "zoom" and read.split == "test"
    assert read.embeddings.features.shape == (12, 3 * 288) and read.embeddings.class_names is not None


def test_a_file_of_another_tool_needs_features_alone(tmp_path: Path) -> None:
    half = write(tmp_path / "half", features=torch.ones(2, 3, dtype=torch.float16))
    read = read_features(half)
    assert read.embeddings.features.dtype == torch.float32 and read.embeddings.labels is None
    assert read.embeddings.identifiers == (f"{half}#0", f"{half}#1") and read[2:] == (None,) * 5
    small = write(tmp_path / "small", features=torch.ones(2, 3), labels=torch.tensor([3, 7], dtype=torch.uint8))
    assert read_features(small).embeddings.labels.tolist() == [3, 7]


def test_features_are_told_from_encoders(tmp_path: Path) -> None:
    assert is_feature_file(write(tmp_path / "f", features=torch.ones(2, 3)))
    assert not is_feature_file(write(tmp_path / "g", other=torch.ones(2, 3)))
    (tmp_path / "text").write_text("features")
    others = (tmp_path / "text", tmp_path, tmp_path / "nowhere", finished_run()[0] / "encoder.safetensors", "timm:x")
    assert not any(is_feature_file(str(other)) for other in others)


@pytest.mark.parametrize(
    ("tensors", "metadata", "expected"),
    [
        ({"weights": torch.ones(2)}, {}, "no tensor `features` (it holds weights)"),
        ({"features": torch.ones(3)}, {}, "shape (3,)"),
        ({"features": torch.ones(0, 3)}, {}, "empty"),
        ({"features": torch.tensor([[1.0], [float("nan")]])}, {}, "row 1 holds NaN"),
        ({"features": torch.ones(2, 3), "labels": torch.zeros(3).long()}, {}, "2 rows"),
        ({"features": torch.ones(2, 3), "labels": torch.zeros(2)}, {}, "not integers"),
        ({"features": torch.ones(2, 3)}, {"paths": '["a"]'}, "1 paths for 2 rows"),
        ({"features": torch.ones(2, 3)}, {"paths": '"ab"'}, "`paths`"),
        ({"features": torch.ones(2, 3)}, {"paths": "[1, 2"}, "`paths`"),
        ({"features": torch.ones(2, 3), "labels": torch.tensor([0, 1])}, {"class_names": '["a"]'}, "1 class names"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str], expected: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "foreign.safetensors", metadata=metadata, **tensors)
    with pytest.raises(FgsslError) as raised:
        read_features(path)
    assert expected in str(raised.value) and "foreign.safetensors" in str(raised.value)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(Path(write(tmp_path / "whole", features=torch.ones(9, 9))).read_bytes()[:100])
    for path, expected in ((tmp_path / "cut", "cut off"), (tmp_path / "none", "no file"), (tmp_path, "no file")):
        with pytest.raises(FgsslError, match=expected):
            read_features(str(path))


def test_identity_is_that_of_weights_and_not_of_the_place(tmp_path: Path) -> None:
    run = finished_run()[0]
    (tmp_path / "copy").write_bytes((run / "encoder.safetensors").read_bytes())
    encoder = load_encoder(str(tmp_path / "copy"))
    assert identity(encoder) == identity(load_encoder(str(run)))
    with torch.no_grad():
        next(encoder.backbone.parameters()).view(-1)[0] += 1e-3
    assert identity(encoder) != identity(load_encoder(str(run)))
    assert load_file(tmp_path / "copy").keys()  # still whole


# ---- one numbering


def test_classes_are_the_same_where_their_names_are() -> None:
    first = (torch.tensor([0, 1, 2, 0]), ("ant", "bee", "cat"))
    second = (torch.tensor([0, 1, 2]), ("cat", "dog", "ant"))
    common = common_labels(first, second, names=("a", "b"))
    assert common.class_names is not None
    assert [common.class_names[c] for c in common.first.tolist()] == ["ant", "bee", "cat", "ant"]
    assert [common.class_names[c] for c in common.second.tolist()] == ["cat", "dog", "ant"]
    assert common.only_first == ("bee",) and common.only_second == ("dog",)


def test_numbers_stay_numbers_and_mixed_or_foreign_classes_are_refused() -> None:
    numbers = common_labels((torch.tensor([5, 6]), None), (torch.tensor([6, 9]), None), names=("a", "b"))
    assert numbers.first.tolist() == [5, 6] and numbers.second.tolist() == [6, 9]
    assert (numbers.class_names, numbers.only_first, numbers.only_second) == (None, ("5",), ("9",))
    named = (torch.tensor([0]), ("ant",))
    with pytest.raises(FgsslError, match="a has class names and b only numbers"):
        common_labels(named, (torch.tensor([0]), None), names=("a", "b"))
    with pytest.raises(FgsslError, match="b has class names and a only numbers"):
        common_labels((torch.tensor([0]), None), named, names=("a", "b"))
    with pytest.raises(FgsslError, match=r"a and b have no class in common .*'ant' and 'bee'"):
        common_labels(named, (torch.tensor([0]), ("bee",)), names=("a", "b"))


def test_class_names_in_the_metadata_are_read_as_json(tmp_path: Path) -> None:
    metadata = {"class_names": json.dumps(["Royal Gala", "Grüne"])}
    path = write(tmp_path / "f", metadata=metadata, features=torch.ones(2, 3), labels=torch.tensor([1, 0]))
    assert read_features(path).embeddings.class_names == ("Royal Gala", "Grüne")


# ---- labels that are missing, and labels that are none


@pytest.mark.parametrize("names", [None, ["x", "y"]])
def test_a_missing_label_makes_a_file_unlabelled_as_it_does_a_table(names: list[str] | None, tmp_path: Path) -> None:
    metadata = {} if names is None else {"class_names": json.dumps(names)}
    labels = torch.tensor([0, 1, -1, 0, 1, -1])
    path = write(tmp_path / "f", features=torch.randn(6, 3), labels=labels, metadata=metadata)
    assert read_features(path).embeddings.labels is None
    for verb in (("probe",), ("retrieve",), ("probe", "--protocol", "fewshot")):
        error = fgssl(verb[0], path, *verb[1:]).error()
        assert "has no labels" in error and "missing (-1) in 2 of 6 rows" in error and path in error
    assert fgssl("embed", path, "--stats", "--json").json()["stats"]["images"] == 6


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (torch.tensor([0, 1, -2]), None, "row 2: -2"),
        (torch.tensor([0, -100, -1]), None, "row 1: -100"),
        (torch.tensor([0, 2, 1]), ["x", "y"], "row 1: 2"),
        (torch.tensor([0, 1, 2**40]), None, f"row 2: {2**40}"),
        (torch.tensor([0.0, 1.0, float("nan")]), None, "float32, not integers"),
        (torch.tensor([0, 1]), None, "for 3 rows"),
        (torch.tensor([[0], [1], [1]]), None, "for 3 rows"),
        (torch.tensor([0, 1, 1]), [], "beyond its 0 class names"),
    ],
)
def test_labels_that_fit_no_class_are_refused_with_their_row(
    labels: torch.Tensor, names: list[str] | None, expected: str, tmp_path: Path
) -> None:
    metadata = {} if names is None else {"class_names": json.dumps(names)}
    path = write(tmp_path / "f", features=torch.randn(3, 3), labels=labels, metadata=metadata)
    for verb in ("probe", "retrieve"):
        error = fgssl(verb, path).error()
        assert expected in error and path in error


def test_hostile_names_stay_in_their_cell_and_on_their_line(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\x1b[31mred", "two\nlines", "tab\there", "plain"]
    labels = torch.arange(8).repeat(4)
    paths = [f"/x/{place}\n#\t{place}.jpg" if place % 2 else f"/x/{place}.jpg" for place in range(32)]
    metadata = {"class_names": json.dumps(names), "paths": json.dumps(paths)}
    path = write(tmp_path / "f", features=torch.randn(32, 4), labels=labels, metadata=metadata)
    done = fgssl("probe", path, "--protocol", "knn", "--labels", "0.5", "--output", tmp_path / "o")
    assert done.code == 0 and "\x1b" not in done.out
    assert set(json.loads((tmp_path / "o" / "probe.json").read_text())["results"][0]["per_class"]) == set(names)
    for table in ("per_class.csv", "confusions.csv"):
        text = (tmp_path / "o" / table).read_text()
        cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
        assert "\x1b" not in text and not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
    assert len((tmp_path / "o" / "per_class.csv").read_text().splitlines()) == 9
    (listed,) = (tmp_path / "o").glob("labels-*.txt")
    lines = listed.read_text().splitlines()
    assert len(lines) == 16 and all(line.startswith(("/x/", '"/x/')) and line.count("\t") == 1 for line in lines)
