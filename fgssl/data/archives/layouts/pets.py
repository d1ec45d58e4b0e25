"""Oxford-IIIT Pet: 37 breeds of two species, each picture with a trimap, some with the box of the head."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fgssl.data.archives.layout import Contents, Count, Layout, Split
from fgssl.data.archives.lists import Lists
from fgssl.data.archives.regions import Bools, Regions
from fgssl.registry import ARCHIVES

_BACKGROUND = 2  # of a trimap; 1 is the pet, 3 its border


def read(lists: Lists, level: str) -> Contents:
    """annotations/{trainval,test}.txt: name, breed and species from 1, breed within its species."""
    breeds: dict[int, str] = {}
    entries = {}
    for split in ("trainval", "test"):
        name = f"annotations/{split}.txt"
        rows = [
            (image, lists.number(breed, name), lists.number(species, name))
            for image, breed, species, _ in lists.rows(name, 4)
        ]
        entries[split] = rows
        breeds |= {breed: image.rpartition("_")[0] for image, breed, _ in rows}
    classes = [breeds[breed] for breed in sorted(breeds)] if level == "breed" else ["cat", "dog"]
    place = {breed: row for row, breed in enumerate(sorted(breeds))} if level == "breed" else {1: 0, 2: 1}
    trimaps = lists.has("annotations/trimaps")
    splits = {}
    for split, rows in entries.items():
        labels = [breed if level == "breed" else species for _, breed, species in rows]
        if strange := set(labels) - place.keys():
            raise lists.wrong(f"annotations/{split}.txt has a species {min(strange)}, not 1 (cat) or 2 (dog)")
        drawn = [f"annotations/trimaps/{image}.png" for image, *_ in rows] if trimaps else ()
        names = [f"images/{image}.jpg" for image, *_ in rows]
        regions = Regions(segmentations=drawn, inside=inside)
        splits[split] = Split(names, [place[label] for label in labels], regions)
    return Contents(splits, classes)


def inside(values: NDArray[np.uint8]) -> Bools:
    """The pet with its border."""
    return np.asarray(values != _BACKGROUND)


ARCHIVES.register("pets")(
    Layout(
        title="Oxford-IIIT Pet",
        marks=("annotations/trainval.txt", "annotations/test.txt", "annotations/list.txt"),
        read=read,
        train="trainval",
        test="test",
        counts={"trainval": [Count(3_680, 37)], "test": [Count(3_669, 37)]},
        citation="Parkhi et al., Cats and Dogs, 2012",
        address="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        levels=("breed", "species"),
        pictures="images",
    )
)
