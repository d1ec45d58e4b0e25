"""What is said and written of the steps: metrics.jsonl, the progress line, warnings and the label-free signals."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor

from fgssl.config.schema import filled
from fgssl.data.feed import view_pairs
from fgssl.evaluation.label_free import signals_of
from fgssl.evaluation.metrics import effective_rank, relative_std
from fgssl.objectives.base import gather, is_distributed
from fgssl.runs.folder import METRICS_FILE
from fgssl.runtime.machine import available_cores, peak_memory
from fgssl.runtime.reporting import StepReport
from fgssl.training.collapse import Watch
from fgssl.training.loading_time import IN_PROCESS, LONG_WAIT, Waiting, remedies
from fgssl.training.model import FAULT_REMEDY, NotFinite, StepOutput, require_finite
from fgssl.training.plan import SIGNAL_IMAGES
from fgssl.training.setup import Setup
from fgssl.training.step_feed import StepFeed


class LogWindow:
    """Steps since the last line of metrics: kept on the device, read only when a line is due."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self._rows: list[Tensor] = []
        self._features: Tensor | None = None
        self.seconds = self.waited = 0.0

    def add(self, step: int, output: StepOutput, *, seconds: float, waited: float) -> None:
        """Remember a step without waiting for the device."""
        self.steps.append(step)
        scalars = [output.loss, output.fit, output.target_entropy, output.positive_similarity]
        self._rows.append(torch.stack([value.float() for value in scalars]))
        self._features = output.features
        self.seconds += seconds
        self.waited += waited

    def state(self) -> dict[str, Any]:
        """For a saved run: its next line of metrics must be the mean over the same steps as without a stop."""
        rows = self._all_rows().mean(1).cpu() if self._rows else None
        return {"steps": self.steps, "rows": rows, "seconds": self.seconds, "waited": self.waited}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Undo of `state`."""
        self.steps, self.seconds, self.waited = list(state["steps"]), state["seconds"], state["waited"]
        self._rows = [] if state["rows"] is None else list(state["rows"].to(device))

    def _all_rows(self) -> Tensor:
        """(steps, processes, 4): a fault of one process must stop all at the same step, so that none waits for it."""
        rows = torch.stack(self._rows)
        return gather(rows).reshape(len(rows), -1, rows.shape[1])

    def require_finite(self) -> None:
        """Raises NotFinite naming the first step whose loss or fit is not finite in any process."""
        if self._rows:
            bad = (~torch.isfinite(self._all_rows()[:, :, :2]).all(2)).nonzero().tolist()
            if bad:
                step, process = self.steps[bad[0][0]], bad[0][1]
                where = f" in process {process}" if is_distributed() else ""
                raise NotFinite(f"the loss is not finite since step {step}{where}", FAULT_REMEDY, step=step)

    def means(self) -> dict[str, float]:
        """Means over the window, and what the last batch's features tell of a collapse."""
        loss, fit, entropy, similarity = self._all_rows().mean(1).mean(0).tolist()
        assert self._features is not None
        features = gather(self._features).cpu()
        times = self._rows[0].new_tensor([[self.waited, max(self.seconds, 1e-9)]])
        return {
            "loss": loss,
            "fit": fit,
            "target_entropy": entropy,
            "positive_similarity": similarity,
            "effective_rank": effective_rank(features),
            "feature_std": relative_std(features),
            "wait_share": float(torch.div(*gather(times).unbind(1)).max()),  # of the process that waits longest
        }


