"""What is said and written of the steps: metrics.jsonl, the progress line, warnings and the label-free signals."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import Accelerator

from fgssl.data.feed import ViewDataset
from fgssl.data.pairs import view_pairs
from fgssl.machine import peak_memory
from fgssl.plan import SIGNAL_IMAGES, Plan
from fgssl.reporting import Reporter, StepReport
from fgssl.runfolder import METRICS_FILE
from fgssl.signals import signals_of
from fgssl.training import LogWindow, PretrainModel, require_finite
from fgssl.watch import Watch

LONG_WAIT = 0.1  # share of the time waiting for data that is worth a hint
SETTLED_STEPS = 100  # before them the queue of batches fills and the disk is read for the first time


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
        views: ViewDataset,
        reporter: Reporter,
    ) -> None:
        self.plan, self.output, self.accelerator, self.reporter = plan, output, accelerator, reporter
        self.model, self.optimizer, self.views = model, optimizer, views
        self.window, self.last_means = LogWindow(), dict[str, float]()
        self.watch = Watch(total_steps=plan.total_steps, stop_on_collapse=plan.config.training.stop_on_collapse)
        self._hinted = False
        self._pairs: torch.Tensor | None = None  # views for the signals, drawn when they are first due

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
        for warning in self.watch.look(step, means, chance=self.model.objective.chance_level()):
            if self.accelerator.is_main_process:
                self.reporter.warn(warning)
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
        self._hint(step - first, means["wait_share"])

    def _hint(self, steps: int, wait_share: float) -> None:
        """Say once what may help where data come too slowly."""
        if self._hinted or wait_share <= LONG_WAIT or steps < SETTLED_STEPS:
            return
        self._hinted, workers = True, self.plan.config.training.workers
        remedy = "leave out --cache off" if self.views.pixels.path is None else f"try more --workers than {workers}"
        self.reporter.warn(f"{100 * wait_share:.0f} % of the time is spent waiting for pictures: {remedy}")

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
