"""Which images search which, by a protocol's name."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fgssl.config.schema import DataConfig
from fgssl.data import LAST_CLASSES, available_splits, default_split, load_images
from fgssl.data.images import ImageSet
from fgssl.errors import FgsslError, SettingError
from fgssl.evaluation.protocols import LISTS_KS, RETRIEVAL, Protocol
from fgssl.evaluation.subject import open_split

OF_FILES = ("paper", "precision")  # leave-one-out in whatever a file of features holds


class Chosen(NamedTuple):
    """Queries, the gallery (None: they search each other), and the protocol as it is for this data."""

    queries: ImageSet
    gallery: ImageSet | None
    protocol: Protocol


def protocol_of(name: str) -> Protocol:
    """A retrieval protocol. Raises SettingError for an unknown one."""
    if name not in RETRIEVAL:
        raise SettingError(f"unknown --protocol '{name}'", f"choose one of {', '.join(RETRIEVAL)}")
    return RETRIEVAL[name]


def choose(name: str, data: DataConfig) -> Chosen:
    """The images of a protocol. Raises FgsslError where the data has not what it needs."""
    protocol = protocol_of(name)
    if name == "query-gallery":
        known = {split.lower(): split for split in available_splits(data)}
        if not {"query", "gallery"} <= known.keys():
            problem = f"{data.source} has no splits query and gallery (it has {', '.join(known.values())})"
            raise FgsslError(problem, "choose another --protocol, or leave it out: --query-split and --gallery-split")
        return Chosen(load_images(data, known["query"]), load_images(data, known["gallery"]), protocol)
    if name == "class-disjoint":
        test = _disjoint_test(data)
        if test is None:
            return Chosen(load_images(data, LAST_CLASSES), None, protocol)
        ranks = tuple(f"rank{k}" for k in LISTS_KS)
        return Chosen(test, None, protocol._replace(ks=LISTS_KS, metrics=(*ranks, *protocol.metrics[4:])))
    test = open_split(data, None, "test")
    if name != "knn":
        return Chosen(test, None, protocol)
    train = open_split(data, None, "train")
    if set(train.split.split("+")) & set(test.split.split("+")):
        problem = f"{data.source} has no train split beside {test.split} to find neighbours in"
        raise FgsslError(problem, "give a source with both, or choose --protocol paper")
    return Chosen(test, train, protocol)


def _disjoint_test(data: DataConfig) -> ImageSet | None:
    """The test split, where no class of it is in the train split."""
    splits = default_split(data, "train"), default_split(data, "test")
    if splits[0] is None or splits[1] is None:
        return None
    train, test = (load_images(data, split, tell=False) for split in splits if split is not None)
    if train.labels is None or test.labels is None or np.isin(test.labels, train.labels).any():
        return None
    return load_images(data, splits[1])
