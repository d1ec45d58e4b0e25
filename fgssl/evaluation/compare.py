"""Several encoders and poolings on the same images: one table, and whether the differences are more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from torch import Tensor

from fgssl.config.schema import DataConfig
from fgssl.encoder import POOLS, Encoder, Pool
from fgssl.errors import FgsslError, SettingError
from fgssl.evaluation.bootstrap import Comparison, paired_bootstrap
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.feature_file import FeatureTable, is_feature_table
from fgssl.evaluation.metrics import added_metrics
from fgssl.evaluation.probing.classifiers import knn_classify, linear_probe
from fgssl.evaluation.probing.splits import ProbeSplits, probe_splits
from fgssl.evaluation.retrieval.metrics import evaluate_retrieval
from fgssl.evaluation.subject import EvaluationOptions, Subject, open_subject
from fgssl.runs.folder import encoder_path
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
    """One encoder with one pooling."""

    encoder: str  # as the user wrote it
    pool: str | None  # None where a file of features does not tell
    width: int  # D of the features
    values: dict[str, float]  # percentages by the names in `METRICS`, then what metrics of plugins say
    images: dict[str, Tensor]  # the same, one value in [0, 1] an image, for paired comparison

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
    options: EvaluationOptions,
    *,
    split: str | None = None,
    pools: Sequence[Pool] | None = None,
    k: int = 20,
    seed: int = 0,
) -> ComparisonTable:
    """Embed the train and the test split once with each encoder, pool in each way, and measure every row alike.

    Args:
        checkpoints: As in `open_subject`, or features.safetensors whose paths name the images.
        options: Of which `data` is by default what the first encoder was trained on.
        split: To score; by default the test split. A source of one split is divided 80 to 20 by class.
        pools: By default gap, rationale, zoom and cls as far as an encoder has them; one that it lacks is left out of
            its rows, with a warning.
        k: Neighbours that vote.
        seed: Of the division, and of the slice the probe's regularisation is chosen on.

    Raises:
        FgsslError: As the parts; what a checkpoint, its weights, its poolings or a file's paths lack is told before
            anything is embedded.
    """
    if k < 1:
        raise SettingError(f"--k is {k}", "it must be at least 1")
    tables = {name for name in checkpoints if is_feature_table(name)}
    for name in checkpoints:
        if name not in tables:
            encoder_path(name)
    data = _data(checkpoints[0], options, in_table=checkpoints[0] in tables)
    splits = probe_splits(data, split, seed=seed)
    # gap, which every encoder has: which poolings are wanted is settled by each encoder
    options = replace(options, data=data.source, pool="gap")
    for name in checkpoints:  # opened and let go: together they may not fit into memory
        _from_table(name, splits) if name in tables else _opened(name, options, pools)
    rows: list[Row] = []
    for place, name in enumerate(checkpoints, 1):
        options.reporter.note(f"{place} of {len(checkpoints)}: {name}")
        pooled = _from_table(name, splits) if name in tables else _from_encoder(name, splits, options, pools)
        rows += [_measure(name, pool, *both, k=k, seed=seed, reporter=options.reporter) for pool, both in pooled]
    if len({len(row.images["knn"]) for row in rows}) > 1:
        raise FgsslError("an encoder read images that another could not", "see the warnings; remove unreadable images")
    counts = len(splits.train), len(splits.test)
    return ComparisonTable(rows, data.source, *counts, f"{splits.protocol}; knn of {k} neighbours")


def against_first(rows: Sequence[Row], *, seed: int = 0) -> Iterator[tuple[Row, str, Comparison]]:
    """Every later row against the first: (row, metric, paired bootstrap of row - first in points)."""
    for row in rows[1:]:
        for metric in METRICS:
            found = paired_bootstrap(100 * row.images[metric], 100 * rows[0].images[metric], seed=seed)
            yield row, metric, found


_Pooled = list[tuple[str | None, tuple[Embeddings, Embeddings]]]  # embeddings of the train and of the test split


def _data(first: str, options: EvaluationOptions, *, in_table: bool) -> DataConfig:
    if options.data is not None:
        return DataConfig(source=options.data)
    if in_table:
        raise FgsslError(f"'{first}' holds features, not a data set to compare on", "name one with --data")
    return open_subject(first, options).data


def _from_table(name: str, splits: ProbeSplits) -> _Pooled:
    table = FeatureTable(name)
    return [(table.pool, (table.embed(splits.train), table.embed(splits.test)))]


def _opened(name: str, options: EvaluationOptions, pools: Sequence[Pool] | None) -> tuple[Subject, list[Pool]]:
    """An encoder and those of the wanted poolings that it has, which must be one at least."""
    subject = open_subject(name, options)
    has: tuple[Pool, ...] = tuple(pool for pool in POOLS if _has(subject.encoder, pool))
    chosen = [pool for pool in (pools or USUAL_POOLS) if pool in has]
    if not chosen:
        raise FgsslError(f"'{name}' cannot pool by {', '.join(pools or ())}", f"it has {', '.join(has)}")
    return subject, chosen


def _from_encoder(
    name: str, splits: ProbeSplits, options: EvaluationOptions, pools: Sequence[Pool] | None
) -> _Pooled:  # fmt: skip
    subject, chosen = _opened(name, options, pools)
    lacking = [pool for pool in pools or () if pool not in chosen]
    if lacking:
        options.reporter.warn(f"'{name}' has no {', '.join(lacking)} pooling: left out of its rows")
    train, test = (subject.embed_all(images, chosen) for images in (splits.train, splits.test))
    subject.name_faults(train[chosen[0]], test[chosen[0]])
    return [(pool, (train[pool], test[pool])) for pool in chosen]


def _has(encoder: Encoder, pool: Pool) -> bool:
    try:
        encoder.require(pool)
    except FgsslError:
        return False
    return True


def _measure(
    name: str, pool: str | None, train: Embeddings, test: Embeddings, *, k: int, seed: int, reporter: Reporter
) -> Row:
    labels, truth = train.known_labels, test.known_labels
    classes = max(int(labels.max()), int(truth.max())) + 1
    show = partial(reporter.progress, f"fitting the probe ({name}{'' if pool is None else f', {pool}'})")
    alone = evaluate_retrieval(test.features, truth).per_query()
    searched = evaluate_retrieval(test.features, truth, gallery=train.features, gallery_labels=labels).per_query()
    sets = train.features, labels, test.features, truth
    images = {
        "rank1": alone["rank1"],
        "mAP": alone["mAP"],
        "train_rank1": searched["rank1"],
        "train_mAP": searched["mAP"],
        "probe": linear_probe(*sets, classes=classes, seed=seed, progress=show).correct.double(),
        "knn": knn_classify(*sets, k=k, classes=classes).correct.double(),
    }
    values = {metric: 100 * float(value.mean()) for metric, value in images.items()}
    values |= added_metrics(test.features, truth)
    return Row(name, pool, train.features.shape[1], values, images)
