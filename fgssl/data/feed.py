"""From the pixels of a split to batches of views or of crops: order, randomness and substitution, pure functions.

The images of step s, and the views made of them, depend on (seed, epoch, image) alone: not on the number of workers or
processes, and not on whether the run was resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fgssl.config.schema import ViewsConfig, filled
from fgssl.data.cache.pixels import Fault, PixelStore
from fgssl.data.order import Order, epoch_order
from fgssl.errors import UnreadableImage
from fgssl.runtime.machine import sent
from fgssl.runtime.processes import ignore_stop_signals
from fgssl.views import DRAWS, Views, draw_views, make_views
from fgssl.views.device import PackedViews, pack_views

SAMPLE_EPOCH = 2**31 - 1  # whose views no run trains on
# torchvision's RandomResizedCrop and a flip, nothing else: how linear classifiers are trained on ImageNet
CROPS = ViewsConfig(preset="geometric", crop_min=0.08, jitter=0.0, grayscale=0.0, blur=0.0)
HIDDEN_SIDE = 0.5  # of what is hidden, in sides of the window on which crops lie
LOCAL_CROP = (0.05, 0.25)  # least and largest area of a local view
LOCAL_STREAM = 0x10CA1  # of random numbers: the whole views are the same with local ones or without


@dataclass(frozen=True)
class ViewBatch:
    """One process's share of a step."""

    views: Tensor | PackedViews  # (2, N, 3, S, S) levels; packed: pictures and parameters, for the device to make them
    index: Tensor  # (N,) int64, the images' positions in the split
    faults: tuple[Fault, ...]  # unreadable images met, each replaced by another one
    local: Tensor | PackedViews | None = None  # (L, N, 3, s, s) small views of the same images, where there are any

    def pin_memory(self) -> ViewBatch:
        """The batch in page-locked memory, which the loader asks for beside a GPU."""
        local = None if self.local is None else self.local.pin_memory()
        return ViewBatch(self.views.pin_memory(), self.index.pin_memory(), self.faults, local)

    def views_on(self, device: torch.device) -> Tensor:
        """The (2, N, 3, S, S) views on the device, which is not waited for."""
        return self._on(device, self.views)

    def local_on(self, device: torch.device) -> Tensor | None:
        """Likewise the (L, N, 3, s, s) local views; None where there are none."""
        return None if self.local is None else self._on(device, self.local)

    def _on(self, device: torch.device, views: Tensor | PackedViews) -> Tensor:
        if isinstance(views, PackedViews):
            made = views.make(device)
            return made.view(-1, len(self.index), *made.shape[1:])
        return sent(views, device)


@dataclass(frozen=True)
class CropBatch:
    """Crops of some images; unreadable ones are left out."""

    images: Tensor  # (N, 3, S, S) uint8
    index: Tensor  # (N,) int64 positions in the split


@dataclass(frozen=True)
class Key:
    """One image of one epoch."""

    epoch: int
    index: int
    place: Place | None = None  # known of the picture


class Place(NamedTuple):
    """What is known of where a picture's object is, in (0, 1) of its sides, beside each other as in a file."""

    row: float  # of the middle of the window on which a share of its crops lies
    column: float
    side: float
    told_row: float  # of the middle of what tells most, which a share of its crops does not show
    told_column: float

    @property
    def window(self) -> tuple[float, float, float]:
        """As `draw_views` has it."""
        return self[:3]

    @property
    def hidden(self) -> tuple[float, float, float]:
        """Likewise: half as wide, so that something is left of the object."""
        return (self.told_row, self.told_column, self.side * HIDDEN_SIDE)


PlacesAt = Callable[[int], NDArray[np.float64] | None]  # an epoch -> `Place` of each image of a split, NaN for none
Arrange = Callable[[int, NDArray[np.int64]], NDArray[np.int64]]  # an epoch and its images -> the same, in other order


