"""What a retrieval searches in: a split, a whole data source, or a file of features; and are the queries in it?"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from dataclasses import replace

from fgssl.config.schema import DataConfig
from fgssl.data import available_splits, load_images
from fgssl.data.images import ImageSet
from fgssl.errors import FgsslError
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.feature_file import FeatureFile, is_feature_file, read_features
from fgssl.evaluation.subject import EvaluationOptions, Subject, open_subject
from fgssl.runs.encoder_file import identity


def gallery_file(gallery: str | None, split: str | None) -> FeatureFile | None:
    """The gallery as a file of features, None where it is none. Raises FgsslError where a split is asked of a file."""
    if gallery is None or not (is_feature_file(gallery) or gallery.endswith(".safetensors")):
        return None
    if split is not None:
        raise FgsslError(
            f"--gallery-split {split}: '{gallery}' is a file of features, which has no splits", "leave it out"
        )
    return read_features(gallery)


def gallery_images(data: DataConfig, split: str | None) -> ImageSet:
    """One split of a source, or all of them together where none is named."""
    return load_images(data, "+".join(available_splits(data)) if split is None else split)


def open_beside(checkpoint: str, file: FeatureFile | None, options: EvaluationOptions) -> Subject:
    """An encoder that pools as a gallery of features does, where there is one.

    Raises:
        FgsslError: As `open_subject`, and where the file tells of another pooling or another encoder than is asked
            for: scores would mean nothing.
    """
    told = None if file is None else file.pool
    if file is not None and told is not None and options.pool not in (None, told):
        raise FgsslError(
            f"--pool {options.pool}: '{file.path}' holds features pooled by {told}", f"use --pool {told}"
        )  # fmt: skip
    subject = open_subject(checkpoint, options if told is None else replace(options, pool=told))
    if file is not None and file.encoder is not None and file.encoder != identity(subject.encoder):
        raise FgsslError(
            f"'{file.path}' holds features of another encoder ({file.checkpoint})", "embed it again with this one"
        )
    return subject


def require_alike(first: FeatureFile, second: FeatureFile) -> None:
    """Raises FgsslError where two files say that they are of different encoders or poolings."""
    for word, one, other, told in (
        ("encoders", first.encoder, second.encoder, (first.checkpoint, second.checkpoint)),
        ("poolings", first.pool, second.pool, (first.pool, second.pool)),
    ):
        if one is not None and other is not None and one != other:
            raise FgsslError(
                f"'{first.path}' and '{second.path}' are of different {word} ({told[0]}, {told[1]})",
                "take both from the same encoder with the same pooling",
            )


def true_path(name: str | os.PathLike[str]) -> str:
    """The same for one file, from whatever folder and through whatever link it is named."""
    folder, file = os.path.split(name)
    path = os.path.join(_true_folder(folder), file)
    return os.path.realpath(path) if os.path.islink(path) else path


@functools.lru_cache(maxsize=4096)  # the images of a folder share it
def _true_folder(folder: str) -> str:
    return os.path.realpath(folder)


def names_of(images: ImageSet) -> list[str]:
    """The true names of a set, in order."""
    return [images.name(index) for index in range(len(images))]


def refuse_queries(queries: Iterable[str], gallery: Iterable[str], names: tuple[str, str]) -> None:
    """Raises FgsslError where images of the first set are among the second, by their true paths or names."""
    there = set(map(true_path, gallery))
    among = [true_path(name) in there for name in queries]
    _refuse(sum(among), len(among), names)


def refuse_query_rows(queries: Embeddings, gallery: Embeddings, names: tuple[str, str]) -> None:
    """As `refuse_queries`, by name and by features: names alone may be numbers."""
    place = {name: row for row, name in enumerate(gallery.identifiers)}
    pairs = [(row, place[name]) for row, name in enumerate(queries.identifiers) if name in place]
    if pairs and queries.features.shape[1] == gallery.features.shape[1]:
        rows, others = zip(*pairs, strict=True)
        same = (queries.features[list(rows)] - gallery.features[list(others)]).abs().amax(dim=1) < 1e-6
        _refuse(int(same.sum()), len(queries.features), names)


def _refuse(shared: int, total: int, names: tuple[str, str]) -> None:
    if shared:
        raise FgsslError(
            f"the gallery {names[1]} holds the queries themselves ({shared} of {total} of {names[0]})",
            "name another gallery, or none for leave-one-out",
        )
