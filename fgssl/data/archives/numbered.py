"""Lists in which every line begins with an image's id: as CUB-200-2011 has them, and NABirds after it."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fgssl.data.archives.layout import Contents, Split
from fgssl.data.archives.lists import Lists
from fgssl.data.archives.regions import Bools, Regions

Floats = NDArray[np.float32]


def read_numbered(
    lists: Lists, *, segmentations: str = "", inside: Callable[[NDArray[np.uint8]], Bools] | None = None
) -> Contents:
    """Splits train and test; classes by the order of classes.txt, of which only those with images count.

    Args:
        segmentations: Folder of pictures named as the images are, "" for none.
        inside: Which of their pixels are the object.
    """
    paths, classes = lists.by_id("images.txt"), lists.by_id("classes.txt")
    label_of, training = lists.by_id("image_class_labels.txt"), lists.by_id("train_test_split.txt")
    for name, found in (("image_class_labels.txt", label_of), ("train_test_split.txt", training)):
        lists.require_keys(paths, found, name, of="images.txt")
    lists.require_keys([label_of[key] for key in paths], classes, "classes.txt", of="image_class_labels.txt")
    if strange := {training[key] for key in paths} - {"0", "1"}:
        raise lists.wrong(f"train_test_split.txt says '{min(strange)}' where 1 (train) or 0 (test) belongs")
    used = {label_of[key] for key in paths}
    names = {key: name for key, name in classes.items() if key in used}
    row = {key: place for place, key in enumerate(names)}
    boxes, parts = _boxes(lists), _parts(lists)
    nowhere, unseen = np.full(4, np.nan, np.float32), next(iter(parts.values()), np.empty((0, 2), np.float32)) * np.nan

    def split(mark: str) -> Split:
        keys = [key for key in paths if training[key] == mark]
        regions = Regions(
            np.array([boxes.get(key, nowhere) for key in keys]) if boxes else None,
            np.array([parts.get(key, unseen) for key in keys]) if parts else None,
            [f"{segmentations}/{os.path.splitext(paths[key])[0]}.png" for key in keys] if segmentations else (),
            inside,
        )
        return Split([f"images/{paths[key]}" for key in keys], [row[label_of[key]] for key in keys], regions)

    return Contents({"train": split("1"), "test": split("0")}, list(names.values()))


def _boxes(lists: Lists) -> dict[str, Floats]:
    """(4,) left, top, right, bottom of each image; the file has width and height in place of the last two."""
    if not lists.has("bounding_boxes.txt"):
        return {}
    found = {}
    for key, *values in lists.rows("bounding_boxes.txt", 5):
        left, top, width, height = lists.floats(values, "bounding_boxes.txt")
        found[key] = np.array([left, top, left + width, top + height], np.float32)
    return found


def _parts(lists: Lists) -> dict[str, Floats]:
    """(P, 2) x and y of the parts of each image, NaN where not visible."""
    name = "parts/part_locs.txt"
    if not (lists.has(name) and lists.has("parts/parts.txt")):
        return {}
    place = {part: row for row, part in enumerate(lists.by_id("parts/parts.txt"))}
    found: dict[str, Floats] = {}
    for key, part, *values in lists.rows(name, 5):
        x, y, visible = lists.floats(values, name)
        points = found.setdefault(key, np.full((len(place), 2), np.nan, np.float32))
        if visible and part in place:
            points[place[part]] = x, y
    return found
