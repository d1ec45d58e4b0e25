"""iNaturalist of any year: annotations as JSON in COCO's form; classes by species, or by a rank above it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from fgssl.data.archives.layout import Contents, Count, Layout, Split
from fgssl.data.archives.lists import Lists
from fgssl.data.archives.regions import NO_REGIONS, Regions
from fgssl.registry import ARCHIVES

_RANKS = ("species", "genus", "family", "order", "class", "phylum", "kingdom", "supercategory")
# train2019.json, val2017.json, train_val ... ; of 2021: train.json, train_mini.json, val.json
_LIST = re.compile(r"(train_mini|train|val)_?(20\d\d)?(_bboxes)?\.json")
# of 2017, 2018, 2019, 2021 and its mini list
_YEARS = {
    "train": ((579_184, 5_089), (437_513, 8_142), (265_213, 1_010), (2_686_843, 10_000), (500_000, 10_000)),
    "val": ((95_986, 5_089), (24_426, 8_142), (3_030, 1_010), (100_000, 10_000)),
}


def read(lists: Lists, level: str) -> Contents:
    """{train,val}YEAR.json, of 2021 train.json or else train_mini.json: images, annotations, categories."""
    found = sorted(name for name in lists.names() if _LIST.fullmatch(name))
    chosen = {}
    for split in ("train", "val"):
        # of boxes and plain lists the boxes; of the whole and the mini list the whole, whose images hold the mini's
        fitting = [name for name in found if name.startswith(split)]
        full = [name for name in fitting if not name.startswith("train_mini")] or fitting
        if full:
            chosen[split] = max(full, key=len)
    if not chosen:
        raise lists.missing("train2019.json (or train.json, val.json)")
    documents = {split: _document(lists, name) for split, name in chosen.items()}
    categories = {entry["id"]: entry for document in documents.values() for entry in document["categories"]}
    titles = {key: _title(lists, entry, level) for key, entry in categories.items()}
    names = list(dict.fromkeys(titles[key] for key in sorted(titles)))
    row = {name: place for place, name in enumerate(names)}
    labels = {key: row[title] for key, title in titles.items()}
    return Contents({s: _split(lists, chosen[s], document, labels) for s, document in documents.items()}, names)


def _document(lists: Lists, name: str) -> dict[str, Any]:
    document = lists.json(name)
    if not isinstance(document, dict):
        raise lists.wrong(f"{name} is no object")
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            raise lists.wrong(f"{name} has no {key}: it is a test list, or no list of iNaturalist")
    return document


def _title(lists: Lists, entry: dict[str, Any], level: str) -> str:
    """The name of a class. Of one species more than one category may speak at a higher rank."""
    title = entry.get("name") if level == "species" else entry.get(level)
    if title is None:
        raise lists.wrong(f"its categories do not tell their {level}")
    return str(title)


def _split(lists: Lists, name: str, document: dict[str, Any], labels: dict[Any, int]) -> Split:
    of = {entry["image_id"]: entry for entry in document["annotations"]}
    images = document["images"]
    if lacking := sum(image["id"] not in of for image in images):
        raise lists.wrong(f"{name} says nothing of the class of {lacking} of its {len(images)} images")
    entries = [of[image["id"]] for image in images]
    if strange := {entry["category_id"] for entry in entries} - labels.keys():
        raise lists.wrong(f"{name} has a category {min(strange)} that it does not name")
    boxed = any("bbox" in entry for entry in entries)
    boxes = np.array([_box(entry) for entry in entries], np.float32).reshape(-1, 4) if boxed else None
    rows = [labels[entry["category_id"]] for entry in entries]
    regions = Regions(boxes) if boxed else NO_REGIONS
    return Split([image["file_name"] for image in images], np.array(rows, np.int64), regions)


def _box(entry: dict[str, Any]) -> tuple[float, ...]:
    left, top, width, height = entry.get("bbox") or (np.nan,) * 4
    return left, top, left + width, top + height


ARCHIVES.register("inaturalist")(
    Layout(
        title="iNaturalist",
        marks=("train2017.json", "val2017.json", "train2018.json", "val2018.json", "train2019.json", "val2019.json",
               "train_mini.json"),
        lists=("train.json", "val.json"),
        read=read,
        train="train",
        test="val",
        counts={split: [Count(*count) for count in years] for split, years in _YEARS.items()},
        citation="Van Horn et al., The iNaturalist Species Classification and Detection Dataset, 2018",
        address="https://github.com/visipedia/inat_comp",
        levels=_RANKS,
    )
)  # fmt: skip
