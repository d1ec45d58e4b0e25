"""Linear classifiers: logistic regressions on frozen features, each to convergence, and the paper's, by SGD on crops.

torch's L-BFGS works in our coordinates: 5 times faster than scikit-learn's `LogisticRegressionCV`, on any device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fgssl.data.cache.pixels import Shrunk, open_pixels
from fgssl.data.feed import CropDataset, CropSampler, crop_batches
from fgssl.data.images import ImageSet
from fgssl.encoder import evaluated
from fgssl.errors import FgsslError
from fgssl.evaluation.features import Progress, silent
from fgssl.evaluation.subject import Subject
from fgssl.runtime.machine import automatic_workers

CHUNK_BYTES = 256 * 2**20  # scores held at once
MAX_STEPS = 500  # of a logistic regression
SHRINK = 1.3  # short side of the decoded pictures, relative to the crop: as in pretraining, whose cache is found


class Linear(NamedTuple):
    """A linear classifier, or G of them: scores = features @ weight + bias."""

    weight: Tensor  # (D, C), (G, D, C)
    bias: Tensor  # (C,), (G, C)
    converged: bool = True  # all of them met the tolerance


def fit_logistic(
    features: Tensor, labels: Tensor, *, costs: Sequence[float], tolerance: float = 1e-4, progress: Progress = silent
) -> Linear:
    """Minimise, for each cost, |W|^2 / (2 cost N) + mean cross-entropy; the bias is not penalised.

    This is scikit-learn's `LogisticRegression(C=cost)`, of features (N, D) and labels (N,), for G ascending costs. The
    features are centred (the free bias absorbs it) and rotated to their principal axes (the penalty does not see it):
    there the Hessian at zero weights is nearly diagonal, the variance of an axis over C plus the penalty, and the
    weights are scaled by it. At a tolerance of 1e-4 the loss is within a thousandth of its minimum.
    """
    mean, classes = features.mean(dim=0), int(labels.max()) + 1
    variances, axes = _principal_axes(features - mean)
    inputs = functional.pad((features - mean) @ axes, (0, 1), value=1.0)  # (N, R + 1)
    variances = functional.pad(variances, (0, 1), value=1.0)[:, None]  # the last row is the bias
    penalised = functional.pad(torch.ones_like(variances[:-1]), (0, 0, 0, 1))
    weights = inputs.new_zeros(inputs.shape[1], classes)
    found, converged = [], True
    for cost in costs:
        penalty = penalised / (cost * len(features))
        scale = (variances / classes + penalty).rsqrt()
        weights, met = _minimise(inputs, labels, weights, penalty, scale, tolerance)
        found.append(weights)
        converged &= met
        progress(len(found), len(costs))
    solutions = torch.stack(found)
    weight = axes @ solutions[:, :-1]
    return Linear(weight, solutions[:, -1] - mean @ weight, converged)


def _principal_axes(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (R,) and axes (D, R) of centred features (N, D); on axes the data does not span weights are zero."""
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
    inputs: Tensor, labels: Tensor, start: Tensor, penalty: Tensor, scale: Tensor, tolerance: float
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
        [scaled], max_iter=MAX_STEPS, history_size=8, line_search_fn="strong_wolfe",
        tolerance_grad=10 * tolerance, tolerance_change=torch.finfo(scaled.dtype).eps / 100,
    )  # fmt: skip
    optimizer.step(loss_and_gradient)  # type: ignore[no-untyped-call]
    return (scale * scaled).detach(), optimizer.state[scaled]["n_iter"] < MAX_STEPS