class StepSampler(Sampler[list[Key]]):
    """The image keys of process `rank` of `world` for every step from `start` to before `stop`.

    A split of `length` images has `batch_size` of them a step over all processes; what is left at the end is dropped.
    `order` is that of an epoch; `arrange` is asked for another one of the same when the first step of an epoch is, and
    `place` for what is known of where objects are.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        start: int,
        stop: int,
        rank: int = 0,
        world: int = 1,
        arrange: Arrange | None = None,
        order: Order = epoch_order,
        place: PlacesAt | None = None,
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start, self.stop, self.rank, self.world = start, stop, rank, world
        self.per_epoch, self.arrange, self.order, self.place = length // batch_size, arrange, order, place

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        order, order_epoch, places = np.empty(0, np.int64), -1, None
        for step in range(self.start, self.stop):
            epoch, position = divmod(step, self.per_epoch)
            if epoch != order_epoch:
                order, order_epoch = self.order(self.length, self.seed, epoch), epoch
                if self.arrange is not None:
                    order = self.arrange(epoch, order[: self.per_epoch * self.batch_size])
                places = None if self.place is None else self.place(epoch)
            batch = order[position * self.batch_size : (position + 1) * self.batch_size]
            yield [placed_key(epoch, int(i), places) for i in batch[self.rank :: self.world]]


def placed_key(epoch: int, index: int, places: NDArray[np.float64] | None) -> Key:
    """The key of an image, with its place where it has one."""
    if places is None or np.isnan(places[index]).any():
        return Key(epoch, index)
    return Key(epoch, index, Place(*places[index].tolist()))


class CropSampler(Sampler[list[Key]]):
    """Every chosen image, by its position in the split, once an epoch; the last batch of an epoch has what is left."""

    def __init__(self, positions: NDArray[np.int64], *, batch_size: int, epochs: int, seed: int) -> None:
        self.positions, self.batch_size, self.epochs, self.seed = positions, batch_size, epochs, seed

    def __len__(self) -> int:
        return self.epochs * -(-len(self.positions) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for epoch in range(self.epochs):
            order = self.positions[epoch_order(len(self.positions), self.seed, epoch)]
            for first in range(0, len(order), self.batch_size):
                yield [Key(epoch, int(i)) for i in order[first : first + self.batch_size]]


class Ahead(Sampler[list[Key]]):
    """The batches of a sampler, each announced while the one before it is still to be used."""

    def __init__(self, sampler: Sampler[list[Key]], announce: Callable[[list[Key]], None]) -> None:
        self.sampler, self.announce = sampler, announce

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[Key]]:
        waiting: list[list[Key]] = []
        for keys in self.sampler:
            self.announce(keys)
            yield from waiting
            waiting = [keys]
        yield from waiting


class _Crops:
    """Random crops of a split's shrunk pixels, of `size` pixels a side: each depends on seed, epoch and image alone."""

    stream: tuple[int, ...] = ()  # of random numbers, where an image has crops of another kind as well

    def __init__(self, pixels: PixelStore, views: ViewsConfig, *, size: int, seed: int) -> None:
        self.pixels, self.config, self.size, self.seed = pixels, views, size, seed

    def draw(self, pictures: Sequence[np.ndarray], keys: Sequence[Key], count: int) -> Views:
        """Parameters of the first view of every picture, then of the second, up to `count`."""
        rngs = [np.random.default_rng([self.seed, key.epoch, key.index, *self.stream]) for key in keys]
        randoms = np.stack([rng.random((count, DRAWS)) for rng in rngs], 1).reshape(-1, DRAWS)
        heights, widths = np.tile([picture.shape[:2] for picture in pictures], (count, 1)).T
        told: dict[str, Any] = {}
        if any(key.place is not None for key in keys):
            windows, hidden = np.full((2, count, len(keys), 3), np.nan)
            for column, (key, rng) in enumerate(zip(keys, rngs, strict=True)):
                if key.place is not None:  # drawn last: all else is as it was
                    windows[rng.random(count) < self.config.place_share, column] = key.place.window
                    hidden[rng.random(count) < self.config.hide_share, column] = key.place.hidden
            told = {"windows": windows.reshape(-1, 3), "hidden": hidden.reshape(-1, 3)}
        return draw_views(randoms, self.config, heights=heights, widths=widths, size=self.size, **told)

    def make(
        self, pictures: Sequence[np.ndarray], keys: Sequence[Key], count: int = 2, dtype: torch.dtype = torch.uint8
    ) -> Tensor:
        """So many views of N pictures of (H, W, 3) uint8: (count, N, 3, S, S) levels."""
        if not pictures:
            return torch.empty(count, 0, 3, self.size, self.size, dtype=dtype)
        made = make_views([*pictures] * count, self.draw(pictures, keys, count), self.size, dtype=dtype)
        return made.view(count, len(keys), *made.shape[1:])

    def of_readable(self, keys: Sequence[Key], count: int) -> tuple[Tensor, list[Key]]:
        """The views of the images that can be read, and which those are."""
        readings = [(key, self.pixels.read(key.index)) for key in keys]
        readable = [(key, pixels) for key, pixels in readings if not isinstance(pixels, str)]
        kept = [key for key, _ in readable]
        return self.make([pixels for _, pixels in readable], kept, count), kept


class _LocalCrops(_Crops):
    """The small views of small parts, of multi-crop (Caron et al. 2020, SwAV, section 3.2)."""

    stream = (LOCAL_STREAM,)

    def __init__(self, pixels: PixelStore, views: ViewsConfig, *, seed: int) -> None:
        least, most = LOCAL_CROP
        size = filled(views.local_size)
        # a small view may well show the part alone that is hidden in a large one
        views = replace(views, crop_min=least, crop_max=most, hide_share=0.0)
        super().__init__(pixels, views, size=size, seed=seed)


