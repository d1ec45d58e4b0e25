"""What each step of a run learns from: views of the pictures, or the kept maps of a frozen backbone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from fgssl.data.feed.views import StepSampler, ViewBatch, ViewDataset, build_feed
from fgssl.runtime.machine import feeds_itself
from fgssl.runtime.reporting import Reporter
from fgssl.training.frozen_maps import FrozenBatch, FrozenMaps, FrozenSampler, MissingViews, open_store
from fgssl.training.model import PretrainModel
from fgssl.training.plan import Plan


class StepFeed:
    """Batches of one process, and what the model steps on.

    Args:
        plan: The run.
        accelerator: Of this process.
        model: Makes the maps of a frozen backbone.
        views: The training split.
        reporter: Warned where maps cannot be kept.
    """

    def __init__(
        self, plan: Plan, accelerator: Accelerator, model: PretrainModel, views: ViewDataset, reporter: Reporter
    ) -> None:
        self.plan, self.accelerator, self.model = plan, accelerator, model
        self.views, self.reporter = views, reporter
        self.frozen: FrozenMaps | None = None  # opened with the first batch, when the backbone has its weights

    def batches(self, start: int) -> Iterator[ViewBatch] | Iterator[FrozenBatch]:
        """This process's share of every step from `start` to the end of the run."""
        plan, training = self.plan, self.plan.config.training
        assert training.batch_size is not None  # filled in by the plan
        sampler = StepSampler(
            len(plan.train),
            training.batch_size,
            seed=training.seed,
            start=start,
            stop=plan.total_steps,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )
        pin = plan.device.type == "cuda"
        feed: DataLoader[Any]
        if plan.backbone.frozen:
            missing, requests = self._open_maps(sampler)
            feed = build_feed(missing, requests, workers=self.workers, pin=pin)
        else:
            feed = build_feed(self.views, sampler, workers=self.workers, pin=pin)
        feed.generator = torch.Generator()  # a loader draws one number when it starts: not from the run's stream
        return iter(feed)

    def inputs(self, batch: ViewBatch | FrozenBatch) -> tuple[Tensor, Tensor]:
        """What the model steps on: views, or maps of a frozen backbone; and the images' positions; on the device."""
        if isinstance(batch, FrozenBatch):
            assert self.frozen is not None
            return self.frozen(batch)
        device = self.plan.device
        return batch.views_on(device), batch.index.to(device, non_blocking=True)

    @property
    def in_process(self) -> bool:
        """Whether the training process makes the views itself: nobody asked for more, and it is quicker."""
        return self.workers == 0 and self.plan.origins.get("training.workers", "").startswith("derived")

    @property
    def workers(self) -> int:
        """Loader processes in use."""
        plan, workers = self.plan, self.plan.config.training.workers
        assert workers is not None  # filled in by the plan
        derived = plan.origins.get("training.workers", "").startswith("derived")
        cached = not self.views.pixels.decodes
        return 0 if derived and cached and feeds_itself(plan.device) else workers

    def _open_maps(self, sampler: StepSampler) -> tuple[MissingViews, FrozenSampler]:
        plan, processes = self.plan, self.accelerator.num_processes
        with self.accelerator.main_process_first():
            store = open_store(plan, self.views.pixels.prepare, processes=processes, reporter=self.reporter)
        self.frozen = FrozenMaps(store, self.views, self._make_maps, plan.device)
        slots = plan.config.backbone.cached_views
        requests = FrozenSampler(sampler, slots=slots, kept=0 if store is None else store.kept)
        return MissingViews(self.views, store), requests

    def _make_maps(self, batch: ViewBatch) -> Tensor:
        with self.accelerator.autocast():
            return self.model.feature_maps(batch.views_on(self.plan.device))
