"""What is searched by example: embeddings of a data source, a file of features, or a vector index."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from fgssl.data.decoding import decode_image
from fgssl.data.images import ImageSet
from fgssl.errors import FgsslError, UnreadableImage
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.feature_file import FeatureFile, is_feature_file
from fgssl.evaluation.features import check_features, unit_rows
from fgssl.evaluation.retrieval.ranking import best_rows
from fgssl.evaluation.retrieval.scored import gallery_file, gallery_images, open_beside
from fgssl.evaluation.subject import EvaluationOptions, Subject
from fgssl.evaluation.vector_index import Near, VectorIndex, is_index, open_index

CHECKED_ROWS = 65_536  # of a mapped file at once


class Gallery:
    """What is searched."""

    name: str  # in words
    images: int
    width: int  # D of the features
    faults: list[str]  # why images of it are left out

    def nearest(self, queries: Tensor, top: int) -> list[list[Near]]:
        """The `top` (or all) images most similar to each query (N, D), best first."""
        raise NotImplementedError

    def picture(self, near: Near) -> Image.Image | None:
        """The picture of one that was found; None where it is not here (any more)."""
        with contextlib.suppress(UnreadableImage):
            return self.load(near)
        return None

    def load(self, near: Near) -> Image.Image:
        """The same, or UnreadableImage."""
        return decode_image(near.path)


class EmbeddedGallery(Gallery):
    """Embeddings in memory, or 16-bit ones in a file that is mapped into it; searched exactly."""

    def __init__(self, name: str, found: Embeddings, source: ImageSet | None, memory_bytes: int) -> None:
        self.name, self.source, self.found, self.memory_bytes = name, source, found, memory_bytes
        self.images, self.width = found.features.shape
        self.faults = [fault.reason for fault in found.faults]
        self.scale: Tensor | None = None
        self.features = found.features
        if self.features.dtype == torch.float16:  # read once, to be checked and measured
            parts = torch.split(self.features, CHECKED_ROWS)
            lengths = torch.cat([torch.linalg.vector_norm(check_features(part, name), dim=1) for part in parts])
            self.scale = 1 / lengths.clamp_min(torch.finfo(torch.float16).tiny)
        else:
            self.features = unit_rows(check_features(self.features, "gallery"))

    def nearest(self, queries: Tensor, top: int) -> list[list[Near]]:
        asked = unit_rows(check_features(queries, "queries"))
        best = best_rows(asked, self.features, top=top, scale=self.scale, memory_bytes=self.memory_bytes)
        rows = zip(best.indices.tolist(), best.scores.tolist(), strict=True)
        return [[self._near(row, score) for row, score in zip(*each, strict=True)] for each in rows]

    def _near(self, row: int, score: float) -> Near:
        return Near(self.found.identifiers[row], self.found.class_of(row), score, row)

    def load(self, near: Near) -> Image.Image:
        if self.source is None:  # the paths of a file of features may or may not be files here
            return decode_image(near.path)
        return self.source.load(int(self.found.positions[near.row]))


class IndexGallery(Gallery):
    """A vector index."""

    def __init__(self, index: VectorIndex) -> None:
        self.index, self.name, self.images, self.width = index, index.path, index.rows, index.width
        self.faults = []

    def nearest(self, queries: Tensor, top: int) -> list[list[Near]]:
        return self.index.nearest(unit_rows(check_features(queries, "queries")), top)


class Place(NamedTuple):
    """An encoder, and where it is to search; not yet embedded."""

    subject: Subject
    where: FeatureFile | VectorIndex | None  # None: what `subject.data` names
    split: str | None
    memory_bytes: int


def find_place(checkpoint: str, asked: EvaluationOptions, *, gallery: str | None, split: str | None) -> Place:
    """Open the encoder as its gallery needs it: a data source, by default the encoder's own, or a file.

    Raises FgsslError where one of them is not there, or the gallery is of another encoder.
    """
    if is_feature_file(checkpoint):
        problem = f"'{checkpoint}' holds features, not an encoder to embed a query with"
        raise FgsslError(problem, "give the encoder, and the file with --gallery")
    gallery = gallery or asked.data
    where: FeatureFile | VectorIndex | None
    if gallery is not None and is_index(gallery):
        if split is not None:
            raise FgsslError(f"--gallery-split {split}: '{gallery}' is an index, which has no splits", "leave it out")
        where = open_index(gallery)
    else:
        where = gallery_file(gallery, split, half=True)
    return Place(open_beside(checkpoint, where, replace(asked, data=gallery)), where, split, asked.scratch)


def open_gallery(place: Place) -> Gallery:
    """What is searched, embedded where it is not yet."""
    subject, where, split, memory_bytes = place
    if isinstance(where, VectorIndex):
        return IndexGallery(where)
    if where is not None:
        return EmbeddedGallery(where.path, where.embeddings, None, memory_bytes)
    images = gallery_images(subject.data, split)
    return EmbeddedGallery(f"{images.source} [{images.split}]", subject.embed(images), images, memory_bytes)