class ViewDataset(_Crops, Dataset[ViewBatch]):
    """Whole batches of two views, and `views.local_count` local ones, by key.

    `on_device` leaves making them to the device that trains; a batch then holds pictures and parameters.
    """

    def __init__(
        self, pixels: PixelStore, views: ViewsConfig, *, size: int, seed: int, on_device: bool = False
    ) -> None:
        super().__init__(pixels, views, size=size, seed=seed)
        self.on_device, self.dtype = on_device, torch.uint8
        self.local = _LocalCrops(pixels, views, seed=seed) if views.local_count else None

    def __getitems__(self, keys: list[Key]) -> ViewBatch:
        """The batch for the keys; an unreadable image is replaced by the next readable one and reported."""
        faults: list[Fault] = []
        used, pictures = zip(*(self._read(key.index, faults) for key in keys), strict=True)
        local = None if self.local is None else self._views(self.local, pictures, keys, filled(self.config.local_count))
        return ViewBatch(self._views(self, pictures, keys, 2), torch.tensor(used), tuple(faults), local)

    def _views(
        self, crops: _Crops, pictures: Sequence[np.ndarray], keys: list[Key], count: int
    ) -> Tensor | PackedViews:
        if not self.on_device:
            return crops.make(pictures, keys, count, self.dtype)
        return pack_views(pictures, np.tile(np.arange(len(keys)), count), crops.draw(pictures, keys, count), crops.size)

    def announce(self, keys: list[Key]) -> None:
        """Have the pictures of a later batch fetched from the disk meanwhile."""
        self.pixels.will_need(key.index for key in keys)

    def _read(self, index: int, faults: list[Fault]) -> tuple[int, np.ndarray]:
        total = len(self.pixels)
        for step in range(total):
            candidate = (index + step) % total
            try:
                return candidate, self.pixels[candidate]
            except UnreadableImage as error:
                faults.append(Fault(candidate, str(error)))
        raise UnreadableImage("no image of the training split can be read", "see the reasons above")


class CropDataset(_Crops, Dataset[CropBatch]):
    """Whole batches of crops by key, for a classifier on a frozen encoder."""

    def __init__(self, pixels: PixelStore, *, size: int, seed: int, views: ViewsConfig = CROPS) -> None:
        super().__init__(pixels, views, size=size, seed=seed)

    def __getitems__(self, keys: Sequence[Key]) -> CropBatch:
        crops, kept = self.of_readable(keys, 1)
        return CropBatch(crops[0], torch.tensor([key.index for key in kept], dtype=torch.int64))


class WholeDataset(CropDataset):
    """Whole pictures pressed into squares, by key: what a map of all of a picture is made of."""

    def draw(self, pictures: Sequence[np.ndarray], keys: Sequence[Key], count: int) -> Views:
        views = super().draw(pictures, keys, count)
        box = np.array([(0, 0, *picture.shape[:2]) for picture in pictures] * count)
        return views._replace(box=box, flip=np.zeros_like(views.flip))


def view_pairs(views: ViewDataset, count: int) -> Tensor:
    """Two views (2, N, 3, S, S) uint8 of up to `count` images spread evenly over a split, for signals.

    The same data set gives the same pairs; unreadable images are left out.
    """
    total = len(views.pixels)
    chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
    return views.of_readable([Key(SAMPLE_EPOCH, index) for index in chosen.tolist()], 2)[0]


def _whole(batch: Any) -> Any:
    return batch


def _start_worker(_worker: int) -> None:
    """One thread a loader process; stop signals are for the process that trains."""
    torch.set_num_threads(1)
    ignore_stop_signals()


def build_feed(dataset: Any, sampler: Sampler[Any], *, workers: int, pin: bool, again: bool = False) -> DataLoader[Any]:
    """A loader over all remaining steps: workers are one batch ahead each, and kept where it is read `again`."""
    extra: dict[str, Any] = {"prefetch_factor": 2, "worker_init_fn": _start_worker} if workers else {}
    extra |= {"persistent_workers": True} if workers and again else {}
    if not workers and isinstance(dataset, ViewDataset):  # loader processes are ahead of the training anyway
        sampler = Ahead(sampler, dataset.announce)
    # bytes travel between processes; made in this one, floats of the same levels save a conversion to and fro
    dataset.dtype = torch.uint8 if workers else torch.float32
    return DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=_whole, pin_memory=pin, **extra)


def crop_batches(dataset: CropDataset, sampler: CropSampler, *, workers: int = 0) -> Iterator[CropBatch]:
    """All batches of all epochs, in order; the loader processes live as long as it takes."""
    yield from DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, collate_fn=_whole, worker_init_fn=_start_worker
    )
