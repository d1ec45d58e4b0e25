"""Stanford Dogs: 120 breeds out of ImageNet; MATLAB lists, and a box in a file of XML each."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from fgssl.data.archives.layout import Contents, Count, Layout, Split
from fgssl.data.archives.lists import Lists
from fgssl.data.archives.matlab import numbers, texts
from fgssl.data.archives.regions import Regions
from fgssl.registry import ARCHIVES

_CORNER = re.compile(r"<(xmin|ymin|xmax|ymax)>\s*(\d+)")


def read(lists: Lists, level: str) -> Contents:
    """{train,test}_list.mat, here or in lists/; Images/BREED/FILE, Annotation/BREED/FILE without its ending."""
    found = {}
    for split in ("train", "test"):
        name = lists.first(f"{split}_list.mat", f"lists/{split}_list.mat", f"splits/{split}_list.mat")
        files, labels = lists.mat(name, "file_list", "labels")
        found[split] = texts(files), numbers(labels) - 1
        if len(found[split][0]) != len(found[split][1]):
            raise lists.wrong(f"{name} has {len(found[split][0])} files and {len(found[split][1])} labels")
    names: dict[int, str] = {}
    for files, labels in found.values():
        names |= {int(label): file.partition("/")[0] for file, label in zip(files, labels, strict=True)}
    place = {label: row for row, label in enumerate(sorted(names))}
    return Contents(
        {
            split: Split(
                [f"Images/{file}" for file in files], [place[int(label)] for label in labels], _regions(lists, files)
            )
            for split, (files, labels) in found.items()
        },
        [names[label].partition("-")[2] or names[label] for label in sorted(names)],
    )


def _regions(lists: Lists, files: list[str]) -> Regions:
    if not lists.has("Annotation"):
        return Regions()
    return Regions(np.array([_box(lists, f"Annotation/{file.rpartition('.')[0]}") for file in files]).reshape(-1, 4))


def _box(lists: Lists, name: str) -> NDArray[np.float32]:
    """The first dog of a picture; pixels are counted from 1, both ends within. NaN where the file is missing."""
    if not lists.has(name):
        return np.full(4, np.nan, np.float32)
    corners = dict[str, float]()
    for key, value in _CORNER.findall(" ".join(lists.lines(name))):
        corners.setdefault(key, float(value))
    if len(corners) < 4:
        raise lists.wrong(f"{name} has no box")
    order = (corners["xmin"] - 1, corners["ymin"] - 1, corners["xmax"], corners["ymax"])
    return np.array(order, np.float32)


ARCHIVES.register("dogs")(
    Layout(
        title="Stanford Dogs",
        marks=("train_list.mat", "test_list.mat", "lists/train_list.mat", "lists/test_list.mat",
               "splits/train_list.mat", "splits/test_list.mat"),
        read=read,
        train="train",
        test="test",
        counts={"train": [Count(12_000, 120)], "test": [Count(8_580, 120)]},
        citation="Khosla et al., Novel Dataset for Fine-Grained Image Categorization, 2011",
        address="http://vision.stanford.edu/aditya86/ImageNetDogs/",
        pictures="Images",
    )
)  # fmt: skip
