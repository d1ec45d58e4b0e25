"""Scored retrieval: queries and a gallery, from an encoder's data or from files of features, to exact metrics."""

from __future__ import annotations

from typing import NamedTuple

from fgssl.config.schema import DataConfig
from fgssl.data.images import ImageSet
from fgssl.errors import FgsslError
from fgssl.evaluation.class_names import common_labels
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.feature_file import FeatureFile, read_features
from fgssl.evaluation.features import check_widths
from fgssl.evaluation.retrieval.gallery import (
    gallery_file,
    gallery_images,
    names_of,
    pool_of,
    require_alike,
    require_same_encoder,
    shared_names,
    shared_rows,
)
from fgssl.evaluation.retrieval.metrics import RetrievalResult, evaluate_retrieval
from fgssl.evaluation.subject import Subject, open_split, open_subject, require_labels
from fgssl.runtime.machine import scratch_memory
from fgssl.runtime.reporting import Reporter

_LABELS_WHY = "retrieval is scored by them"


class Asked(NamedTuple):
    """Which images query, and which are searched.

    Attributes:
        data: Source of the queries, by default the one the encoder remembers.
        query_split: Their split, by default the source's test split.
        gallery: Another source or a file of features to search in.
        gallery_split: Split of the gallery; of the queries' own source where `gallery` is None. Without both every
            image queries all the others of its split.
    """

    data: str | None = None
    query_split: str | None = None
    gallery: str | None = None
    gallery_split: str | None = None


class Scored(NamedTuple):
    """A retrieval with its numbers, and what they were measured on.

    Attributes:
        result: The metrics.
        data: Source of the queries, or the file of features.
        protocol: Which split was searched with which, in words.
        pool: The pooling; None where a file of features does not tell.
    """

    result: RetrievalResult
    data: str
    protocol: str
    pool: str | None


class _Side(NamedTuple):
    embeddings: Embeddings
    name: str


def score_encoder(
    checkpoint: str,
    asked: Asked,
    *,
    pool: str | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    cache: str | None = None,
    memory_bytes: int | None = None,
    reporter: Reporter | None = None,
) -> Scored:
    """Embed queries and gallery, and score the retrieval.

    Args:
        checkpoint: Run folder, encoder file or `timm:NAME`.
        asked: Which images.
        pool: gap, rationale, concat, zoom or cls.
        batch_size: Images per forward.
        device: Where to embed.
        cache: Of decoded pictures: auto, off or a folder.
        memory_bytes: Bound on the scratch memory of the scores; by default from the machine.
        reporter: Told of progress, unreadable images and classes without a counterpart.

    Raises:
        FgsslError: What is asked for is not there, has no labels, or shares images with the queries.
    """
    reporter = reporter or Reporter()
    file = gallery_file(asked.gallery, asked.gallery_split)
    subject = open_subject(
        checkpoint,
        data=asked.data,
        pool=pool_of(pool, file),
        batch_size=batch_size,
        device=device,
        cache=cache,
        reporter=reporter,
    )
    images = open_split(subject.data, asked.query_split, "test")
    require_labels(images, _LABELS_WHY)
    gallery: _Side | None = None
    if file is not None:
        _require_labels_of(file)
        require_same_encoder(subject, file)
        _refuse_queries(shared_names(names_of(images), file.embeddings.identifiers), images, file.path)
        queries, gallery = _embedded(subject, images), _Side(file.embeddings, file.path)
    elif asked.gallery is None and asked.gallery_split is None:
        queries = _embedded(subject, images)
    else:
        others = gallery_images(_gallery_data(subject, asked), asked.gallery_split)
        require_labels(others, _LABELS_WHY)
        _refuse_queries(shared_names(names_of(images), names_of(others)), images, others.split)
        queries = _embedded(subject, images)
        name = others.split if asked.gallery is None else f"{others.source} [{others.split}]"
        gallery = _Side(_embedded(subject, others), name)
    result, protocol = _evaluate(_Side(queries, images.split), gallery, memory_bytes, reporter)
    return Scored(result, subject.data.source, protocol, subject.pool)


def score_files(
    queries: str, gallery: str | None = None, *, memory_bytes: int | None = None, reporter: Reporter | None = None
) -> Scored:
    """Score the retrieval of features that any model wrote; without a gallery, leave-one-out within the file.

    Args:
        queries: A safetensors file with `features` and `labels`.
        gallery: Another one, of the same model.
        memory_bytes: As in `score_encoder`.
        reporter: As in `score_encoder`.

    Raises:
        FgsslError: A file is damaged, has no labels, or does not fit the other.
    """
    found = read_features(queries)
    _require_labels_of(found)
    side = None
    if gallery is not None:
        other = read_features(gallery)
        _require_labels_of(other)
        require_alike(found, other)
        shared = shared_rows(found.embeddings, other.embeddings)
        if shared:
            raise _holds_queries(shared, len(found.embeddings.features), gallery, queries)
        side = _Side(other.embeddings, gallery)
    result, protocol = _evaluate(_Side(found.embeddings, queries), side, memory_bytes, reporter or Reporter())
    return Scored(result, queries, protocol, found.pool)


def _gallery_data(subject: Subject, asked: Asked) -> DataConfig:
    return subject.data if asked.gallery is None else DataConfig(source=asked.gallery)


def _embedded(subject: Subject, images: ImageSet) -> Embeddings:
    found = subject.embed(images)
    for fault in found.faults:
        subject.reporter.warn(f"left out: {fault.reason}")
    return found


def _require_labels_of(file: FeatureFile) -> None:
    if file.embeddings.labels is None:
        raise FgsslError(f"'{file.path}' has no labels, and {_LABELS_WHY}", "write a tensor `labels` (N,) into it")


def _refuse_queries(shared: int, images: ImageSet, gallery: str) -> None:
    if shared:
        raise _holds_queries(shared, len(images), gallery, images.split)


def _holds_queries(shared: int, total: int, gallery: str, queries: str) -> FgsslError:
    return FgsslError(
        f"the gallery {gallery} holds the queries themselves ({shared} of {total} of {queries})",
        "name another gallery, or none for leave-one-out",
    )


def _evaluate(
    queries: _Side, gallery: _Side | None, memory_bytes: int | None, reporter: Reporter
) -> tuple[RetrievalResult, str]:
    """The metrics of one side against the other, classes numbered alike, and the protocol in words."""
    labels = queries.embeddings.require_labels(queries.name)
    found, other_labels = None, None
    if gallery is not None:
        sides = (f"'{queries.name}'", f"'{gallery.name}'")
        check_widths(queries.embeddings.features, gallery.embeddings.features, sides)
        common = common_labels(
            (labels, queries.embeddings.class_names),
            (gallery.embeddings.require_labels(gallery.name), gallery.embeddings.class_names),
            names=sides,
        )
        labels, other_labels, found = common.first, common.second, gallery.embeddings.features
        if common.only_first:
            classes = f"{len(common.only_first)} classes of the queries have no image in the gallery"
            reporter.warn(f"{classes} (such as '{common.only_first[0]}'): their queries are left out and counted")
    result = evaluate_retrieval(
        queries.embeddings.features,
        labels,
        gallery=found,
        gallery_labels=other_labels,
        memory_bytes=memory_bytes or scratch_memory(),
        progress=lambda done, total: reporter.progress("ranking", done, total),
    )
    return result, f"leave-one-out in {queries.name}" if gallery is None else f"{queries.name} -> {gallery.name}"
