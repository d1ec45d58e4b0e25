"""Oxford 102 Flowers: MATLAB lists of labels and splits; segmentations are a download of their own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fgssl.data.archives.layout import Contents, Count, Layout, Split
from fgssl.data.archives.lists import Lists
from fgssl.data.archives.matlab import numbers
from fgssl.data.archives.regions import Bools, Regions
from fgssl.registry import ARCHIVES

_VARIABLES = {"train": "trnid", "val": "valid", "test": "tstid"}


def read(lists: Lists, level: str) -> Contents:
    """imagelabels.mat and setid.mat, images jpg/image_00001.jpg. The archive has numbers for names of classes."""
    labels = numbers(lists.mat("imagelabels.mat", "labels")[0])  # of image 1, 2, ..., from 1
    found = [numbers(each) for each in lists.mat("setid.mat", *_VARIABLES.values())]
    everything = np.concatenate(found)
    if not 1 <= everything.min() <= everything.max() <= len(labels):
        raise lists.wrong(f"setid.mat names image {everything.max()}, and imagelabels.mat has {len(labels)} labels")
    if len(np.unique(everything)) < len(everything):
        raise lists.wrong("setid.mat has an image in two splits")
    present = np.unique(labels)
    splits = {}
    for split, rows in zip(_VARIABLES, found, strict=True):
        drawn = [f"segmim/segmim_{row:05d}.jpg" for row in rows] if lists.has("segmim") else ()
        regions = Regions(segmentations=drawn, inside=inside)
        names = [f"jpg/image_{row:05d}.jpg" for row in rows]
        splits[split] = Split(names, np.searchsorted(present, labels[rows - 1]), regions)
    return Contents(splits, [str(number) for number in present])


def inside(values: NDArray[np.uint8]) -> Bools:
    """All but the blue that the background was painted with, as far as JPEG kept it."""
    red, green, blue = np.moveaxis(values.astype(np.int16), -1, 0)
    return np.asarray((blue <= 150) | (red >= 60) | (green >= 60))


ARCHIVES.register("flowers")(
    Layout(
        title="Oxford 102 Flowers",
        marks=("imagelabels.mat", "setid.mat"),
        read=read,
        train="train",
        test="test",
        counts={"train": [Count(1_020, 102)], "val": [Count(1_020, 102)], "test": [Count(6_149, 102)]},
        citation="Nilsback and Zisserman, Automated Flower Classification over a Large Number of Classes, 2008",
        address="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        unions={"trainval": "train+val"},
        pictures="jpg",
    )
)
