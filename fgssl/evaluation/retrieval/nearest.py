"""Exact search for the nearest gallery images."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fgssl.errors import FgsslError
from fgssl.evaluation.features import check_features, check_widths, unit_rows
from fgssl.evaluation.retrieval.ranking import DEFAULT_MEMORY


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
