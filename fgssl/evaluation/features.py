"""Checks on features and labels, and one numbering of the classes of two sets: shared by every evaluation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fgssl.errors import FgsslError


def check_features(features: Tensor, name: str = "features") -> Tensor:
    """Features (N, D) as float32 (float64 stays), detached, each row known to be finite; `name` is for the error.

    Raises:
        FgsslError: Not a matrix, empty, or a row with NaN or infinity (the first such row is named).
    """
    if features.ndim != 2:
        raise FgsslError(f"{name} have shape {tuple(features.shape)}", "give one row for each image: (N, D)")
    if features.shape[0] == 0 or features.shape[1] == 0:
        raise FgsslError(f"{name} are empty: shape {tuple(features.shape)}", "give at least one image")
    features = features.detach()
    if features.dtype != torch.float64:
        features = features.float()
    # a norm is finite exactly when its row is (short of overflow), and is far cheaper than a mask of N x D
    bad = (~torch.isfinite(torch.linalg.vector_norm(features, dim=1))).nonzero()[:, 0].tolist()
    if bad:
        also = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        kind = str(features.dtype).removeprefix("torch.")
        raise FgsslError(
            f"{name}: row {bad[0]}{also} holds NaN, infinity or values beyond the range of {kind}",
            "look at that image, or at the encoder's precision",
        )
    return features


def check_labels(labels: Tensor, rows: int, name: str = "labels") -> Tensor:
    """Labels (N,) as int64, one for each of `rows`. Raises FgsslError: another shape or count, or not integers."""
    if labels.ndim != 1 or len(labels) != rows:
        raise FgsslError(f"{name} have shape {tuple(labels.shape)} for {rows} rows of features", "give one label a row")
    if labels.is_floating_point() or labels.is_complex():
        raise FgsslError(f"{name} are {labels.dtype}, not integers".replace("torch.", ""), "give class indices")
    return labels.detach().long()


def check_widths(first: Tensor, second: Tensor, names: tuple[str, str]) -> None:
    """Raise `FgsslError` unless both (N, D) and (M, D) have the same width D."""
    if first.shape[1] != second.shape[1]:
        raise FgsslError(
            f"{names[0]} are {first.shape[1]} wide and {names[1]} {second.shape[1]}",
            "take both from the same encoder with the same pooling",
        )


def unit_rows(features: Tensor) -> Tensor:
    """Rows of (N, D) scaled to length 1, a new tensor; a row of zeros stays zero."""
    lengths: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / lengths.clamp_min(torch.finfo(features.dtype).tiny)


class CommonLabels(NamedTuple):
    """Labels of two sets, numbered alike."""

    first: Tensor  # (N,) int64
    second: Tensor  # (M,) int64
    class_names: tuple[str, ...] | None  # of every number; None where classes are just numbers
    only_first: tuple[str, ...]  # names (or numbers) of classes that have images in the first set alone
    only_second: tuple[str, ...]


def common_labels(
    first: tuple[Tensor, tuple[str, ...] | None],
    second: tuple[Tensor, tuple[str, ...] | None],
    *,
    names: tuple[str, str],
) -> CommonLabels:
    """Number the classes of two sets alike: by name where both have names, by number where neither has.

    Args:
        first: (N,) integer labels and the class names they index.
        second: The other set's.
        names: What to call the sets in an error.

    Raises:
        FgsslError: One has class names and the other only numbers, or they have no class in common.
    """
    (labels, class_names), (others, other_names) = first, second
    if (class_names is None) != (other_names is None):
        with_names, without = names if other_names is None else names[::-1]
        raise FgsslError(
            f"{with_names} has class names and {without} only numbers: which mean the same cannot be known",
            "write `class_names` (a JSON list) into the metadata of the file without",
        )
    if class_names is not None and other_names is not None and class_names != other_names:
        number = {name: place for place, name in enumerate(dict.fromkeys((*class_names, *other_names)))}
        labels = torch.tensor([number[name] for name in class_names])[labels]
        others = torch.tensor([number[name] for name in other_names])[others]
        class_names = tuple(number)
    here, there = set(labels.tolist()), set(others.tolist())

    def called(classes: set[int]) -> tuple[str, ...]:
        return tuple(str(c) if class_names is None else class_names[c] for c in sorted(classes))

    if not here & there:
        example, other = called(here)[0], called(there)[0]
        raise FgsslError(
            f"{names[0]} and {names[1]} have no class in common (such as '{example}' and '{other}')",
            "name the classes alike in both",
        )
    return CommonLabels(labels, others, class_names, called(here - there), called(there - here))
