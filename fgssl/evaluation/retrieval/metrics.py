"""Exact metrics of what features bring up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fgssl.errors import FgsslError
from fgssl.evaluation.bootstrap import Interval, metric_intervals
from fgssl.evaluation.features import Progress, check_features, check_labels, check_widths, silent, unit_rows
from fgssl.evaluation.retrieval.ranking import Sorted, rank_positives

if TYPE_CHECKING:
    from accelerate import PartialState

DEFINITIONS: dict[str, str] = {
    "rank1": "Share of queries whose best-ranked gallery image has the query's class (Recall@1).",
    "rank5": "Share of queries with at least one image of their class among the first 5 (Recall@5).",
    "rank10": "Share of queries with at least one image of their class among the first 10 (Recall@10).",
    "mAP": "Mean over queries of the average precision over the full ranking: the precision at the rank of each of "
    "the R positives, summed and divided by R, without interpolation.",
    "mAP_at_R": "As mAP, but only positives within the first R ranks add their precision; still divided by R, the "
    "query's number of positives (Musgrave et al. 2020).",
    "r_precision": "Share of positives among the first R ranks, R being the query's number of positives.",
    "macro": "A name starting with macro_ is the mean of the class means: each class of queries counts the same, "
    "however many images it has. The plain name is the mean over queries (micro).",
    "ties": "Gallery images of another class are ranked before images of the query's class with the same score, so "
    "equal features never help: a constant encoder scores the worst possible ranking.",
    "leave_one_out": "Without a gallery of its own, every image queries all the others; it is left out by its index, "
    "so an exact duplicate of it stays in.",
    "lone_queries": "Queries without any image of their class in the gallery, counted and left out of every mean.",
    "intervals": "95 % percentile bootstrap: 1000 resamples of the queries with replacement (seed 0). Queries are "
    "taken as independent; photographs of one scene are not, so the real uncertainty is larger.",
    "score": "Cosine of the two features, in their own precision (float32).",
    "k": "A k beyond the number of gallery images takes the whole ranking.",
}


def definition(name: str) -> str:
    """What a metric is, for any k."""
    k = name.rpartition("_")[2].removeprefix("rank")
    if name.startswith("precision_at_"):
        return f"Share of images of the query's class among the first {k}, or among all where there are fewer."
    others = f"Share of queries with at least one image of their class among the first {k} (Recall@{k})."
    return DEFINITIONS.get(name, others)


@dataclass(frozen=True)
class RetrievalResult:
    """What `evaluate_retrieval` found; one entry for each query with a positive, in the order of the queries."""

    average_precision: Tensor  # (Q,) float64 in [0, 1], over the full ranking
    average_precision_at_r: Tensor  # (Q,) float64 in [0, 1]
    r_precision: Tensor  # (Q,) float64 in [0, 1]
    first_hit: Tensor  # (Q,) int64, rank of the best positive, from 1
    labels: Tensor  # (Q,) int64, class of each query
    indices: Tensor  # (Q,) int64, row of each query in the features given
    ks: tuple[int, ...]  # of rank-k
    gallery: int  # images in it (with leave-one-out each query sees one fewer)
    lone_queries: int  # without a positive; in none of the arrays and means
    precision_ks: tuple[int, ...] = ()  # of precision@k
    precisions: Tensor | None = None  # (Q, P) float64 in [0, 1], the share of positives among the first k

    @property
    def queries(self) -> int:
        """Number of queries in the means."""
        return len(self.first_hit)

    def per_query(self) -> dict[str, Tensor]:
        """Each metric's (Q,) values in [0, 1], by its name; their means are the results."""
        ranks = {f"rank{k}": (self.first_hit <= k).double() for k in self.ks}
        precisions = self.average_precision, self.average_precision_at_r, self.r_precision
        columns = () if self.precisions is None else self.precisions.T
        at = {f"precision_at_{k}": column for k, column in zip(self.precision_ks, columns, strict=True)}
        return ranks | dict(zip(("mAP", "mAP_at_R", "r_precision"), precisions, strict=True)) | at

    def to_dict(self) -> dict[str, float]:
        """Every metric in percent by its name, `macro_` before the class-averaged ones, and the counts."""
        found, (_, classes) = self.per_query(), torch.unique(self.labels, return_inverse=True)
        values = {name: 100 * float(value.mean()) for name, value in found.items()}
        means = {name: classes.bincount(value) / classes.bincount() for name, value in found.items()}
        values |= {f"macro_{name}": 100 * float(value.mean()) for name, value in means.items()}
        return values | {"queries": self.queries, "gallery": self.gallery, "lone_queries": self.lone_queries}

    def intervals(self) -> dict[str, Interval]:
        """The 95 % bootstrap interval of every metric in percent, by the names of `to_dict`."""
        return metric_intervals({name: 100 * value for name, value in self.per_query().items()}, self.labels)


