"""Pictures that occur more than once: groups of equal files, groups of near copies, and copies across splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fgssl.check.similar import near_pairs
from fgssl.check.sweep import SplitFacts

Indices = NDArray[np.int64]


@dataclass(frozen=True, order=True)
class Place:
    """One picture of a source."""

    split: int
    index: int


class Leak(NamedTuple):
    """A picture that has a copy in an earlier split."""

    copy: Place
    original: Place
    exact: bool


class Copies(NamedTuple):
    """Everything that occurs more than once.

    Attributes:
        exact: Groups of pictures with equal bytes, in and across splits, in order.
        near: Groups of different files linked by likeness (one of each exact group stands for it).
        leaks: Pictures of later splits with a copy in an earlier one; each once for each earlier split.
        conflicts: Exact groups whose pictures have different classes.
    """

    exact: list[list[Place]]
    near: list[list[Place]]
    leaks: list[Leak]
    conflicts: list[list[Place]]


def find_copies(splits: Sequence[SplitFacts], progress: Callable[[int, int], None] | None = None) -> Copies:
    """Compare all readable pictures of all splits.

    Args:
        splits: In order; a picture in two of them counts as leaked from the earlier into the later one.
        progress: Of the search for near copies, as (done, total).
    """
    split_of = np.concatenate([np.full(len(s.sizes), n, np.int64) for n, s in enumerate(splits)])
    index_of = np.concatenate([np.arange(len(s.sizes)) for s in splits])
    rows = np.flatnonzero(np.concatenate([s.readable for s in splits]))  # row -> picture, over all splits

    def place(picture: int) -> Place:
        return Place(int(split_of[picture]), int(index_of[picture]))

    digests = np.ascontiguousarray(np.concatenate([s.digests for s in splits])[rows]).view("V16").ravel()
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    exact = _members(rows, group)
    leaks: dict[tuple[int, int], tuple[int, bool]] = {}  # (picture, earlier split) -> its original, whether exact
    for members in exact:
        _note_leaks(members, members, split_of, leaks, exact=True)
    kept = rows[np.sort(first)]  # one of each content
    same = {members[0]: members for members in exact}
    union = _Union(len(kept))
    hashes, thumbs = (np.concatenate([getattr(s, name) for s in splits])[kept] for name in ("hashes", "thumbs"))
    for one, other in (pair for block in near_pairs(hashes, thumbs, progress) for pair in zip(*block, strict=True)):
        union.join(int(one), int(other))
        a, b = int(kept[one]), int(kept[other])
        copies, originals = same.get(a, [a]), same.get(b, [b])
        _note_leaks(copies, originals, split_of, leaks, exact=False)
        _note_leaks(originals, copies, split_of, leaks, exact=False)
    near = _members(kept, np.array([union.root(row) for row in range(len(kept))], np.int64))
    exact_places = [[place(p) for p in members] for members in exact]
    return Copies(
        exact_places,
        [[place(p) for p in members] for members in near],
        [Leak(place(copy), place(found[0]), found[1]) for (copy, _), found in sorted(leaks.items())],
        [members for members in exact_places if len({_class_of(splits, p) for p in members} - {None}) > 1],
    )


def _members(pictures: Indices, group: Indices) -> list[list[int]]:
    """The pictures of each group that has several, in order of the pictures."""
    order = np.argsort(group, kind="stable")
    ends = np.flatnonzero(np.diff(group[order])) + 1
    groups = [sorted(part.tolist()) for part in np.split(pictures[order], ends) if len(part) > 1]
    return sorted(groups)


def _note_leaks(
    copies: Sequence[int],
    originals: Sequence[int],
    split_of: Indices,
    leaks: dict[tuple[int, int], tuple[int, bool]],
    *,
    exact: bool,
) -> None:
    by_split: dict[int, int] = {}
    for original in originals:
        by_split.setdefault(int(split_of[original]), original)
    for copy in copies:
        for split, original in by_split.items():
            if split < split_of[copy]:
                leaks.setdefault((copy, split), (original, exact))  # exact ones come first and stay


def _class_of(splits: Sequence[SplitFacts], place: Place) -> int | None:
    labels = splits[place.split].images.labels
    return None if labels is None else int(labels[place.index])


class _Union:
    """Disjoint sets of 0..count-1."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, item: int) -> int:
        """The one member that stands for the item's set."""
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, one: int, other: int) -> None:
        """Make the sets of two items one."""
        first, second = sorted((self.root(one), self.root(other)))
        self._parent[second] = first