@dataclass(frozen=True)
class SgdRecipe:
    """How SGD trains; the defaults are the paper's (section 4.1) and, where it is silent, MoCo's."""

    lr: float = 30.0  # large, because features of length 1 are small
    epochs: int = 100  # passes over the labelled images
    batch_size: int = 256  # images a step, the last step of an epoch having fewer
    momentum: float = 0.9
    drops: tuple[float, ...] = (0.6, 0.8)  # shares of the epochs after which the rate falls to a tenth: 60, 80 of 100

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, from 0."""
        return self.lr * 0.1 ** sum(epoch >= round(drop * self.epochs) for drop in self.drops)

    def words(self) -> str:
        """The recipe in one line."""
        drops = Counter(round(drop * self.epochs) for drop in self.drops)  # with few epochs two fall together
        alike = {times: " and ".join(str(e) for e in drops if drops[e] == times) for times in drops.values()}
        falls = ", ".join(f"x{0.1**times:g} after {epochs}" for times, epochs in alike.items())
        return (
            f"SGD lr {self.lr:g}, momentum {self.momentum:g}, batch {self.batch_size}, {self.epochs} epochs, "
            f"{falls}, no weight decay, last epoch"
        )


def fit_sgd(
    epochs: Callable[[int], Iterable[tuple[Tensor, Tensor]]],
    *,
    width: int,
    classes: int,
    recipe: SgdRecipe,
    seed: int = 0,
    device: torch.device | None = None,
    done: Callable[[int], None] = lambda images: None,
) -> Linear:
    """Minimise the cross-entropy of a linear layer over the batches of epochs, from 0; `done` is told of each step.

    The seed is of the weights at the start, normal with deviation 0.01 (MoCo's). Raises FgsslError where it diverges.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter((0.01 * torch.randn(width, classes, generator=generator)).to(device))
    bias = nn.Parameter(torch.zeros(classes, device=device))
    optimizer = torch.optim.SGD([weight, bias], lr=recipe.lr, momentum=recipe.momentum)
    for epoch in range(recipe.epochs):
        optimizer.param_groups[0]["lr"] = recipe.rate(epoch)
        for features, labels in epochs(epoch):
            loss = functional.cross_entropy(features @ weight + bias, labels)
            weight.grad, bias.grad = torch.autograd.grad(loss, [weight, bias])
            optimizer.step()
            done(len(labels))
        if not bool(torch.isfinite(weight).all()):
            raise FgsslError(f"the sgd probe's weights are not finite after epoch {epoch + 1}", "use --protocol cached")
    return Linear(weight.detach().cpu(), bias.detach().cpu())


def train_on_crops(
    subject: Subject,
    images: ImageSet,
    recipe: SgdRecipe,
    *,
    positions: Tensor,
    width: int,
    classes: int,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress = silent,
) -> Linear:
    """Train a linear layer on features of random crops of the images at `positions` (M,) (paper, section 4.1)."""
    assert images.labels is not None
    encoder, labels, pool = subject.encoder, torch.from_numpy(images.labels), subject.pool
    workers = automatic_workers(encoder.device) if workers is None else workers
    decoding = partial(subject.reporter.progress, f"decoding {images.split}")
    size = encoder.view_size(pool)
    pixels = open_pixels(images, Shrunk(round(SHRINK * size)), cache=subject.cache, workers=workers, progress=decoding)
    chosen = positions.numpy().astype(np.int64)
    sampler = CropSampler(chosen, batch_size=recipe.batch_size, epochs=recipe.epochs, seed=seed)
    stream = crop_batches(CropDataset(pixels, size=size, seed=seed), sampler, workers=workers)
    seen = 0

    def count(crops: int) -> None:
        nonlocal seen
        seen += crops
        progress(seen, recipe.epochs * len(chosen))

    def epoch(_number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in islice(stream, len(sampler) // recipe.epochs):
            if len(batch.index):
                parts = torch.split(batch.images, subject.batch_size)
                with torch.no_grad():
                    features = torch.cat([encoder(part.to(encoder.device), pool) for part in parts])
                yield features, labels[batch.index].to(features.device)

    with evaluated(encoder):
        return fit_sgd(epoch, width=width, classes=classes, recipe=recipe, seed=seed, device=encoder.device, done=count)