def evaluate_retrieval(
    queries: Tensor,
    query_labels: Tensor,
    *,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    ks: Iterable[int] = (1, 5, 10),
    precision_ks: Iterable[int] = (),
    memory_bytes: int | None = None,
    normalize: bool = True,
    together: PartialState | None = None,
    progress: Progress = silent,
) -> RetrievalResult:
    """Exact retrieval metrics of features against labels; `DEFINITIONS` says what each means.

    Args:
        queries: (Nq, D) features with `query_labels` (Nq,), integer classes.
        gallery: (Ng, D) features to search in, with `gallery_labels` (Ng,) numbered alike; None is leave-one-out.
        precision_ks: k of precision@k: the share of the query's class among the first k, or all where there are fewer.
        memory_bytes: Bound on the scratch memory beside one sorted copy of the features; by default 512 MiB.
        normalize: Score by cosine; False takes the inner product.
        together: The processes that call this alike: each ranks for its share of the queries, all get the result.

    Raises FgsslError where these do not fit, or no query has an image of its class to find.
    """
    ks, precision_ks = tuple(ks), tuple(precision_ks)
    if any(k < 1 for k in ks + precision_ks):
        raise FgsslError(f"rank-k for k = {min(ks + precision_ks)}", "ask for k of 1 or more")
    if (gallery is None) != (gallery_labels is None):
        raise FgsslError("a gallery without labels, or labels without a gallery", "give both, or neither")
    found = _sorted_by_class(queries, query_labels, "queries", normalize)
    if gallery is None or gallery_labels is None:
        sought, own = found, torch.arange(len(found.labels), device=found.labels.device)
    else:
        sought, own = _sorted_by_class(gallery, gallery_labels, "gallery", normalize), None
        check_widths(found.features, sought.features, ("queries", "gallery"))
    found, own, lone = _without_lone(found, own, sought.labels)
    # back from class order to the order of the queries
    back = found.order.argsort().cpu()
    within = tuple(min(k, len(sought.labels) - (own is not None)) for k in precision_ks)
    mine = _share(len(found.labels), together)
    part, places = Sorted(*(each[mine] for each in found)), None if own is None else own[mine]
    chunks = rank_positives(part, sought, own=places, memory_bytes=memory_bytes, progress=progress)
    none = torch.empty(0, 4 + len(within), dtype=torch.float64)
    rows = _gathered(torch.cat([none, *(_query_metrics(*chunk, within) for chunk in chunks)]), together)[back]
    average_precision, at_r, r_precision, first_hit = rows[:, :4].T
    labels, indices = found.labels.cpu()[back], found.order.cpu()[back]
    columns = average_precision, at_r, r_precision, first_hit.long(), labels, indices
    return RetrievalResult(*columns, ks, len(sought.labels), lone, precision_ks, rows[:, 4:])


def _share(total: int, together: PartialState | None) -> slice:
    world, rank = (together.num_processes, together.process_index) if together else (1, 0)
    return slice(rank * total // world, (rank + 1) * total // world)


def _gathered(rows: Tensor, together: PartialState | None) -> Tensor:
    if together is None:
        return rows
    from accelerate.utils import gather_object

    return torch.cat(gather_object([rows]))


def _sorted_by_class(features: Tensor, labels: Tensor, name: str, normalize: bool) -> Sorted:
    features = check_features(features, name)
    labels = check_labels(labels, len(features), f"labels of the {name}").to(features.device)
    labels, order = labels.sort(stable=True)
    in_order = torch.equal(order, torch.arange(len(order), device=order.device))
    features = features if in_order else features[order]
    return Sorted(unit_rows(features) if normalize else features, labels, order)


def _without_lone(found: Sorted, own: Tensor | None, gallery_labels: Tensor) -> tuple[Sorted, Tensor | None, int]:
    """The queries that have a positive, their own places in the gallery (leave-one-out), and how many have none."""
    positives = torch.searchsorted(gallery_labels, found.labels, right=True)
    positives -= torch.searchsorted(gallery_labels, found.labels)
    keep = positives > (own is not None)
    lone = int((~keep).sum())
    if lone == len(keep):
        raise FgsslError(
            f"none of {lone} queries has another image of its class in the gallery",
            "retrieval needs classes with two images or more, numbered alike in queries and gallery",
        )
    if lone == 0:
        return found, own, 0
    return Sorted(*(each[keep] for each in found)), None if own is None else own[keep], lone


def _query_metrics(ranks: Tensor, counts: Tensor, precision_ks: tuple[int, ...]) -> Tensor:
    """Average precision, the same at R, R-precision, first hit, precision@k: (c, 4 + P) float64 on the CPU."""
    ranks, counts = ranks.cpu(), counts.cpu().double()
    hits = torch.arange(1, ranks.shape[1] + 1, dtype=torch.float64)  # positives up to and including this one
    real = hits <= counts[:, None]
    precision = (hits / ranks).masked_fill_(~real, 0)
    within = real & (ranks <= counts[:, None])
    at_r = precision.masked_fill(~within, 0).sum(1) / counts
    columns = [precision.sum(1) / counts, at_r, within.sum(1) / counts, ranks[:, 0].double()]
    columns += [(real & (ranks <= k)).sum(1) / k for k in precision_ks]
    return torch.stack([column.double() for column in columns], dim=1)
