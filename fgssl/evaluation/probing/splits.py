"""Which labelled images a probe is fitted on, and which it is scored on: splits, and seeded choices by class.

Ours, as scikit-learn's `StratifiedShuffleSplit` refuses a class of one image and has other sets in other versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fgssl.config.schema import DataConfig
from fgssl.data.images import ImageSet, Subset
from fgssl.errors import FgsslError
from fgssl.evaluation.feature_file import FeatureImages, FeatureTable, read_features
from fgssl.evaluation.features import check_labels, common_labels
from fgssl.evaluation.subject import labels_of, open_split

_WHY = "the probe needs them"

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]


class ProbeSplits(NamedTuple):
    """Labelled images to fit the probe on and to score it on, none in both."""

    train: ImageSet
    test: ImageSet
    protocol: str  # in words
    gallery: ImageSet | None = None  # what the scored images search; None: each other, and those of `train`


class Split(NamedTuple):
    """Two disjoint sets of rows, each ascending."""

    kept: Tensor
    held: Tensor


def probe_splits(data: DataConfig, split: str | None, *, seed: int = 0) -> ProbeSplits:
    """Train and test split for the probe; a single one is divided 80 to 20. Raises FgsslError without labels."""
    test, train = open_split(data, split, "test"), open_split(data, None, "train")
    others = [name for name in train.split.split("+") if name not in test.split.split("+")]
    if 0 < len(others) < len(train.split.split("+")):  # an encoder trained on train+test
        train = open_split(data, "+".join(others), "train")
    for images in (train, test):
        labels_of(images, _WHY)
    if not others:
        return _divide(test, seed)
    return ProbeSplits(train, test, f"fitted on {train.split}, scored on {test.split}")


def _divide(images: ImageSet, seed: int) -> ProbeSplits:
    """Four fifths of the images of each class to fit on, one fifth to score on."""
    kept, held = stratified_split(labels_of(images, _WHY), 0.2, seed=seed)
    if not len(held):
        problem = f"every class of {images.source} [{images.split}] has one image"
        raise FgsslError(problem, "a probe needs classes with two or more")
    words = f"{images.split} divided 80 to 20 by class (seed {seed})"
    return ProbeSplits(Subset(images, kept.numpy()), Subset(images, held.numpy()), words)


def file_splits(table: FeatureTable, train: str | None, *, seed: int = 0) -> ProbeSplits:
    """Splits of features that come from files: the table's and `train`, or the table's one divided 80 to 20."""
    if train is None:
        if len(table.files) > 1:
            raise FgsslError(f"'{table.name}' is several files, and which to score on is not said",
                             "give one, and --train the other, or name their images' source with --data")  # fmt: skip
        return _divide(FeatureImages(table.files[0]), seed)
    first, second = FeatureImages(read_features(train)), FeatureImages(table.files[0])
    numbered = [(labels_of(images, _WHY), images.class_names) for images in (first, second)]
    common = common_labels(*numbered, names=(train, second.source))
    first.labels, second.labels = common.first.numpy(), common.second.numpy()
    first.class_names = second.class_names = common.class_names
    return ProbeSplits(first, second, f"fitted on {train}, scored on {second.source}")


def stratified_fraction(labels: Tensor, fraction: float, *, seed: int = 0) -> Tensor:
    """Rows (M,), ascending, of a share in (0, 1] of the images of each class, rounded half up, and never none."""
    groups = _shuffled_classes(labels, fraction, seed, limit="up to 1")
    if round(fraction * len(labels)) < len(groups):
        problem = f"{fraction:g} of {len(labels)} images leaves some of {len(groups)} classes without one"
        raise FgsslError(problem, f"use a fraction of {np.ceil(1e4 * len(groups) / len(labels)) / 1e4:g} or more")
    return _joined([group[: max(1, _share(fraction, len(group)))] for group in groups])


def stratified_split(labels: Tensor, fraction: float, *, seed: int = 0) -> Split:
    """Hold out a share in (0, 1) of the images of each class: at least one of two or more, none of one.

    So `held` can be empty, and has no class that `kept` lacks. Raises FgsslError for a fraction out of range.
    """
    groups = _shuffled_classes(labels, fraction, seed, limit="below 1")
    parts = [np.split(group, [min(max(1, _share(fraction, len(group))), len(group) - 1)]) for group in groups]
    held, kept = zip(*parts, strict=True)
    return Split(_joined(kept), _joined(held))


def rows_by_class(labels: Tensor) -> list[Rows]:
    """The rows of each class, by class."""
    order = np.argsort(labels.numpy(), kind="stable")
    _, starts = np.unique(labels.numpy()[order], return_index=True)
    return np.split(order, starts[1:])


def _joined(groups: Sequence[Rows]) -> Tensor:
    return torch.from_numpy(np.sort(np.concatenate(groups)))


def _share(fraction: float, size: int) -> int:
    return int(fraction * size + 0.5 + 1e-9)  # 0.29 * 50 is 14.499...: half up as a person would round it


def _shuffled_classes(labels: Tensor, fraction: float, seed: int, *, limit: str) -> list[Rows]:
    """The rows of each class in an order that is drawn. Raises FgsslError for a fraction beyond the limit."""
    labels = check_labels(labels, len(labels)).cpu()
    if len(labels) == 0:
        raise FgsslError("no labels to choose from", "give at least one image")
    if not (0 < fraction < 1 or (fraction == 1 and limit == "up to 1")):
        raise FgsslError(f"a fraction of {fraction:g}", f"use one above 0 and {limit}")
    generator = np.random.default_rng(seed)  # numpy's: its stream is stable over versions
    return [generator.permutation(group) for group in rows_by_class(labels)]
