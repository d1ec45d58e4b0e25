"""Random crops of chosen images, epoch after epoch: what a classifier on a frozen encoder is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fgssl.config import ViewsConfig
from fgssl.data.cache import PixelStore
from fgssl.data.feed import epoch_order
from fgssl.stopping import ignore_stop_signals
from fgssl.views import apply_view, draw_view

# torchvision's RandomResizedCrop and a flip, nothing else: how linear classifiers are trained on ImageNet
CROPS = ViewsConfig(preset="geometric", crop_min=0.08, jitter=0.0, grayscale=0.0, blur=0.0)


@dataclass(frozen=True)
class CropBatch:
    """Crops of some images; unreadable ones are left out."""

    images: Tensor  # (N, 3, S, S) uint8
    index: Tensor  # (N,) int64 positions in the split


class CropKey(NamedTuple):
    """One image of one epoch."""

    epoch: int
    position: int


class CropSampler(Sampler[list[CropKey]]):
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

    def __iter__(self) -> Iterator[list[CropKey]]:
        for epoch in range(self.epochs):
            order = self.positions[epoch_order(len(self.positions), self.seed, epoch)]
            for first in range(0, len(order), self.batch_size):
                yield [CropKey(epoch, int(i)) for i in order[first : first + self.batch_size]]


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

    def __getitems__(self, keys: Sequence[CropKey]) -> CropBatch:
        crops, index = [], []
        for key in keys:
            pixels = self.pixels.read(key.position)
            if not isinstance(pixels, str):
                crops.append(self.crop(pixels, key))
                index.append(key.position)
        images = torch.stack(crops) if crops else torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        return CropBatch(images, torch.tensor(index, dtype=torch.int64))

    def crop(self, pixels: NDArray[np.uint8], key: CropKey) -> Tensor:
        """The crop of (H, W, 3) uint8 pixels in an epoch: (3, S, S) uint8."""
        rng = np.random.default_rng([self.seed, key.epoch, key.position])
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)  # (3, H, W)
        view = draw_view(rng, self.views, height=image.shape[1], width=image.shape[2], size=self.size)
        return apply_view(image, view, self.size)


def _whole(batch: CropBatch) -> CropBatch:
    """The dataset already made the batch."""
    return batch


def _start_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    ignore_stop_signals()


def crop_batches(dataset: CropDataset, sampler: CropSampler, *, workers: int = 0) -> Iterator[CropBatch]:
    """All batches of all epochs, in order; the loader processes live as long as it takes."""
    collate: Callable[[Any], CropBatch] = _whole
    yield from DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate, worker_init_fn=_start_worker
    )
