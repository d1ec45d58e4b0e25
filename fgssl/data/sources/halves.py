"""The classes of a data set in two halves, as metric learning has them: trained on the first, tested on the last.

Two splits that every labelled source has besides its own, made of the images of all its splits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fgssl.data.images import Concatenated, ImageSet, Subset
from fgssl.errors import FgsslError


def half_of_classes(parts: Sequence[ImageSet], name: str, *, first: bool) -> ImageSet:
    """The images of the first or last half of the classes, in their own order; of an odd number one more is last.

    They are a split of that name.

    Raises FgsslError where the parts have no labels in common, or fewer than two classes.
    """
    whole = Concatenated(parts)
    if whole.labels is None:
        problem = f"{whole.source} has no labels to halve its classes by ({whole.unlabelled})"
        raise FgsslError(problem, "name a split of its own")
    classes = np.unique(whole.labels)
    if len(classes) < 2:
        raise FgsslError(f"{whole.source} has one class, which cannot be halved", "name a split of its own")
    cut = len(classes) // 2
    wanted = classes[:cut] if first else classes[cut:]
    found = Subset(whole, np.flatnonzero(np.isin(whole.labels, wanted)))
    found.split = name
    return found
