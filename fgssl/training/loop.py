"""The steps of one process of a run, with their saved states; `fgssl.training.pretrain` does the rest."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from fgssl.backbones.module import kept_statistics, norm_buffers
from fgssl.config.schema import filled
from fgssl.config.values import Interval, interval
from fgssl.data.feed import ViewBatch
from fgssl.encoder import Encoder
from fgssl.errors import FgsslError, TrainingFault
from fgssl.runs.resume_state import Loaded, random_state, restore_random_state, save_state
from fgssl.runtime.machine import is_out_of_memory, largest_batch
from fgssl.runtime.processes import Interrupted, StopRequest
from fgssl.training.diagnosis import largest_settings
from fgssl.training.feed import FrozenBatch, StepFeed
from fgssl.training.log import StepLog
from fgssl.training.model import StepOutput, fit_weight, learning_rate, require_finite, set_rate
from fgssl.training.setup import Setup, check_faults

LOADING = "waiting for pictures"


class Progress(NamedTuple):
    """What a resumed run must know beside the weights."""

    step: int  # done so far
    seconds: float
    initial_rows: list[dict[str, Any]]  # retrieval of the untrained encoder
    faults: dict[int, str]  # unreadable training images and why


class Trainer:
    """The steps of one process: `step` learns from a batch of the feed, `train` is the loop around them."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.plan, self.views = setup, setup.plan, setup.views
        self.model, self.wrapped, self.optimizer = setup.model, setup.wrapped, setup.optimizer
        self.feed = StepFeed(setup)
        self.batches, self.log = self.feed.batches, StepLog(setup, self.feed)
        self.heads_alone = False  # in this step
        self._data = {"images": len(self.plan.train), "fingerprint": self.plan.train.fingerprint()}  # orders the images

    def restore(self, saved: Loaded, *, allow_changes: bool = False) -> Progress:
        """Take over a saved state, or raise FgsslError where the model has other sizes, or the split other images."""
        state, rank, world = saved.state, self.setup.accelerator.process_index, self.setup.accelerator.num_processes
        for warning in saved.warnings:
            self.setup.reporter.warn(warning)
        self._check_data(state.get("data") or self._data, allow_changes=allow_changes)
        with self._must_fit("the saved state"):
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        restore_random_state(state["random"][rank % len(state["random"])])  # of the processes there were then
        if (scaler := self.setup.accelerator.scaler) is not None and "scaler" in state:
            scaler.load_state_dict(state["scaler"])
        norms = state.get("norms", [])  # every process averages over its own images
        if len(norms) == world:
            self.model.load_state_dict(norms[rank], strict=False)
        progress, total = Progress(**state["progress"]), self.plan.total_steps
        self.log.restore(state)
        self.feed.places.restore(state.get("places", {}))
        what = "resuming" if progress.step < total else "already trained: writing the results again,"
        self.setup.reporter.note(f"{what} after step {progress.step} of {total}")
        self._note_schedule(progress.step, state.get("total_steps"))
        return progress

    def go_on(self, encoder: Encoder, summary: dict[str, Any]) -> Progress:
        """Take over encoder and heads of a finished run whose saved states are gone; all else begins anew."""
        own = self.model.encoder.state_dict()
        kept = {key: value for key, value in own.items() if ".lora." in key}  # those of the run are in its weights
        with self._must_fit("the finished run"):
            found = {key: value for key, value in encoder.state_dict().items() if key in own}
            self.model.encoder.load_state_dict(kept | found)
        self.model.objective.restart()
        self.log.last_means = dict(summary["last"])
        self.log.signals.recall(summary)
        initial = [row for row in summary["retrieval"] if row["encoder"] == "init"]
        gone = "the saved states of the finished run are gone (training.keep_states keeps them)"
        anew = "the optimiser's averages, keys and the encoder that follows begin anew"
        self.setup.reporter.note(f"{gone}: going on from its encoder and heads; {anew}")
        self._note_schedule(summary["steps"], summary["total_steps"])
        return Progress(summary["steps"], summary["train_seconds"], initial, {})

    def _note_schedule(self, step: int, planned: int | None) -> None:
        plan, config = self.plan, self.plan.config.optimizer
        if planned is None or planned == plan.total_steps or step >= plan.total_steps:
            return
        rate = functools.partial(learning_rate, step, config, steps_per_epoch=plan.steps_per_epoch)
        before, after = rate(total_steps=planned), rate(total_steps=plan.total_steps)
        goes_on = f"goes on at {after:.3g} instead of {before:.3g}, and falls to 0 by half a cosine"
        other = f"after step {step} the schedule is that of a run of {plan.total_steps} steps, not {planned}"
        self.setup.reporter.note(f"{other}: the learning rate {goes_on}")

    @contextlib.contextmanager
    def _must_fit(self, what: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            problem = f"{what} does not fit this run: its model or optimiser had other parts"
            raise FgsslError(problem, f"start a new run with --init {self.setup.output}") from error

    def train(self, begun: Progress, stop: StopRequest) -> Progress:
        """All remaining steps; TrainingFault for loss, memory or collapse, Interrupted for a stop signal."""
        self.log.warn_of(self.log.watch.look_at_rate(self.plan.config.optimizer))
        training, detector = self.plan.config.training, self.setup.detector
        self.model.train()  # checkpointing and compiling in this mode only, so that evaluation is not compiled too
        self.prepare_backbone()
        progress, faults = begun, dict(begun.faults)
        started = last_saved = time.monotonic()
        mark = asked = time.perf_counter()
        saved_step, every = begun.step, interval(training.save_every) or Interval(None, 600.0)
        batches = self.batches(begun.step)
        self._note_faults(self.views.pixels.faults, faults)
        detector.at(LOADING)
        for batch in batches:
            arrived, asked = time.perf_counter(), asked + self.feed.places.took()
            detector.at("computing a step")
            self._note_faults({fault.index: fault.reason for fault in batch.faults}, faults)
            output = self.step(progress.step, batch)
            step, seconds = progress.step + 1, time.monotonic() - started
            progress = Progress(step, begun.seconds + seconds, begun.initial_rows, faults)
            done = time.perf_counter()
            self.log.window.add(step, output, seconds=done - mark, waited=arrived - asked, computed=done - arrived)
            mark = done
            detector.at("writing to the run folder")
            if step % filled(training.log_every) == 0 or step == self.plan.total_steps:
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

    def prepare_backbone(self) -> None:
        """Checkpointing and compiling, where they are asked for."""
        if self.plan.config.training.checkpoint_gradients:
            self.plan.backbone.checkpoint_gradients()
        if self.plan.config.training.compile:
            self.model.objective.compile_backbones()

    def step(self, step: int, batch: ViewBatch | FrozenBatch) -> StepOutput:
        plan, config = self.plan, self.plan.config
        rate = learning_rate(step, config.optimizer, steps_per_epoch=plan.steps_per_epoch, total_steps=plan.total_steps)
        set_rate(self.optimizer, rate)
        (views, index), local = self.feed.inputs(batch), self.feed.local(batch)
        self.model.objective.progress = step / plan.total_steps
        weight = fit_weight(step, config, steps_per_epoch=plan.steps_per_epoch)
        self.heads_alone = step < config.training.head_epochs * plan.steps_per_epoch
        try:
            return self._learn(self.wrapped, views, index, weight, local, parts=config.training.accumulate)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]

        def attempt(images: int) -> None:
            self.optimizer.zero_grad(set_to_none=True)
            few = None if local is None else local[:, :images]
            self._learn(self.model, views[:, :images], index[:images], weight, few, parts=1)

        # outside the handler, which keeps the failed step's memory
        raise self._out_of_memory(attempt, views.shape[1], reason)

    def _learn(
        self, model: nn.Module, views: Tensor, index: Tensor, weight: float, local: Tensor | None, *, parts: int
    ) -> StepOutput:
        outputs, accelerator = list[StepOutput](), self.setup.accelerator
        recomputes = self.plan.config.training.checkpoint_gradients
        small = [None] * parts if local is None else local.chunk(parts, 1)
        for part, images in enumerate(zip(views.chunk(parts, 1), index.chunk(parts), strict=True)):
            self.model.objective.update_target = part == 0
            # gradients of several processes are averaged once a step
            with contextlib.nullcontext() if part == parts - 1 else accelerator.no_sync(self.wrapped):
                output: StepOutput = model(*images, weight, small[part])
                with kept_statistics(model) if recomputes else contextlib.nullcontext():
                    accelerator.backward(output.total / parts)
            outputs.append(output)
        if self.heads_alone:
            self._rest_backbone()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if parts == 1:
            return outputs[0]
        means = [torch.stack(values).mean() for values in zip(*(output[:-1] for output in outputs), strict=True)]
        return StepOutput._make([*means, torch.cat([output.features for output in outputs])])

    def _rest_backbone(self) -> None:
        """Weights without a gradient are passed over, with decay and averages (Kumar et al. 2022, LP-FT)."""
        for parameter in self.plan.backbone.parameters():
            if parameter.grad is not None and self.plan.config.optimizer.name == "sgd":
                # torch's fused kernel wants a momentum of all or none; from zeros its first step is the same
                self.optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
            parameter.grad = None

    def _out_of_memory(self, attempt: Callable[[int], None], images: int, reason: str) -> TrainingFault:
        """What to say where a step did not fit; `attempt` takes one with so many images, and may spoil the weights."""
        training, device = self.plan.config.training, self.plan.device
        problem = f"--batch-size {training.batch_size} does not fit into the memory of {device}"
        if self.setup.accelerator.num_processes > 1:  # the others wait for this one: no step can be tried
            return TrainingFault(problem, "use a smaller one, a smaller --image-size or more processes")
        fits = largest_batch(attempt, -(-images // training.accumulate))
        if fits is None:
            smaller = ", ".join(filter(None, (largest_settings(self.plan.needs, device), "--image-size or --backbone")))
            return TrainingFault(problem, f"not even two images fit ({reason}): use a smaller {smaller}")
        parts = next(n for n in range(1, images + 1) if images % n == 0 and images // n <= fits)
        remedy = f"{fits} fits (tried): work through it in parts by --accumulate {parts}, or use --batch-size {fits}"
        return TrainingFault(problem, remedy)

    def _note_faults(self, found: dict[int, str], faults: dict[int, str]) -> None:
        for index, reason in found.items():
            if index not in faults:
                faults[index] = reason
                self.setup.reporter.warn(f"replaced by another image ({len(faults)} so far): {reason}")
                check_faults(faults, self.plan)

    def _check_data(self, saved: dict[str, Any], *, allow_changes: bool) -> None:
        """Raises FgsslError where the split has grown or shrunk: every later step would see other images."""
        images, before = self.plan.train, saved["images"]
        problem = f"has {len(images)} images, but {before} when the state was saved"
        if before == len(images):
            problem = "changed since the state was saved: if its pictures did, this is another run"
        elif not allow_changes:
            remedy = "restore them, start a new run, or go on by --allow-changes"
            raise FgsslError(f"{images.source}[{images.split}] {problem}", remedy)
        if saved != self._data:
            self.setup.reporter.warn(f"{images.source}[{images.split}] {problem}")

    def _save(self, progress: Progress) -> None:
        self.log.require_finite()
        require_finite(self.model, progress.step)
        log = self.log.state()
        randoms, norms = gather_object([random_state()]), gather_object([norm_buffers(self.model)])
        for found in gather_object([dict(progress.faults)]):
            progress.faults.update(found)
        if self.setup.is_main:
            state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "random": randoms}
            state |= {"progress": progress._asdict(), "norms": norms if len(norms) > 1 else [], **log}
            state |= {"data": self._data, "total_steps": self.plan.total_steps, **self.feed.places.state()}
            if (scaler := self.setup.accelerator.scaler) is not None:  # of fp16: begun anew, it would skip steps
                state["scaler"] = scaler.state_dict()
            save_state(self.setup.output, progress.step, state)
        self.setup.detector.at("waiting for the saved state")  # others are there before the one that writes it
        self.setup.accelerator.wait_for_everyone()
