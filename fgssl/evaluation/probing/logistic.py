"""Multinomial logistic regressions of several strengths of regularisation, fitted together and to convergence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

HISTORY = 8  # steps that L-BFGS remembers
CHUNK_BYTES = 256 * 2**20  # scores held at once


class LinearClassifiers(NamedTuple):
    """G linear classifiers: scores = features @ weight[g] + bias[g].

    Attributes:
        weight: (G, D, C).
        bias: (G, C).
        steps: L-BFGS steps until the last of them converged.
        converged: All of them met the tolerance.
    """

    weight: Tensor
    bias: Tensor
    steps: int
    converged: bool


class _Problem(NamedTuple):
    """The data in the coordinates in which the loss is well conditioned."""

    features: Tensor  # (N, R + 1) centred, rotated to principal axes, and a column of ones
    labels: Tensor  # (N,) in [0, classes)
    classes: int


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
    """Minimise, for every cost at once, |W|^2 / (2 cost N) + mean cross-entropy; the bias is not penalised.

    This is scikit-learn's `LogisticRegression(C=cost)`. All members share each pass over the data, in two matrix
    products. The features are centred (the free bias absorbs it) and rotated to their principal axes (the penalty
    does not see it): there the Hessian at zero weights is nearly diagonal, the variance of an axis over C plus the
    penalty. From that diagonal L-BFGS needs a third of the steps it needs from the identity. Only the axes the data
    spans are kept: by the representer theorem the others' weights are zero.

    Args:
        features: (N, D) float.
        labels: (N,) int64 in [0, classes).
        classes: C.
        costs: G inverse strengths of regularisation, scikit-learn's C; larger regularises less.
        tolerance: A member is done when the next step promises to lower its loss by less than this share of the loss
            left, and of the loss gained since zero weights.
        max_steps: Bound on the steps.
        progress: Called with (members done, members).

    Returns:
        The classifiers, in the order of the costs, in the features' own coordinates. Deterministic.
    """
    mean = features.mean(dim=0)
    centred = features - mean
    spread, axes = _principal_axes(centred)
    ones = torch.ones(len(features), 1, dtype=features.dtype, device=features.device)
    problem = _Problem(torch.cat([centred @ axes, ones], dim=1), labels, classes)
    penalty = 1 / (torch.tensor(list(costs), dtype=features.dtype, device=features.device) * len(features))
    # (G, R + 1, 1): the last row is the bias, with variance 1 and no penalty
    penalties = torch.nn.functional.pad(penalty[:, None].expand(-1, len(spread)), (0, 1))[..., None]
    curvature = torch.nn.functional.pad(spread, (0, 1), value=1.0)[None, :, None] / classes + penalties
    solution, steps, converged = _minimise(
        problem, penalties, curvature, tolerance=tolerance, max_steps=max_steps, progress=progress
    )
    weight = axes @ solution[:, :-1]
    return LinearClassifiers(weight, solution[:, -1] - mean @ weight, steps, converged)


def _principal_axes(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (R,) and axes (D, R) of centred features (N, D), without the axes the data does not span."""
    rows, width = centred.shape
    wide = centred.double()
    if rows < width:  # the small product has the same non-zero variances
        spread, left = torch.linalg.eigh(wide @ wide.T / rows)
        keep = spread > 1e-10 * spread[-1].clamp_min(1e-30)
        axes = wide.T @ (left[:, keep] / (spread[keep] * rows).sqrt())
    else:
        spread, axes = torch.linalg.eigh(wide.T @ wide / rows)
        keep = spread > 1e-10 * spread[-1].clamp_min(1e-30)
        axes = axes[:, keep]
    return spread[keep].to(centred.dtype), axes.to(centred.dtype)


