"""What is said and written of the steps: metrics.jsonl, the progress line, warnings and the label-free signals."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from fgssl.data.feed.views import view_pairs
from fgssl.evaluation.label_free import signals_of
from fgssl.runs.folder import METRICS_FILE
from fgssl.runtime.machine import available_cores, peak_memory
from fgssl.runtime.reporting import Reporter, StepReport
from fgssl.training.collapse import Watch
from fgssl.training.loading_time import IN_PROCESS, LONG_WAIT, Waiting, remedies
from fgssl.training.model import LogWindow, PretrainModel, require_finite
from fgssl.training.plan import SIGNAL_IMAGES, Plan
from fgssl.training.step_feed import StepFeed


class StepLog:
    """The log of one process; every process takes part in the means, the main one writes.

    Attributes:
        window: The steps since the last line.
        last_means: The newest line's numbers.
    """

    def __init__(
        self,
        plan: Plan,
        output: Path,
        accelerator: Accelerator,
        model: PretrainModel,
        optimizer: torch.optim.Optimizer,
        feed: StepFeed,
        reporter: Reporter,
    ) -> None:
        self.plan, self.output, self.accelerator, self.reporter = plan, output, accelerator, reporter
        self.model, self.optimizer, self.views = model, optimizer, feed.views
        self.window, self.last_means = LogWindow(), dict[str, float]()
        self.watch = Watch(total_steps=plan.total_steps, stop_on_collapse=plan.config.training.stop_on_collapse)
        self.waiting = Waiting(self._remedies(feed), least=IN_PROCESS if feed.in_process else LONG_WAIT)
        self._pairs: torch.Tensor | None = None  # views for the signals, drawn when they are first due

    def memory(self) -> dict[str, Any]:
        """What the log has seen and said, for a saved run."""
        return {**self.watch.state(), "waiting_said": sorted(self.waiting.said)}

    def remember(self, memory: dict[str, Any]) -> None:
        """Undo of `memory`; what it lacks stays as in a new run."""
        self.watch.restore(memory)
        self.waiting.said = set(memory.get("waiting_said", ()))

    def warn_of(self, *warnings: str) -> None:
        """Said by the main process, for all came to the same judgement; empty ones are not."""
        for warning in filter(None, warnings):
            if self.accelerator.is_main_process:
                self.reporter.warn(warning)

    def write(self, step: int, seconds: float, first: int) -> None:
        """Log the window that ends with `step`, and begin the next.

        Args:
            step: Done so far.
            seconds: Since this process began or resumed the run.
            first: Steps done before that.

        Raises:
            NotFinite: a loss of the window is not finite.
            TrainingFault: the features collapsed, where that shall stop the run.
        """
        self.window.require_finite()
        self._write(step, seconds, first)
        self.window = LogWindow()

    def _write(self, step: int, seconds: float, first: int) -> None:
        plan, config, window = self.plan, self.plan.config, self.window
        means = window.means()  # over all processes: each must ask, and each comes to the same judgement
        self.warn_of(*self.watch.look(step, means, chance=self.model.objective.chance_level()))
        self.warn_of(
            self.waiting.look(step - first, steps=len(window.steps), seconds=window.seconds, share=means["wait_share"])
        )
        if not self.accelerator.is_main_process:
            return
        signals = self._signals(step)
        self.last_means = {**means, **signals}
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
            feature_std=means["feature_std"],
            images_per_second=speed,
            wait_share=means["wait_share"],
            seconds_left=seconds / (step - first) * (plan.total_steps - step),
        )
        row = {
            **report._asdict(),
            "positive_similarity": means["positive_similarity"],
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "peak_memory_gb": peak_memory(plan.device),
            **signals,
        }
        with (self.output / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.reporter.step(report)

    def _remedies(self, feed: StepFeed) -> list[str]:
        cores = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        settings, size = self.plan.config.training, self.plan.backbone.image_size
        return remedies(settings, feed.views.pixels, workers=feed.workers, cores=max(1, cores), image_size=size)

    def _signals(self, step: int) -> dict[str, float]:
        """The label-free signals as entries of the log, where the window just logged holds a step they are due at."""
        every = self.plan.config.training.signals_every
        last = step == self.plan.total_steps
        if not every or not (last or step // every > (step - len(self.window.steps)) // every):
            return {}
        require_finite(self.model, step)
        if self._pairs is None:
            self._pairs = view_pairs(self.views, SIGNAL_IMAGES)
        images = self._pairs.shape[1]
        if images < 2:
            return {}
        with self.accelerator.autocast():
            found = signals_of(self.model.encoder, self._pairs)
        self.reporter.note(f"step {step}: {images} training images in two views: {found.in_words()}")
        return {f"sample_{name}": value for name, value in found._asdict().items()}
