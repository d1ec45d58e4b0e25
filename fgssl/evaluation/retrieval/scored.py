"""Scored retrieval: queries and a gallery, from an encoder's data or from files of features, to exact metrics."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from fgssl.config.schema import DataConfig
from fgssl.data.images import ImageSet
from fgssl.errors import FgsslError
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.feature_file import FeatureFile, read_features
from fgssl.evaluation.features import check_widths, common_labels
from fgssl.evaluation.metrics import added_metrics
from fgssl.evaluation.retrieval.gallery import (
    gallery_file,
    gallery_images,
    names_of,
    open_beside,
    refuse_queries,
    refuse_query_rows,
    require_alike,
)
from fgssl.evaluation.retrieval.metrics import RetrievalResult, evaluate_retrieval
from fgssl.evaluation.subject import EvaluationOptions, Subject, labels_of, open_split

_LABELS_WHY = "retrieval is scored by them"


class Asked(NamedTuple):
    """Which images query, and which are searched; without a gallery every image queries all the others of its split."""

    query_split: str | None = None  # by default the source's test split
    gallery: str | None = None  # another source, or a file of features
    gallery_split: str | None = None  # of the gallery; of the queries' own source where `gallery` is None


class Scored(NamedTuple):
    """A retrieval with its numbers, and what they were measured on."""

    result: RetrievalResult
    data: str  # source of the queries, or the file of features
    protocol: str  # which split was searched with which, in words
    pool: str | None  # None where a file of features does not tell
    added: dict[str, float]  # what metrics of plugins say of the queries


class _Side(NamedTuple):
    embeddings: Embeddings
    name: str


def score_encoder(checkpoint: str, asked: Asked, options: EvaluationOptions) -> Scored:
    """Embed queries and gallery, and score the retrieval.

    Raises FgsslError where what is asked for is not there, has no labels, or shares images with the queries.
    """
    file = gallery_file(asked.gallery, asked.gallery_split)
    subject = open_beside(checkpoint, file, options)
    images = open_split(subject.data, asked.query_split, "test")
    labels_of(images, _LABELS_WHY)
    if file is not None:
        _require_labels(file)
        refuse_queries(names_of(images), file.embeddings.identifiers, (images.split, file.path))
    others: ImageSet | None = None
    if file is None and not (asked.gallery is None and asked.gallery_split is None):
        data = subject.data if asked.gallery is None else DataConfig(source=asked.gallery)
        others = gallery_images(data, asked.gallery_split)
        labels_of(others, _LABELS_WHY)
        refuse_queries(names_of(images), names_of(others), (images.split, others.split))
    queries = _Side(_embedded(subject, images), images.split)
    gallery = None if file is None else _Side(file.embeddings, file.path)
    if others is not None:
        name = others.split if asked.gallery is None else f"{others.source} [{others.split}]"
        gallery = _Side(_embedded(subject, others), name)
    result, protocol = _evaluate(queries, gallery, options)
    return Scored(result, subject.data.source, protocol, subject.pool, _added(queries))


def score_files(queries: str, gallery: str | None, options: EvaluationOptions) -> Scored:
    """Score the retrieval of features that any model wrote; without a gallery, leave-one-out within the file.

    Raises FgsslError where a file is damaged, has no labels, or does not fit the other.
    """
    found, side = read_features(queries), None
    _require_labels(found)
    if gallery is not None:
        other = read_features(gallery)
        _require_labels(other)
        require_alike(found, other)
        refuse_query_rows(found.embeddings, other.embeddings, (queries, gallery))
        side = _Side(other.embeddings, gallery)
    own = _Side(found.embeddings, queries)
    result, protocol = _evaluate(own, side, options)
    return Scored(result, queries, protocol, found.pool, _added(own))


def _added(queries: _Side) -> dict[str, float]:
    return added_metrics(queries.embeddings.features, queries.embeddings.known_labels)


def _embedded(subject: Subject, images: ImageSet) -> Embeddings:
    found = subject.embed(images)
    subject.name_faults(found)
    return found


def _require_labels(file: FeatureFile) -> None:
    if file.embeddings.labels is None:
        raise FgsslError(f"'{file.path}' has no labels ({file.embeddings.unlabelled}), and {_LABELS_WHY}",
                         "write a tensor `labels` (N,) into it")  # fmt: skip


def _evaluate(queries: _Side, gallery: _Side | None, options: EvaluationOptions) -> tuple[RetrievalResult, str]:
    """The metrics of one side against the other, classes numbered alike, and the protocol in words."""
    labels, reporter = queries.embeddings.known_labels, options.reporter
    found, other_labels = None, None
    if gallery is not None:
        sides = (f"'{queries.name}'", f"'{gallery.name}'")
        check_widths(queries.embeddings.features, gallery.embeddings.features, sides)
        numbered = [(side.embeddings.known_labels, side.embeddings.class_names) for side in (queries, gallery)]
        common = common_labels(*numbered, names=sides)
        labels, other_labels, found = common.first, common.second, gallery.embeddings.features
        if common.only_first:
            classes = f"{len(common.only_first)} classes of the queries have no image in the gallery"
            reporter.warn(f"{classes} (such as '{common.only_first[0]}'): their queries are left out and counted")
    result = evaluate_retrieval(
        queries.embeddings.features,
        labels,
        gallery=found,
        gallery_labels=other_labels,
        memory_bytes=options.scratch,
        progress=partial(reporter.progress, "ranking"),
    )
    return result, f"leave-one-out in {queries.name}" if gallery is None else f"{queries.name} -> {gallery.name}"
