"""What one process of a run works with: the decoded pictures, the model, its optimiser and the other processes."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object

from fgssl.config.schema import flatten
from fgssl.data.cache.pixels import PixelStore, Shrunk, open_pixels
from fgssl.data.feed import ViewDataset
from fgssl.errors import FgsslError
from fgssl.evaluation.embed import reject_unreadable
from fgssl.runtime.machine import available_cores, keep_freed_memory
from fgssl.runtime.processes import PATIENCE
from fgssl.runtime.reporting import HangDetector, Reporter
from fgssl.training.model import Build, PretrainModel, build_optimizer
from fgssl.training.plan import Plan
from fgssl.training.teacher import learned_from

START_SECONDS = 300.0  # for all processes to be there and answer
OWN = ("training.device", "training.workers", "training.threads", "data.source")  # may differ between machines
SHRINK = 1.3  # short side of the decoded training pictures, relative to the view: keeps small crops sharp


@dataclass(frozen=True)
class Setup:
    """Of one process; loop, feed and log share it."""

    plan: Plan
    output: Path  # the run folder
    accelerator: Accelerator
    reporter: Reporter
    detector: HangDetector  # told where this process is
    views: ViewDataset  # the training split
    model: PretrainModel
    wrapped: torch.nn.Module  # the model as distributed training calls it
    optimizer: torch.optim.Optimizer

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def rate(self) -> float:
        """The learning rate of the newest step, without the share of a layer."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))


def set_up(plan: Plan, output: Path, reporter: Reporter, detector: HangDetector, build: Build) -> Setup:
    """Meet the other processes, decode the pictures and build the model on its device."""
    seed, size, on_device = plan.config.training.seed, plan.backbone.image_size, plan.device.type == "cuda"
    if plan.device.type == "cpu":
        keep_freed_memory()
    if plan.config.training.threads is not None:
        torch.set_num_threads(plan.config.training.threads)
    with time_limit(reporter):
        accelerator = _accelerator(plan)
        _check_processes(plan, accelerator)
    pixels = _training_pixels(plan, accelerator, reporter, detector)
    taught = learned_from(plan, functools.partial(_opened, plan, reporter), accelerator, detector)
    views = ViewDataset(pixels, plan.config.views, size=size, seed=seed, on_device=on_device)
    torch.manual_seed(seed)
    model = build(plan)
    model.objective.teacher, model.anchor = taught
    model.to(plan.device)
    optimizer = build_optimizer(model, plan.config.optimizer, plan.device, backbone=plan.backbone)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    return Setup(plan, output, accelerator, reporter, detector, views, model, wrapped, optimizer)


def check_faults(faults: dict[int, str], plan: Plan) -> None:
    """Raises FgsslError when too many training images are unreadable."""
    reject_unreadable(list(faults.values()), plan.train)


def _accelerator(plan: Plan) -> Accelerator:
    alone, on_cpu = int(os.environ.get("WORLD_SIZE", "1")) == 1, plan.device.type == "cpu"
    # accelerate remembers the first device and precision of a process and refuses others
    AcceleratorState._reset_state(reset_partial_state=alone)
    os.environ["ACCELERATE_USE_CPU"] = "true" if on_cpu else "false"
    os.environ.pop("ACCELERATE_TORCH_DEVICE", None)  # of another run of this process: it wins over `cpu`
    if plan.device.type == "cuda" and alone:
        torch.cuda.set_device(plan.device)
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(plan.device)
    # the key encoder and the queue are kept equal by the objective itself; others wait while the first decodes or
    # evaluates, which may take hours: who dies or hangs is noticed otherwise (`fgssl.runtime.processes`, `.reporting`)
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False), InitProcessGroupKwargs(timeout=PATIENCE)]
    return Accelerator(mixed_precision=plan.config.training.mixed_precision, cpu=on_cpu, kwargs_handlers=handlers)


def _training_pixels(plan: Plan, accelerator: Accelerator, reporter: Reporter, detector: HangDetector) -> PixelStore:
    is_main = accelerator.is_local_main_process  # of each machine, which has a cache of its own
    if not is_main:
        detector.at("opening the decoded pictures")
    with accelerator.local_main_process_first():
        pixels = _opened(plan, reporter, plan.backbone.image_size)
    if is_main:
        detector.at("opening the decoded pictures")
    check_faults(pixels.faults, plan)
    if pixels.encoded and accelerator.is_main_process:
        kept = "kept as JPEG (quality 95), decoded at each reading"
        reporter.note(f"the decoded pictures exceed the cache's budget: {kept}")
    return pixels


def _opened(plan: Plan, reporter: Reporter, image_size: int) -> PixelStore:
    """The training split, decoded for views of this size."""
    training, told = plan.config.training, functools.partial(reporter.progress, "decoding")
    workers, shrunk = available_cores() if training.workers else 0, Shrunk(round(image_size * SHRINK))
    kept: dict[str, Any] = {"cache": training.cache, "budget": training.cache_budget}
    return open_pixels(plan.train, shrunk, workers=workers, progress=told, **kept)


@contextlib.contextmanager
def time_limit(reporter: Reporter, seconds: float | None = None) -> Iterator[None]:
    """End this process with one line where the block, which may hang inside a collective, takes too long."""
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
    limit = seconds or float(os.environ.get("FGSSL_START_SECONDS", START_SECONDS))

    def give_up() -> None:
        remedy = "check that all are started and reach MASTER_ADDR:MASTER_PORT; FGSSL_START_SECONDS waits longer"
        reporter.fatal(f"process {rank} of {world}: the others did not answer in {limit:g} s", remedy)
        os._exit(1)

    timer = threading.Timer(limit, give_up)
    timer.daemon = True
    if int(world) > 1:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check_processes(plan: Plan, accelerator: Accelerator) -> None:
    """Let every process speak once; FgsslError for a wrong sum, or one that has other settings or images."""
    count = accelerator.num_processes
    if count == 1:
        return
    total = torch.tensor([accelerator.process_index + 1], device=plan.device)
    torch.distributed.all_reduce(total)
    if int(total) != count * (count + 1) // 2:
        raise FgsslError("the processes add up numbers wrongly", "check the network and the versions of torch")
    own = {"training images": len(plan.train), **flatten(plan.config)}
    hosts, accounts = zip(*gather_object([(socket.gethostname(), own)]), strict=True)
    for number, account in enumerate(accounts):
        for key, value in accounts[0].items():
            if key not in OWN and account[key] != value:
                problem = f"process {number} on {hosts[number]} has {key} {account[key]}, process 0 has {value}"
                raise FgsslError(problem, "start all with the same command and the same images")
