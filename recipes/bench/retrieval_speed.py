"""How much exact retrieval metrics cost beside the bare matrix product, and beside other ways to get them.

    python recipes/bench/retrieval_speed.py            # 5,794 x 2,048, 200 classes: the size of CUB's test split
    python recipes/bench/retrieval_speed.py --large    # 200,000 x 256, 2,000 classes: rows a second, peak memory

Hardware: 2 CPU cores; 4 GB. Time: about 2 minutes, and 5 more with --large. All ways are timed in turns in one
process; medians of ratios to the product of the same turn are compared, since other load meets both alike. faiss-cpu
and pytorch-metric-learning take part where they are installed (pip install faiss-cpu pytorch-metric-learning). The
features are noisy clusters; --signal sets how far apart (0: chance). Long rows are quicker to rank the better the
features: on one shared machine --large took 1.6 to 2.1 products at --signal 0, 1.6 to 1.7 at 0.4 (mAP 6), 1.5 at 0.5
(mAP 33), 1.2 to 1.4 at 0.55 (mAP 55). Prints lines on stderr, JSON on stdout.
"""

from __future__ import annotations

import importlib.util
import resource
import statistics
from collections.abc import Callable

import harness
import torch
from torch import Tensor

from fgssl.evaluation.retrieval.metrics import evaluate_retrieval
from fgssl.evaluation.retrieval.ranking import Sorted, rank_positives

LOOPED = 20  # queries of the plain loop, whose time is scaled to all


def clusters(images: int, width: int, classes: int, *, signal: float) -> tuple[Tensor, Tensor]:
    """Length-1 features around random centres, (N, D), in the order of their classes (N,)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) * classes // images
    features = torch.randn(images, width, generator=generator)
    centres = signal * torch.randn(classes, width, generator=generator)
    for first in range(0, images, 10_000):
        part = slice(first, first + 10_000)
        features[part] += centres[labels[part]]
        features[part] /= features[part].norm(dim=1, keepdim=True)
    return features, labels


def by_plain_loop(features: Tensor, labels: Tensor, queries: int) -> float:
    """Mean AP of the first queries as its definition is usually typed: a query at a time, sort, walk down the list."""
    total = 0.0
    for query in range(queries):
        scores = torch.nn.functional.cosine_similarity(features[query].unsqueeze(0), features)
        hits, precision = 0, 0.0
        order = [other for other in scores.argsort(descending=True) if other != query]
        for rank, other in enumerate(order, 1):
            if labels[other] == labels[query]:
                hits += 1
                precision += hits / rank
        total += precision / hits
    return 100 * total / queries


def by_faiss(features: Tensor, labels: Tensor) -> float:
    """Mean AP from an IndexFlatIP searched for all neighbours of all."""
    import faiss

    index = faiss.IndexFlatIP(features.shape[1])
    index.add(features.numpy())
    _, found = index.search(features.numpy(), len(features))
    total = 0.0
    for first in range(0, len(features), 512):
        order = torch.from_numpy(found[first : first + 512])
        own = order == torch.arange(first, first + len(order))[:, None]
        order = order[~own].view(len(order), -1)
        relevant = (labels[order] == labels[first : first + len(order), None]).double()
        precision = relevant.cumsum(1) / torch.arange(1, order.shape[1] + 1)
        total += float(((precision * relevant).sum(1) / relevant.sum(1)).sum())
    return 100 * total / len(features)


def by_metric_learning(features: Tensor, labels: Tensor) -> float:
    """Mean AP from pytorch-metric-learning's AccuracyCalculator over the full ranking."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    calculator = AccuracyCalculator(include=("mean_average_precision",), k=len(features) - 1)
    found = calculator.get_accuracy(features, labels, features, labels, ref_includes_query=True)
    return 100 * float(found["mean_average_precision"])


def small(turns: int, signal: float) -> dict[str, object]:
    """The whole evaluation of a test split against the bare X @ X.T."""
    features, labels = clusters(5794, 2048, 200, signal=signal)
    ways: dict[str, Callable[[], float]] = {
        "product": lambda: float((features @ features.T)[0, 0]),
        "fgssl": lambda: evaluate_retrieval(features, labels).to_dict()["mAP"],
        "fgssl_with_intervals": lambda: evaluate_retrieval(features, labels).intervals()["mAP"].value,
        "plain_loop": lambda: by_plain_loop(features, labels, LOOPED),
    }
    if importlib.util.find_spec("faiss"):
        ways["faiss"] = lambda: by_faiss(features, labels)
        if importlib.util.find_spec("pytorch_metric_learning"):  # which searches by FAISS
            ways["metric_learning"] = lambda: by_metric_learning(features, labels)
    values: dict[str, float] = {}
    calls = {name: lambda name=name, way=way: values.update({name: way()}) for name, way in ways.items()}
    seconds = harness.in_turns(calls, turns, warm=0)  # type: ignore[arg-type]
    ratios = {name: harness.ratio(taken, seconds["product"]) for name, taken in seconds.items()}
    ratios["plain_loop"] *= len(features) / LOOPED
    result = evaluate_retrieval(features, labels)
    values["fgssl_of_the_looped"] = 100 * float(result.average_precision[:LOOPED].mean())
    times = {name: ratio / ratios["fgssl"] for name, ratio in ratios.items() if name != "fgssl"}
    return {"seconds_over_product": ratios, "seconds_over_fgssl": times, "mAP": values}


def large(signal: float, queries: int = 4096) -> dict[str, object]:
    """Rows a second of the ranking against those of the bare product in equal chunks, and peak memory."""
    features, labels = clusters(200_000, 256, 2000, signal=signal)
    chunk = 512
    buffer = torch.zeros(chunk, len(features))

    def product() -> None:
        for first in range(0, chunk * 2, chunk):
            torch.mm(features[first : first + chunk], features.T, out=buffer)

    asked, gallery = (Sorted(features[:rows], labels[:rows], torch.arange(rows)) for rows in (queries, len(features)))
    memory_bytes = chunk * (4 * len(features) + 72 * 100)
    ranked = rank_positives(asked, gallery, own=asked.order, memory_bytes=memory_bytes)
    next(ranked)  # touches the pages of its buffer, as above
    product()
    ratios = []
    try:
        while True:
            bare = harness.timed(product)
            ratios.append(harness.timed(lambda: (next(ranked), next(ranked))) / bare)
    except StopIteration:
        pass
    asked = features[:queries]
    evaluate_retrieval(asked, labels[:queries], gallery=features, gallery_labels=labels)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds_over_product": statistics.median(ratios), "peak_gib": peak}


def main() -> None:
    """Run and print."""
    parser = harness.parser(__doc__, "--threads", "--output")
    parser.add_argument("--turns", type=int, default=5, help="rounds of the small comparison")
    parser.add_argument("--large", action="store_true", help="the large one instead")
    parser.add_argument("--signal", type=float, help="distance of the centres over the noise")
    options = harness.begin(parser)
    if options.large:
        found = large(0.5 if options.signal is None else options.signal)
    else:
        found = small(options.turns, 0.3 if options.signal is None else options.signal)
    harness.report(options, found, [f"{name} {value}" for name, value in found.items()])


if __name__ == "__main__":
    main()
