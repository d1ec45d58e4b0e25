"""What a file in `layouts/` says of its archive: how it is known, what was published, how its lists are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fgssl.data.archives.lists import Lists
from fgssl.data.archives.regions import NO_REGIONS, Regions


class Count(NamedTuple):
    """What a paper says of a split."""

    images: int
    classes: int


class Split(NamedTuple):
    """One split, image by image in the order of its list."""

    names: Sequence[str]  # (N,) paths relative to the archive's folder
    labels: Sequence[int] | NDArray[np.int64] | None  # (N,) rows of the class names
    regions: Regions = NO_REGIONS
    unlabelled: str = ""  # why there are no labels


class Contents(NamedTuple):
    """All that the lists of an archive say. No image is in two splits."""

    splits: dict[str, Split]
    class_names: Sequence[str]


@dataclass(frozen=True)
class Layout:
    """An archive; registered in `fgssl.registry.ARCHIVES` under what stands before the colon of `--data cub:FOLDER`.

    A plain folder is taken for it where at least two of the `marks` lie in it, or in a folder right in it.
    """

    title: str
    marks: tuple[str, ...]  # files that tell it from other archives; none: never found, only named
    read: Callable[[Lists, str], Contents]  # of its lists and one of the `levels`
    train: str  # the split papers train on, several joined by +
    test: str
    counts: Mapping[str, Sequence[Count]]  # published, at the first level; several where there are several editions
    citation: str
    address: str  # where it is published
    levels: tuple[str, ...] = ("class",)  # what may be asked for as the class, the usual first
    unions: Mapping[str, str] = field(default_factory=dict)  # other names of several splits: trainval is train+val
    lists: tuple[str, ...] = ()  # more marks, of names so common that they count only where the archive is named
    pictures: str = ""  # the folder whose folders are classes, for those who want it read so
