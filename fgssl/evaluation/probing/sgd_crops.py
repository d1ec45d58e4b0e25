"""The paper's linear probe: every epoch embeds new random crops with the frozen encoder and trains a linear layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from fgssl.data.cache.build import Shrunk, open_pixels
from fgssl.data.feed.crops import CropBatch, CropDataset, CropSampler, crop_batches
from fgssl.data.images import ImageSet
from fgssl.encoder import Encoder, Pool, evaluated
from fgssl.evaluation.probing.sgd import Batch, LinearClassifier, SgdRecipe, fit_sgd
from fgssl.runtime.machine import automatic_workers

SHRINK = 1.3  # short side of the decoded pictures, relative to the crop: as in pretraining, whose cache is found


def train_on_crops(
    encoder: Encoder,
    images: ImageSet,
    positions: Tensor,
    *,
    pool: Pool,
    width: int,
    classes: int,
    recipe: SgdRecipe | None = None,
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
        pool: How the feature map becomes the feature.
        width: D of that feature.
        classes: C.
        recipe: By default the paper's.
        seed: Of order, crops and initial weights; the same seed gives the same classifier with any `workers`.
        forward: Images in one pass through the encoder.
        workers: Loader processes (default: by machine).
        cache: See `open_pixels`.
        progress: Called with (crops seen, crops to see).
        decoding: Called with (done, total) images decoded, where they are not in the cache yet.
    """
    recipe = recipe or SgdRecipe()
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
