"""The most different pictures: k-centre greedy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgssl.evaluation.features import Progress, silent


class Selection(NamedTuple):
    """Pictures that stand for all."""

    rows: NDArray[np.int64]  # (K,), in the order they were taken: the first ten of a hundred are a selection of ten
    reach: float  # 1 - cosine from the picture that is worst stood for to its nearest selected one


def k_centre(features: Tensor, count: int, *, progress: Progress = silent) -> Selection:
    """Take so many of the pictures (all, beyond N) that none is far from one that was taken.

    The first is the most like the mean; each next is the one farthest from all that are taken, at most twice as far as
    in the best choice (Gonzalez 1985; for choosing what to label, Sener and Savarese 2018). Equal distances go to the
    earlier row. Features are (N, D), l2-normalised; the distance is 1 - cosine; it takes N x D operations a picture.
    """
    count = min(count, len(features))
    taken = [int((features @ features.mean(0)).argmax())]
    distance = 1 - features @ features[taken[0]]
    for done in range(1, count):
        distance[taken[-1]] = -1.0  # rounding may leave a little, and nothing is taken twice
        taken.append(int(distance.argmax()))
        torch.minimum(distance, 1 - features @ features[taken[-1]], out=distance)
        progress(done + 1, count)
    return Selection(np.array(taken), max(0.0, float(distance.max())))
