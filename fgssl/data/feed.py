"""From the pixels of a split to batches of two views: order, randomness and substitution, all pure functions.

The images of step s, and the views made of them, depend on (seed, epoch, image) alone: not on the number of workers or
processes, and not on whether the run was resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fgssl.config import ViewsConfig
from fgssl.data.cache import Fault, PixelStore
from fgssl.errors import UnreadableImage
from fgssl.stopping import ignore_stop_signals
from fgssl.views import apply_view, draw_view


@dataclass(frozen=True)
class ViewBatch:
    """One process's share of a step."""

    views: Tensor  # (2, N, 3, S, S) uint8
    index: Tensor  # (N,) int64, the images' positions in the split
    faults: tuple[Fault, ...]  # unreadable images met, each replaced by another one

    def pin_memory(self) -> ViewBatch:
        """The batch in page-locked memory, which the loader asks for beside a GPU."""
        return ViewBatch(self.views.pin_memory(), self.index.pin_memory(), self.faults)


@dataclass(frozen=True)
class Key:
    """One image of one epoch."""

    epoch: int
    index: int


class StepSampler(Sampler[list[Key]]):
    """The image keys of this process for every step from `start` to `stop`; the last partial batch is dropped.

    Args:
        length: Images in the split.
        batch_size: Images per step over all processes.
        seed: Of the order.
        start: First step.
        stop: Step after the last.
        rank: This process.
        world: Number of processes.
    """

    def __init__(
        self, length: int, batch_size: int, *, seed: int, start: int, stop: int, rank: int = 0, world: int = 1
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start, self.stop, self.rank, self.world = start, stop, rank, world

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        per_epoch = self.length // self.batch_size
        order, order_epoch = np.empty(0, np.int64), -1
        for step in range(self.start, self.stop):
            epoch, position = divmod(step, per_epoch)
            if epoch != order_epoch:
                order, order_epoch = epoch_order(self.length, self.seed, epoch), epoch
            batch = order[position * self.batch_size : (position + 1) * self.batch_size]
            yield [Key(epoch, int(i)) for i in batch[self.rank :: self.world]]


def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The (length,) order of images in an epoch, a pure function of its arguments."""
    return np.random.default_rng([seed, epoch, 0x0DE5]).permutation(length)


class ViewDataset(Dataset[ViewBatch]):
    """Whole batches of two views by key.

    Args:
        pixels: The training split, shrunk.
        views: Probabilities and ranges.
        size: Side of a view in pixels.
        seed: Of the views.
    """

    def __init__(self, pixels: PixelStore, views: ViewsConfig, *, size: int, seed: int) -> None:
        self.pixels, self.config, self.size, self.seed = pixels, views, size, seed

    def __getitems__(self, keys: list[Key]) -> ViewBatch:
        """The batch for the keys; an unreadable image is replaced by the next readable one and reported."""
        out = torch.empty(2, len(keys), 3, self.size, self.size, dtype=torch.uint8)
        index = torch.empty(len(keys), dtype=torch.int64)
        faults: list[Fault] = []
        for place, key in enumerate(keys):
            used, pixels = self._read(key.index, faults)
            index[place] = used
            for number, view in enumerate(self.two_views(pixels, key)):
                out[number, place] = view
        return ViewBatch(out, index, tuple(faults))

    def two_views(self, pixels: np.ndarray, key: Key) -> Iterator[Tensor]:
        """The views of (H, W, 3) uint8 pixels in an epoch: two of (3, S, S) uint8."""
        rng = np.random.default_rng([self.seed, key.epoch, key.index])
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)  # (3, H, W)
        for _ in range(2):
            view = draw_view(rng, self.config, height=image.shape[1], width=image.shape[2], size=self.size)
            yield apply_view(image, view, self.size)

    def _read(self, index: int, faults: list[Fault]) -> tuple[int, np.ndarray]:
        total = len(self.pixels)
        for step in range(total):
            candidate = (index + step) % total
            try:
                return candidate, self.pixels[candidate]
            except UnreadableImage as error:
                faults.append(Fault(candidate, str(error)))
        raise UnreadableImage("no image of the training split can be read", "see the reasons above")


def _whole(batch: ViewBatch) -> ViewBatch:
    """The dataset already made the batch."""
    return batch


def _start_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    ignore_stop_signals()


def build_feed(dataset: ViewDataset, sampler: StepSampler, *, workers: int, pin: bool) -> DataLoader[ViewBatch]:
    """A loader over all remaining steps of the run: workers live as long as it does, one batch ahead each."""
    extra: dict[str, Any] = {"prefetch_factor": 2, "worker_init_fn": _start_worker} if workers else {}
    collate: Callable[[Any], ViewBatch] = _whole
    return DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate, pin_memory=pin, **extra)
