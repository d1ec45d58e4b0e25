"""Random crops of chosen images, epoch after epoch: what a classifier on a frozen encoder is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fgssl.config.schema import ViewsConfig
from fgssl.data.cache.build import PixelStore
from fgssl.data.feed.views import Key, epoch_order, start_worker, whole_batch
from fgssl.views import DRAWS, draw_views, make_views

# torchvision's RandomResizedCrop and a flip, nothing else: how linear classifiers are trained on ImageNet
CROPS = ViewsConfig(preset="geometric", crop_min=0.08, jitter=0.0, grayscale=0.0, blur=0.0)


@dataclass(frozen=True)
class CropBatch:
    """Crops of some images; unreadable ones are left out."""

    images: Tensor  # (N, 3, S, S) uint8
    index: Tensor  # (N,) int64 positions in the split


class CropSampler(Sampler[list[Key]]):
    """Every chosen image once an epoch, in an order that depends on seed and epoch alone.

    Args:
        positions: (M,) of the chosen images in the split.
        batch_size: Images a batch; the last of an epoch has what is left.
        epochs: How many.
        seed: Of the order.
    """

    def __init__(self, positions: NDArray[np.int64], *, batch_size: int, epochs: int, seed: int) -> None:
        self.positions, self.batch_size, self.epochs, self.seed = positions, batch_size, epochs, seed

    def __len__(self) -> int:
        return self.epochs * -(-len(self.positions) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for epoch in range(self.epochs):
            order = self.positions[epoch_order(len(self.positions), self.seed, epoch)]
            for first in range(0, len(order), self.batch_size):
                yield [Key(epoch, int(i)) for i in order[first : first + self.batch_size]]


class CropDataset(Dataset[CropBatch]):
    """Whole batches of crops by key.

    Args:
        pixels: The split, shrunk.
        size: Side of a crop in pixels.
        seed: Of the crops; each depends on it, its epoch and its image alone.
        views: Probabilities and ranges.
    """

    def __init__(self, pixels: PixelStore, *, size: int, seed: int, views: ViewsConfig = CROPS) -> None:
        self.pixels, self.size, self.seed, self.views = pixels, size, seed, views

    def __getitems__(self, keys: Sequence[Key]) -> CropBatch:
        found = [(key, self.pixels.read(key.index)) for key in keys]
        readable = [(key, pixels) for key, pixels in found if not isinstance(pixels, str)]
        index = torch.tensor([key.index for key, _ in readable], dtype=torch.int64)
        if not readable:
            return CropBatch(torch.empty(0, 3, self.size, self.size, dtype=torch.uint8), index)
        pictures = [pixels for _, pixels in readable]
        randoms = np.stack(
            [np.random.default_rng([self.seed, key.epoch, key.index]).random(DRAWS) for key, _ in readable]
        )
        heights, widths = np.array([pixels.shape[:2] for pixels in pictures]).T
        views = draw_views(randoms, self.views, heights=heights, widths=widths, size=self.size)
        return CropBatch(make_views(pictures, views, self.size), index)


def crop_batches(dataset: CropDataset, sampler: CropSampler, *, workers: int = 0) -> Iterator[CropBatch]:
    """All batches of all epochs, in order; the loader processes live as long as it takes."""
    yield from DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, collate_fn=whole_batch, worker_init_fn=start_worker
    )
