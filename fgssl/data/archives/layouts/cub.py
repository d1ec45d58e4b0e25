"""CUB-200-2011: 200 species of birds, with a box and 15 parts each; segmentations are a download of their own."""

from __future__ import annotations

from fgssl.data.archives.layout import Contents, Count, Layout
from fgssl.data.archives.lists import Lists
from fgssl.data.archives.numbered import read_numbered
from fgssl.data.archives.regions import bright
from fgssl.registry import ARCHIVES


def read(lists: Lists, level: str) -> Contents:
    """images.txt, image_class_labels.txt, train_test_split.txt, classes.txt; bounding_boxes.txt and parts/ if there."""
    # the second archive unpacks beside the first, or within it
    where = next((name for name in ("segmentations", "../segmentations") if lists.has(name)), "")
    return read_numbered(lists, segmentations=where, inside=bright)


ARCHIVES.register("cub")(
    Layout(
        title="CUB-200-2011",
        marks=("images.txt", "image_class_labels.txt", "train_test_split.txt"),
        read=read,
        train="train",
        test="test",
        counts={"train": [Count(5_994, 200)], "test": [Count(5_794, 200)]},
        citation="Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, 2011",
        address="https://www.vision.caltech.edu/datasets/cub_200_2011/",
        pictures="images",
    )
)
