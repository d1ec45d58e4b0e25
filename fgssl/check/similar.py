"""Near copies among many pictures: all pairs of 64-bit hashes within a distance, without looking at all pairs.

A pair within 10 bits differs in at most 2 bits of one of four 16-bit bands (pigeonhole; multi-index hashing, Norouzi et
al., CVPR 2012), so each band is a table of 65,536 buckets and every hash looks into the 137 buckets around its own.
Candidates are confirmed by the correlation of their colour thumbnails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

NEAR_BITS = 10  # of 64
NEAR_CORRELATION = 0.9
_BAND, _BANDS = 16, 4
_REACH = NEAR_BITS // _BANDS  # a pair within NEAR_BITS is within this many bits in some band
_BLOCK = 1 << 20  # candidates compared at a time
_CROWD = 256  # pictures of one and the same hash: beyond it each meets only the next ones
_FIRST = 16  # pictures of one hash that meet those of another
_FLAT_NORM, _FLAT_COLOUR = 2.0, 8.0  # of thumbnails without structure: per-value deviation, and equal colour
_ONES = np.array([bin(value).count("1") for value in range(1 << _BAND)], np.uint8)

Indices = NDArray[np.int64]
Pairs = tuple[Indices, Indices]  # (P,) each


def near_pairs(
    hashes: NDArray[np.uint64], thumbs: NDArray[np.uint8], progress: Callable[[int, int], None]
) -> Iterator[Pairs]:
    """Blocks of pairs of near copies, by hashes (N,) and thumbnails (N, D): each pair once, its first row first."""
    values, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")  # rows by hash, within a hash in order
    inverse = inverse[order]
    for step in range(1, min(_CROWD, int(counts.max(initial=1)))):
        same = np.flatnonzero(inverse[step:] == inverse[:-step])
        yield from _confirmed(order[same], order[same + step], thumbs)
    starts = np.cumsum(counts) - counts
    for first, second in _close(values, progress):
        for steps in product(*(range(min(_FIRST, int(counts[side].max()))) for side in (first, second))):
            both = (counts[first] > steps[0]) & (counts[second] > steps[1])
            rows = order[starts[first[both]] + steps[0]], order[starts[second[both]] + steps[1]]
            yield from _confirmed(np.minimum(*rows), np.maximum(*rows), thumbs)


def _close(values: NDArray[np.uint64], progress: Callable[[int, int], None]) -> Iterator[Pairs]:
    """Pairs of different hashes within NEAR_BITS."""
    masks = [0] + [sum(1 << b for b in bits) for n in range(1, _REACH + 1) for bits in combinations(range(_BAND), n)]
    bands = values.astype("<u8").view("<u2").reshape(-1, _BANDS).T.copy()  # (4, V)
    for number, band in enumerate(bands):
        order = np.argsort(band, kind="stable")
        counts = np.bincount(band, minlength=1 << _BAND)
        for done, mask in enumerate(masks):
            for first, second in _looked_up(band ^ np.uint16(mask), order, counts):
                differing = _ONES[bands[:, first] ^ bands[:, second]]  # (4, P)
                keep = (first < second) & (differing.sum(0) <= NEAR_BITS)
                keep &= (differing[:number] > _REACH).all(0)  # a pair that an earlier band has found already
                if keep.any():
                    yield first[keep], second[keep]
            progress(number * len(masks) + done + 1, _BANDS * len(masks))


def _looked_up(wanted: Indices, order: Indices, counts: Indices) -> Iterator[Pairs]:
    """All (row, member of the bucket it wants), in blocks."""
    starts, sizes = np.cumsum(counts) - counts, counts[wanted]
    cuts = np.flatnonzero(np.diff(np.cumsum(sizes) // _BLOCK)) + 1
    for rows in np.split(np.arange(len(wanted)), cuts):
        begins = np.cumsum(sizes[rows]) - sizes[rows]
        first = np.repeat(rows, sizes[rows])
        yield first, order[np.arange(len(first)) + np.repeat(starts[wanted[rows]] - begins, sizes[rows])]


def _confirmed(first: Indices, second: Indices, thumbs: NDArray[np.uint8]) -> Iterator[Pairs]:
    """Pairs whose thumbnails correlate; those of one colour, which correlate with nothing, have the same colour."""
    for start in range(0, len(first), 65536):
        one, other = first[start : start + 65536], second[start : start + 65536]
        a, b = thumbs[one].astype(np.float32), thumbs[other].astype(np.float32)
        close = np.abs(a - b).max(1) <= _FLAT_COLOUR
        a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
        norms = np.sqrt((a * a).sum(1) * (b * b).sum(1))
        structured = norms > _FLAT_NORM**2 * thumbs.shape[1]
        alike = np.where(structured, (a * b).sum(1) >= NEAR_CORRELATION * norms, close)
        yield one[alike], other[alike]
