"""Stanford Cars: 196 models with boxes. The lists are MATLAB files; the classes of the test list come apart from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgssl.data.archives.layout import Contents, Count, Layout, Split
from fgssl.data.archives.lists import Lists
from fgssl.data.archives.matlab import records, texts
from fgssl.data.archives.regions import Regions
from fgssl.registry import ARCHIVES

_LABELLED = "cars_test_annos_withlabels.mat"
_MIRROR = ("", "car_data/", "car_data/car_data/")  # where mirrors have train/ and test/ with class folders
_CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def read(lists: Lists, level: str) -> Contents:
    """The devkit with cars_train/ and cars_test/ or a mirror's class folders, else cars_annos.mat with car_ims/."""
    devkit = "devkit" if lists.has("devkit") or not lists.has("cars_meta.mat") else "."
    if not lists.has(f"{devkit}/cars_train_annos.mat") and lists.has("cars_annos.mat"):
        return _all_in_one(lists)
    (names,) = lists.mat(f"{devkit}/cars_meta.mat", "class_names")
    (train,) = lists.mat(f"{devkit}/cars_train_annos.mat", "annotations")
    labelled = lists.first(f"{devkit}/{_LABELLED}", _LABELLED)
    bare = f"{devkit}/cars_test_annos.mat"
    (test,) = lists.mat(labelled if lists.has(labelled) else bare, "annotations")
    classes = texts(names)
    splits = {
        "train": _pictured(lists, records(train), classes, "train"),
        "test": _pictured(lists, records(test), classes, "test"),
    }
    if splits["test"].labels is None:
        reason = f"{bare} holds no classes; they are published apart, in {_LABELLED}: lay it beside"
        splits["test"] = splits["test"]._replace(unlabelled=reason)
    return Contents(splits, classes)


def _pictured(lists: Lists, entries: list[dict[str, Any]], classes: list[str], split: str) -> Split:
    """A split, its pictures in cars_SPLIT/ or in class folders, which then tell the class where the list does not."""
    own = f"cars_{split}"
    mirror = next((f"{place}{split}" for place in _MIRROR if lists.has(f"{place}{split}")), None)
    if mirror is None or lists.has(own):  # some unpack to cars_train/cars_train
        return _split(lists, entries, classes, f"{own}/{own}" if lists.has(f"{own}/{own}") else own)
    found = _split(lists, entries, classes, "")
    folders = {file: folder for folder in lists.names(mirror) for file in lists.names(f"{mirror}/{folder}")}
    placed = [f"{mirror}/{folders[name]}/{name}" if name in folders else f"{mirror}/{name}" for name in found.names]
    number = {name.replace("/", "-"): row for row, name in enumerate(classes)}
    told = [number.get(folders.get(name, "").replace("/", "-"), -1) for name in found.names]
    labels = told if found.labels is None and min(told, default=-1) >= 0 else found.labels
    return found._replace(names=placed, labels=labels)


def _all_in_one(lists: Lists) -> Contents:
    annotations, names = lists.mat("cars_annos.mat", "annotations", "class_names")
    parts: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for entry in records(annotations):
        parts[bool(entry.get("test"))].append({**entry, "fname": entry.get("relative_im_path")})
    classes = texts(names)
    return Contents({split: _split(lists, parts[split == "test"], classes, "") for split in ("train", "test")}, classes)


def _split(lists: Lists, entries: list[dict[str, Any]], classes: list[str], folder: str) -> Split:
    if not all(isinstance(entry, dict) and isinstance(entry.get("fname"), str) for entry in entries):
        raise lists.wrong("its annotations have no file names (fname)")
    names = [f"{folder}/{entry['fname']}".lstrip("/") for entry in entries]
    if not all("class" in entry for entry in entries):
        return Split(names, None, Regions(_boxes(lists, entries)))
    labels = [lists.number(entry["class"], "an annotation") - 1 for entry in entries]  # MATLAB counts from 1
    if labels and not 0 <= min(labels) <= max(labels) < len(classes):
        raise lists.wrong(f"an annotation is of class {max(labels) + 1}, and cars_meta.mat names {len(classes)}")
    return Split(names, labels, Regions(_boxes(lists, entries)))


def _boxes(lists: Lists, entries: list[dict[str, Any]]) -> NDArray[np.float32] | None:
    """(N, 4) left, top, right, bottom; pixels are counted from 1, both ends within."""
    if not all(name in entry for entry in entries for name in _CORNERS):
        return None
    corners = [lists.floats([entry[name] for name in _CORNERS], "an annotation") for entry in entries]
    return np.array(corners, np.float32).reshape(-1, 4) - np.array((1, 1, 0, 0), np.float32)


ARCHIVES.register("cars")(
    Layout(
        title="Stanford Cars",
        marks=("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "devkit/cars_test_annos.mat", "cars_annos.mat"),
        read=read,
        train="train",
        test="test",
        counts={"train": [Count(8_144, 196)], "test": [Count(8_041, 196)]},
        citation="Krause et al., 3D Object Representations for Fine-Grained Categorization, 2013",
        address="http://ai.stanford.edu/~jkrause/cars/car_dataset.html (no longer there; mirrors keep the files)",
    )
)
