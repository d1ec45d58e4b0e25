"""What each step of a run learns from: views of the pictures, or the kept maps of a frozen backbone.

A frozen backbone's feature maps, of `backbone.cached_views` pairs of views an image, are made once. Which are made
together is fixed by the order of the run alone, never by what happens to be cached: an image's with those of its batch
when it first appears. So a resumed run, or one that finds another's maps, computes the same to the last bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fgssl.config.schema import filled
from fgssl.data.cache.folder import cache_folder, cache_label
from fgssl.data.cache.map_store import MapStore, rounded
from fgssl.data.cache.pixels import Fault
from fgssl.data.feed import Key, PlacesAt, StepSampler, ViewBatch, ViewDataset, build_feed
from fgssl.data.order import ORDERS
from fgssl.encoder import Encoder
from fgssl.runs.encoder_file import identity
from fgssl.runtime.machine import feeds_itself, sent
from fgssl.training.places import Places
from fgssl.training.setup import Setup

Found = dict[Key, tuple[np.ndarray, int]]  # maps (2, C, H, W) and position of an image


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
        return self if self.views is None else replace(self, views=self.views.pin_memory())


class FrozenSampler(Sampler[list[Request]]):
    """A `StepSampler`'s steps, with slots for epochs and first appearances marked: always, of images from `kept`."""

    def __init__(self, sampler: StepSampler, *, slots: int, kept: int) -> None:
        self.sampler, self.slots, self.kept = sampler, slots, kept

    def __iter__(self) -> Iterator[list[Request]]:
        sampler, slots = self.sampler, self.slots
        per_epoch = sampler.per_epoch
        seen, epochs_seen = np.zeros((slots, sampler.length), bool), 0
        for step, keys in enumerate(sampler, start=sampler.start):
            epoch = step // per_epoch
            for past in range(epochs_seen, epoch):  # not this one, in which every image appears once
                order = sampler.order(sampler.length, sampler.seed, past)
                seen[past % slots, order[: per_epoch * sampler.batch_size]] = True
            epochs_seen, slot = epoch, epoch % slots
            yield [Request(Key(slot, i), i >= self.kept or not seen[slot, i]) for i in (key.index for key in keys)]


class MissingViews(Dataset[FrozenBatch]):
    """Views of what a step has to make; nothing where the store holds it all (None: maps cannot be kept)."""

    def __init__(self, views: ViewDataset, store: MapStore | None) -> None:
        self.views, self.store, self.dtype = views, store, views.dtype  # which `build_feed` decides

    def __getitems__(self, requests: list[Request]) -> FrozenBatch:
        self.views.dtype = self.dtype
        fresh = [request.key for request in requests if request.first]
        if not fresh or (self.store is not None and all(self.store.has(key.index, key.epoch) for key in fresh)):
            return FrozenBatch(tuple(requests), None, ())
        views = self.views.__getitems__(fresh)
        return FrozenBatch(tuple(requests), views, views.faults)


