"""One process of a run: the steps, the log and the saved states; `fgssl.training.pretrain` does the rest."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError

from fgssl.backbones.frozen import kept_statistics, norm_buffers
from fgssl.config.interval import Interval, interval
from fgssl.data.cache.build import PixelStore
from fgssl.data.feed.views import ViewBatch, ViewDataset
from fgssl.errors import FgsslError, TrainingFault
from fgssl.evaluation.embed import reject_unreadable
from fgssl.runs.resume_state import Loaded, random_state, restore_random_state, save_state
from fgssl.runtime.hang import Pulse
from fgssl.runtime.memory import is_out_of_memory, largest_batch
from fgssl.runtime.reporting import Reporter
from fgssl.runtime.stopping import Interrupted, StopRequest
from fgssl.training.failed_step import save_evidence
from fgssl.training.frozen_maps import FrozenBatch
from fgssl.training.log import StepLog
from fgssl.training.model import (
    NotFinite,
    PretrainModel,
    StepOutput,
    fit_weight,
    mean_output,
    require_finite,
)
from fgssl.training.optimizer import learning_rate, set_rate
from fgssl.training.plan import Plan
from fgssl.training.step_feed import StepFeed

LOADING = "waiting for pictures"


class Progress(NamedTuple):
    """What a resumed run must know beside the weights."""

    step: int  # done so far
    seconds: float
    initial_rows: list[dict[str, Any]]  # retrieval of the untrained encoder
    faults: dict[int, str]  # unreadable training images and why


def check_faults(faults: dict[int, str], plan: Plan) -> None:
    """Raises FgsslError when too many training images are unreadable."""
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
        pulse: Pulse,
    ) -> None:
        self.plan, self.output, self.accelerator, self.reporter = plan, output, accelerator, reporter
        self.model, self.wrapped, self.optimizer, self.pixels = model, wrapped, optimizer, pixels
        self.pulse = pulse
        self.views = ViewDataset(
            pixels,
            plan.config.views,
            size=plan.backbone.image_size,
            seed=plan.config.training.seed,
            on_device=plan.device.type == "cuda",
        )
        self.feed = StepFeed(plan, accelerator, model, self.views, reporter)
        self.log = StepLog(plan, output, accelerator, model, optimizer, self.feed, reporter)

    def restore(self, saved: Loaded, *, allow_changes: bool = False) -> Progress:
        """Take over a saved state: weights, queue, optimiser, randomness.

        Raises:
            FgsslError: the model has other sizes, or the split other images, than when the state was saved.
        """
        for warning in saved.warnings:
            self.reporter.warn(warning)
        self._check_data(saved.state.get("data"), allow_changes=allow_changes)
        try:
            self.model.load_state_dict(saved.state["model"])
            self.optimizer.load_state_dict(saved.state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise FgsslError(
                "the saved state does not fit this run: its model or optimiser had other parts",
                "start a new run with --init RUN",
            ) from error
        randoms = saved.state["random"]  # of the processes there were then
        restore_random_state(randoms[self.accelerator.process_index % len(randoms)])
        norms = saved.state.get("norms", [])  # every process averages over its own images
        if len(norms) == self.accelerator.num_processes:
            self.model.load_state_dict(norms[self.accelerator.process_index], strict=False)
        progress = Progress(**saved.state["progress"])
        self.log.window.restore(saved.state["window"], self.plan.device)
        self.log.last_means = saved.state["last_means"]
        self.log.remember(saved.state.get("watch", {}))  # older states have none
        done = progress.step >= self.plan.total_steps
        what = "already trained: writing the results again," if done else "resuming"
        self.reporter.note(f"{what} after step {progress.step} of {self.plan.total_steps}")
        return progress

    def train(self, progress: Progress, stop: StopRequest) -> Progress:
        """All remaining steps.

        Raises:
            TrainingFault: the loss is not finite (the images of that step are kept), memory is exhausted, or the
                features collapse and that shall stop the run. Saved states stay as they are.
            Interrupted: on a stop signal, after saving.
        """
        self.log.warn_of(self.log.watch.look_at_rate(self.plan.config.optimizer))
        try:
            return self._train(progress, stop)
        except NotFinite as fault:
            if not self.accelerator.is_main_process:
                raise
            assert self.plan.config.training.batch_size is not None
            try:
                path = save_evidence(
                    self.output,
                    fault.step,
                    self.plan.train,
                    self.views,
                    batch_size=self.plan.config.training.batch_size,
                    facts={"problem": fault.problem, "lr": max(group["lr"] for group in self.optimizer.param_groups)},
                )
            except (OSError, FgsslError, SafetensorError) as error:  # a full disk must not hide what went wrong first
                raise TrainingFault(f"{fault.problem} (its images could not be kept: {error})", fault.remedy) from fault
            raise TrainingFault(f"{fault.problem} (its images: {path})", fault.remedy) from fault

    def _train(self, progress: Progress, stop: StopRequest) -> Progress:
        plan, training = self.plan, self.plan.config.training
        self.model.train()
        self._prepare_backbone()
        faults = dict(progress.faults)
        started = last_saved = time.monotonic()
        step = saved_step = progress.step
        mark = asked = time.perf_counter()
        every = interval(training.save_every) or Interval(None, 600.0)
        batches = self.batches(progress.step)
        self._note_faults(self.pixels.faults, faults)

        def now() -> Progress:
            return Progress(step, progress.seconds + time.monotonic() - started, progress.initial_rows, faults)

        self.pulse.at(LOADING)
        for batch in batches:
            arrived = time.perf_counter()
            self.pulse.at("computing a step")
            self._note_faults({fault.index: fault.reason for fault in batch.faults}, faults)
            output = self.step(step, batch)
            step += 1
            done = time.perf_counter()
            self.log.window.add(step, output, seconds=done - mark, waited=arrived - asked)
            mark = done
            self.pulse.at("writing to the run folder")
            if step % training.log_every == 0 or step == plan.total_steps:
                self.log.write(step, now().seconds - progress.seconds, progress.step)
            due = every.over(step - saved_step, time.monotonic() - last_saved)
            signal_number, due = stop.agreed(plan.device, due=due)
            if signal_number or due:
                self._save(now())
                saved_step, last_saved = step, time.monotonic()
                if signal_number:
                    raise Interrupted(signal_number, step)
            self.pulse.at(LOADING)
            asked = time.perf_counter()  # what was written and saved meanwhile took time, but nobody waited for it
        if step > saved_step:
            self._save(now())
        self.model.objective.forget_compiled()
        return now()

    def _prepare_backbone(self) -> None:
        """Checkpointing and compiling, where asked for: in train mode only, so that evaluation is not compiled too."""
        training, objective = self.plan.config.training, self.model.objective
        if training.checkpoint_gradients:
            self.plan.backbone.checkpoint_gradients()
        if training.compile:
            objective.compile_backbones()

    def batches(self, start: int) -> Iterator[ViewBatch] | Iterator[FrozenBatch]:
        """This process's share of every step from `start` to the end of the run."""
        return self.feed.batches(start)

    def step(self, step: int, batch: ViewBatch | FrozenBatch) -> StepOutput:
        """One optimiser step, the `step`-th of the run."""
        plan, config = self.plan, self.plan.config
        rate = learning_rate(step, config.optimizer, steps_per_epoch=plan.steps_per_epoch, total_steps=plan.total_steps)
        set_rate(self.optimizer, rate)
        views, index = self.feed.inputs(batch)
        self.model.objective.progress = step / plan.total_steps
        weight = fit_weight(step, config, steps_per_epoch=plan.steps_per_epoch)
        try:
            return self._learn(self.wrapped, views, index, weight, parts=config.training.accumulate)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
        raise self._out_of_memory(
            views, index, weight, reason
        )  # outside the handler, which keeps the failed step's memory

    def _learn(
        self, model: torch.nn.Module, views: torch.Tensor, index: torch.Tensor, weight: float, *, parts: int
    ) -> StepOutput:
        outputs = list[StepOutput]()
        recomputes = self.plan.config.training.checkpoint_gradients
        for part, images in enumerate(zip(views.chunk(parts, 1), index.chunk(parts), strict=True)):
            self.model.objective.update_target = part == 0
            last = part == parts - 1
            # gradients of several processes are averaged once a step
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                output: StepOutput = model(*images, weight)
                with kept_statistics(model) if recomputes else contextlib.nullcontext():
                    self.accelerator.backward(output.total / parts)
            outputs.append(output)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return outputs[0] if parts == 1 else mean_output(outputs)

    def _out_of_memory(self, views: torch.Tensor, index: torch.Tensor, weight: float, reason: str) -> FgsslError:
        """What to say; the run is over, so that trying smaller batches may spoil its weights."""
        batch = self.plan.config.training.batch_size
        problem = f"--batch-size {batch} does not fit into the memory of {self.plan.device}"
        if self.accelerator.num_processes > 1:  # the others wait for this one: no step can be tried
            return TrainingFault(problem, "use a smaller one, a smaller --image-size or more processes")

        def attempt(images: int) -> None:
            self.optimizer.zero_grad(set_to_none=True)
            self._learn(self.model, views[:, :images], index[:images], weight, parts=1)

        images = views.shape[1]
        fits = largest_batch(attempt, -(-images // self.plan.config.training.accumulate))
        remedy = f"not even two images fit ({reason}): use a smaller --image-size or --backbone"
        if fits is not None:
            parts = next(n for n in range(1, images + 1) if images % n == 0 and images // n <= fits)
            remedy = (
                f"{fits} fits (tried): work through it in parts by --accumulate {parts}, or use --batch-size {fits}"
            )
        return TrainingFault(problem, remedy)

    def _note_faults(self, found: dict[int, str], faults: dict[int, str]) -> None:
        for index, reason in found.items():
            if index not in faults:
                faults[index] = reason
                self.reporter.warn(f"replaced by another image ({len(faults)} so far): {reason}")
                check_faults(faults, self.plan)

    def _data(self) -> dict[str, Any]:
        """What the order of images depends on."""
        return {"images": len(self.plan.train), "fingerprint": self.plan.train.fingerprint()}

    def _check_data(self, saved: dict[str, Any] | None, *, allow_changes: bool) -> None:
        """Raises FgsslError where the split has grown or shrunk: every later step would see other images."""
        now = self._data()
        if saved is None or saved == now:
            return
        name = f"{self.plan.train.source}[{self.plan.train.split}]"
        if saved["images"] == now["images"]:
            self.reporter.warn(f"{name} changed since the state was saved: if its pictures did, this is another run")
        elif allow_changes:
            self.reporter.warn(f"{name} has {now['images']} images, {saved['images']} when the state was saved")
        else:
            raise FgsslError(
                f"{name} has {now['images']} images, but {saved['images']} when the state was saved",
                "restore them, start a new run, or go on by --allow-changes",
            )

    def _save(self, progress: Progress) -> None:
        self.log.window.require_finite()
        require_finite(self.model, progress.step)
        window = self.log.window.state()
        randoms, norms = gather_object([random_state()]), gather_object([norm_buffers(self.model)])
        for found in gather_object([dict(progress.faults)]):
            progress.faults.update(found)
        if self.accelerator.is_main_process:
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "progress": progress._asdict(),
                "random": randoms,
                "norms": norms if len(norms) > 1 else [],
                "window": window,
                "last_means": self.log.last_means,
                "watch": self.log.memory(),
                "data": self._data(),
            }
            save_state(self.output, progress.step, state)
        self.pulse.at("waiting for the saved state")  # others are there before the one that writes it
        self.accelerator.wait_for_everyone()
