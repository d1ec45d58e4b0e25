"""Scored retrieval: queries and a gallery, from an encoder's data or from files of features, to exact metrics."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from fgssl.config.schema import DataConfig
from fgssl.data import available_splits, load_images
from fgssl.data.images import ImageSet
from fgssl.errors import FgsslError
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.feature_file import FeatureFile, is_feature_file, read_features
from fgssl.evaluation.features import check_widths, common_labels
from fgssl.evaluation.metrics import added_metrics
from fgssl.evaluation.probing.classifiers import Sets, knn_classify
from fgssl.evaluation.protocols import KNN_KS, KNN_TEMPERATURE, Protocol
from fgssl.evaluation.retrieval.chosen import OF_FILES, choose, protocol_of
from fgssl.evaluation.retrieval.metrics import RetrievalResult, evaluate_retrieval
from fgssl.evaluation.subject import (
    EvaluationOptions,
    Subject,
    asked_data,
    labels_of,
    open_split,
    open_subject,
    processes,
)
from fgssl.evaluation.vector_index import VectorIndex
from fgssl.runs.encoder_file import identity
from fgssl.runtime.reporting import Reporter

_LABELS_WHY = "retrieval is scored by them"


class Side(NamedTuple):
    """Queries or gallery: embeddings, and where their pictures come from."""

    embeddings: Embeddings
    images: ImageSet | None = None  # None of a file of features
    subject: Subject | None = None  # what embedded them


class Scored(NamedTuple):
    """A retrieval with its numbers, and what they were measured on."""

    result: RetrievalResult
    data: str  # source of the queries, or the file of features
    protocol: str  # which split was searched with which, in words
    pool: str | None  # None where a file of features does not tell
    added: dict[str, float]  # what metrics of plugins say of the queries, and votes of neighbours
    queries: Side
    gallery: Side | None = None  # None where the queries search each other
    named: Protocol | None = None  # the published protocol that was asked for


def score_encoder(
    checkpoint: str, asked: EvaluationOptions, *, split: str | None, gallery: str | None, gallery_split: str | None
) -> Scored:
    """Embed queries, by default the test split, and gallery, and score the retrieval.

    The gallery is a file of features, or a split (by default all) of another source or of the queries' own; without it
    every query searches all the others. Raises FgsslError where something is not there, has no labels, or is in both.
    """
    file = gallery_file(gallery, gallery_split)
    subject = open_beside(checkpoint, file, asked)
    images = open_split(subject.data, split, "test")
    labels_of(images, _LABELS_WHY)
    others: ImageSet | None = None
    if file is not None:
        _refuse_names(images, _labelled(file).embeddings.identifiers, file.path)
    elif gallery is not None or gallery_split is not None:
        data = subject.data if gallery is None else asked_data(DataConfig(source=gallery), asked)
        others = searched_images(images, data, gallery_split)
    queries = FeatureFile(images.split, subject.embed(images), subject.data.source, pool=subject.pool)
    if others is not None:
        name = others.split if gallery is None else f"{others.source} [{others.split}]"
        file = FeatureFile(name, subject.embed(others))
    return _with_pictures(_scored(queries, file, asked), subject, images, others)


def score_protocol(checkpoint: str, asked: EvaluationOptions, name: str) -> Scored:
    """The same as a published protocol has it, by its name. Raises FgsslError where the data has not what it needs."""
    protocol_of(name)
    subject = open_subject(checkpoint, asked)
    queries, others, protocol = choose(name, subject.data)
    for images in filter(None, (queries, others)):
        labels_of(images, _LABELS_WHY)
    if others is not None:
        _refuse_images(queries, others)
    found = FeatureFile(queries.split, subject.embed(queries), subject.data.source, pool=subject.pool)
    file = None if others is None else FeatureFile(others.split, subject.embed(others))
    scored = _scored(found, file, asked, protocol)
    if name == "knn" and file is not None:
        scored.added.update(_votes(found, file))
    return _with_pictures(scored, subject, queries, others)


def _with_pictures(found: Scored, subject: Subject, images: ImageSet, others: ImageSet | None) -> Scored:
    """The same, knowing where the pictures of both sides come from."""
    searched = found.gallery and found.gallery._replace(images=others, subject=None if others is None else subject)
    return found._replace(queries=found.queries._replace(images=images, subject=subject), gallery=searched)


def _votes(queries: FeatureFile, gallery: FeatureFile) -> dict[str, float]:
    """Top-1 in percent of the vote of so many neighbours."""
    numbered = [(side.embeddings.known_labels, side.embeddings.class_names) for side in (queries, gallery)]
    common = common_labels(*numbered, names=(queries.path, gallery.path))
    sets = Sets(gallery.embeddings.features, common.second, queries.embeddings.features, common.first)
    return {f"knn_{k}": knn_classify(sets, k=k, temperature=KNN_TEMPERATURE).top1 for k in KNN_KS}


def score_files(
    queries: str, gallery: str | None, options: EvaluationOptions, *, protocol: str | None = None
) -> Scored:
    """The same of features in files that any model wrote. Raises FgsslError where they do not fit each other.

    Of the protocols those that search within what the file holds, and with a gallery query-gallery.
    """
    named = None if protocol is None else protocol_of(protocol)
    if protocol is not None and protocol not in (OF_FILES if gallery is None else ("query-gallery",)):
        problem = f"--protocol {protocol} chooses images by split and class, and '{queries}' holds features only"
        raise FgsslError(problem, "give the encoder and --data in its place")
    found, other = _labelled(read_features(queries)), None
    if gallery is not None:
        other = _labelled(read_features(gallery))
        _refuse_rows(found, other)
    return _scored(found._replace(source=queries), other, options, named)


def gallery_file(gallery: str | None, split: str | None, *, half: bool = False) -> FeatureFile | None:
    """The gallery as a file of features, None where it is none. Raises FgsslError where a split is asked of a file."""
    if gallery is None or not (is_feature_file(gallery) or gallery.endswith(".safetensors")):
        return None
    if split is not None:
        problem = f"--gallery-split {split}: '{gallery}' is a file of features, which has no splits"
        raise FgsslError(problem, "leave it out")
    return read_features(gallery, half=half)


def gallery_images(data: DataConfig, split: str | None) -> ImageSet:
    """One split of a source, or all of them together where none is named."""
    return load_images(data, "+".join(available_splits(data)) if split is None else split)


def searched_images(queries: ImageSet, data: DataConfig, split: str | None) -> ImageSet:
    """The same as a gallery that is scored. Raises FgsslError where it has no labels or holds the queries."""
    others = gallery_images(data, split)
    labels_of(others, _LABELS_WHY)
    _refuse_images(queries, others)
    return others


def open_beside(checkpoint: str, file: FeatureFile | VectorIndex | None, options: EvaluationOptions) -> Subject:
    """An encoder that pools as a gallery of features does. Raises FgsslError where that is of another encoder."""
    if file is None:
        return open_subject(checkpoint, options)
    told = file.pool or options.pool
    if options.pool not in (None, told):
        raise FgsslError(f"--pool {options.pool}: '{file.path}' holds features pooled by {told}", f"use --pool {told}")
    subject = open_subject(checkpoint, replace(options, pool=told))
    if file.encoder is not None and file.encoder != identity(subject.encoder):
        problem = f"'{file.path}' holds features of another encoder ({file.checkpoint})"
        raise FgsslError(problem, "embed it again with this one")
    return subject


def true_path(name: str | os.PathLike[str]) -> str:
    """The same for one file, from whatever folder and through whatever link it is named."""
    folder, file = os.path.split(name)
    path = os.path.join(_true_folder(folder), file)
    return os.path.realpath(path) if os.path.islink(path) else path


_true_folder = functools.lru_cache(maxsize=4096)(os.path.realpath)  # the images of a folder share it


def _labelled(file: FeatureFile) -> FeatureFile:
    if file.embeddings.labels is None:
        raise FgsslError(f"'{file.path}' has no labels ({file.embeddings.unlabelled}), and {_LABELS_WHY}",
                         "write a tensor `labels` (N,) into it")  # fmt: skip
    return file


def _refuse_images(queries: ImageSet, gallery: ImageSet) -> None:
    """Raises FgsslError where queries are in the gallery."""
    _refuse_names(queries, [gallery.name(row) for row in range(len(gallery))], gallery.split)


def _refuse_names(images: ImageSet, gallery: Sequence[str], name: str) -> None:
    """The same by their true paths or names."""
    there = set(map(true_path, gallery))
    _refuse(sum(true_path(images.name(row)) in there for row in range(len(images))), len(images), images.split, name)


def _refuse_rows(queries: FeatureFile, gallery: FeatureFile) -> None:
    """The same by name and by features, names alone may be numbers; and where the files say that they do not fit."""
    for word, key, told in (("encoders", "encoder", "checkpoint"), ("poolings", "pool", "pool")):
        one, other = getattr(queries, key), getattr(gallery, key)
        if one is not None and other is not None and one != other:
            said = f"{getattr(queries, told)}, {getattr(gallery, told)}"
            problem = f"'{queries.path}' and '{gallery.path}' are of different {word} ({said})"
            raise FgsslError(problem, "take both from the same encoder with the same pooling")
    (features, _, names, *_), (others, _, other_names, *_) = queries.embeddings, gallery.embeddings
    place = {name: row for row, name in enumerate(other_names)}
    rows = [row for row, name in enumerate(names) if name in place]
    if rows and features.shape[1] == others.shape[1]:
        same = (features[rows] - others[[place[names[row]] for row in rows]]).abs().amax(dim=1) < 1e-6
        _refuse(int(same.sum()), len(names), queries.path, gallery.path)


def warn_of_lone(classes: Sequence[str], reporter: Reporter) -> None:
    """Tells of classes of the queries that the gallery lacks, where there are any."""
    if classes:
        told = f"{len(classes)} classes of the queries have no image in the gallery"
        reporter.warn(f"{told} (such as '{classes[0]}'): their queries are left out and counted")


def _refuse(shared: int, total: int, queries: str, gallery: str) -> None:
    if shared:
        problem = f"the gallery {gallery} holds the queries themselves ({shared} of {total} of {queries})"
        raise FgsslError(problem, "name another gallery, or none for leave-one-out")


def _scored(
    queries: FeatureFile, gallery: FeatureFile | None, options: EvaluationOptions, named: Protocol | None = None
) -> Scored:
    """The metrics of one side, by its name and embeddings, against the other, classes numbered alike."""
    features, labels, reporter = queries.embeddings.features, queries.embeddings.known_labels, options.reporter
    added, protocol = added_metrics(features, labels), f"leave-one-out in {queries.path}"
    found, other_labels = None, None
    if gallery is not None:
        protocol, names = f"{queries.path} -> {gallery.path}", (f"'{queries.path}'", f"'{gallery.path}'")
        found = gallery.embeddings.features
        check_widths(features, found, names)
        numbered = [(side.embeddings.known_labels, side.embeddings.class_names) for side in (queries, gallery)]
        labels, other_labels, _, only, _ = common_labels(*numbered, names=names)
        warn_of_lone(only, reporter)
    show = partial(reporter.progress, "ranking")
    ks, precision_ks = ((1, 5, 10), ()) if named is None else (named.ks, named.precision_ks)
    result = evaluate_retrieval(
        features, labels, gallery=found, gallery_labels=other_labels, ks=ks, precision_ks=precision_ks,
        memory_bytes=options.scratch, together=processes(), progress=show,
    )  # fmt: skip
    searched = None if gallery is None else Side(gallery.embeddings)
    side = Side(queries.embeddings)
    return Scored(result, str(queries.source), protocol, queries.pool, added, side, searched, named)
