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
from fgssl.evaluation.entries import Compared, Pooled, openable, opened, plain, with_starts
from fgssl.evaluation.feature_file import is_feature_table
from fgssl.evaluation.features import Progress, common_labels
from fgssl.evaluation.metrics import MEANINGS, added_metrics, feature_stats, same_neighbours
from fgssl.evaluation.probing.classifiers import Sets, knn_classify, linear_probe
from fgssl.evaluation.probing.splits import ProbeSplits, probe_splits
from fgssl.evaluation.retrieval.metrics import evaluate_retrieval
from fgssl.evaluation.retrieval.scored import searched_images, warn_of_lone
from fgssl.evaluation.subject import EvaluationOptions, asked_data, labels_of, open_subject
from fgssl.evaluation.two_views import TwoViews, two_views
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


SIGNALS: dict[str, str] = {name: MEANINGS[name] for name in ("effective_rank", "uniformity", "alignment")}
SIGNALS["neighbour_overlap"] = f"percent: {MEANINGS['neighbour_overlap'].replace('1 is best', '100 is best')}"
LOWER_IS_BETTER = ("alignment",)


class Row(NamedTuple):
    """One encoder with one pooling."""

    encoder: str  # as the user wrote it
    pool: str | None  # None where a file of features does not tell
    width: int  # D of the features
    values: dict[str, float]  # percentages by the names in `METRICS`, then what metrics of plugins say; or `SIGNALS`
    images: dict[str, Tensor]  # those that are means over images: a hundredth of the value, of each, to be paired
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
    definitions: dict[str, str]  # of the values


