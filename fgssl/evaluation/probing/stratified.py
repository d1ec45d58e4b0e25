"""Seeded choices of images that respect the classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fgssl.errors import FgsslError
from fgssl.evaluation.features import check_labels


class Split(NamedTuple):
    """Two disjoint sets of rows, each ascending."""

    kept: Tensor
    held: Tensor


def stratified_fraction(labels: Tensor, fraction: float, *, seed: int = 0) -> Tensor:
    """Rows of a class-stratified share of the images, as for training on 20 % of the labels.

    Each class gives `fraction` of its images, rounded half up, and never none; so rare classes weigh a little more.

    Args:
        labels: (N,) classes.
        fraction: In (0, 1].
        seed: The same seed gives the same rows.

    Returns:
        (M,) int64 rows, ascending.

    Raises:
        FgsslError: A fraction out of range, or one of fewer images than there are classes.
    """
    labels = _checked(labels, fraction, most=1.0)
    groups = _shuffled_classes(labels, seed)
    if round(fraction * len(labels)) < len(groups):
        raise FgsslError(
            f"{fraction:g} of {len(labels)} images leaves some of {len(groups)} classes without one",
            f"use a fraction of {np.ceil(1e4 * len(groups) / len(labels)) / 1e4:g} or more",
        )
    chosen = [group[: max(1, _share(fraction, len(group)))] for group in groups]
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def stratified_split(labels: Tensor, fraction: float, *, seed: int = 0) -> Split:
    """Hold out a share of the images of each class.

    A class with two images or more gives at least one and keeps at least one; the image of a class with only one is
    kept. So `held` can be empty, and has no class that `kept` lacks.

    Args:
        labels: (N,) classes.
        fraction: To hold out, in (0, 1).
        seed: The same seed gives the same split.

    Returns:
        Rows kept and rows held out.

    Raises:
        FgsslError: A fraction out of range.
    """
    labels = _checked(labels, fraction, most=np.nextafter(1.0, 0.0))
    kept, held = [], []
    for group in _shuffled_classes(labels, seed):
        size = min(max(1, _share(fraction, len(group))), len(group) - 1)
        held.append(group[:size])
        kept.append(group[size:])
    return Split(*(torch.from_numpy(np.sort(np.concatenate(part))) for part in (kept, held)))


def _checked(labels: Tensor, fraction: float, *, most: float) -> Tensor:
    labels = check_labels(labels, len(labels)).cpu()
    if len(labels) == 0:
        raise FgsslError("no labels to choose from", "give at least one image")
    if not 0 < fraction <= most:
        limit = "up to 1" if most == 1 else "below 1"
        raise FgsslError(f"a fraction of {fraction:g}", f"use one above 0 and {limit}")
    return labels


def _share(fraction: float, size: int) -> int:
    # 0.29 * 50 is 14.499...: half up as a person would round it
    return int(fraction * size + 0.5 + 1e-9)


def _shuffled_classes(labels: Tensor, seed: int) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """The rows of each class in random order, by class."""
    # numpy's generator: its stream is stable over versions, so chosen lists can be published
    generator = np.random.default_rng(seed)
    order = np.argsort(labels.numpy(), kind="stable")
    _, starts = np.unique(labels.numpy()[order], return_index=True)
    return [generator.permutation(group) for group in np.split(order, starts[1:])]
