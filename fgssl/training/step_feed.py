"""What each step of a run learns from: views of the pictures, or the kept maps of a frozen backbone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fgssl.config.schema import filled
from fgssl.data.feed import StepSampler, ViewBatch, build_feed
from fgssl.runtime.machine import feeds_itself
from fgssl.training.frozen_maps import FrozenBatch, FrozenMaps, FrozenSampler, MissingViews, open_store
from fgssl.training.setup import Setup


class StepFeed:
    """Batches of one process, and what the model steps on."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.plan = setup, setup.plan
        self.frozen: FrozenMaps | None = None  # opened with the first batch, when the backbone has its weights
        derived = self.plan.origins.get("training.workers", "").startswith("derived")
        alone = derived and not setup.views.pixels.decodes and feeds_itself(self.plan.device)
        self.workers = 0 if alone else filled(self.plan.config.training.workers)  # loader processes in use
        self.in_process = derived and self.workers == 0  # nobody asked for more, and it is quicker

    def batches(self, start: int) -> Iterator[ViewBatch] | Iterator[FrozenBatch]:
        """This process's share of every step from `start` to the end of the run."""
        plan, training, accelerator = self.plan, self.plan.config.training, self.setup.accelerator
        sampler = StepSampler(
            len(plan.train),
            filled(training.batch_size),
            seed=training.seed,
            start=start,
            stop=plan.total_steps,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        source = self._open_maps(sampler) if plan.backbone.frozen else (self.setup.views, sampler)
        feed: DataLoader[Any] = build_feed(*source, workers=self.workers, pin=plan.device.type == "cuda")
        feed.generator = torch.Generator()  # a loader draws one number when it starts: not from the run's stream
        return iter(feed)

    def inputs(self, batch: ViewBatch | FrozenBatch) -> tuple[Tensor, Tensor]:
        """What the model steps on: views, or maps of a frozen backbone; and the images' positions; on the device."""
        if isinstance(batch, FrozenBatch):
            assert self.frozen is not None
            return self.frozen(batch)
        device = self.plan.device
        return batch.views_on(device), batch.index.to(device, non_blocking=True)

    def _open_maps(self, sampler: StepSampler) -> tuple[MissingViews, FrozenSampler]:
        views, accelerator = self.setup.views, self.setup.accelerator
        with accelerator.main_process_first():
            store = open_store(
                self.plan, views.pixels.prepare, processes=accelerator.num_processes, reporter=self.setup.reporter
            )
        self.frozen = FrozenMaps(store, views, self._make_maps, self.plan.device)
        slots = self.plan.config.backbone.cached_views
        requests = FrozenSampler(sampler, slots=slots, kept=0 if store is None else store.kept)
        return MissingViews(views, store), requests

    def _make_maps(self, batch: ViewBatch) -> Tensor:
        with self.setup.accelerator.autocast():
            return self.setup.model.feature_maps(batch.views_on(self.plan.device))
