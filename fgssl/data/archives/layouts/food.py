"""Food-101: 101 dishes; lists as text or as JSON."""

from __future__ import annotations

from fgssl.data.archives.layout import Contents, Count, Layout, Split
from fgssl.data.archives.lists import Lists
from fgssl.registry import ARCHIVES


def read(lists: Lists, level: str) -> Contents:
    """meta/{train,test}.txt, a DISH/NUMBER a line, else .json, dish -> its images; images/DISH/NUMBER.jpg."""
    found = {split: _images(lists, split) for split in ("train", "test")}
    if shared := set(found["train"]) & set(found["test"]):
        raise lists.wrong(f"image {min(shared)} is in train and in test")
    names = sorted({image.partition("/")[0] for images in found.values() for image in images})
    row = {name: place for place, name in enumerate(names)}
    splits = {
        split: Split([f"images/{image}.jpg" for image in images], [row[image.partition("/")[0]] for image in images])
        for split, images in found.items()
    }
    return Contents(splits, names)


def _images(lists: Lists, split: str) -> list[str]:
    if lists.has(f"meta/{split}.txt") or not lists.has(f"meta/{split}.json"):
        return lists.lines(f"meta/{split}.txt")
    tree = lists.json(f"meta/{split}.json")
    if not isinstance(tree, dict):
        raise lists.wrong(f"meta/{split}.json is no object of dishes and their images")
    return [str(image) for images in tree.values() for image in images]


ARCHIVES.register("food")(
    Layout(
        title="Food-101",
        marks=("meta/train.txt", "meta/test.txt", "meta/train.json", "meta/test.json"),
        read=read,
        train="train",
        test="test",
        counts={"train": [Count(75_750, 101)], "test": [Count(25_250, 101)]},
        citation="Bossard et al., Food-101: Mining Discriminative Components with Random Forests, 2014",
        address="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        pictures="images",
    )
)
