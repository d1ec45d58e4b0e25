"""The steps of one process of a run, with their saved states; `fgssl.training.pretrain` does the rest."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object

from fgssl.backbones.module import kept_statistics, norm_buffers
from fgssl.config.interval import Interval, interval
from fgssl.data.feed import ViewBatch
from fgssl.encoder import Encoder
from fgssl.errors import FgsslError
from fgssl.runs.resume_state import Loaded, random_state, restore_random_state, save_state
from fgssl.runtime.machine import is_out_of_memory
from fgssl.runtime.stopping import Interrupted, StopRequest
from fgssl.training.failed_step import out_of_memory, with_its_images
from fgssl.training.frozen_maps import FrozenBatch
from fgssl.training.log import StepLog
from fgssl.training.model import NotFinite, StepOutput, fit_weight, mean_output, require_finite
from fgssl.training.optimizer import learning_rate, set_rate
from fgssl.training.setup import Setup, check_faults
from fgssl.training.step_feed import StepFeed

LOADING = "waiting for pictures"


class Progress(NamedTuple):
    """What a resumed run must know beside the weights."""

    step: int  # done so far
    seconds: float
    initial_rows: list[dict[str, Any]]  # retrieval of the untrained encoder
    faults: dict[int, str]  # unreadable training images and why


class Trainer:
    """The steps of one process: `batches` feeds, `step` learns from one, `train` is the loop around them."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.plan, self.views = setup, setup.plan, setup.views
        self.model, self.wrapped, self.optimizer = setup.model, setup.wrapped, setup.optimizer
        self.feed = StepFeed(setup)
        self.log = StepLog(setup, self.feed)

    def restore(self, saved: Loaded, *, allow_changes: bool = False) -> Progress:
        """Take over a saved state: weights, queue, optimiser, randomness.

        Raises FgsslError where the model has other sizes, or the split other images, than when it was saved.
        """
        state, accelerator = saved.state, self.setup.accelerator
        for warning in saved.warnings:
            self.setup.reporter.warn(warning)
        self._check_data(state.get("data"), allow_changes=allow_changes)
        with self._must_fit("the saved state"):
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        randoms = state["random"]  # of the processes there were then
        restore_random_state(randoms[accelerator.process_index % len(randoms)])
        norms = state.get("norms", [])  # every process averages over its own images
        if len(norms) == accelerator.num_processes:
            self.model.load_state_dict(norms[accelerator.process_index], strict=False)
        progress = Progress(**state["progress"])
        self.log.restore(state)
        done = progress.step >= self.plan.total_steps
        what = "already trained: writing the results again," if done else "resuming"
        self.setup.reporter.note(f"{what} after step {progress.step} of {self.plan.total_steps}")
        self._note_schedule(progress.step, state.get("total_steps"))
        return progress

    def go_on(self, encoder: Encoder, summary: dict[str, Any]) -> Progress:
        """Take over a finished run whose saved states are gone: encoder and heads; all else begins anew.

        Raises FgsslError where they do not fit the settings.
        """
        found, own = encoder.state_dict(), self.model.encoder.state_dict()
        with self._must_fit("the finished run"):
            self.model.encoder.load_state_dict({key: value for key, value in found.items() if key in own})
        self.model.objective.restart()
        self.log.last_means = dict(summary["last"])
        initial = [row for row in summary["retrieval"] if row["encoder"] == "init"]
        self.setup.reporter.note(
            "the saved states of the finished run are gone (training.keep_states keeps them): going on from its "
            "encoder and heads; the optimiser's averages, keys and the encoder that follows begin anew"
        )
        self._note_schedule(summary["steps"], summary["total_steps"])
        return Progress(summary["steps"], summary["train_seconds"], initial, {})

    def _note_schedule(self, step: int, planned: int | None) -> None:
        """Say what the learning rate does where the run is now longer or shorter than planned when it was saved."""
        plan, config = self.plan, self.plan.config.optimizer
        if planned is None or planned == plan.total_steps or step >= plan.total_steps:
            return
        before, after = (
            learning_rate(step, config, steps_per_epoch=plan.steps_per_epoch, total_steps=total)
            for total in (planned, plan.total_steps)
        )
        self.setup.reporter.note(
            f"after step {step} the schedule is that of a run of {plan.total_steps} steps, not {planned}: "
            f"the learning rate goes on at {after:.3g} instead of {before:.3g}, and falls to 0 by half a cosine"
        )

    @contextlib.contextmanager
    def _must_fit(self, what: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise FgsslError(
                f"{what} does not fit this run: its model or optimiser had other parts",
                f"start a new run with --init {self.setup.output}",
            ) from error

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
            if not self.setup.is_main:
                raise
            raise with_its_images(self.setup, fault) from fault

    def _train(self, begun: Progress, stop: StopRequest) -> Progress:
        training, detector = self.plan.config.training, self.setup.detector
        self.model.train()
        self._prepare_backbone()
        progress, faults = begun, dict(begun.faults)
        started = last_saved = time.monotonic()
        saved_step = begun.step
        mark = asked = time.perf_counter()
        every = interval(training.save_every) or Interval(None, 600.0)
        batches = self.batches(begun.step)
        self._note_faults(self.views.pixels.faults, faults)
        detector.at(LOADING)
        for batch in batches:
            arrived = time.perf_counter()
            detector.at("computing a step")
            self._note_faults({fault.index: fault.reason for fault in batch.faults}, faults)
            output = self.step(progress.step, batch)
            step, seconds = progress.step + 1, time.monotonic() - started
            progress = Progress(step, begun.seconds + seconds, begun.initial_rows, faults)
            done = time.perf_counter()
            self.log.window.add(step, output, seconds=done - mark, waited=arrived - asked)
            mark = done
            detector.at("writing to the run folder")
            if step % training.log_every == 0 or step == self.plan.total_steps:
                self.log.write(step, seconds, begun.step)
            due = every.over(step - saved_step, time.monotonic() - last_saved)
            signal_number, due = stop.agreed(self.plan.device, due=due)
            if signal_number or due:
                self._save(progress)
                saved_step, last_saved = step, time.monotonic()
                if signal_number:
                    raise Interrupted(signal_number, step)
            detector.at(LOADING)
            asked = time.perf_counter()  # what was written and saved meanwhile took time, but nobody waited for it
        if progress.step > saved_step:
            self._save(progress)
        self.model.objective.forget_compiled()
        return progress

    def _prepare_backbone(self) -> None:
        """Checkpointing and compiling, where asked for: in train mode only, so that evaluation is not compiled too."""
        if self.plan.config.training.checkpoint_gradients:
            self.plan.backbone.checkpoint_gradients()
        if self.plan.config.training.compile:
            self.model.objective.compile_backbones()

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

        def attempt(images: int) -> None:
            self.optimizer.zero_grad(set_to_none=True)
            self._learn(self.model, views[:, :images], index[:images], weight, parts=1)

        # outside the handler, which keeps the failed step's memory
        raise out_of_memory(self.setup, attempt, views.shape[1], reason)

    def _learn(
        self, model: torch.nn.Module, views: torch.Tensor, index: torch.Tensor, weight: float, *, parts: int
    ) -> StepOutput:
        outputs, accelerator = list[StepOutput](), self.setup.accelerator
        recomputes = self.plan.config.training.checkpoint_gradients
        for part, images in enumerate(zip(views.chunk(parts, 1), index.chunk(parts), strict=True)):
            self.model.objective.update_target = part == 0
            last = part == parts - 1
            # gradients of several processes are averaged once a step
            with contextlib.nullcontext() if last else accelerator.no_sync(self.wrapped):
                output: StepOutput = model(*images, weight)
                with kept_statistics(model) if recomputes else contextlib.nullcontext():
                    accelerator.backward(output.total / parts)
            outputs.append(output)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return outputs[0] if parts == 1 else mean_output(outputs)

    def _note_faults(self, found: dict[int, str], faults: dict[int, str]) -> None:
        for index, reason in found.items():
            if index not in faults:
                faults[index] = reason
                self.setup.reporter.warn(f"replaced by another image ({len(faults)} so far): {reason}")
                check_faults(faults, self.plan)

    def _data(self) -> dict[str, Any]:
        """What the order of images depends on."""
        return {"images": len(self.plan.train), "fingerprint": self.plan.train.fingerprint()}

    def _check_data(self, saved: dict[str, Any] | None, *, allow_changes: bool) -> None:
        """Raises FgsslError where the split has grown or shrunk: every later step would see other images."""
        now, warn = self._data(), self.setup.reporter.warn
        if saved is None or saved == now:
            return
        name = f"{self.plan.train.source}[{self.plan.train.split}]"
        if saved["images"] == now["images"]:
            warn(f"{name} changed since the state was saved: if its pictures did, this is another run")
        elif allow_changes:
            warn(f"{name} has {now['images']} images, {saved['images']} when the state was saved")
        else:
            raise FgsslError(
                f"{name} has {now['images']} images, but {saved['images']} when the state was saved",
                "restore them, start a new run, or go on by --allow-changes",
            )

    def _save(self, progress: Progress) -> None:
        self.log.window.require_finite()
        require_finite(self.model, progress.step)
        log = self.log.state()
        randoms, norms = gather_object([random_state()]), gather_object([norm_buffers(self.model)])
        for found in gather_object([dict(progress.faults)]):
            progress.faults.update(found)
        if self.setup.is_main:
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "progress": progress._asdict(),
                "random": randoms,
                "norms": norms if len(norms) > 1 else [],
                **log,
                "data": self._data(),
                "total_steps": self.plan.total_steps,
            }
            save_state(self.setup.output, progress.step, state)
        self.setup.detector.at("waiting for the saved state")  # others are there before the one that writes it
        self.setup.accelerator.wait_for_everyone()
