"""What a retrieval searches in: a split, a whole data source, or a file of features."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fgssl.config.schema import DataConfig
from fgssl.data import available_splits, load_images
from fgssl.data.images import ImageSet
from fgssl.errors import FgsslError
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.feature_file import FeatureFile, is_feature_file, read_features
from fgssl.evaluation.subject import Subject
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


def pool_of(pool: str | None, file: FeatureFile | None) -> str | None:
    """The pooling a gallery of features asks for. Raises FgsslError where another one was asked for."""
    if file is None or file.pool is None:
        return pool
    if pool is not None and pool != file.pool:
        raise FgsslError(
            f"--pool {pool}: '{file.path}' holds features pooled by {file.pool}", f"use --pool {file.pool}"
        )
    return file.pool


def require_same_encoder(subject: Subject, file: FeatureFile) -> None:
    """Raises FgsslError where a file says that another encoder made its features: scores would mean nothing."""
    if file.encoder is not None and file.encoder != identity(subject.encoder):
        raise FgsslError(
            f"'{file.path}' holds features of another encoder ({file.checkpoint})", "embed it again with this one"
        )


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


def shared_names(first: Sequence[str], second: Sequence[str]) -> int:
    """How many of the first images are among the second, by their absolute paths or names."""
    there = {os.path.abspath(name) for name in second}
    return sum(os.path.abspath(name) in there for name in first)


def names_of(images: ImageSet) -> list[str]:
    """The identifiers of a set, in order."""
    return [images.identifier(index) for index in range(len(images))]


def shared_rows(first: Embeddings, second: Embeddings) -> int:
    """How many of the first rows are among the second, by name and by features: names alone may be numbers."""
    place = {name: row for row, name in enumerate(second.identifiers)}
    pairs = [(row, place[name]) for row, name in enumerate(first.identifiers) if name in place]
    if not pairs or first.features.shape[1] != second.features.shape[1]:
        return 0
    rows, others = zip(*pairs, strict=True)
    same = (first.features[list(rows)] - second.features[list(others)]).abs().amax(dim=1) < 1e-6
    return int(same.sum())
