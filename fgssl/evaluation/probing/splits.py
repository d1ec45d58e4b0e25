"""Which labelled images a probe is fitted on, and which it is scored on; none is in both."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fgssl.config.schema import DataConfig
from fgssl.data.images import ImageSet, Subset
from fgssl.errors import FgsslError
from fgssl.evaluation.class_names import common_labels
from fgssl.evaluation.feature_file import read_features
from fgssl.evaluation.feature_table import FeatureImages, FeatureTable
from fgssl.evaluation.probing.stratified import stratified_split
from fgssl.evaluation.subject import open_split, overlapping, require_labels


class ProbeSplits(NamedTuple):
    """Labelled images to fit the probe on and to score it on."""

    train: ImageSet
    test: ImageSet
    protocol: str  # in words
    divided: bool  # both are parts of one split


def probe_splits(data: DataConfig, split: str | None, *, seed: int = 0) -> ProbeSplits:
    """Train and test split for the probe, without an image in common; a single split is divided, stratified, 80 to 20.

    Raises:
        FgsslError: no labels.
    """
    test = open_split(data, split, "test")
    train = open_split(data, None, "train")
    others = [name for name in train.split.split("+") if name not in test.split.split("+")]
    if others and overlapping(train, test):  # an encoder trained on train+test
        train = open_split(data, "+".join(others), "train")
    for images in (train, test):
        require_labels(images, "the probe needs them")
    if overlapping(train, test):
        return divide(test, seed=seed)
    return ProbeSplits(train, test, f"fitted on {train.split}, scored on {test.split}", False)


def divide(images: ImageSet, *, seed: int = 0) -> ProbeSplits:
    """Four fifths of the images of each class to fit on, one fifth to score on. Raises FgsslError without labels."""
    require_labels(images, "the probe needs them")
    assert images.labels is not None
    kept, held = stratified_split(torch.from_numpy(images.labels), 0.2, seed=seed)
    if not len(held):
        raise FgsslError(
            f"every class of {images.source} [{images.split}] has one image", "a probe needs classes with two or more"
        )
    words = f"{images.split} divided 80 to 20 by class (seed {seed})"
    return ProbeSplits(Subset(images, kept.numpy()), Subset(images, held.numpy()), words, True)


def file_splits(table: FeatureTable, train: str | None, *, seed: int = 0) -> ProbeSplits:
    """Splits of features that come from files: one to fit on and one to score on, or one divided 80 to 20.

    Args:
        table: Of the file to score on, and of `train` where there is one.
        train: The file to fit on.
        seed: Of the division.

    Raises:
        FgsslError: No labels, or labels that name different classes.
    """
    if train is None:
        if len(table.files) > 1:
            raise FgsslError(f"'{table.name}' is several files, and which to score on is not said",
                             "give one, and --train the other, or name their images' source with --data")  # fmt: skip
        return divide(FeatureImages(table.files[0]), seed=seed)
    first, second = (FeatureImages(file) for file in (read_features(train), table.files[0]))
    for images in (first, second):
        require_labels(images, "the probe needs them")
    assert first.labels is not None and second.labels is not None
    numbered = [(torch.from_numpy(images.labels), images.class_names) for images in (first, second)]
    common = common_labels(*numbered, names=(train, second.source))
    first.labels, second.labels = common.first.numpy(), common.second.numpy()
    first.class_names = second.class_names = common.class_names
    return ProbeSplits(first, second, f"fitted on {train}, scored on {second.source}", False)
