"""Several encoders and poolings on the same images: one table, and whether the differences are more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from torch import Tensor

from fgssl.config.schema import DataConfig
from fgssl.encoder import Pool
from fgssl.errors import FgsslError, SettingError
from fgssl.evaluation.bootstrap import Comparison, paired_bootstrap
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.entries import openable, opened, plain, with_starts
from fgssl.evaluation.feature_file import is_feature_table
from fgssl.evaluation.features import Progress
from fgssl.evaluation.metrics import added_metrics
from fgssl.evaluation.probing.classifiers import Sets, knn_classify, linear_probe
from fgssl.evaluation.probing.splits import probe_splits
from fgssl.evaluation.retrieval.metrics import evaluate_retrieval
from fgssl.evaluation.subject import EvaluationOptions, asked_data, open_subject
from fgssl.runs.folder import encoder_path

METRICS: dict[str, str] = {
    "rank1": "leave-one-out rank-1 in the scored images",
    "mAP": "the same search, mAP over the full ranking",
    "train_rank1": "rank-1 of the scored images searching the train images",
    "train_mAP": "the same search, mAP over the full ranking",
    "probe": "top-1 of the cached linear probe",
    "knn": "top-1 of the nearest train images' weighted vote",
}


class Row(NamedTuple):
    """One encoder with one pooling."""

    encoder: str  # as the user wrote it
    pool: str | None  # None where a file of features does not tell
    width: int  # D of the features
    values: dict[str, float]  # percentages by the names in `METRICS`, then what metrics of plugins say
    images: dict[str, Tensor]  # the same, one value in [0, 1] an image, for paired comparison
    began: str = ""  # encoder of the rows that this one is told against, its own where it is the start; "" for none

    @property
    def is_start(self) -> bool:
        """Whether these are the weights that a run began from."""
        return self.began == self.encoder

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
    no_start: str  # why a start is no row; empty where none is missing


def compare(
    checkpoints: Sequence[str],
    options: EvaluationOptions,
    *,
    split: str | None = None,
    pools: Sequence[Pool] | None = None,
    k: int = 20,
    seed: int = 0,
    start: bool = True,
) -> ComparisonTable:
    """Embed the train and the test split once with each encoder, pool in each way, and measure every row alike.

    The trained weights that a run began from, used as they are, are the first rows: what its training has to beat.

    Args:
        checkpoints: As in `open_subject`, or features.safetensors whose paths name the images.
        options: `data` is by default what the first encoder was trained on.
        split: To score; by default the test split. A source of one split is divided 80 to 20 by class.
        pools: By default gap, rationale, zoom and cls; those that an encoder lacks are left out.
        k: Neighbours that vote.
        seed: Of the division, and of the slice the probe's regularisation is chosen on.
        start: Whether the runs' starts are rows; one that cannot be had is told in a warning.

    Raises FgsslError as the parts; what an entry lacks is told before anything is embedded.
    """
    if k < 1:
        raise SettingError(f"--k is {k}", "it must be at least 1")
    for name in checkpoints:
        if not is_feature_table(name):
            encoder_path(name)
    source = options.data
    if source is None and is_feature_table(checkpoints[0]):
        raise FgsslError(f"'{checkpoints[0]}' holds features, not a data set to compare on", "name one with --data")
    data = (
        open_subject(checkpoints[0], options).data if source is None else asked_data(DataConfig(source=source), options)
    )
    splits = probe_splits(data, split, seed=seed)
    # gap, which every encoder has: which poolings are wanted is settled by each encoder
    options = replace(options, data=data.source, pool="gap")
    entries, missing = with_starts(checkpoints, options) if start else plain(checkpoints, options)
    entries = openable(entries, splits, pools, missing)
    rows: list[Row] = []
    for place, entry in enumerate(entries, 1):
        options.reporter.note(f"{place} of {len(entries)}: {entry.name}")
        for pool, *sides in opened(entry, splits, pools)():
            row = Row(entry.name, pool, sides[0].features.shape[1], {}, {}, entry.began)
            show = partial(options.reporter.progress, f"fitting the probe ({row.name})")
            rows.append(_measured(row, *sides, k=k, seed=seed, progress=show))
    if len({len(row.images["knn"]) for row in rows}) > 1:
        raise FgsslError("an encoder read images that another could not", "see the warnings; remove unreadable images")
    protocol = f"{splits.protocol}; knn of {k} neighbours"
    return ComparisonTable(rows, data.source, len(splits.train), len(splits.test), protocol, "; ".join(missing))


def differences(rows: Sequence[Row], *, seed: int = 0) -> Iterator[tuple[Row, Row, str, Comparison]]:
    """(row, what it is told against, metric, paired bootstrap of row - other in points).

    The other is the start in the pooling that is its best by this metric; where there is no start, the first row.
    """
    for row in rows:
        starts = [other for other in rows if row.began and other.encoder == row.began]
        for metric in METRICS:
            other = max(starts, key=lambda start: start.values[metric]) if starts else rows[0]
            if row is not other:
                yield (
                    row,
                    other,
                    metric,
                    paired_bootstrap(100 * row.images[metric], 100 * other.images[metric], seed=seed),
                )


def _measured(row: Row, train: Embeddings, test: Embeddings, *, k: int, seed: int, progress: Progress) -> Row:
    """The row with its values."""
    labels, truth = train.known_labels, test.known_labels
    classes = max(int(labels.max()), int(truth.max())) + 1
    alone = evaluate_retrieval(test.features, truth).per_query()
    searched = evaluate_retrieval(test.features, truth, gallery=train.features, gallery_labels=labels).per_query()
    sets = Sets(train.features, labels, test.features, truth)
    probe = linear_probe(sets, classes=classes, seed=seed, progress=progress)
    voted = knn_classify(sets, k=k, classes=classes)
    found = (alone["rank1"], alone["mAP"], searched["rank1"], searched["mAP"], probe.correct, voted.correct)
    images = {metric: value.double() for metric, value in zip(METRICS, found, strict=True)}
    values = {metric: 100 * float(value.mean()) for metric, value in images.items()}
    return row._replace(values=values | added_metrics(test.features, truth), images=images)
