"""Exact ranks of the positives of many queries, without ranking everything else; exact nearest neighbours.

The j-th best positive of a query stands at j plus the number of negatives at or above its score, and all metrics depend
on the ranks of positives alone: so it is enough to count negatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fgssl.errors import FgsslError
from fgssl.evaluation.features import Progress, check_features, check_widths, silent, unit_rows

LONG_ROW = 50_000  # scores in a row from which it pays to look before sorting
BLOCK_BYTES = 2**20  # of widened numbers
DEFAULT_MEMORY = 512 * 2**20  # bytes of scratch: large enough for products at full speed

_Row = npt.NDArray[np.float32] | npt.NDArray[np.float64]


class Sorted(NamedTuple):
    """Features (N, D) in the order of their classes, so that a class is a slice."""

    features: Tensor
    labels: Tensor  # (N,) ascending
    order: Tensor  # (N,) row before


def rank_positives(
    queries: Sorted, gallery: Sorted, *, own: Tensor | None, memory_bytes: int | None, progress: Progress = silent
) -> Iterator[tuple[Tensor, Tensor]]:
    """Ranks of each query's positives, of which it must have one, in chunks of queries; equal negatives come before.

    `own` (Nq,) is the place of each query in the gallery, which it does not see; None if none is in it. Yields ranks
    (c, R) int64 from 1, ascending in each row, and how many of a row are meant, (c,) int64.
    """
    total, images = len(queries.features), len(gallery.features)
    if not total:
        return
    start = torch.searchsorted(gallery.labels, queries.labels)
    size = torch.searchsorted(gallery.labels, queries.labels, right=True) - start
    # of one query: its scores, and about nine 8-byte columns for each positive
    rows = _chunk(memory_bytes, images * queries.features.element_size() + int(size.max()) * 72, total)
    # one buffer for every chunk: fresh pages for each product would cost as much as the counting
    buffer = queries.features.new_empty(rows, images)
    for first in range(0, total, rows):
        last = min(first + rows, total)
        scores = torch.mm(queries.features[first:last], gallery.features.T, out=buffer[: last - first])
        place = None if own is None else own[first:last]
        yield _rank_slices(scores, start[first:last], size[first:last], place)
        progress(last, total)


def _chunk(memory_bytes: int | None, per_row: int, total: int) -> int:
    return max(1, min(total, 1024, (memory_bytes or DEFAULT_MEMORY) // per_row))


def _rank_slices(scores: Tensor, start: Tensor, size: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
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
    return count_at_least(scores, positives) + place + 1, size - int(own is not None)


def count_at_least(scores: Tensor, thresholds: Tensor) -> Tensor:
    """How many scores (c, N) of a row, overwritten, are at least each of its descending thresholds (c, R): (c, R)."""
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
    """Sorts only the part of a long row where positives crowd, and counts for the few far down one by one."""
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
            # what lies below is not to be counted, and a sort is quick with equal values
            np.maximum(row, np.nextafter(floor, row.dtype.type(-np.inf)), out=row)
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
    progress: Progress = silent,
) -> Neighbours:
    """The `top` (all, beyond the gallery) most similar gallery images of each query, exactly; needs no labels.

    Queries (Nq, D) and gallery (Ng, D), without which the queries are searched, each without itself, are compared by
    cosine, or by inner product where not to `normalize`. Equal scores are ordered by gallery row, so the answer does
    not depend on chunks, which `memory_bytes` of scratch (512 MiB) bounds, or threads. Raises FgsslError: features with
    NaN or of different widths, an empty gallery, or `top` below 1.
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
    return best_rows(queries, among, top=top, alone=gallery is None, memory_bytes=memory_bytes, progress=progress)


def best_rows(
    queries: Tensor,
    among: Tensor,
    *,
    top: int,
    scale: Tensor | None = None,
    alone: bool = False,
    memory_bytes: int | None = None,
    progress: Progress = silent,
) -> Neighbours:
    """As `search`, of features that are checked and scaled already, so that it can be asked again at no more cost.

    Args:
        queries: (Nq, D) float32 or float64.
        among: (Ng, D) of the same kind, or float16, which may lie in a file that is mapped into memory.
        scale: (Ng,) that the scores are multiplied by.
        alone: Whether the queries are the gallery; none finds itself.
        top: At most the gallery is found; the others are as in `search`.
    """
    top = min(top, len(among) - alone)
    rows = _chunk(memory_bytes, len(among) * 16, len(queries))  # scores, and topk's own copy with indices
    parts = []
    for first in range(0, len(queries), rows):
        scores = _products(queries[first : first + rows], among)
        scores = scores if scale is None else scores.mul_(scale)
        if alone:
            scores.diagonal(first).fill_(float("-inf"))
        parts.append(_top(scores, top))
        progress(min(first + rows, len(queries)), len(queries))
    return Neighbours(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _products(queries: Tensor, among: Tensor) -> Tensor:
    """(Nq, Ng); numbers of 16 bits are widened in blocks that stay in a core's cache, which reads half the memory."""
    if among.dtype != torch.float16:
        return queries @ among.T
    scores = queries.new_empty(len(queries), len(among))
    block = max(64, BLOCK_BYTES // (4 * among.shape[1]))
    for first in range(0, len(among), block):
        scores[:, first : first + block] = queries @ among[first : first + block].to(queries.dtype).T
    return scores


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
