"""DeepFashion In-Shop: 7,982 garments; those of train are not among those of query and gallery."""

from __future__ import annotations

import numpy as np

from fgssl.data.archives.layout import Contents, Count, Layout, Split
from fgssl.data.archives.lists import Lists
from fgssl.data.archives.regions import NO_REGIONS, Regions
from fgssl.registry import ARCHIVES

_LIST, _BOXES = "list_eval_partition.txt", "list_bbox_inshop.txt"
_SPLITS = ("train", "query", "gallery")


def read(lists: Lists, level: str) -> Contents:
    """Eval/list_eval_partition.txt: a count, a head, then img/PATH, item, split; the images in img/ or Img/img/."""
    name = lists.first(f"Eval/{_LIST}", _LIST)
    entries = _rows(lists, name, 3)
    within = "" if lists.has("img") or not lists.has("Img/img") else "Img/"
    names = sorted({item for _, item, _ in entries})
    row, boxes = {item: place for place, item in enumerate(names)}, _boxes(lists)
    nowhere = np.full(4, np.nan, np.float32)
    if strange := {split for *_, split in entries} - set(_SPLITS):
        raise lists.wrong(f"{name} has a split '{min(strange)}', not {', '.join(_SPLITS)}")
    splits = {}
    for split in _SPLITS:
        chosen = [(path, item) for path, item, own in entries if own == split]
        found = np.array([boxes.get(path, nowhere) for path, _ in chosen]).reshape(-1, 4)
        regions = Regions(found) if boxes else NO_REGIONS
        splits[split] = Split([f"{within}{path}" for path, _ in chosen], [row[item] for _, item in chosen], regions)
    return Contents(splits, names)


def _rows(lists: Lists, name: str, fields: int) -> list[list[str]]:
    """The lines after the first two, which hold a count and the names of the columns."""
    count, _, *lines = lists.lines(name) if len(lists.lines(name)) > 1 else ("0", "")
    rows = [line.split(None, fields - 1) for line in lines]
    if len(rows) != lists.number(count, name) or any(len(row) < fields for row in rows):
        raise lists.wrong(f"{name} says {count} lines of {fields} fields, and has {len(rows)}")
    return rows


def _boxes(lists: Lists) -> dict[str, np.ndarray]:
    """(4,) left, top, right, bottom of each image: img/PATH, type of clothes, pose, corners."""
    name = lists.first(f"Anno/{_BOXES}", f"Anno/list_bbox/{_BOXES}", _BOXES)
    if not lists.has(name):
        return {}
    rows = (line.split() for line in lists.lines(name)[2:])
    return {row[0]: np.array(lists.floats(row[-4:], name), np.float32) for row in rows}


ARCHIVES.register("inshop")(
    Layout(
        title="DeepFashion In-Shop",
        marks=(f"Eval/{_LIST}", "Anno/list_item_inshop.txt", f"Anno/{_BOXES}"),
        lists=(_LIST,),
        read=read,
        train="train",
        test="query",
        counts={"train": [Count(25_882, 3_997)], "query": [Count(14_218, 3_985)], "gallery": [Count(12_612, 3_985)]},
        citation="Liu et al., DeepFashion: Powering Robust Clothes Recognition and Retrieval, 2016",
        address="https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
    )
)