class StepLog:
    """The log of one process; every process takes part in the means, the main one writes."""

    def __init__(self, setup: Setup, feed: StepFeed) -> None:
        self.setup, self.plan = setup, setup.plan
        self.window, self.last_means = LogWindow(), dict[str, float]()  # steps since the last line, and its numbers
        training = self.plan.config.training
        self.watch = Watch(total_steps=self.plan.total_steps, stop_on_collapse=training.stop_on_collapse)
        cores = max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        size = self.plan.backbone.image_size
        found = remedies(training, setup.views.pixels, workers=feed.workers, cores=cores, image_size=size)
        self.waiting = Waiting(found, least=IN_PROCESS if feed.in_process else LONG_WAIT)
        self._pairs: Tensor | None = None  # views for the signals, drawn when they are first due

    def state(self) -> dict[str, Any]:
        """What a saved run must know of the log; every process takes part."""
        memory = {**self.watch.state(), "waiting_said": sorted(self.waiting.said)}
        return {"window": self.window.state(), "last_means": self.last_means, "watch": memory}

    def restore(self, state: dict[str, Any]) -> None:
        """Undo of `state`; what an older one lacks stays as in a new run."""
        self.window.restore(state["window"], self.plan.device)
        self.last_means = state["last_means"]
        memory = state.get("watch", {})
        self.watch.restore(memory)
        self.waiting.said = set(memory.get("waiting_said", ()))

    def warn_of(self, *warnings: str) -> None:
        """Said by the main process, for all came to the same judgement; empty ones are not."""
        for warning in filter(None, warnings):
            if self.setup.is_main:
                self.setup.reporter.warn(warning)

    def write(self, step: int, seconds: float, first: int) -> None:
        """Log the window that ends with `step`, `seconds` after this process began at `first`; begin the next.

        Raises NotFinite for a loss, TrainingFault for a collapse that shall stop the run.
        """
        window = self.window
        window.require_finite()
        means = window.means()  # over all processes: each must ask, and each comes to the same judgement
        steps, share = len(window.steps), means["wait_share"]
        self.warn_of(*self.watch.look(step, means, chance=self.setup.model.objective.chance_level()))
        self.warn_of(self.waiting.look(step - first, steps=steps, seconds=window.seconds, share=share))
        if self.setup.is_main:
            signals = self._signals(step)
            self.last_means = {**means, **signals}
            self._write_line(self._report(step, seconds / (step - first), means), means, signals)
        self.window = LogWindow()

    def _report(self, step: int, step_seconds: float, means: dict[str, float]) -> StepReport:
        plan, window, fits = self.plan, self.window, self.plan.config.rationale.enabled
        images = len(window.steps) * filled(plan.config.training.batch_size)
        return StepReport(
            epoch=(step - 1) // plan.steps_per_epoch + 1,
            epochs=-(-plan.total_steps // plan.steps_per_epoch),
            step=step,
            total_steps=plan.total_steps,
            loss=means["loss"],
            chance=self.setup.model.objective.chance_level(),
            fit=means["fit"] if fits else None,
            target_entropy=means["target_entropy"] if fits else None,
            effective_rank=means["effective_rank"],
            feature_std=means["feature_std"],
            images_per_second=images / max(window.seconds, 1e-9),
            wait_share=means["wait_share"],
            seconds_left=step_seconds * (plan.total_steps - step),
        )

    def _write_line(self, report: StepReport, means: dict[str, float], signals: dict[str, float]) -> None:
        row = {
            **report._asdict(),
            "positive_similarity": means["positive_similarity"],
            "lr": self.setup.rate(),
            "peak_memory_gb": peak_memory(self.plan.device),
            **signals,
        }
        with (self.setup.output / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.setup.reporter.step(report)

    def _signals(self, step: int) -> dict[str, float]:
        """The label-free signals as entries of the log, where the window just logged holds a step they are due at."""
        every, model = self.plan.config.training.signals_every, self.setup.model
        last = step == self.plan.total_steps
        if not every or not (last or step // every > (step - len(self.window.steps)) // every):
            return {}
        require_finite(model, step)
        if self._pairs is None:
            self._pairs = view_pairs(self.setup.views, SIGNAL_IMAGES)
        images = self._pairs.shape[1]
        if images < 2:
            return {}
        with self.setup.accelerator.autocast():
            found = signals_of(model.encoder, self._pairs)
        self.setup.reporter.note(f"step {step}: {images} training images in two views: {found.in_words()}")
        return {f"sample_{name}": value for name, value in found._asdict().items()}
