"""One numbering of classes for two sets that each have their own: classes are the same where their names are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fgssl.errors import FgsslError


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