class StepFeed:
    """Batches of one process, and what the model steps on."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.plan = setup, setup.plan
        self.store: MapStore | None = None  # opened with the first batch, when the backbone has its weights
        self.orders: dict[int, NDArray[np.int64]] = {}  # of the epochs since the last line of the log
        derived = self.plan.origins.get("training.workers", "").startswith("derived")
        alone = derived and not setup.views.pixels.decodes and feeds_itself(self.plan.device)
        self.workers = 0 if alone else filled(self.plan.config.training.workers)  # loader processes in use
        self.in_process = derived and self.workers == 0  # nobody asked for more, and it is quicker
        self.places = Places(setup, workers=self.workers)

    def batches(self, start: int) -> Iterator[ViewBatch] | Iterator[FrozenBatch]:
        """This process's share of every step from `start` to the end of the run."""
        plan, arranges = self.plan, self.setup.model.objective.arranges
        rank, world = self.setup.accelerator.process_index, self.setup.accelerator.num_processes
        sampler = self._sampler(start, plan.total_steps, self.places.at, rank=rank, world=world)
        epochs = 1 if arranges else self.places.warmup  # after so many the feed waits for what the steps have learned
        source = self._open_maps(sampler) if plan.backbone.frozen else (self.setup.views, sampler)
        feed: DataLoader[Any] = build_feed(
            *source, workers=self.workers, pin=plan.device.type == "cuda", again=bool(epochs)
        )
        feed.generator = torch.Generator()  # a loader draws one number when it starts: not from the run's stream
        return _by_epochs(feed, sampler, epochs) if epochs else iter(feed)

    def keys(self, step: int) -> list[Key]:
        """The images, over all processes, of a step taken since the last line of the log."""
        return next(iter(self._sampler(step, step + 1, self.places.known)))

    def _sampler(self, start: int, stop: int, place: PlacesAt, **share: int) -> StepSampler:
        arrange = self._arranged if self.setup.model.objective.arranges else None
        batch_size, seed = filled(self.plan.config.training.batch_size), self.setup.views.seed
        order = ORDERS[self.plan.config.training.shuffle]
        how: dict[str, Any] = {"arrange": arrange, "order": order, "place": place, **share}
        return StepSampler(len(self.plan.train), batch_size, seed=seed, start=start, stop=stop, **how)

    def _arranged(self, epoch: int, pictures: NDArray[np.int64]) -> NDArray[np.int64]:
        if epoch not in self.orders:
            order = self.setup.model.objective.arrange(torch.from_numpy(pictures), epoch)
            recent = epoch - filled(self.plan.config.training.log_every) // self.plan.steps_per_epoch - 1
            self.orders = {past: kept for past, kept in self.orders.items() if past >= recent}
            self.orders[epoch] = np.array(order.cpu())  # a copy
        return self.orders[epoch]

    def inputs(self, batch: ViewBatch | FrozenBatch) -> tuple[Tensor, Tensor]:
        """What the model steps on: views, or maps of a frozen backbone; and the images' positions; on the device."""
        device = self.plan.device
        views, index = self._maps(batch) if isinstance(batch, FrozenBatch) else (batch.views_on(device), batch.index)
        return views, sent(index, device)

    def local(self, batch: ViewBatch | FrozenBatch) -> Tensor | None:
        """The local views beside them; a frozen backbone has none."""
        return None if isinstance(batch, FrozenBatch) else batch.local_on(self.plan.device)

    def _maps(self, batch: FrozenBatch) -> tuple[Tensor, Tensor]:
        """(2, N, C, H, W) float32, read from the store or made: also of what is missing or damaged there."""
        found, wanted, views = Found(), [request.key for request in batch.requests], self.setup.views
        fresh = [request.key for request in batch.requests if request.first]
        if batch.views is not None:
            self._make(fresh, batch.views, found)
        for key in wanted:
            if key not in found and self.store is not None and (entry := self.store.read(key.index, key.epoch)):
                found[key] = entry
        if any(key not in found for key in fresh):  # all of them together, as the first time
            self._make(fresh, views.__getitems__(fresh), found)
        lost = [key for key in wanted if key not in found]
        if lost:  # damaged, or made by a process on another machine
            self._make(lost, views.__getitems__(lost), found)
        maps = torch.from_numpy(np.stack([found[key][0] for key in wanted], 1))
        return sent(maps, self.plan.device).float(), torch.tensor([found[key][1] for key in wanted])

    def _make(self, keys: Sequence[Key], views: ViewBatch, found: Found) -> None:
        with self.setup.accelerator.autocast():
            made = self.setup.model.feature_maps(views.views_on(self.plan.device))
        # what is read later, to the bit and to its layout in memory, is what is used now
        maps = np.ascontiguousarray(rounded(made.cpu().numpy()))
        for place, (key, used) in enumerate(zip(keys, views.index.tolist(), strict=True)):
            found[key] = (maps[:, place], used)
            if self.store is not None:
                self.store.write(key.index, key.epoch, maps[:, place], used)

    def _open_maps(self, sampler: StepSampler) -> tuple[MissingViews, FrozenSampler]:
        """With the store of maps, named by all that decides their bits; none where they cannot be kept."""
        plan, training, warn = self.plan, self.plan.config.training, self.setup.reporter.warn
        slots, images = plan.config.backbone.cached_views, len(plan.train)
        drawn = {key: value for key, value in asdict(plan.config.views).items() if not key.startswith("place")}
        views = [plan.train.fingerprint(), repr(self.setup.views.pixels.prepare), drawn, slots]
        run = [training.seed, training.batch_size, self.setup.accelerator.num_processes]
        if training.shuffle != "whole":
            run.append(training.shuffle)
        if self.setup.model.objective.arranges:  # what it learns decides which images are together
            config = plan.config
            learned = [asdict(config.objective), asdict(config.optimizer), asdict(config.rationale)]
            run += [training.accumulate, plan.total_steps, learned]
        numbers = [training.mixed_precision, plan.device.type, torch.__version__]
        told = json.dumps([identity(Encoder(plan.backbone)), views, run, numbers], sort_keys=True)
        name = hashlib.sha256(told.encode()).hexdigest()[:32]
        path = cache_folder() / "maps" / f"{cache_label(plan.train.source, plan.train.split)}-{name}.maps"
        shape = plan.backbone.kept_shape
        if plan.backbone.beside.places:
            run.append(list(shape))
        with self.setup.accelerator.local_main_process_first():
            try:
                self.store = MapStore(path, images=images, slots=slots, shape=shape)
            except OSError:  # which must not stop the run
                warn(f"feature maps cannot be kept in '{path.parent}': they are made anew each epoch")
        kept = 0 if self.store is None else self.store.kept
        if self.store is not None and kept < images:
            warn(f"a quarter of the free disk holds the maps of {kept} of {images} images; others are made")
        return MissingViews(self.setup.views, self.store), FrozenSampler(sampler, slots=slots, kept=kept)


def _by_epochs(feed: DataLoader[Any], sampler: StepSampler, epochs: int) -> Iterator[Any]:
    """The feed of a sampler, nothing ahead of every so many epochs' end: what the next ones are like is known then."""
    start, stop, together = sampler.start, sampler.stop, epochs * sampler.per_epoch
    while start < stop:
        end = min(stop, (start // together + 1) * together)
        sampler.start, sampler.stop = start, end
        yield from feed
        start = end
