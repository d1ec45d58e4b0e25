"""Exact ranks of the positives of many queries, without ranking everything else.

A query's average precision, rank-k and R-precision depend only on the ranks of its positives: the j-th best
positive stands at j plus the number of negatives at or above its score. So it is enough to count negatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

RUN = 8192  # scores sorted at a time: they stay in the core's own cache
DEFAULT_MEMORY = 512 * 2**20  # bytes of scratch: large enough for products at full speed


class RankedPositives(NamedTuple):
    """Ranks of the positives of a chunk of queries.

    Attributes:
        ranks: (c, R) int64, 1-based, ascending in each row; only the first `counts` entries of a row are meant.
        counts: (c,) int64, number of positives of each query.
    """

    ranks: Tensor
    counts: Tensor


def rank_positives(
    queries: Tensor,
    query_labels: Tensor,
    *,
    gallery: Tensor,
    gallery_labels: Tensor,
    own: Tensor | None = None,
    memory_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[RankedPositives]:
    """Ranks of each query's positives among the gallery, chunk by chunk.

    A negative with the same score as a positive is ranked before it.

    Args:
        queries: (Nq, D), rows in the order of `query_labels`.
        query_labels: (Nq,) int64, ascending, so that a chunk meets few classes. Each must have a positive.
        gallery: (Ng, D).
        gallery_labels: (Ng,) int64, ascending: the positives of a query are one slice of the scores.
        own: (Nq,) int64 place of each query in the gallery, which it does not see; None if none is in it.
        memory_bytes: Bound on the scratch memory, in bytes; never less than one row of scores.
        progress: Called with (queries done, queries).

    Yields:
        One `RankedPositives` a chunk, in the order of the queries.
    """
    total, images = len(queries), len(gallery)
    start = torch.searchsorted(gallery_labels, query_labels)
    size = torch.searchsorted(gallery_labels, query_labels, right=True) - start
    widest = int(size.max())
    runs = _runs(images, widest)
    padded = -(-images // runs) * runs
    # its scores, nine 8-byte columns for each positive, and the positives' places in each run
    per_row = padded * queries.element_size() + widest * (72 + 16 * runs)
    rows = max(1, min(total, 1024, (memory_bytes or DEFAULT_MEMORY) // per_row))
    # one buffer for every chunk: fresh pages for each product would cost as much as the counting
    buffer = torch.empty(rows, padded, dtype=queries.dtype, device=queries.device)
    for first in range(0, total, rows):
        last = min(first + rows, total)
        scores = buffer[: last - first]
        torch.mm(queries[first:last], gallery.T, out=scores[:, :images])
        scores[:, images:] = float("-inf")
        place = None if own is None else own[first:last]
        yield RankedPositives(*_rank_slices(scores, start[first:last], size[first:last], place, runs))
        if progress is not None:
            progress(last, total)


def _runs(images: int, widest: int) -> int:
    """Into how many runs to cut a row of scores: short runs sort faster, but each positive is looked up in each."""
    return max(1, min(images // RUN, images // (16 * widest)))


def _rank_slices(scores: Tensor, start: Tensor, size: Tensor, own: Tensor | None, runs: int) -> tuple[Tensor, Tensor]:
    """Ranks of the positives scores[i, start[i]:start[i] + size[i]], without column own[i]; overwrites the scores.

    Returns:
        Ranks (c, R) int64 and the number of positives (c,).
    """
    place = torch.arange(int(size.max()), device=scores.device)
    columns = start[:, None] + torch.minimum(place, size[:, None] - 1)  # (c, R)
    outside = place >= size[:, None]
    if own is not None:
        outside |= columns == own[:, None]
    lowest = float("-inf")
    positives = scores.gather(1, columns).masked_fill_(outside, lowest)
    positives = positives.sort(dim=1, descending=True).values
    scores.scatter_(1, columns, lowest)  # what remains are the negatives
    ranks = count_at_least(scores, positives, runs=runs) + place + 1
    return ranks, size - int(own is not None)


def count_at_least(scores: Tensor, thresholds: Tensor, *, runs: int = 1) -> Tensor:
    """How many scores of a row are at least each threshold of that row.

    Args:
        scores: (c, N) contiguous, no NaN; overwritten.
        thresholds: (c, R).
        runs: Sort and search each row in this many parts; divides N.

    Returns:
        (c, R) int64. Where a threshold is minus infinity, all N.
    """
    rows, images = scores.shape
    below = torch.searchsorted(
        sorted_rows(scores.view(rows * runs, images // runs)), thresholds.repeat_interleave(runs, dim=0)
    )
    return images - below.view(rows, runs, -1).sum(dim=1)


def sorted_rows(scores: Tensor) -> Tensor:
    """Rows in ascending order; on the CPU in place, with numpy's vectorised sort in as many threads as torch has."""
    if scores.device.type != "cpu":
        return scores.sort(dim=1).values
    parts = np.array_split(scores.numpy(), max(1, min(torch.get_num_threads(), len(scores))))
    if len(parts) == 1:
        parts[0].sort(axis=1)
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(lambda part: part.sort(axis=1), parts))
    return scores
