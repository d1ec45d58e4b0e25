"""The paper's linear probe: every epoch embeds new random crops with the frozen encoder and trains a linear layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fgssl.data.cache.pixels import Shrunk, open_pixels
from fgssl.data.feed import CropBatch, CropDataset, CropSampler, crop_batches
from fgssl.data.images import ImageSet
from fgssl.encoder import Encoder, Pool, evaluated
from fgssl.errors import FgsslError
from fgssl.runtime.machine import automatic_workers

SHRINK = 1.3  # short side of the decoded pictures, relative to the crop: as in pretraining, whose cache is found

Batch = tuple[Tensor, Tensor]  # (n, D) features of length 1, (n,) int64 classes


@dataclass(frozen=True)
class SgdRecipe:
    """How the classifier is trained; the defaults are the paper's (section 4.1) and, where it is silent, MoCo's."""

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
        drops = Counter(round(drop * self.epochs) for drop in self.drops)
        if len(drops) == len(self.drops):
            falls = f"x0.1 after {' and '.join(map(str, drops))}"
        else:  # with few epochs two fall together
            falls = ", ".join(f"x{0.1**times:g} after {epoch}" for epoch, times in drops.items())
        return (
            f"SGD lr {self.lr:g}, momentum {self.momentum:g}, batch {self.batch_size}, {self.epochs} epochs, "
            f"{falls}, no weight decay, last epoch"
        )


class LinearClassifier(NamedTuple):
    """Scores = features @ weight + bias."""

    weight: Tensor  # (D, C)
    bias: Tensor  # (C,)


def fit_sgd(
    epochs: Callable[[int], Iterable[Batch]],
    *,
    width: int,
    classes: int,
    recipe: SgdRecipe,
    seed: int = 0,
    device: torch.device | None = None,
    done: Callable[[int], None] | None = None,
) -> LinearClassifier:
    """Minimise the cross-entropy of a linear layer by SGD with momentum, without weight decay.

    Args:
        epochs: From the number of an epoch, from 0, to its batches.
        width: D of the features.
        classes: C.
        recipe: How.
        seed: Of the weights at the start, normal with deviation 0.01 (MoCo's); the bias starts at 0.
        device: Where the batches are.
        done: Called with the number of images of each step taken.

    Raises:
        FgsslError: The weights are no longer finite.
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
            if done is not None:
                done(len(labels))
        if not bool(torch.isfinite(weight).all()):
            raise FgsslError(f"the sgd probe's weights are not finite after epoch {epoch + 1}", "use --protocol cached")
    return LinearClassifier(weight.detach().cpu(), bias.detach().cpu())


def train_on_crops(
    encoder: Encoder,
    images: ImageSet,
    positions: Tensor,
    *,
    pool: Pool,
    width: int,
    classes: int,
    recipe: SgdRecipe,
    seed: int = 0,
    forward: int = 64,
    workers: int | None = None,
    cache: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    decoding: Callable[[int, int], None] | None = None,
) -> LinearClassifier:
    """Train a linear layer on l2-normalised pooled features of random-resized, flipped crops (paper section 4.1).

    The encoder is in eval mode and not changed. Images that cannot be read are left out.

    Args:
        encoder: On the device that computes.
        images: The labelled split.
        positions: (M,) of the images to use.
        pool: How the feature map becomes the feature; `width`, `classes` and `recipe` are those of `fit_sgd`.
        seed: Of order, crops and initial weights; the same seed gives the same classifier with any `workers`.
        forward: Images in one pass through the encoder.
        progress: Called with (crops seen, crops to see); `decoding`, `cache` and `workers` are those of `open_pixels`.
    """
    assert images.labels is not None
    labels = torch.from_numpy(images.labels)
    workers = automatic_workers(encoder.device) if workers is None else workers
    size = encoder.view_size(pool)
    pixels = open_pixels(images, Shrunk(round(SHRINK * size)), cache=cache, workers=workers, progress=decoding)
    chosen = positions.numpy().astype(np.int64)
    sampler = CropSampler(chosen, batch_size=recipe.batch_size, epochs=recipe.epochs, seed=seed)
    stream = crop_batches(CropDataset(pixels, size=size, seed=seed), sampler, workers=workers)
    seen, total = 0, recipe.epochs * len(chosen)

    def count(crops: int) -> None:
        nonlocal seen
        seen += crops
        if progress is not None:
            progress(seen, total)

    def epoch(_number: int) -> Iterator[Batch]:
        for batch in islice(stream, len(sampler) // recipe.epochs):
            if len(batch.index):
                features = _features(encoder, batch, pool, forward)
                yield features, labels[batch.index].to(features.device)

    with evaluated(encoder):
        return fit_sgd(epoch, width=width, classes=classes, recipe=recipe, seed=seed, device=encoder.device, done=count)


@torch.no_grad()
def _features(encoder: Encoder, batch: CropBatch, pool: Pool, forward: int) -> Tensor:
    """(N, D) of length 1."""
    return torch.cat([encoder(part.to(encoder.device), pool) for part in torch.split(batch.images, forward)])
