"""Checks on features and labels, and one numbering of the classes of two sets: shared by every evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fgssl.errors import FgsslError

Progress = Callable[[int, int], None]  # done, total


def silent(done: int, total: int) -> None:
    """Progress that nobody hears of."""


def check_features(features: Tensor, name: str = "features") -> Tensor:
    """Features (N, D) as float32 (float64 stays), detached. Raises FgsslError: no matrix, empty, or not finite."""
    if features.ndim != 2:
        raise FgsslError(f"{name} have shape {tuple(features.shape)}", "give one row for each image: (N, D)")
    if features.numel() == 0:
        raise FgsslError(f"{name} are empty: shape {tuple(features.shape)}", "give at least one image")
    features = features.detach() if features.dtype == torch.float64 else features.detach().float()
    # a norm is finite exactly when its row is (short of overflow), and is far cheaper than a mask of N x D
    bad = (~torch.isfinite(torch.linalg.vector_norm(features, dim=1))).nonzero()[:, 0].tolist()
    if bad:
        also = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        kind = str(features.dtype).removeprefix("torch.")
        problem = f"{name}: row {bad[0]}{also} holds NaN, infinity or values beyond the range of {kind}"
        raise FgsslError(problem, "look at that image, or at the encoder's precision")
    return features


def check_labels(labels: Tensor, rows: int, name: str = "labels") -> Tensor:
    """Labels (N,) as int64, one for each of `rows`. Raises FgsslError: another shape or count, or not integers."""
    if labels.ndim != 1 or len(labels) != rows:
        raise FgsslError(f"{name} have shape {tuple(labels.shape)} for {rows} rows of features", "give one label a row")
    if labels.is_floating_point() or labels.is_complex():
        raise FgsslError(f"{name} are {labels.dtype}, not integers".replace("torch.", ""), "give class indices")
    return labels.detach().long()


def check_widths(first: Tensor, second: Tensor, names: tuple[str, str]) -> None:
    """Raises FgsslError unless both (N, D) and (M, D) have the same width D."""
    check_same_width(first.shape[1], second.shape[1], names)


def check_same_width(first: int, second: int, names: tuple[str, str]) -> None:
    """The same of widths alone."""
    if first != second:
        problem = f"{names[0]} are {first} wide and {names[1]} {second}"
        raise FgsslError(problem, "take both from the same encoder with the same pooling")


def unit_rows(features: Tensor) -> Tensor:
    """Rows of (N, D) scaled to length 1, a new tensor; a row of zeros stays zero."""
    lengths: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / lengths.clamp_min(torch.finfo(features.dtype).tiny)


Numbered = tuple[Tensor, "tuple[str, ...] | None"]  # (N,) integer labels, and the class names they index


class CommonLabels(NamedTuple):
    """Labels (N,) and (M,) int64 of two sets, numbered alike; names (or numbers) of classes that one set alone has."""

    first: Tensor
    second: Tensor
    class_names: tuple[str, ...] | None  # of every number; None where classes are just numbers
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


def common_labels(first: Numbered, second: Numbered, *, names: tuple[str, str]) -> CommonLabels:
    """Number the classes of two sets alike, by name or by number. Raises FgsslError where they have none in common."""
    (labels, class_names), (others, other_names) = first, second
    if (class_names is None) != (other_names is None):
        with_names, without = names if other_names is None else names[::-1]
        problem = f"{with_names} has class names and {without} only numbers: which mean the same cannot be known"
        raise FgsslError(problem, "write `class_names` (a JSON list) into the metadata of the file without")
    if class_names is not None and other_names is not None and class_names != other_names:
        number = {name: place for place, name in enumerate(dict.fromkeys((*class_names, *other_names)))}
        labels = torch.tensor([number[name] for name in class_names])[labels]
        others = torch.tensor([number[name] for name in other_names])[others]
        class_names = tuple(number)
    here, there = set(labels.tolist()), set(others.tolist())

    def called(classes: set[int]) -> tuple[str, ...]:
        return tuple(str(c) if class_names is None else class_names[c] for c in sorted(classes))

    if not here & there:
        raise FgsslError(
            f"{names[0]} and {names[1]} have no class in common (such as '{called(here)[0]}' and '{called(there)[0]}')",
            "name the classes alike in both",
        )
    return CommonLabels(labels, others, class_names, called(here - there), called(there - here))
