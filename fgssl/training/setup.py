"""What one process of a run works with: the decoded pictures, the model, its optimiser and the other processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState

from fgssl.data.cache.build import PixelStore, Shrunk, open_pixels
from fgssl.data.feed.views import ViewDataset
from fgssl.evaluation.embed import reject_unreadable
from fgssl.runtime.hang import Pulse
from fgssl.runtime.machine import available_cores, keep_freed_memory
from fgssl.runtime.reporting import Reporter
from fgssl.training.agreement import check_processes, time_limit
from fgssl.training.model import PretrainModel
from fgssl.training.optimizer import build_optimizer
from fgssl.training.plan import Plan

SHRINK = 1.3  # short side of the decoded training pictures, relative to the view: keeps small crops sharp


@dataclass(frozen=True)
class Setup:
    """Of one process; loop, feed and log share it.

    Attributes:
        output: The run folder.
        wrapped: The model as distributed training calls it.
        views: The training split.
        pulse: Told where this process is.
    """

    plan: Plan
    output: Path
    accelerator: Accelerator
    reporter: Reporter
    pulse: Pulse
    views: ViewDataset
    model: PretrainModel
    wrapped: torch.nn.Module
    optimizer: torch.optim.Optimizer

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks for all."""
        return bool(self.accelerator.is_main_process)

    def rate(self) -> float:
        """The learning rate of the newest step, without the share of a layer."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))


def set_up(plan: Plan, output: Path, reporter: Reporter, pulse: Pulse, build: Callable[[Plan], PretrainModel]) -> Setup:
    """Meet the other processes, decode the pictures and build the model on its device."""
    if plan.device.type == "cpu":
        keep_freed_memory()
    with time_limit(reporter):
        accelerator = _accelerator(plan)
        check_processes(plan, accelerator)
    pixels = _training_pixels(plan, accelerator, reporter, pulse)
    training = plan.config.training
    views = ViewDataset(
        pixels,
        plan.config.views,
        size=plan.backbone.image_size,
        seed=training.seed,
        on_device=plan.device.type == "cuda",
    )
    torch.manual_seed(training.seed)
    model = build(plan).to(plan.device)
    optimizer = build_optimizer(model, plan.config.optimizer, plan.device, backbone=plan.backbone)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    return Setup(plan, output, accelerator, reporter, pulse, views, model, wrapped, optimizer)


def check_faults(faults: dict[int, str], plan: Plan) -> None:
    """Raises FgsslError when too many training images are unreadable."""
    reject_unreadable(list(faults.values()), len(plan.train), f"{plan.train.source}[{plan.train.split}]")


def _accelerator(plan: Plan) -> Accelerator:
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    # accelerate remembers the first device and precision of a process and refuses others
    AcceleratorState._reset_state(reset_partial_state=alone)
    os.environ["ACCELERATE_USE_CPU"] = "true" if plan.device.type == "cpu" else "false"
    if plan.device.type == "cuda" and alone:
        torch.cuda.set_device(plan.device)
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(plan.device)
    return Accelerator(
        mixed_precision=plan.config.training.mixed_precision,
        cpu=plan.device.type == "cpu",
        # the key encoder and the queue are kept equal by the objective itself
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            # others wait while the first decodes or evaluates, which may take hours; who dies or hangs is noticed
            # otherwise (`fgssl.runtime.launch`, `fgssl.runtime.hang`)
            InitProcessGroupKwargs(timeout=timedelta(days=2)),
        ],
    )


def _training_pixels(plan: Plan, accelerator: Accelerator, reporter: Reporter, pulse: Pulse) -> PixelStore:
    """Decode the training split once; the first process builds the cache, the others open it."""
    training, is_main = plan.config.training, accelerator.is_main_process
    if not is_main:
        pulse.at("opening the decoded pictures")
    with accelerator.main_process_first():
        pixels = open_pixels(
            plan.train,
            Shrunk(round(plan.backbone.image_size * SHRINK)),
            cache=training.cache,
            budget=training.cache_budget,
            workers=available_cores() if training.workers else 0,
            progress=lambda done, total: reporter.progress("decoding", done, total),
        )
    if is_main:
        pulse.at("opening the decoded pictures")
    check_faults(pixels.faults, plan)
    if pixels.encoded and is_main:
        reporter.note(
            "the decoded pictures exceed the cache's budget: kept as JPEG (quality 95), decoded at each reading"
        )
    return pixels
