"""A pretraining run from its plan to its results, to be read top to bottom; the steps are in `fgssl.training.loop`.

plan -> pixels decoded once -> model, optimiser -> steps (views, loss, GradCAM, fit) -> encoder, table, overview
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState

from fgssl.config.interval import interval
from fgssl.data.cache.build import PixelStore, Shrunk, open_pixels
from fgssl.errors import FgsslError
from fgssl.runs.encoder_file import save_encoder
from fgssl.runs.folder import truncate_metrics, write_config
from fgssl.runs.location import ENCODER_FILE
from fgssl.runs.resume_state import load_state
from fgssl.runtime.hang import Pulse, PulseReporter
from fgssl.runtime.machine import available_cores, keep_freed_memory
from fgssl.runtime.reporting import Reporter
from fgssl.runtime.stopping import listen_for_stop
from fgssl.training.agreement import check_processes, time_limit
from fgssl.training.loop import Progress, Trainer, check_faults
from fgssl.training.model import KEYS_KEPT, PretrainModel, build_model
from fgssl.training.optimizer import build_optimizer
from fgssl.training.plan import Plan
from fgssl.training.results import RunResult, finish_run, retrieval_rows, save_view_pairs

SHRINK = 1.3  # short side of the decoded training pictures, relative to the view: keeps small crops sharp


def pretrain(
    plan: Plan,
    output: Path,
    *,
    reporter: Reporter | None = None,
    resume: bool = False,
    allow_changes: bool = False,
    build: Callable[[Plan], PretrainModel] = build_model,
) -> RunResult:
    """Train an encoder.

    Args:
        plan: From `make_plan`.
        output: The run folder, already checked by the caller.
        reporter: Told how it goes.
        resume: Continue from the state saved in `output`.
        allow_changes: Continue even with other images than the state was saved with.
        build: Makes the trained module; another one may fit more beside the objective.

    Returns:
        Paths and results of the run.

    Raises:
        FgsslError: bad data; TrainingFault: the loss is no longer finite.
        Interrupted: a signal asked for a stop; the state is saved.
    """
    pulse = _pulse(plan, reporter or Reporter())
    with pulse.watching():
        return _pretrain(plan, output, pulse, resume=resume, allow_changes=allow_changes, build=build)


def _pulse(plan: Plan, reporter: Reporter) -> Pulse:
    rank, world = (int(os.environ.get(name, alone)) for name, alone in (("RANK", "0"), ("WORLD_SIZE", "1")))
    limit = interval(plan.config.training.stall_limit)
    return Pulse(rank, world, (limit and limit.seconds) or 0.0, reporter)


def _pretrain(
    plan: Plan,
    output: Path,
    pulse: Pulse,
    *,
    resume: bool,
    allow_changes: bool,
    build: Callable[[Plan], PretrainModel],
) -> RunResult:
    config, reporter = plan.config, PulseReporter(pulse.reporter, pulse)
    trainer = build_trainer(plan, output, reporter, build=build, pulse=pulse)
    model, is_main = trainer.model, trainer.accelerator.is_main_process
    saved = load_state(output) if resume else None
    if saved is not None:
        progress = trainer.restore(saved, allow_changes=allow_changes)
    else:
        if resume:
            _start_over(output, reporter)
        rows = retrieval_rows(plan, model.encoder, "init", reporter) if is_main and config.training.evaluate else []
        progress = Progress(0, 0.0, rows, {})
        # again: evaluation and building a cache draw random numbers too, and whether they ran must not matter
        torch.manual_seed(config.training.seed)
    if is_main:
        write_config(output, config, plan.origins)
        truncate_metrics(output, progress.step)
        if saved is None:
            save_view_pairs(output, plan, trainer.views)
    with listen_for_stop() as stop:
        progress = trainer.train(progress, stop)
    result = RunResult(output, {}, [])
    if is_main:
        model.encoder.keys = model.objective.sample_keys(KEYS_KEPT)
        save_encoder(output / ENCODER_FILE, model.encoder)
        result = finish_run(plan, model.encoder, output, progress._asdict(), trainer.log.last_means, reporter)
    pulse.at("writing the results")
    trainer.accelerator.wait_for_everyone()
    return result


def _start_over(output: Path, reporter: Reporter) -> None:
    """Resume without a saved state: a run stopped early begins again, a finished one is not thrown away."""
    if (output / ENCODER_FILE).exists():
        raise FgsslError(
            f"'{output}' is finished and its saved states are gone", "use its encoder, or train anew with --overwrite"
        )
    reporter.note("no state was saved yet: starting from the beginning")


def build_trainer(
    plan: Plan,
    output: Path,
    reporter: Reporter,
    *,
    build: Callable[[Plan], PretrainModel] = build_model,
    pulse: Pulse | None = None,
) -> Trainer:
    """Everything a run steps with, on its device: decoded pixels, model, optimiser."""
    pulse = pulse or Pulse(0, 1, 0.0, reporter)
    if plan.device.type == "cpu":
        keep_freed_memory()
    with time_limit(reporter):
        accelerator = _accelerator(plan)
        check_processes(plan, accelerator)
    pixels = _training_pixels(plan, accelerator, reporter, pulse)
    torch.manual_seed(plan.config.training.seed)
    model = build(plan).to(plan.device)
    optimizer = build_optimizer(model, plan.config.optimizer, plan.device, backbone=plan.backbone)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    return Trainer(plan, output, accelerator, model, wrapped, optimizer, pixels, reporter, pulse)


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
    prepare = Shrunk(round(plan.backbone.image_size * SHRINK))
    workers = available_cores() if plan.config.training.workers else 0

    def show(done: int, total: int) -> None:
        reporter.progress("decoding", done, total)

    if not accelerator.is_main_process:
        pulse.at("opening the decoded pictures")
    with accelerator.main_process_first():
        pixels = open_pixels(
            plan.train,
            prepare,
            cache=plan.config.training.cache,
            budget=plan.config.training.cache_budget,
            workers=workers,
            progress=show,
        )
    if accelerator.is_main_process:
        pulse.at("opening the decoded pictures")
    check_faults(pixels.faults, plan)
    if pixels.encoded and accelerator.is_main_process:
        reporter.note(
            "the decoded pictures exceed the cache's budget: kept as JPEG (quality 95), decoded at each reading"
        )
    return pixels
