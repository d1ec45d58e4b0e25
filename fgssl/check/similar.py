"""Near copies among many pictures: all pairs of 64-bit hashes within a distance, without looking at all pairs.

A pair within 10 bits differs in at most 2 bits of one of four 16-bit bands (pigeonhole; multi-index hashing, Norouzi et
al., CVPR 2012), so each band is a table of 65,536 buckets and every hash looks into the 137 buckets around its own.
Candidates are confirmed by the correlation of their colour thumbnails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NEAR_BITS = 10  # of 64
NEAR_CORRELATION = 0.9
_BAND, _BANDS = 16, 4
_REACH = NEAR_BITS // _BANDS  # a pair within NEAR_BITS is within this many bits in some band
_BLOCK = 1 << 20  # candidates compared at a time
_CROWD = 256  # pictures of one and the same hash: beyond it each meets only the next ones
_FLAT_NORM, _FLAT_COLOUR = 2.0, 8.0  # of thumbnails without structure: per-value deviation, and equal colour
_ONES = np.array([bin(value).count("1") for value in range(1 << _BAND)], np.uint8)

Indices = NDArray[np.int64]


class Pairs(NamedTuple):
    """Pairs of rows, each once: first < second."""

    first: Indices  # (P,)
    second: Indices


def near_pairs(
    hashes: NDArray[np.uint64], thumbs: NDArray[np.uint8], progress: Callable[[int, int], None] | None = None
) -> Iterator[Pairs]:
    """Blocks of pairs of near copies.

    Args:
        hashes: Perceptual hashes (N,).
        thumbs: Colour thumbnails (N, D).
        progress: Called with (done, total) of the bands' buckets.

    Yields:
        Confirmed pairs; each pair once over all blocks.
    """
    values, inverse = np.unique(hashes, return_inverse=True)
    order = np.argsort(inverse, kind="stable")  # rows by hash, within a hash in order
    starts = np.searchsorted(inverse[order], np.arange(len(values) + 1))
    for block in _equal(order, starts):
        yield _confirmed(block, thumbs)
    for block in _close(values, progress):
        for chunk in _expanded(block, order, starts):
            yield _confirmed(chunk, thumbs)


def _equal(order: Indices, starts: Indices) -> Iterator[Pairs]:
    """Pairs of rows with the same hash."""
    hash_of = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    for step in range(1, min(_CROWD, int(np.diff(starts).max(initial=1)))):
        same = np.flatnonzero(hash_of[step:] == hash_of[:-step])
        if not len(same):
            return
        yield Pairs(order[same], order[same + step])


def _close(values: NDArray[np.uint64], progress: Callable[[int, int], None] | None) -> Iterator[Pairs]:
    """Pairs of different hashes within NEAR_BITS."""
    masks = [0] + [sum(1 << b for b in bits) for n in range(1, _REACH + 1) for bits in combinations(range(_BAND), n)]
    bands = [((values >> np.uint64(_BAND * band)) & np.uint64(0xFFFF)).astype(np.int64) for band in range(_BANDS)]
    for number, band in enumerate(bands):
        order = np.argsort(band, kind="stable")
        counts = np.bincount(band, minlength=1 << _BAND)
        starts = np.cumsum(counts) - counts
        for done, mask in enumerate(masks):
            wanted = band ^ mask
            for first, second in _looked_up(wanted, order, starts, counts):
                keep = first < second
                first, second = first[keep], second[keep]
                keep = _distance(values[first], values[second]) <= NEAR_BITS
                first, second = first[keep], second[keep]
                for earlier in bands[:number]:  # a pair that an earlier band has found already
                    keep = _ONES[earlier[first] ^ earlier[second]] > _REACH
                    first, second = first[keep], second[keep]
                if len(first):
                    yield Pairs(first, second)
            if progress is not None:
                progress(number * len(masks) + done + 1, _BANDS * len(masks))


def _looked_up(wanted: Indices, order: Indices, starts: Indices, counts: Indices) -> Iterator[Pairs]:
    """All (row, member of the bucket it wants), in blocks."""
    sizes = counts[wanted]
    ends = np.cumsum(sizes)
    begin = 0
    while begin < len(wanted):
        taken = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, taken + _BLOCK, side="right")))
        rows = np.repeat(np.arange(begin, end), sizes[begin:end])
        place = np.arange(len(rows)) - np.repeat(ends[begin:end] - sizes[begin:end] - taken, sizes[begin:end])
        yield Pairs(rows, order[starts[wanted[rows]] + place])
        begin = end


def _distance(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.int64]:
    parts = (first ^ second).view(np.uint16).reshape(-1, _BANDS)
    total: Indices = _ONES[parts].sum(1, dtype=np.int64)
    return total


def _expanded(pairs: Pairs, order: Indices, starts: Indices) -> Iterator[Pairs]:
    """Pairs of hashes as pairs of the rows that have them; of a crowd only the first rows."""
    most = 16
    sizes = np.minimum(np.diff(starts), most)
    for one in range(most):
        for other in range(most):
            both = (sizes[pairs.first] > one) & (sizes[pairs.second] > other)
            if not both.any():
                break
            rows = order[starts[pairs.first[both]] + one], order[starts[pairs.second[both]] + other]
            yield Pairs(np.minimum(*rows), np.maximum(*rows))


def _confirmed(pairs: Pairs, thumbs: NDArray[np.uint8]) -> Pairs:
    kept = [
        _alike(thumbs[pairs.first[start : start + 65536]], thumbs[pairs.second[start : start + 65536]])
        for start in range(0, len(pairs.first), 65536)
    ]
    keep = np.concatenate(kept) if kept else np.empty(0, bool)
    return Pairs(pairs.first[keep], pairs.second[keep])


def _alike(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.bool_]:  # (P, D) twice -> (P,)
    """Thumbnails that correlate; those of one colour, which correlate with nothing, where the colour is the same."""
    a, b = first.astype(np.float32), second.astype(np.float32)
    close = np.abs(a - b).max(1) <= _FLAT_COLOUR
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    norms = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    structured = norms > _FLAT_NORM**2 * first.shape[1]
    near: NDArray[np.bool_] = np.where(structured, (a * b).sum(1) >= NEAR_CORRELATION * norms, close)
    return near
