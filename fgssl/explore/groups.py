"""Groups of alike pictures: the dense places of the layout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fgssl.explore.layout import EXTRA, Points, Rows
from fgssl.runtime.extras import require

ALONE = -1  # of a picture in no group


def usual_size(count: int) -> int:
    """The fewest pictures that make a group, of so many: 3 of 36, 9 of 300, 50 of 10,000."""
    return max(3, round(math.sqrt(count) / 2))


def find_groups(points: Points, laid_out: Rows, *, size: int) -> Rows:
    """The group of each point (N, 2), the largest being 0; -1 for a picture in none.

    HDBSCAN (Campello et al. 2013) with the leaves of its tree, on those that were laid out by themselves: a group is
    what looks like one on the map. On 2,936 photographs of 81 kinds of groceries the adjusted mutual information of
    groups and kinds is 0.58 so, 0.30 in the 50 principal axes. The others join the group of the nearest of these.
    """
    count = len(points)
    if len(laid_out) < 2 * size:
        return np.full(count, ALONE)
    cluster: Any = require("sklearn.cluster", extra=EXTRA)
    model = cluster.HDBSCAN(min_cluster_size=size, cluster_selection_method="leaf", copy=True)
    found = np.asarray(model.fit_predict(points[laid_out].astype(np.float64)), np.int64)
    groups = np.full(count, ALONE)
    groups[laid_out] = found
    if len(laid_out) < count:
        others = np.setdiff1d(np.arange(count), laid_out)
        neighbours: Any = require("sklearn.neighbors", extra=EXTRA)
        nearest = neighbours.KDTree(points[laid_out]).query(points[others], return_distance=False)[:, 0]
        groups[others] = found[nearest]
    sizes = np.bincount(groups[groups >= 0])
    number = np.empty(len(sizes), np.int64)
    number[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    groups[groups >= 0] = number[groups[groups >= 0]]
    return groups


def typical_first(features: Tensor, rows: Rows) -> Rows:
    """The rows of a group from the one most like its mean to the one least like it; equal ones in order."""
    own = features[torch.from_numpy(rows)]
    likeness = own @ own.mean(0)
    ordered: Rows = rows[likeness.argsort(descending=True, stable=True).numpy()]
    return ordered
