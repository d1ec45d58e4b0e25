"""What a cell trains on, and what judges it: a held-out part of the training split, or the test split."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
import torch

from fgssl.config.schema import DataConfig
from fgssl.data import default_split, load_images
from fgssl.data.demo.demo_set import DemoMasks, DemoSet
from fgssl.data.images import ImageSet, Subset
from fgssl.errors import FgsslError
from fgssl.evaluation.probing.splits import stratified_split

HELD_IMAGES, HELD_CLASSES = 0.2, 0.25
SLICE_SEED = 0  # the same slice for every cell


class Slice(NamedTuple):
    """Images of a cell.

    Attributes:
        train: What pretraining sees.
        gallery: What is searched, and what the probe learns from.
        queries: What searches, and what the probe is tested on; also leave-one-out within itself.
        masks: Masks of a query by its place, for the demo set.
    """

    train: ImageSet
    gallery: ImageSet
    queries: ImageSet
    masks: Callable[[int], DemoMasks] | None


def open_slice(data: DataConfig, select: str, *, final: bool = False) -> Slice:
    """Open the data and hold a part out.

    Args:
        data: The source.
        select: "images" holds out a fifth of each class's images; "classes" a quarter of the classes, whose images are
            halved into gallery and queries; anything else is a pattern, and images whose file name fits it are held
            out. A random fifth flatters where photographs were taken in bursts.
        final: Take the whole training split and the test split.

    Raises:
        FgsslError: The source has no labels, or no test split where it is asked for; the pattern fits no or all images.
    """
    whole = load_images(data, default_split(data, "train") or "train")
    if whole.labels is None:
        raise FgsslError(f"{data.source} has no labels", "the bench compares by them: use class folders")
    if final:
        split = default_split(data, "test")
        if split is None:
            raise FgsslError(f"{data.source} has no test split", "leave out --final")
        test = load_images(data, split)
        return Slice(whole, whole, test, _masks(test, np.arange(len(test))))
    labels = torch.from_numpy(whole.labels)
    if select == "images":
        kept, held = (rows.numpy() for rows in stratified_split(labels, HELD_IMAGES, seed=SLICE_SEED))
        train = Subset(whole, kept)
        return Slice(train, train, Subset(whole, held), _masks(whole, held))
    if select != "classes":
        held = np.array([fnmatch(PurePath(whole.identifier(row)).name, select) for row in range(len(whole))])
        if held.all() or not held.any():
            raise FgsslError(f"--select '{select}' fits {held.sum()} of {len(held)} file names", "give another pattern")
        train = Subset(whole, np.flatnonzero(~held))
        return Slice(train, train, Subset(whole, np.flatnonzero(held)), _masks(whole, np.flatnonzero(held)))
    classes = np.random.default_rng(SLICE_SEED).permutation(np.unique(whole.labels))
    unseen = np.isin(whole.labels, classes[: max(2, round(HELD_CLASSES * len(classes)))])
    rows = np.flatnonzero(unseen)
    gallery, queries = (rows[half.numpy()] for half in stratified_split(labels[rows], 0.5, seed=SLICE_SEED))
    train = Subset(whole, np.flatnonzero(~unseen))
    return Slice(train, Subset(whole, gallery), Subset(whole, queries), _masks(whole, queries))


def _masks(images: ImageSet, rows: np.ndarray) -> Callable[[int], DemoMasks] | None:
    if not isinstance(images, DemoSet):
        return None
    return lambda place: images.masks(int(rows[place]))
