"""What a data set marks on its pictures, held against the pictures: boxes, parts and segmentations."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from fgssl.check.pictures import SplitFacts
from fgssl.check.verdict import Finding
from fgssl.data.archives.regions import Regions
from fgssl.data.archives.source import ArchiveImages

_SLACK = 2.0  # pixels that a box may reach beyond its picture: annotators round


def region_findings(facts: SplitFacts) -> Iterator[Finding]:
    """How many pictures have marks, and which do not fit; nothing where the source marks none."""
    images, name = facts.images, facts.images.split
    if not isinstance(images, ArchiveImages):
        return
    regions = images.regions
    marked = {"boxes": _boxed(regions), "parts": _with_parts(regions), "segmentations": _segmented(images)}
    counts = [f"{what} on {int(rows.sum()):,}" for what, rows in marked.items() if len(rows)]
    if counts:
        yield Finding("note", f"{name} of {len(images):,} pictures has {', '.join(counts)}")
    for what, rows in marked.items():
        if len(rows) and not rows.all() and what != "parts":
            lone = images.identifier(int(np.argmin(rows)))
            yield Finding("note", f"{int((~rows).sum())} pictures of {name} have no {what}, such as {lone}")
    outside = _outside(facts, regions)
    if len(outside):
        lone = images.identifier(int(outside[0]))
        text = f"{len(outside)} boxes of {name} reach out of their pictures or are empty, such as that of {lone}"
        yield Finding("warning", f"{text}: these are pictures of another size than were annotated")


def _boxed(regions: Regions) -> np.ndarray:
    return np.empty(0, bool) if regions.boxes is None else np.asarray(~np.isnan(regions.boxes).any(1))


def _with_parts(regions: Regions) -> np.ndarray:
    return np.empty(0, bool) if regions.parts is None else np.asarray((~np.isnan(regions.parts)).any((1, 2)))


def _segmented(images: ArchiveImages) -> np.ndarray:
    paths = (os.path.join(images.folder, name) for name in images.regions.segmentations)
    return np.array([os.path.isfile(path) for path in paths], bool)


def _outside(facts: SplitFacts, regions: Regions) -> np.ndarray:
    """Rows of readable pictures whose box is empty or reaches out."""
    if regions.boxes is None:
        return np.empty(0, np.int64)
    width, height = facts.sizes.T.astype(np.float32)
    left, top, right, bottom = regions.boxes.T
    with np.errstate(invalid="ignore"):  # comparisons of NaN are False, as they should be
        out = (np.minimum(left, top) < -_SLACK) | (right > width + _SLACK) | (bottom > height + _SLACK)
        empty = (right <= left) | (bottom <= top)
    return np.flatnonzero((out | empty) & facts.readable)
