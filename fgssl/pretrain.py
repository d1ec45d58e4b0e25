"""The pretraining loop, to be read top to bottom.

plan -> pixels decoded once -> model, optimiser -> steps (views, loss, GradCAM, fit) -> encoder, table, overview
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object

from fgssl.checkpoint import ENCODER_FILE, save_encoder
from fgssl.data.cache import PixelStore, Shrunk, open_pixels
from fgssl.data.feed import StepSampler, ViewBatch, ViewDataset, build_feed
from fgssl.embed import reject_unreadable
from fgssl.errors import FgsslError
from fgssl.finish import RunResult, finish_run, retrieval_rows, save_view_pairs
from fgssl.machine import available_cores
from fgssl.plan import Plan
from fgssl.reporting import Reporter, StepReport
from fgssl.runfolder import METRICS_FILE, truncate_metrics, write_config
from fgssl.state import Loaded, load_state, random_state, restore_random_state, save_state
from fgssl.stopping import Interrupted, StopRequest, listen_for_stop
from fgssl.training import (
    KEYS_KEPT,
    LogWindow,
    PretrainModel,
    StepOutput,
    build_model,
    build_optimizer,
    fit_weight,
    learning_rate,
    require_finite,
)

SHRINK = 1.3  # short side of the decoded training pictures, relative to the view: keeps small crops sharp


class Progress(NamedTuple):
    """What a resumed run must know beside the weights."""

    step: int  # done so far
    seconds: float
    initial_rows: list[dict[str, Any]]  # retrieval of the untrained encoder
    faults: dict[int, str]  # unreadable training images and why


def pretrain(plan: Plan, output: Path, *, reporter: Reporter | None = None, resume: bool = False) -> RunResult:
    """Train an encoder.

    Args:
        plan: From `make_plan`.
        output: The run folder, already checked by the caller.
        reporter: Told how it goes.
        resume: Continue from the state saved in `output`.

    Returns:
        Paths and results of the run.

    Raises:
        FgsslError: bad data; TrainingFault: the loss is no longer finite.
        Interrupted: a signal asked for a stop; the state is saved.
    """
    config, reporter = plan.config, reporter or Reporter()
    trainer = build_trainer(plan, output, reporter)
    model, is_main = trainer.model, trainer.accelerator.is_main_process
    saved = load_state(output) if resume else None
    if saved is not None:
        progress = trainer.restore(saved)
    else:
        if resume:
            _start_over(output, reporter)
        rows = retrieval_rows(plan, model.encoder, "init", reporter) if is_main and config.training.evaluate else []
        progress = Progress(0, 0.0, rows, {})
        # again: evaluation and building a cache draw random numbers too, and whether they ran must not matter
        torch.manual_seed(config.training.seed)
    if is_main:
        write_config(output, plan)
        truncate_metrics(output, progress.step)
        if saved is None:
            save_view_pairs(output, plan, trainer.views)
    with listen_for_stop() as stop:
        progress = trainer.train(progress, stop)
    result = RunResult(output, {}, [])
    if is_main:
        model.encoder.keys = model.objective.sample_keys(KEYS_KEPT)
        save_encoder(output / ENCODER_FILE, model.encoder)
        result = finish_run(plan, model.encoder, output, progress._asdict(), trainer.last_means, reporter)
    trainer.accelerator.wait_for_everyone()
    return result


def _start_over(output: Path, reporter: Reporter) -> None:
    """Resume without a saved state: a run stopped early begins again, a finished one is not thrown away."""
    if (output / ENCODER_FILE).exists():
        raise FgsslError(
            f"'{output}' is finished and its saved states are gone", "use its encoder, or train anew with --overwrite"
        )
    reporter.note("no state was saved yet: starting from the beginning")


def build_trainer(plan: Plan, output: Path, reporter: Reporter) -> Trainer:
    """Everything a run steps with, on its device: decoded pixels, model, optimiser."""
    accelerator = _accelerator(plan)
    pixels = _training_pixels(plan, accelerator, reporter)
    torch.manual_seed(plan.config.training.seed)
    model = build_model(plan).to(plan.device)
    optimizer = build_optimizer(model, plan.config.optimizer, plan.device)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    return Trainer(plan, output, accelerator, model, wrapped, optimizer, pixels, reporter)


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
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def _training_pixels(plan: Plan, accelerator: Accelerator, reporter: Reporter) -> PixelStore:
    """Decode the training split once; the first process builds the cache, the others open it."""
    prepare = Shrunk(round(plan.backbone.image_size * SHRINK))
    workers = available_cores() if plan.config.training.workers else 0

    def show(done: int, total: int) -> None:
        reporter.progress("decoding", done, total)

    with accelerator.main_process_first():
        pixels = open_pixels(plan.train, prepare, workers=workers, progress=show)
    _check_faults(pixels.faults, plan)
    return pixels


def _check_faults(faults: dict[int, str], plan: Plan) -> None:
    reject_unreadable(list(faults.values()), len(plan.train), f"{plan.train.source}[{plan.train.split}]")


class Trainer:
    """The steps of one process: `batches` feeds, `step` learns from one, `train` is the loop around them."""

    def __init__(
        self,
        plan: Plan,
        output: Path,
        accelerator: Accelerator,
        model: PretrainModel,
        wrapped: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        pixels: PixelStore,
        reporter: Reporter,
    ) -> None:
        self.plan, self.output, self.accelerator, self.reporter = plan, output, accelerator, reporter
        self.model, self.wrapped, self.optimizer, self.pixels = model, wrapped, optimizer, pixels
        self.views = ViewDataset(
            pixels, plan.config.views, size=plan.backbone.image_size, seed=plan.config.training.seed
        )
        self.window, self.last_means = LogWindow(), dict[str, float]()

    def restore(self, saved: Loaded) -> Progress:
        """Take over a saved state: weights, queue, optimiser, randomness."""
        for warning in saved.warnings:
            self.reporter.warn(warning)
        self.model.load_state_dict(saved.state["model"])
        self.optimizer.load_state_dict(saved.state["optimizer"])
        randoms = saved.state["random"]  # of the processes there were then
        restore_random_state(randoms[self.accelerator.process_index % len(randoms)])
        progress = Progress(**saved.state["progress"])
        self.window.restore(saved.state["window"], self.plan.device)
        self.last_means = saved.state["last_means"]
        done = progress.step >= self.plan.total_steps
        what = "already trained: writing the results again," if done else "resuming"
        self.reporter.note(f"{what} after step {progress.step} of {self.plan.total_steps}")
        return progress

    def train(self, progress: Progress, stop: StopRequest) -> Progress:
        """All remaining steps."""
        plan, training = self.plan, self.plan.config.training
        self.model.train()
        faults = dict(progress.faults)
        started = last_saved = time.monotonic()
        step, mark = progress.step, time.perf_counter()
        batches = self.batches(progress.step)
        self._note_faults(self.pixels.faults, faults)

        def now() -> Progress:
            return Progress(step, progress.seconds + time.monotonic() - started, progress.initial_rows, faults)

        for batch in batches:
            arrived = time.perf_counter()
            self._note_faults({fault.index: fault.reason for fault in batch.faults}, faults)
            output = self.step(step, batch)
            step += 1
            done = time.perf_counter()
            self.window.add(step, output, seconds=done - mark, waited=arrived - mark)
            mark = done
            if step % training.log_every == 0 or step == plan.total_steps:
                self.window.require_finite()
                self._log(step, now().seconds - progress.seconds, progress.step)
                self.window = LogWindow()
            signal_number = stop.agreed(plan.device)
            if signal_number or time.monotonic() - last_saved > 60 * training.save_every:
                self._save(now())
                last_saved = time.monotonic()
                if signal_number:
                    raise Interrupted(signal_number, step)
        if step > progress.step:
            self._save(now())
        return now()

    def batches(self, start: int) -> Iterator[ViewBatch]:
        """This process's share of every step from `start` to the end of the run."""
        plan, training = self.plan, self.plan.config.training
        assert training.workers is not None and training.batch_size is not None  # filled in by the plan
        sampler = StepSampler(
            len(plan.train),
            training.batch_size,
            seed=training.seed,
            start=start,
            stop=plan.total_steps,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )
        feed = build_feed(self.views, sampler, workers=training.workers, pin=plan.device.type == "cuda")
        feed.generator = torch.Generator()  # a loader draws one number when it starts: not from the run's stream
        return iter(feed)

    def step(self, step: int, batch: ViewBatch) -> StepOutput:
        """One optimiser step, the `step`-th of the run."""
        plan, config = self.plan, self.plan.config
        rate = learning_rate(step, config.optimizer, steps_per_epoch=plan.steps_per_epoch, total_steps=plan.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        views = batch.views.to(plan.device, non_blocking=True)
        index = batch.index.to(plan.device, non_blocking=True)
        weight = fit_weight(step, config, steps_per_epoch=plan.steps_per_epoch)
        output: StepOutput = self.wrapped(views, index, weight)
        self.accelerator.backward(output.total)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return output

    def _note_faults(self, found: dict[int, str], faults: dict[int, str]) -> None:
        for index, reason in found.items():
            if index not in faults:
                faults[index] = reason
                self.reporter.warn(f"replaced by another image ({len(faults)} so far): {reason}")
                _check_faults(faults, self.plan)

    def _log(self, step: int, seconds: float, first: int) -> None:
        if not self.accelerator.is_main_process:
            return
        plan, config, window = self.plan, self.plan.config, self.window
        means = self.last_means = window.means()
        epoch = (step - 1) // plan.steps_per_epoch + 1
        assert config.training.batch_size is not None  # filled in by the plan
        speed = len(window.steps) * config.training.batch_size / max(window.seconds, 1e-9)
        with_rationale = config.rationale.enabled
        report = StepReport(
            epoch=epoch,
            epochs=-(-plan.total_steps // plan.steps_per_epoch),
            step=step,
            total_steps=plan.total_steps,
            loss=means["loss"],
            chance=self.model.objective.chance_level(),
            fit=means["fit"] if with_rationale else None,
            target_entropy=means["target_entropy"] if with_rationale else None,
            effective_rank=means["effective_rank"],
            images_per_second=speed,
            wait_share=means["wait_share"],
            seconds_left=seconds / (step - first) * (plan.total_steps - step),
        )
        row = {
            **report._asdict(),
            "positive_similarity": means["positive_similarity"],
            "lr": self.optimizer.param_groups[0]["lr"],
        }
        with (self.output / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.reporter.step(report)

    def _save(self, progress: Progress) -> None:
        self.window.require_finite()
        require_finite(self.model, progress.step)
        randoms = gather_object([random_state()])
        if self.accelerator.is_main_process:
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "progress": progress._asdict(),
                "random": randoms,
                "window": self.window.state(),
                "last_means": self.last_means,
            }
            save_state(self.output, progress.step, state)
        self.accelerator.wait_for_everyone()
