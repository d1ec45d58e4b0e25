"""NABirds: 555 visual categories of North American birds, with a box and 11 parts each; the lists are CUB's."""

from __future__ import annotations

from fgssl.data.archives.layout import Contents, Count, Layout
from fgssl.data.archives.lists import Lists
from fgssl.data.archives.numbered import read_numbered
from fgssl.registry import ARCHIVES


def read(lists: Lists, level: str) -> Contents:
    """As CUB-200-2011; classes.txt also names the groups of its hierarchy, which have no images of their own."""
    return read_numbered(lists)


ARCHIVES.register("nabirds")(
    Layout(
        title="NABirds",
        marks=("images.txt", "image_class_labels.txt", "train_test_split.txt", "hierarchy.txt"),
        read=read,
        train="train",
        test="test",
        counts={"train": [Count(23_929, 555)], "test": [Count(24_633, 555)]},
        citation="Van Horn et al., Building a Bird Recognition App and Large Scale Dataset, 2015",
        address="https://dl.allaboutbirds.org/nabirds",
        pictures="images",
    )
)