def _loss(problem: _Problem, weights: Tensor, penalties: Tensor) -> tuple[Tensor, Tensor]:
    """Penalised loss (G,) float64 and gradient (G, R + 1, C) of weights (G, R + 1, C)."""
    members, width, classes = weights.shape
    flat = weights.permute(1, 0, 2).reshape(width, members * classes)
    rows = len(problem.labels)
    chunk = max(1, CHUNK_BYTES // (members * classes * weights.element_size()))
    gradient = torch.zeros_like(flat)
    loss = torch.zeros(members, dtype=torch.float64, device=weights.device)
    for first in range(0, rows, chunk):
        features = problem.features[first : first + chunk]
        target = problem.labels[first : first + chunk, None, None].expand(-1, members, 1)
        scores = (features @ flat).view(-1, members, classes)
        scores -= scores.amax(dim=2, keepdim=True)
        own = scores.gather(2, target)
        scores.exp_()
        total = scores.sum(dim=2, keepdim=True)
        loss += (total.log() - own).double().sum(dim=(0, 2))
        scores /= total  # probabilities
        scores.scatter_add_(2, target, torch.full_like(own, -1))
        gradient.addmm_(features.T, scores.view(-1, members * classes))
    penalised = penalties * weights
    loss = loss / rows + 0.5 * (penalised.double() * weights).sum(dim=(1, 2))
    return loss, gradient.view(width, members, classes).permute(1, 0, 2) / rows + penalised


def _inner(first: Tensor, second: Tensor) -> Tensor:
    """Inner products of the members, (G,) float64, of two (G, R, C)."""
    return (first * second).sum(dim=(1, 2), dtype=torch.float64)


class _Memory:
    """What L-BFGS remembers of the active members: steps, changes of gradient, and their products."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # (G, R, C), (G, R, C), (G,)

    def add(self, step: Tensor, change: Tensor) -> None:
        """Remember a step and how the gradient changed over it."""
        product = _inner(step, change)
        # rounding can spoil the curvature of a nearly converged member: it then forgets this pair
        scale = (_inner(step, step) * _inner(change, change)).sqrt()
        weight = torch.where(product > 1e-7 * scale, 1 / product, 0).nan_to_num(0, 0, 0)
        self.pairs = [*self.pairs[-HISTORY + 1 :], (step, change, weight)]

    def keep(self, active: Tensor) -> None:
        """Forget the members that are done."""
        self.pairs = [(step[active], change[active], weight[active]) for step, change, weight in self.pairs]

    def direction(self, gradient: Tensor, curvature: Tensor) -> Tensor:
        """Minus the approximate inverse Hessian times the gradient (Nocedal and Wright, algorithm 7.4)."""
        found = gradient.clone()
        kept = []
        for step, change, weight in reversed(self.pairs):
            alpha = (weight * _inner(step, found)).to(found.dtype)[:, None, None]
            found -= alpha * change
            kept.append(alpha)
        found /= curvature
        if self.pairs:  # probabilities away from uniform curve less: scale to the latest step (equation 7.20)
            step, change, weight = self.pairs[-1]
            scale = _inner(step, change) / _inner(change, change / curvature)
            found *= torch.where(weight > 0, scale, 1).to(found.dtype)[:, None, None]
        for (step, change, weight), alpha in zip(self.pairs, reversed(kept), strict=True):
            beta = (weight * _inner(change, found)).to(found.dtype)[:, None, None]
            found += (alpha - beta) * step
        return -found


def _minimise(
    problem: _Problem,
    penalties: Tensor,
    curvature: Tensor,
    *,
    tolerance: float,
    max_steps: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[Tensor, int, bool]:
    """L-BFGS on all members at once; a member leaves when it has converged."""
    members = len(penalties)
    width, classes = problem.features.shape[1], problem.classes
    solution = problem.features.new_zeros(members, width, classes)
    active = torch.arange(members, device=solution.device)
    weights, memory = solution.clone(), _Memory()
    loss, gradient = _loss(problem, weights, penalties)
    start = float(loss[0])  # at zero weights, alike for all
    noise = 0.01 * torch.finfo(weights.dtype).eps * start
    for step in range(max_steps):
        direction = memory.direction(gradient, curvature)
        slope = _inner(gradient, direction)  # minus twice the decrease a full step promises
        # strong regularisation gains little in all, weak leaves little loss: both bound what still matters
        going = -slope > 2 * (tolerance * torch.minimum(loss, start - loss) + noise)
        if not bool(going.all()):
            solution[active[~going]] = weights[~going]
            active, weights, direction, slope = active[going], weights[going], direction[going], slope[going]
            loss, gradient, penalties, curvature = loss[going], gradient[going], penalties[going], curvature[going]
            memory.keep(going)
            if progress is not None:
                progress(members - len(active), members)
            if len(active) == 0:
                return solution, step, True
        moved, loss, new_gradient = _line_search(problem, weights, loss, direction, slope, penalties)
        memory.add(moved - weights, new_gradient - gradient)
        weights, gradient = moved, new_gradient
    solution[active] = weights
    return solution, max_steps, False


def _line_search(
    problem: _Problem, weights: Tensor, loss: Tensor, direction: Tensor, slope: Tensor, penalties: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Full steps, halved for the members that do not gain enough by them (Armijo)."""
    moved = weights + direction
    new_loss, gradient = _loss(problem, moved, penalties)
    size = 1.0
    for _ in range(20):
        short = new_loss > loss + 1e-4 * size * slope + 1e-7 * loss  # the last term: rounding of float32
        if not bool(short.any()):
            break
        size /= 2
        moved[short] = weights[short] + size * direction[short]
        new_loss[short], gradient[short] = _loss(problem, moved[short], penalties[short])
    return moved, new_loss, gradient