def compare(
    checkpoints: Sequence[str],
    options: EvaluationOptions,
    *,
    split: str | None = None,
    gallery_split: str | None = None,
    pools: Sequence[Pool] | None = None,
    k: int = 20,
    seed: int = 0,
    start: bool = True,
) -> ComparisonTable:
    """Embed the train and the test split once with each encoder, pool in each way, and measure every row alike.

    Where the split has no labels, two views of its pictures take their place, and `SIGNALS` that of the metrics. The
    trained weights that a run began from, used as they are, are the first rows: what its training has to beat.

    Args:
        checkpoints: As in `open_subject`, or features.safetensors whose paths name the images.
        options: `data` is by default what the first encoder was trained on.
        split: To score; by default the test split. A source of one split is divided 80 to 20 by class.
        gallery_split: What it searches, instead of itself and the train split.
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
    if options.data is None and is_feature_table(checkpoints[0]):
        raise FgsslError(f"'{checkpoints[0]}' holds features, not a data set to compare on", "name one with --data")
    data, splits = _compared(checkpoints[0], options, split, gallery_split, seed=seed)
    # gap, which every encoder has: which poolings are wanted is settled by each encoder
    options = replace(options, data=data.source, pool="gap")
    entries, missing = with_starts(checkpoints, options) if start else plain(checkpoints, options)
    entries = openable(entries, splits, pools, missing)
    rows: list[Row] = []
    for place, entry in enumerate(entries, 1):
        options.reporter.note(f"{place} of {len(entries)}: {entry.name}")
        for found in opened(entry, splits, pools)():
            row = Row(entry.name, found.pool, found.train.features.shape[1], {}, {}, entry.began)
            show = partial(options.reporter.progress, f"fitting the probe ({row.name})")
            signals = isinstance(splits, TwoViews)
            rows.append(_signals(row, found) if signals else _measured(row, found, k=k, seed=seed, progress=show))
    for metric in rows[0].images:
        if len({len(row.images[metric]) for row in rows if metric in row.images}) > 1:
            remedy = "see the warnings; remove unreadable images"
            raise FgsslError("an encoder read images that another could not", remedy)
    counts, told = (len(splits.train), len(splits.test)), "; ".join(missing)
    if isinstance(splits, TwoViews):
        return ComparisonTable(rows, data.source, 0, counts[1], splits.protocol, told, SIGNALS)
    protocol = f"{splits.protocol}; knn of {k} neighbours"
    return ComparisonTable(rows, data.source, *counts, protocol, told, _definitions(splits))


def _compared(
    first: str, options: EvaluationOptions, split: str | None, gallery_split: str | None, *, seed: int
) -> tuple[DataConfig, Compared]:
    """Where the pictures come from, and the labelled splits to compare on, or views of what has no labels."""
    subject = None if is_feature_table(first) else open_subject(first, options)
    if options.data is None and subject is not None:
        data = subject.data
    else:
        data = asked_data(DataConfig(source=str(options.data)), options)
    views = two_views(data, split, None if subject is None else subject.encoder)
    if views is not None and gallery_split is not None:
        problem = f"--gallery-split {gallery_split}: {data.source} [{views.images.split}] has no labels to score by"
        raise FgsslError(problem, "leave it out")
    if views is not None:
        return data, views
    splits = probe_splits(data, split, seed=seed)
    return data, splits if gallery_split is None else _searching(splits, data, gallery_split, options.reporter)


def _searching(splits: ProbeSplits, data: DataConfig, gallery_split: str, reporter: Reporter) -> ProbeSplits:
    """The same where the scored images search a split, which is the train images themselves where it is theirs."""
    gallery = searched_images(splits.test, data, gallery_split)
    numbered = [(labels_of(images, ""), images.class_names) for images in (splits.test, gallery)]
    warn_of_lone(common_labels(*numbered, names=(splits.test.split, gallery.split)).only_first, reporter)
    same = gallery.split == splits.train.split and len(gallery) == len(splits.train)
    protocol = f"{splits.test.split} -> {gallery.split}; {splits.protocol}"
    return splits._replace(gallery=splits.train if same else gallery, protocol=protocol)


def _definitions(splits: ProbeSplits) -> dict[str, str]:
    """What the columns are: of the searches the one that was asked, else both."""
    if splits.gallery is None:
        return METRICS
    asked = {"rank1": f"rank-1 of the scored images searching {splits.gallery.split}", "mAP": METRICS["train_mAP"]}
    return asked | {name: METRICS[name] for name in ("probe", "knn")}


def differences(rows: Sequence[Row], *, seed: int = 0) -> Iterator[tuple[Row, Row, str, Comparison]]:
    """(row, what it is told against, metric, paired bootstrap of row - other in points).

    The other is the start in the pooling that is its best by this metric; where there is no start, the first row.
    """
    for row in rows:
        starts = [other for other in rows if row.began and other.encoder == row.began]
        for metric in row.images:
            sign = -1 if metric in LOWER_IS_BETTER else 1
            able = [start for start in starts if metric in start.images]
            other = max(able, key=lambda start: sign * start.values[metric]) if able else rows[0]
            if row is not other and metric in other.images:
                yield (
                    row,
                    other,
                    metric,
                    paired_bootstrap(100 * row.images[metric], 100 * other.images[metric], seed=seed),
                )


def _measured(row: Row, found: Pooled, *, k: int, seed: int, progress: Progress) -> Row:
    """The row with its values."""
    features, truth = found.test.features, found.test.known_labels
    images = _searched(found.test, found.gallery, ("rank1", "mAP"))
    if found.gallery is None:
        images |= _searched(found.test, found.train, ("train_rank1", "train_mAP"))
    sets = Sets(found.train.features, found.train.known_labels, features, truth)
    classes = max(int(sets.train_labels.max()), int(truth.max())) + 1
    images["probe"] = linear_probe(sets, classes=classes, seed=seed, progress=progress).correct.double()
    images["knn"] = knn_classify(sets, k=k, classes=classes).correct.double()
    values = {metric: 100 * float(value.mean()) for metric, value in images.items()}
    return row._replace(values=values | added_metrics(features, truth), images=images)


def _searched(queries: Embeddings, gallery: Embeddings | None, names: tuple[str, str]) -> dict[str, Tensor]:
    """Rank-1 and mAP of each query that has something to find, in a gallery or among the others."""
    sought, labels = (None, None) if gallery is None else (gallery.features, gallery.known_labels)
    result = evaluate_retrieval(queries.features, queries.known_labels, gallery=sought, gallery_labels=labels)
    values = result.per_query()
    return dict(zip(names, (values["rank1"], values["mAP"]), strict=True))


def _signals(row: Row, found: Pooled) -> Row:
    """The row with what two views of each image tell without labels; a file of features has one alone."""
    first, second = found.train, found.test
    stats = feature_stats(first.features)
    values: dict[str, float] = {name: stats[name] for name in ("effective_rank", "uniformity") if name in stats}
    if first is second:
        return row._replace(values=values)
    distances = (first.features - second.features).double().square().sum(1)  # (N,)
    images = {"alignment": distances / 100, "neighbour_overlap": same_neighbours(first.features, second.features)}
    means = {name: 100 * float(value.mean()) for name, value in images.items()}
    return row._replace(values=values | means, images=images)
