"""From the pixels of a split to batches of two views: order, randomness and substitution, all pure functions.

The images of step s, and the views made of them, depend on (seed, epoch, image) alone: not on the number of workers or
processes, and not on whether the run was resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fgssl.config.schema import ViewsConfig
from fgssl.data.cache.build import Fault, PixelStore
from fgssl.errors import UnreadableImage
from fgssl.runtime.stopping import ignore_stop_signals
from fgssl.views import DRAWS, Views, draw_views, make_views
from fgssl.views.device import PackedViews, pack_views

SAMPLE_EPOCH = 2**31 - 1  # whose views no run trains on


@dataclass(frozen=True)
class ViewBatch:
    """One process's share of a step."""

    views: Tensor | PackedViews  # (2, N, 3, S, S) levels; packed: pictures and parameters, for the device to make them
    index: Tensor  # (N,) int64, the images' positions in the split
    faults: tuple[Fault, ...]  # unreadable images met, each replaced by another one

    def pin_memory(self) -> ViewBatch:
        """The batch in page-locked memory, which the loader asks for beside a GPU."""
        return ViewBatch(self.views.pin_memory(), self.index.pin_memory(), self.faults)

    def views_on(self, device: torch.device) -> Tensor:
        """The (2, N, 3, S, S) views on the device, which is not waited for."""
        if isinstance(self.views, PackedViews):
            made = self.views.make(device)
            return made.view(2, -1, *made.shape[1:])
        return self.views.to(device, non_blocking=True)


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


class Ahead(Sampler[list[Key]]):
    """The batches of a sampler, each announced while the one before it is still to be used.

    Args:
        sampler: Of the batches.
        announce: Called with a batch, one batch before it is handed out.
    """

    def __init__(self, sampler: Sampler[list[Key]], announce: Callable[[list[Key]], None]) -> None:
        self.sampler, self.announce = sampler, announce

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[Key]]:
        waiting: list[Key] | None = None
        for keys in self.sampler:
            self.announce(keys)
            if waiting is not None:
                yield waiting
            waiting = keys
        if waiting is not None:
            yield waiting


class ViewDataset(Dataset[ViewBatch]):
    """Whole batches of two views by key.

    Args:
        pixels: The training split, shrunk.
        views: Probabilities and ranges.
        size: Side of a view in pixels.
        seed: Of the views.
        on_device: Leave making the views to the device that trains; a batch then holds pictures and parameters.
    """

    def __init__(
        self, pixels: PixelStore, views: ViewsConfig, *, size: int, seed: int, on_device: bool = False
    ) -> None:
        self.pixels, self.config, self.size, self.seed, self.on_device = pixels, views, size, seed, on_device
        self.dtype = torch.uint8

    def __getitems__(self, keys: list[Key]) -> ViewBatch:
        """The batch for the keys; an unreadable image is replaced by the next readable one and reported."""
        faults: list[Fault] = []
        used, pictures = zip(*(self._read(key.index, faults) for key in keys), strict=True)
        views: Tensor | PackedViews
        if self.on_device:
            sources = np.tile(np.arange(len(keys)), 2)
            views = pack_views(pictures, sources, self._draw(pictures, keys), self.size)
        else:
            views = self.make(pictures, keys, dtype=self.dtype)
        return ViewBatch(views, torch.tensor(used), tuple(faults))

    def announce(self, keys: list[Key]) -> None:
        """Have the pictures of a later batch fetched from the disk meanwhile."""
        self.pixels.will_need(key.index for key in keys)

    def make(self, pictures: Sequence[np.ndarray], keys: Sequence[Key], *, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Both views of N pictures of (H, W, 3) uint8 as their keys draw them: (2, N, 3, S, S) levels."""
        made = make_views([*pictures, *pictures], self._draw(pictures, keys), self.size, dtype=dtype)
        return made.view(2, len(keys), *made.shape[1:])

    def _draw(self, pictures: Sequence[np.ndarray], keys: Sequence[Key]) -> Views:
        """Parameters of the first view of every picture, then of the second."""
        randoms = np.stack(
            [np.random.default_rng([self.seed, key.epoch, key.index]).random((2, DRAWS)) for key in keys], 1
        )  # (2, N, DRAWS)
        heights, widths = np.array([picture.shape[:2] for picture in pictures]).T
        return draw_views(
            randoms.reshape(-1, DRAWS), self.config, heights=np.tile(heights, 2), widths=np.tile(widths, 2),
            size=self.size,
        )  # fmt: skip

    def _read(self, index: int, faults: list[Fault]) -> tuple[int, np.ndarray]:
        total = len(self.pixels)
        for step in range(total):
            candidate = (index + step) % total
            try:
                return candidate, self.pixels[candidate]
            except UnreadableImage as error:
                faults.append(Fault(candidate, str(error)))
        raise UnreadableImage("no image of the training split can be read", "see the reasons above")


def view_pairs(views: ViewDataset, count: int) -> Tensor:
    """Two views of up to `count` images spread evenly over a split, for signals; unreadable ones are left out.

    Args:
        views: Pixels and the views' distribution; the same one gives the same pairs.
        count: Images to take.

    Returns:
        (2, N, 3, S, S) uint8.
    """
    total = len(views.pixels)
    chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
    readings = [(views.pixels.read(index), Key(SAMPLE_EPOCH, index)) for index in chosen.tolist()]
    readable = [(pixels, key) for pixels, key in readings if not isinstance(pixels, str)]
    if not readable:
        return torch.empty(2, 0, 3, views.size, views.size, dtype=torch.uint8)
    return views.make([pixels for pixels, _ in readable], [key for _, key in readable])


def whole_batch(batch: Any) -> Any:
    """The dataset already made the batch."""
    return batch


def start_worker(_worker: int) -> None:
    """One thread a loader process; stop signals are for the process that trains."""
    torch.set_num_threads(1)
    ignore_stop_signals()


def build_feed(dataset: Any, sampler: Sampler[Any], *, workers: int, pin: bool) -> DataLoader[Any]:
    """A loader over all remaining steps of the run: workers live as long as it does, one batch ahead each."""
    extra: dict[str, Any] = {"prefetch_factor": 2, "worker_init_fn": start_worker} if workers else {}
    if not workers and isinstance(dataset, ViewDataset):  # loader processes are ahead of the training anyway
        sampler = Ahead(sampler, dataset.announce)
    # bytes travel between processes; made in this one, floats of the same levels save a conversion to and fro
    dataset.dtype = torch.uint8 if workers else torch.float32
    return DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, collate_fn=whole_batch, pin_memory=pin, **extra
    )
