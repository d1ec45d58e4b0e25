"""View whitening: directions in which features change although only the view does are damped, in closed form.

Linear discriminant analysis and within-class covariance normalisation (Hatch et al., 2006) divide features by their
scatter within a class. Without labels two things stand in for a class: the views of one picture, whose scatter is
nuisance by construction, and pictures that are each other's nearest neighbours, most of which are of one class. No
gradient is taken and the backbone stays as it is: what comes out is one linear layer after the pooling.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

SHRINKAGE = 0.3  # of the scatter towards a multiple of the identity, in units of its mean eigenvalue
NEIGHBOURS = 3  # pictures are taken for one class when each is among the other's so many nearest
ROUNDS = 2  # neighbours are found in the features as they are whitened so far
CHUNK = 1024  # rows of similarities held at once


class Whitening(NamedTuple):
    """`x @ weight.T + bias`, for pooled features x (N, C) that are not normalised yet."""

    weight: Tensor  # (C, C)
    bias: Tensor  # (C,)

    def __call__(self, features: Tensor) -> Tensor:
        """(N, C) -> (N, C), not normalised."""
        return functional.linear(features, self.weight, self.bias)


def fit_whitening(views: Tensor) -> Whitening:
    """The inverse root of what changes with the view and between nearest neighbours, about the mean of the first view.

    Args:
        views: (V, N, C) pooled features of V views (2 or more) of N pictures (2 or more); the first of each picture is
            its evaluation view.
    """
    views = views.double()
    mean, of_views = views[0].mean(0), _unit(_view_scatter(views))
    weight = _inverse_root(of_views)
    for _ in range(ROUNDS):
        averaged = functional.normalize((views - mean) @ weight, dim=2).mean(0)
        pairs = mutual_neighbours(functional.normalize(averaged, dim=1), NEIGHBOURS)
        difference = views[0][pairs[:, 0]] - views[0][pairs[:, 1]]
        weight = _inverse_root(of_views + _unit(difference.T @ difference))
    return Whitening(weight.float(), -(weight @ mean).float())


def mutual_neighbours(features: Tensor, count: int) -> Tensor:
    """(P, 2) pairs i < j of l2-normalised (N, D) rows that are each among the other's `count` nearest."""
    rows = len(features)
    count = min(count, rows - 1)
    nearest = torch.empty(rows, count, dtype=torch.int64)
    for start in range(0, rows, CHUNK):
        similarity = features[start : start + CHUNK] @ features.T
        similarity[torch.arange(len(similarity)), torch.arange(start, start + len(similarity))] = -torch.inf
        nearest[start : start + CHUNK] = similarity.topk(count, dim=1).indices
    one = torch.arange(rows).repeat_interleave(count)
    found = torch.stack([one, nearest.flatten()], 1)
    ordered = found.sort(dim=1).values
    pairs, times = torch.unique(ordered, dim=0, return_counts=True)
    mutual: Tensor = pairs[times == 2]  # named from both sides
    return mutual


def _view_scatter(views: Tensor) -> Tensor:
    """(V, N, C) -> (C, C): mean outer product of a view's difference from the mean over the picture's views."""
    difference = (views - views.mean(0)).flatten(0, 1)
    product: Tensor = difference.T @ difference
    return product / len(difference)


def _unit(scatter: Tensor) -> Tensor:
    """Scaled to a mean eigenvalue of 1; a scatter of nothing stays nothing."""
    mean: Tensor = scatter.trace() / len(scatter)
    return torch.div(scatter, mean.clamp(min=torch.finfo(scatter.dtype).tiny))


def _inverse_root(scatter: Tensor) -> Tensor:
    """(S / mean eigenvalue + SHRINKAGE I)^(-1/2), symmetric."""
    values, vectors = torch.linalg.eigh(_unit(scatter))
    root: Tensor = (vectors * (values.clamp(min=0) + SHRINKAGE).rsqrt()) @ vectors.T
    return root
