"""FGVC-Aircraft (fgvc-aircraft-2013b): 100 variants of 70 families of 30 manufacturers; papers train on train+val."""

from __future__ import annotations

import numpy as np

from fgssl.data.archives.layout import Contents, Count, Layout, Split
from fgssl.data.archives.lists import Lists
from fgssl.data.archives.regions import NO_REGIONS, Regions
from fgssl.registry import ARCHIVES

_CLASSES = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}


def read(lists: Lists, level: str) -> Contents:
    """data/images_LEVEL_{train,val,test}.txt; images_box.txt if there. Splits train, val and test."""
    names = lists.lines(f"data/{_CLASSES[level]}")
    row = {name: place for place, name in enumerate(names)}
    boxes = _boxes(lists)
    nowhere = np.full(4, np.nan, np.float32)
    splits, split_of = {}, dict[str, str]()
    for split in ("train", "val", "test"):
        name = f"data/images_{level}_{split}.txt"
        entries = lists.rows(name, 2)
        lists.require_keys([label for _, label in entries], row, f"data/{_CLASSES[level]}", of=name)
        for image, _ in entries:
            if split_of.setdefault(image, split) != split:
                raise lists.wrong(f"image {image} is in {split_of[image]} and in {split}")
        found = np.array([boxes.get(image, nowhere) for image, _ in entries]).reshape(-1, 4)
        regions = Regions(found) if boxes else NO_REGIONS
        paths = [f"data/images/{image}.jpg" for image, _ in entries]
        splits[split] = Split(paths, [row[label] for _, label in entries], regions)
    return Contents(splits, names)


def _boxes(lists: Lists) -> dict[str, np.ndarray]:
    """(4,) left, top, right, bottom of each image; the file counts pixels from 1, both ends within."""
    name = "data/images_box.txt"
    if not lists.has(name):
        return {}
    rows = ((image, lists.floats(values, name)) for image, *values in lists.rows(name, 5))
    return {
        image: np.array([left - 1, top - 1, right, bottom], np.float32) for image, (left, top, right, bottom) in rows
    }


ARCHIVES.register("aircraft")(
    Layout(
        title="FGVC-Aircraft",
        marks=("data/images_variant_train.txt", "data/images_variant_test.txt", "data/variants.txt"),
        read=read,
        train="train+val",
        test="test",
        counts={"train": [Count(3_334, 100)], "val": [Count(3_333, 100)], "test": [Count(3_333, 100)]},
        citation="Maji et al., Fine-Grained Visual Classification of Aircraft, 2013",
        address="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        levels=tuple(_CLASSES),
        unions={"trainval": "train+val"},
        pictures="data/images",
    )
)
