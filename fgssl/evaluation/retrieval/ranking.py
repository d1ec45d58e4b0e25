"""Exact ranks of the positives of many queries, without ranking everything else; exact nearest neighbours.

A query's average precision, rank-k and R-precision depend only on the ranks of its positives: the j-th best
positive stands at j plus the number of negatives at or above its score. So it is enough to count negatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fgssl.errors import FgsslError
from fgssl.evaluation.features import check_features, check_widths, unit_rows

LONG_ROW = 50_000  # scores in a row from which it pays to look before sorting
DEFAULT_MEMORY = 512 * 2**20  # bytes of scratch: large enough for products at full speed

_Row = npt.NDArray[np.float32] | npt.NDArray[np.float64]


class RankedPositives(NamedTuple):
    """Ranks of the positives of a chunk of queries."""

    ranks: Tensor  # (c, R) int64, 1-based, ascending in each row; only the first `counts` entries of a row are meant
    counts: Tensor  # (c,) int64, number of positives of each query


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
    """Ranks of each query's positives among the gallery, in chunks of queries; equal negatives are ranked before.

    Args:
        queries: (Nq, D), rows in the order of `query_labels`.
        query_labels: (Nq,) int64, ascending, so that a chunk meets few classes. Each must have a positive.
        gallery: (Ng, D), with `gallery_labels` (Ng,) ascending: the positives of a query are one slice of the scores.
        own: (Nq,) int64 place of each query in the gallery, which it does not see; None if none is in it.
        memory_bytes: Bound on the scratch memory; never less than one row of scores.
        progress: Called with (queries done, queries).
    """
    total, images = len(queries), len(gallery)
    start = torch.searchsorted(gallery_labels, query_labels)
    size = torch.searchsorted(gallery_labels, query_labels, right=True) - start
    # of one query: its scores, and about nine 8-byte columns for each positive
    per_row = images * queries.element_size() + int(size.max()) * 72
    rows = max(1, min(total, 1024, (memory_bytes or DEFAULT_MEMORY) // per_row))
    # one buffer for every chunk: fresh pages for each product would cost as much as the counting
    buffer = torch.empty(rows, images, dtype=queries.dtype, device=queries.device)
    for first in range(0, total, rows):
        last = min(first + rows, total)
        scores = torch.mm(queries[first:last], gallery.T, out=buffer[: last - first])
        place = None if own is None else own[first:last]
        yield _rank_slices(scores, start[first:last], size[first:last], place)
        if progress is not None:
            progress(last, total)


def _rank_slices(scores: Tensor, start: Tensor, size: Tensor, own: Tensor | None) -> RankedPositives:
    """Ranks of the positives scores[i, start[i]:start[i] + size[i]], without column own[i]; overwrites the scores."""
    place = torch.arange(int(size.max()), device=scores.device)
    columns = start[:, None] + torch.minimum(place, size[:, None] - 1)  # (c, R)
    outside = place >= size[:, None]
    if own is not None:
        outside |= columns == own[:, None]
    lowest = float("-inf")
    positives = scores.gather(1, columns).masked_fill_(outside, lowest)
    positives = positives.sort(dim=1, descending=True).values
    scores.scatter_(1, columns, lowest)  # what remains are the negatives
    ranks = count_at_least(scores, positives) + place + 1
    return RankedPositives(ranks, size - int(own is not None))


def count_at_least(scores: Tensor, thresholds: Tensor) -> Tensor:
    """How many scores (c, N) of a row, overwritten, are at least each threshold (c, R) of that row: (c, R) int64.

    The thresholds descend; minus infinity stands where there is none, and its count means nothing.
    """
    if scores.device.type != "cpu":
        return scores.shape[1] - torch.searchsorted(scores.sort(dim=1).values, thresholds)
    parts = max(1, min(torch.get_num_threads(), len(scores)))
    count = _count_in_part if scores.shape[1] >= LONG_ROW else _count_by_sorting
    # numpy's sort is vectorised (torch's is not) and lets other threads run
    with ThreadPoolExecutor(parts) as pool:
        return torch.cat(list(pool.map(count, scores.chunk(parts), thresholds.chunk(parts))))


def _count_by_sorting(scores: Tensor, thresholds: Tensor) -> Tensor:
    scores.numpy().sort(axis=1)
    return scores.shape[1] - torch.searchsorted(scores, thresholds)


def _count_in_part(scores: Tensor, thresholds: Tensor) -> Tensor:
    """Sorts only the part of a long row that most thresholds need, and counts for the few low ones one by one.

    The positives of a useful ranking crowd at its top, with a few far down: sorting all for their sake is waste.
    Scores below the part are raised to one value, since a sort is quick with equal values.
    """
    counts = np.zeros(thresholds.shape, dtype=np.int64)
    for row, wanted, count in zip(scores.numpy(), thresholds.numpy(), counts, strict=True):
        wanted = wanted[: np.count_nonzero(wanted > -np.inf)]
        sample = np.sort(row[:: len(row) // 512])
        cut = _cheapest_cut(sample, wanted)
        if cut is not None:
            for place in range(cut + 1, len(wanted)):
                count[place] = np.count_nonzero(row >= wanted[place])
            wanted = wanted[: cut + 1]
            floor = min(wanted[cut], sample[-len(sample) // 20])
            np.maximum(row, np.nextafter(floor, row.dtype.type(-np.inf)), out=row)  # below: not to be counted
        row.sort()
        count[: len(wanted)] = len(row) - row.searchsorted(wanted)
    return torch.from_numpy(counts)


def _cheapest_cut(sample: _Row, wanted: _Row) -> int | None:
    """Which threshold (descending) is the last to count by sorting what is above it; None to sort the whole row.

    Measured at 200,000 scores, in sorts of the whole row: a direct count takes 0.04, sorting a part 0.13 and 0.85 of
    its share, but no less for parts below a twentieth. The share is estimated from a sorted sample of the row.
    """
    above = 1 - sample.searchsorted(wanted) / len(sample)
    cost = 0.04 * np.arange(len(wanted))[::-1] + 0.13 + 0.85 * np.maximum(above, 0.05)
    cut = int(cost.argmin())
    return cut if cost[cut] < 0.85 else None  # a sure gain only


class Neighbours(NamedTuple):
    """The best gallery images of each query, best first."""

    indices: Tensor  # (Nq, top) int64 rows of the gallery
    scores: Tensor  # (Nq, top), descending


def search(
    queries: Tensor,
    gallery: Tensor | None = None,
    *,
    top: int = 10,
    memory_bytes: int | None = None,
    normalize: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Neighbours:
    """The `top` most similar gallery images of each query, exactly; needs no labels.

    Equal scores are ordered by gallery row, so the answer does not depend on chunks or threads.

    Args:
        queries: (Nq, D) features.
        gallery: (Ng, D) features; None searches the queries themselves, each without itself.
        top: How many; a number beyond the gallery gives the whole gallery.
        memory_bytes: Bound on the scratch memory; by default 512 MiB.
        normalize: Score by cosine; False takes the inner product.
        progress: Called with (queries done, queries).

    Raises:
        FgsslError: Features with NaN or of different widths, an empty gallery, or `top` below 1.
    """
    if top < 1:
        raise FgsslError(f"a search for the top {top}", "ask for 1 or more")
    queries = check_features(queries, "queries")
    among = queries if gallery is None else check_features(gallery, "gallery")
    check_widths(queries, among, ("queries", "gallery"))
    if gallery is None and len(queries) == 1:
        raise FgsslError("one image has no others to search", "give a gallery")
    if normalize:
        among = unit_rows(among)
        queries = among if gallery is None else unit_rows(queries)
    top = min(top, len(among) - (gallery is None))
    # scores, and topk's own copy with indices
    rows = max(1, min(1024, (memory_bytes or DEFAULT_MEMORY) // (len(among) * 16)))
    parts = []
    for first in range(0, len(queries), rows):
        scores = queries[first : first + rows] @ among.T
        if gallery is None:
            scores.diagonal(first).fill_(float("-inf"))
        parts.append(_top(scores, top))
        if progress is not None:
            progress(min(first + rows, len(queries)), len(queries))
    return Neighbours(torch.cat([part.indices for part in parts]), torch.cat([part.scores for part in parts]))


def _top(scores: Tensor, top: int) -> Neighbours:
    """The best `top` columns of each row, equal scores by column."""
    best = scores.topk(top, dim=1)
    indices, by_index = best.indices.sort(dim=1)
    values, by_value = best.values.gather(1, by_index).sort(dim=1, descending=True, stable=True)
    indices = indices.gather(1, by_value)
    # topk takes any of the columns that share the last place's score: settle those rows by a stable full sort
    tied = (scores >= values[:, -1:]).sum(1) > top
    if bool(tied.any()):
        indices[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :top]
    return Neighbours(indices, values)
