"""Pictures that occur more than once: groups of equal files, groups of near copies, and copies across splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fgssl.check.pictures import SplitFacts
from fgssl.check.similar import Indices, near_pairs


class Place(NamedTuple):
    """One picture of a source."""

    split: int
    picture: int


class Leak(NamedTuple):
    """A picture that has a copy in an earlier split."""

    copy: Place
    original: Place
    exact: bool


class Copies(NamedTuple):
    """Everything that occurs more than once."""

    exact: list[list[Place]]  # groups of pictures with equal bytes, in and across splits, in order
    near: list[list[Place]]  # groups of different files linked by likeness; one of each exact group stands for it
    leaks: list[Leak]  # pictures of later splits with a copy in an earlier one; each once for each earlier split
    conflicts: list[list[Place]]  # exact groups whose pictures have different classes


def find_copies(splits: Sequence[SplitFacts], progress: Callable[[int, int], None]) -> Copies:
    """Compare all readable pictures; one in two splits counts as leaked from the earlier into the later one."""
    split_of = np.concatenate([np.full(len(s.sizes), n, np.int64) for n, s in enumerate(splits)])
    index_of = np.concatenate([np.arange(len(s.sizes)) for s in splits])
    rows = np.flatnonzero(np.concatenate([s.readable for s in splits]))  # row -> picture, over all splits
    leaks: dict[tuple[int, int], Leak] = {}  # by picture and earlier split

    def place(picture: int) -> Place:
        return Place(int(split_of[picture]), int(index_of[picture]))

    def note_leaks(alike: Sequence[int], *, exact: bool) -> None:
        originals: dict[int, int] = {}
        for picture in alike:
            originals.setdefault(int(split_of[picture]), picture)
        for picture in alike:
            for split, original in originals.items():
                if split < split_of[picture]:  # exact ones come first and stay
                    leaks.setdefault((picture, split), Leak(place(picture), place(original), exact))

    digests = np.concatenate([s.digests for s in splits])[rows]
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    exact = members(rows, group)
    for same_bytes in exact:
        note_leaks(same_bytes, exact=True)
    kept = rows[np.sort(first)]  # one of each content
    same = {alike[0]: alike for alike in exact}
    hashes, thumbs = (np.concatenate([getattr(s, name) for s in splits])[kept] for name in ("hashes", "thumbs"))
    component = np.arange(len(kept))
    for pairs in near_pairs(hashes, thumbs, progress):
        join(component, *pairs)
        for one, other in zip(*(kept[side].tolist() for side in pairs), strict=True):
            note_leaks(same.get(one, [one]) + same.get(other, [other]), exact=False)
    classes = np.concatenate(
        [np.full(len(s.sizes), -1) if (known := s.images.labels) is None else known for s in splits]
    )
    conflicts = [alike for alike in exact if len({*classes[alike].tolist()} - {-1}) > 1]
    groups = ([[*map(place, alike)] for alike in found] for found in (exact, members(kept, component), conflicts))
    return Copies(next(groups), next(groups), [leak for _, leak in sorted(leaks.items())], next(groups))


def members(pictures: Indices, group: Indices) -> list[list[int]]:
    """The pictures of each group that has several, in order of the pictures."""
    order = np.argsort(group, kind="stable")
    ends = np.flatnonzero(np.diff(group[order])) + 1
    return sorted(part.tolist() for part in np.split(pictures[order], ends) if len(part) > 1)


def join(component: Indices, first: Indices, second: Indices) -> None:
    """Give linked rows, and all that are joined to them, the number of the lowest. SciPy is no need for this."""
    while (component[first] != component[second]).any():
        least = np.minimum(component[first], component[second])
        for side in (component[first], component[second]):
            np.minimum.at(component, side, least)
        while (component[component] != component).any():
            component[:] = component[component]
