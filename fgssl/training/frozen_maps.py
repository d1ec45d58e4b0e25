"""Training above a frozen backbone: its feature maps are made once, and read from then on.

The views of an image are drawn once as well (`backbone.cached_views` times), so that their maps can be kept: from then
on no picture is decoded and no backbone runs. The training step is the usual one, on maps instead of images.

Which maps are made together is fixed by the order of the run alone, never by what happens to be cached: an image's
maps are made with those of its batch the first time that it appears. So a resumed run, or a second one that finds the
maps of the first, computes the same numbers to the last bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from fgssl.backbones import Backbone
from fgssl.data.cache.folder import cache_folder, cache_label
from fgssl.data.cache.map_store import MapStore, rounded
from fgssl.data.cache.pixels import Fault, Preparation
from fgssl.data.feed import Key, StepSampler, ViewBatch, ViewDataset, epoch_order
from fgssl.runtime.reporting import Reporter
from fgssl.training.plan import Plan

MakeMaps = Callable[[ViewBatch], Tensor]


@dataclass(frozen=True)
class Request:
    """An image of a step: which views, and whether no earlier step of the run had them."""

    key: Key  # its epoch is the slot
    first: bool


@dataclass(frozen=True)
class FrozenBatch:
    """One process's share of a step: what to read, and views of what is still to be made."""

    requests: tuple[Request, ...]
    views: ViewBatch | None  # of all first ones together; None where each has its maps already
    faults: tuple[Fault, ...]

    def pin_memory(self) -> FrozenBatch:
        """The batch in page-locked memory, which the loader asks for beside a GPU."""
        return self if self.views is None else replace(self, views=self.views.pin_memory())


class FrozenSampler(Sampler[list[Request]]):
    """The steps of a `StepSampler`, with the epoch's slot for the epoch and first appearances marked.

    Images with a position below `kept` are kept; of the others every appearance counts as the first.
    """

    def __init__(self, sampler: StepSampler, *, slots: int, kept: int) -> None:
        self.sampler, self.slots, self.kept = sampler, slots, kept

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[Request]]:
        sampler = self.sampler
        per_epoch = sampler.length // sampler.batch_size
        seen = np.zeros((self.slots, sampler.length), bool)

        def mark(epoch: int) -> None:
            order = epoch_order(sampler.length, sampler.seed, epoch)
            seen[epoch % self.slots, order[: per_epoch * sampler.batch_size]] = True

        for epoch in range(sampler.start // per_epoch):
            mark(epoch)
        for step, keys in enumerate(sampler, start=sampler.start):
            epoch, position = divmod(step, per_epoch)
            # in an epoch every image appears once, so what else this epoch has seen does not matter
            yield [self._request(key, seen, epoch < self.slots) for key in keys]
            if position == per_epoch - 1:
                mark(epoch)

    def _request(self, key: Key, seen: np.ndarray, before: bool) -> Request:
        slot = key.epoch % self.slots
        first = before or key.index >= self.kept or not seen[slot, key.index]
        return Request(Key(slot, key.index), first)


class MissingViews(Dataset[FrozenBatch]):
    """Views of what a step has to make; nothing where the store holds it all (None: maps cannot be kept)."""

    def __init__(self, views: ViewDataset, store: MapStore | None) -> None:
        self.views, self.store = views, store

    @property
    def dtype(self) -> torch.dtype:
        """Of the views, which `build_feed` decides."""
        return self.views.dtype

    @dtype.setter
    def dtype(self, dtype: torch.dtype) -> None:
        self.views.dtype = dtype

    def __len__(self) -> int:
        return len(self.views.pixels)

    def __getitems__(self, requests: list[Request]) -> FrozenBatch:
        """The batch for the requests."""
        fresh = [request.key for request in requests if request.first]
        if not fresh or (self.store is not None and all(self.store.has(key.index, key.epoch) for key in fresh)):
            return FrozenBatch(tuple(requests), None, ())
        views = self.views.__getitems__(fresh)
        return FrozenBatch(tuple(requests), views, views.faults)


class FrozenMaps:
    """The maps of each step, read from the store or made: also of what turns out to be missing or damaged there."""

    def __init__(self, store: MapStore | None, views: ViewDataset, make: MakeMaps, device: torch.device) -> None:
        self.store, self.views, self.make, self.device = store, views, make, device

    def __call__(self, batch: FrozenBatch) -> tuple[Tensor, Tensor]:
        """Maps (2, N, C, H, W) float32 and positions (N,) of the images of a step, on the device."""
        found: dict[Key, tuple[np.ndarray, int]] = {}
        fresh = [request.key for request in batch.requests if request.first]
        if batch.views is not None:
            self._make(fresh, batch.views, found)
        for request in batch.requests:
            if request.key not in found and self.store is not None:
                entry = self.store.read(request.key.index, request.key.epoch)
                found |= {} if entry is None else {request.key: entry}
        if any(key not in found for key in fresh):  # all of them together, as the first time
            self._make(fresh, self.views.__getitems__(fresh), found)
        lost = [request.key for request in batch.requests if request.key not in found]
        if lost:  # damaged, or made by a process on another machine
            self._make(lost, self.views.__getitems__(lost), found)
        rows = [found[request.key] for request in batch.requests]
        maps = torch.from_numpy(np.stack([maps for maps, _ in rows], 1))  # (2, N, C, H, W)
        index = torch.tensor([used for _, used in rows])
        return maps.to(self.device, non_blocking=True).float(), index.to(self.device, non_blocking=True)

    def _make(self, keys: Sequence[Key], views: ViewBatch, found: dict[Key, tuple[np.ndarray, int]]) -> None:
        # what is read later, to the bit and to its layout in memory, is what is used now
        maps = np.ascontiguousarray(rounded(self.make(views).cpu().numpy()))
        for place, (key, used) in enumerate(zip(keys, views.index.tolist(), strict=True)):
            found[key] = (maps[:, place], used)
            if self.store is not None:
                self.store.write(key.index, key.epoch, maps[:, place], used)


def open_store(plan: Plan, prepare: Preparation, *, processes: int, reporter: Reporter) -> MapStore | None:
    """The store of a run's maps; None where it cannot be written: a cache must not stop the run.

    The backbone of the plan has its final weights by now.
    """
    backbone, training = plan.backbone, plan.config.training
    name = maps_identity(
        backbone,
        images=plan.train.fingerprint(),
        prepare=repr(prepare),
        views=[asdict(plan.config.views), plan.config.backbone.cached_views],
        run=[training.seed, training.batch_size, processes],
        numbers=[training.mixed_precision, plan.device.type, torch.__version__],
    )
    folder, images = cache_folder() / "maps", len(plan.train)
    shape = (2, backbone.channels, *backbone.map_size)
    try:
        path = folder / f"{cache_label(plan.train.source, plan.train.split)}-{name}.maps"
        store = MapStore(path, images=images, slots=plan.config.backbone.cached_views, shape=shape)
    except OSError:
        reporter.warn(f"feature maps cannot be kept in '{folder}': they are made anew each epoch")
        return None
    if store.kept < images:
        reporter.warn(f"a quarter of the free disk holds the maps of {store.kept} of {images} images; others are made")
    return store


def maps_identity(backbone: Backbone, **circumstances: Any) -> str:
    """A name for the maps of a backbone under circumstances (JSON-able) that decide their bits."""
    digest = hashlib.sha256(json.dumps([backbone.description(), circumstances], sort_keys=True).encode())
    for name, value in backbone.model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
