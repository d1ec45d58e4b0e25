"""Several encoders and poolings on the same images: one table, and whether the differences are more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fgssl.config.schema import DataConfig
from fgssl.encoder import POOLS, Encoder, Pool
from fgssl.errors import FgsslError
from fgssl.evaluation.bootstrap import Comparison, paired_bootstrap
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.feature_table import FeatureTable, is_feature_table
from fgssl.evaluation.probing.classifiers import knn_classify, linear_probe
from fgssl.evaluation.probing.splits import ProbeSplits, probe_splits
from fgssl.evaluation.retrieval.metrics import evaluate_retrieval
from fgssl.evaluation.subject import Subject, open_subject
from fgssl.runs.location import TIMM_PREFIX, encoder_path
from fgssl.runtime.reporting import Reporter

METRICS: dict[str, str] = {
    "rank1": "leave-one-out rank-1 in the scored images",
    "mAP": "the same search, mAP over the full ranking",
    "train_rank1": "rank-1 of the scored images searching the train images",
    "train_mAP": "the same search, mAP over the full ranking",
    "probe": "top-1 of the cached linear probe",
    "knn": "top-1 of the nearest train images' weighted vote",
}
USUAL_POOLS: tuple[Pool, ...] = ("gap", "rationale", "zoom", "cls")  # of those that an encoder has


class Row(NamedTuple):
    """One encoder with one pooling.

    Attributes:
        encoder: As the user wrote it.
        pool: The pooling, None where a file of features does not tell.
        width: D of the features.
        values: Percentages by the names in `METRICS`.
        images: The same, one value in [0, 1] an image, for paired comparison.
    """

    encoder: str
    pool: str | None
    width: int
    values: dict[str, float]
    images: dict[str, Tensor]

    @property
    def name(self) -> str:
        """Encoder and pooling."""
        return self.encoder if self.pool is None else f"{self.encoder} ({self.pool})"


class ComparisonTable(NamedTuple):
    """All rows, and what they were measured on."""

    rows: list[Row]
    data: str
    train_images: int
    test_images: int
    protocol: str


def compare(
    checkpoints: Sequence[str],
    *,
    data: str | None = None,
    split: str | None = None,
    pools: Sequence[Pool] | None = None,
    k: int = 20,
    seed: int = 0,
    batch_size: int | None = None,
    device: str | None = None,
    cache: str | None = None,
    reporter: Reporter | None = None,
) -> ComparisonTable:
    """Embed the train and the test split once with each encoder, pool in each way, and measure every row alike.

    Args:
        checkpoints: Run folders, encoder files, `timm:NAME`, or features.safetensors whose paths name the images.
        data: The source; by default the one the first encoder remembers.
        split: To score; by default the test split. A source of one split is divided 80 to 20 by class.
        pools: By default gap, rationale and cls as far as an encoder has them; one that it lacks is left out of its
            rows, with a warning.
        k: Neighbours that vote.
        seed: Of the division, and of the slice the probe's regularisation is chosen on.
        batch_size: Images per forward.
        device: Where to compute.
        cache: Of decoded pictures: auto, off or a folder.
        reporter: Told of progress.

    Raises:
        FgsslError: As the parts; what a checkpoint, its weights, its poolings or a file's paths lack is told before
            anything is embedded.
    """
    reporter = reporter or Reporter()
    if k < 1:
        raise FgsslError(f"--k is {k}", "it must be at least 1")
    tables = {name for name in checkpoints if is_feature_table(name)}
    for name in checkpoints:
        if name not in tables and not name.startswith(TIMM_PREFIX):
            encoder_path(name)
    settled = _data(checkpoints[0], data, in_table=checkpoints[0] in tables)
    splits = probe_splits(settled, split, seed=seed)
    options = _Options(settled.source, pools, batch_size, device, cache, reporter)
    for name in checkpoints:  # opened and let go: together they may not fit into memory
        if name in tables:
            _from_table(name, splits)
        else:
            _opened(name, options)
    rows: list[Row] = []
    for place, name in enumerate(checkpoints, 1):
        reporter.note(f"{place} of {len(checkpoints)}: {name}")
        pooled = _from_table(name, splits) if name in tables else _from_encoder(name, splits, options)
        rows += [_measure(name, pool, both, k=k, seed=seed, reporter=reporter) for pool, both in pooled]
    if len({len(row.images["knn"]) for row in rows}) > 1:
        raise FgsslError("an encoder read images that another could not", "see the warnings; remove unreadable images")
    counts = len(splits.train), len(splits.test)
    return ComparisonTable(rows, settled.source, *counts, f"{splits.protocol}; knn of {k} neighbours")


def against_first(rows: Sequence[Row], *, seed: int = 0) -> Iterator[tuple[Row, str, Comparison]]:
    """Every later row against the first: (row, metric, paired bootstrap of row - first in points)."""
    for row in rows[1:]:
        for metric in METRICS:
            found = paired_bootstrap(100 * row.images[metric], 100 * rows[0].images[metric], seed=seed)
            yield row, metric, found


class _Both(NamedTuple):
    train: Embeddings
    test: Embeddings


_Pooled = list[tuple[str | None, _Both]]


def _data(first: str, data: str | None, *, in_table: bool) -> DataConfig:
    if data is not None:
        return DataConfig(source=data)
    if in_table:
        raise FgsslError(f"'{first}' holds features, not a data set to compare on", "name one with --data")
    return open_subject(first).data


def _from_table(name: str, splits: ProbeSplits) -> _Pooled:
    table = FeatureTable(name)
    return [(table.pool, _Both(table.embed(splits.train), table.embed(splits.test)))]


class _Options(NamedTuple):
    """What every encoder is opened with."""

    source: str
    pools: Sequence[Pool] | None
    batch_size: int | None
    device: str | None
    cache: str | None
    reporter: Reporter


def _opened(name: str, options: _Options) -> tuple[Subject, list[Pool]]:
    """An encoder and those of the wanted poolings that it has, which must be one at least."""
    source, pools, batch_size, device, cache, reporter = options
    # gap, which every encoder has: which poolings are wanted is settled below
    subject = open_subject(
        name, data=source, pool="gap", batch_size=batch_size, device=device, cache=cache, reporter=reporter
    )
    has: tuple[Pool, ...] = tuple(pool for pool in POOLS if _has(subject.encoder, pool))
    chosen = [pool for pool in (pools or USUAL_POOLS) if pool in has]
    if not chosen:
        raise FgsslError(f"'{name}' cannot pool by {', '.join(pools or ())}", f"it has {', '.join(has)}")
    return subject, chosen


def _from_encoder(name: str, splits: ProbeSplits, options: _Options) -> _Pooled:
    subject, chosen = _opened(name, options)
    reporter = options.reporter
    lacking = [pool for pool in options.pools or () if pool not in chosen]
    if lacking:
        reporter.warn(f"'{name}' has no {', '.join(lacking)} pooling: left out of its rows")
    train, test = (subject.embed_all(images, chosen) for images in (splits.train, splits.test))
    for fault in (*train[chosen[0]].faults, *test[chosen[0]].faults):
        reporter.warn(f"left out: {fault.reason}")
    return [(pool, _Both(train[pool], test[pool])) for pool in chosen]


def _has(encoder: Encoder, pool: Pool) -> bool:
    try:
        encoder.require(pool)
    except FgsslError:
        return False
    return True


def _measure(name: str, pool: str | None, both: _Both, *, k: int, seed: int, reporter: Reporter) -> Row:
    train, test = both.train.features, both.test.features
    labels, truth = both.train.require_labels("the train split"), both.test.require_labels("the scored split")
    classes = max(int(labels.max()), int(truth.max())) + 1

    def show(title: str, done: int, total: int) -> None:
        reporter.progress(f"{title} ({name}{'' if pool is None else f', {pool}'})", done, total)

    alone = evaluate_retrieval(test, truth).per_query()
    searched = evaluate_retrieval(test, truth, gallery=train, gallery_labels=labels).per_query()
    probe = linear_probe(
        train, labels, test, truth, classes=classes, seed=seed, progress=lambda d, t: show("fitting the probe", d, t)
    )
    knn = knn_classify(train, labels, test, truth, k=k, classes=classes)
    images = {
        "rank1": alone["rank1"],
        "mAP": alone["mAP"],
        "train_rank1": searched["rank1"],
        "train_mAP": searched["mAP"],
        "probe": probe.correct.double(),
        "knn": knn.correct.double(),
    }
    values = {metric: 100 * float(torch.mean(value)) for metric, value in images.items()}
    return Row(name, pool, train.shape[1], values, images)
