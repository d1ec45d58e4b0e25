"""Everything that is found out about a folder of pictures, from its embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgssl.data.cache.pixels import PixelStore, open_pixels
from fgssl.data.images import ImageSet
from fgssl.errors import SettingError
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.retrieval.ranking import Neighbours, search
from fgssl.evaluation.subject import Subject
from fgssl.explore.copies import find_near_copies
from fgssl.explore.groups import find_groups, usual_size
from fgssl.explore.layout import NEIGHBOURS, Points, Rows, lay_out, need_library
from fgssl.explore.selection import Selection, k_centre
from fgssl.runtime.machine import automatic_workers
from fgssl.runtime.reporting import Reporter

OUTLIER_NEIGHBOURS = 10  # whose mean distance says how far a picture is from the others


@dataclass(frozen=True)
class Survey:
    """N pictures in numbers; rows are those of `found`."""

    found: Embeddings
    pixels: PixelStore  # the pictures as the encoder sees them, by `found.positions`
    points: Points  # (N, 2)
    laid_out: Rows  # rows that the layout was made of
    groups: Rows  # (N,), -1 for none
    size: int  # fewest pictures of a group
    neighbours: Neighbours  # (N, K) the nearest others, K being 14 or N - 1
    distance: NDArray[np.float32]  # (N,) mean of 1 - cosine to the ten nearest others; 0 of a picture alone
    copies: list[list[int]]
    selection: Selection

    @property
    def features(self) -> Tensor:
        """(N, D), l2-normalised."""
        return self.found.features

    def outliers(self, most: int) -> Rows:
        """The rows farthest from their nearest ones, farthest first."""
        return np.argsort(-self.distance, kind="stable")[:most]

    def group_rows(self) -> list[Rows]:
        """The rows of each group, ascending."""
        return [np.flatnonzero(self.groups == number) for number in range(int(self.groups.max(initial=-1)) + 1)]


def explore(subject: Subject, images: ImageSet, *, select: int = 100, size: int | None = None, seed: int = 0) -> Survey:
    """Embed pictures, with or without labels, and look them over.

    Args:
        select: How many different pictures to choose.
        size: The fewest pictures that make a group.
        seed: Of the layout, and of the sample where there are very many pictures.

    Raises FgsslError: no picture can be read, or a library is missing; SettingError for a number that cannot be.
    """
    if select < 1:
        raise SettingError(f"--select is {select}", "choose 1 picture or more")
    if size is not None and size < 2:
        raise SettingError(f"--group-size is {size}", "a group has 2 pictures or more")
    need_library(len(images))
    found = subject.embed(images, unreadable=1.0)
    if select > len(found.features):
        subject.reporter.note(f"--select {select}: all {len(found.features)} pictures are selected, there are no more")
    view, show = subject.encoder.view(subject.pool), subject.reporter.progress
    decoding = partial(show, f"decoding {images.split}")
    pixels = open_pixels(images, view, cache=subject.cache, workers=automatic_workers(), progress=decoding)
    copies = find_near_copies(pixels, found.positions, partial(show, "looking for near copies"))
    return survey(found, pixels, copies, select=select, size=size, seed=seed, reporter=subject.reporter)


def survey(
    found: Embeddings,
    pixels: PixelStore,
    copies: list[list[int]],
    *,
    select: int = 100,
    size: int | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Survey:
    """What follows from length-1 embeddings alone: neighbours, layout, groups, distances, selection."""
    features, show = found.features, (reporter or Reporter()).progress
    neighbours = _neighbours(features, partial(show, "comparing"))
    show("laying out", 0, None)
    points, laid_out = lay_out(features, neighbours, seed=seed, progress=partial(show, "placing"))
    size = size or usual_size(len(laid_out))
    groups = find_groups(points, laid_out, size=size)
    near = neighbours.scores[:, :OUTLIER_NEIGHBOURS]
    distance = (1 - near).mean(1).numpy() if near.shape[1] else np.zeros(len(features), np.float32)
    selection = k_centre(features, select, progress=partial(show, "selecting"))
    return Survey(found, pixels, points, laid_out, groups, size, neighbours, distance, copies, selection)


def _neighbours(features: Tensor, progress: partial[None]) -> Neighbours:
    if len(features) == 1:
        return Neighbours(torch.empty(1, 0, dtype=torch.int64), torch.empty(1, 0))
    return search(features, top=NEIGHBOURS - 1, normalize=False, progress=progress)
