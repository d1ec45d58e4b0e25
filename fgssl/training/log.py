"""What is said, written and kept of the steps: metrics.jsonl, progress, warnings, signals, and a step gone wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fgssl.config.schema import filled
from fgssl.errors import FgsslError, TrainingFault
from fgssl.evaluation.metrics import effective_rank, relative_std
from fgssl.objectives.base import gather, is_distributed
from fgssl.runs.folder import METRICS_FILE
from fgssl.runtime.files import atomic_path, write_text
from fgssl.runtime.machine import available_cores, peak_memory
from fgssl.runtime.reporting import StepReport
from fgssl.training.diagnosis import IN_PROCESS, LONG_WAIT, Slowness, Waiting, Watch, remedies
from fgssl.training.feed import StepFeed
from fgssl.training.model import FAULT_REMEDY, StepOutput, require_finite
from fgssl.training.setup import Setup
from fgssl.training.signals import RunSignals
from fgssl.training.trackers import Trackers

CPU = torch.device("cpu")


class LogWindow:
    """Steps since the last line of metrics: kept on the device, read only when a line is due."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self._rows: list[Tensor] = []
        self._features: Tensor | None = None
        self.seconds = self.waited = 0.0
        self.computed: list[float] = []  # seconds of each step that this process took, without waiting and writing

    def add(self, step: int, output: StepOutput, *, seconds: float, waited: float, computed: float = 0.0) -> None:
        self.steps.append(step)
        scalars = [output.loss, output.fit, output.target_entropy, output.positive_similarity]
        self._rows.append(torch.stack([value.float() for value in scalars]))
        self._features = output.features
        self.seconds += seconds
        self.waited += waited
        self.computed.append(computed)

    def state(self) -> dict[str, Any]:
        """The means over the processes, for a saved run; every process takes part."""
        rows = self._all_rows().mean(1).cpu() if self._rows else None
        return {"steps": self.steps, "rows": rows, "seconds": self.seconds, "waited": self.waited}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        self.steps, self.seconds, self.waited = list(state["steps"]), state["seconds"], state["waited"]
        self._rows = [] if state["rows"] is None else list(state["rows"].to(device))

    def _all_rows(self) -> Tensor:
        """(steps, processes, 4): a fault of one process must stop all at the same step, so that none waits for it."""
        rows = torch.stack(self._rows)
        return gather(rows).reshape(len(rows), -1, rows.shape[1])

    def first_fault(self) -> tuple[int, int] | None:
        """The first step whose loss or fit is not finite in any process, and which process that is."""
        bad = (~torch.isfinite(self._all_rows()[:, :, :2]).all(2)).nonzero().tolist() if self._rows else []
        return (self.steps[bad[0][0]], bad[0][1]) if bad else None

    def means(self) -> dict[str, float]:
        """Means over the window, and what the last batch's features tell of a collapse."""
        names = ("loss", "fit", "target_entropy", "positive_similarity")
        means = dict(zip(names, self._all_rows().mean(1).mean(0).tolist(), strict=True))
        assert self._features is not None
        features = gather(self._features).cpu()
        times = self._rows[0].new_tensor([[self.waited, max(self.seconds, 1e-9)]])
        waited = float(torch.div(*gather(times).unbind(1)).max())  # of the process that waits longest
        spread = {"effective_rank": effective_rank(features), "feature_std": relative_std(features)}
        return {**means, **spread, "wait_share": waited}


class StepLog:
    """The log of one process; every process takes part in the means, the main one writes."""

    def __init__(self, setup: Setup, feed: StepFeed) -> None:
        self.setup, self.plan, self.feed = setup, setup.plan, feed
        self.window, self.last_means = LogWindow(), dict[str, float]()  # steps since the last line, and its numbers
        training = self.plan.config.training
        self.watch = Watch(total_steps=self.plan.total_steps, stop_on_collapse=training.stop_on_collapse)
        cores = max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        size = self.plan.backbone.image_size
        found = remedies(training, setup.views.pixels, workers=feed.workers, cores=cores, image_size=size)
        self.slowness = Slowness(self.plan.config.training, setup.output)
        self.waiting = Waiting(found, least=IN_PROCESS if feed.in_process else LONG_WAIT)
        self.signals = RunSignals(setup)
        self.trackers = Trackers(self.plan.config, setup.output, setup.reporter)

    def state(self) -> dict[str, Any]:
        memory = {**self.watch.state(), "waiting_said": sorted(self.waiting.said)}
        told = {"last_means": self.last_means, "watch": memory, "start_signals": self.signals.state()}
        return {"window": self.window.state(), **told}

    def restore(self, state: dict[str, Any]) -> None:
        self.window.restore(state["window"], self.plan.device)
        self.last_means, memory = state["last_means"], state.get("watch", {})
        self.watch.restore(memory)
        self.signals.restore(state.get("start_signals"))
        self.waiting.said = set(memory.get("waiting_said", ()))

    def warn_of(self, *warnings: str) -> None:
        """Said by the main process, for all came to the same judgement; empty ones are not."""
        for warning in filter(None, warnings if self.setup.is_main else ()):
            self.setup.reporter.warn(warning)

    def write(self, step: int, seconds: float, first: int) -> None:
        """Log the window that ends with `step`, `seconds` after this process began at `first`; begin the next."""
        self.require_finite()
        window = self.window
        means = window.means()  # over all processes: each must ask, and each comes to the same judgement
        steps, share = len(window.steps), means["wait_share"]
        self.warn_of(*self.watch.look(step, means, chance=self.setup.model.objective.chance_level()))
        self.warn_of(self.waiting.look(step - first, steps=steps, seconds=window.seconds, share=share))
        if self.plan.device.type == "cpu" and self.setup.is_main:
            self.warn_of(self.slowness.look(window.computed))
        if self.setup.is_main:
            self._write_line(step, seconds / (step - first), means)
        self.window = LogWindow()

    def _write_line(self, step: int, step_seconds: float, means: dict[str, float]) -> None:
        signals = self._signals(step)
        self.last_means = {**means, **signals}
        plan, fits = self.plan, self.plan.config.rationale.enabled
        images = len(self.window.steps) * filled(plan.config.training.batch_size)
        told: dict[str, Any] = {**means, **({} if fits else {"fit": None, "target_entropy": None})}
        similarity = told.pop("positive_similarity")
        report = StepReport(
            epoch=(step - 1) // plan.steps_per_epoch + 1,
            epochs=-(-plan.total_steps // plan.steps_per_epoch),
            step=step,
            total_steps=plan.total_steps,
            chance=self.setup.model.objective.chance_level(),
            images_per_second=images / max(self.window.seconds, 1e-9),
            seconds_left=step_seconds * (plan.total_steps - step),
            **told,
        )
        row = {**report._asdict(), "positive_similarity": similarity, "lr": self.setup.rate()}
        row |= {"peak_memory_gb": peak_memory(plan.device), **signals}
        with (self.setup.output / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.trackers.log(row, step)
        self.setup.reporter.step(report)

    def _signals(self, step: int) -> dict[str, float]:
        every, model = self.plan.config.training.signals_every, self.setup.model
        last = step == self.plan.total_steps
        if not every or not (last or step // every > (step - len(self.window.steps)) // every):
            return {}
        require_finite(model, step)
        return self.signals.after(step)

    def require_finite(self) -> None:
        """Raises TrainingFault for a loss that is not finite, with the place where the images of its step are kept."""
        fault = self.window.first_fault()
        if fault is None:
            return
        step, process = fault
        problem = f"the loss is not finite since step {step}" + (f" in process {process}" if is_distributed() else "")
        if not self.setup.is_main:
            raise TrainingFault(problem, FAULT_REMEDY)
        try:
            kept = f"its images: {self._save_images(step, problem)}"
        except (OSError, FgsslError, SafetensorError) as error:  # a full disk must not hide what went wrong first
            kept = f"its images could not be kept: {error}"
        raise TrainingFault(f"{problem} ({kept})", FAULT_REMEDY)

    def _save_images(self, step: int, problem: str) -> Path:
        """RUN/fault/step-N.json with the names of the images of a step, and step-N.safetensors with their two views."""
        plan, views = self.plan, self.setup.views
        batch = views.__getitems__(self.feed.keys(step - 1))  # they depend on seed, epoch and image alone
        path = self.setup.output / "fault" / f"step-{step:09d}.json"
        with atomic_path(path.with_suffix(".safetensors")) as temporary:
            kept = {"views": batch.views_on(CPU), "local": batch.local_on(CPU), "index": batch.index}
            save_file({key: tensor.contiguous() for key, tensor in kept.items() if tensor is not None}, temporary)
        names = [plan.train.identifier(int(index)) for index in batch.index]
        facts = {"step": step, "problem": problem, "lr": self.setup.rate(), "images": names}
        write_text(path, json.dumps(facts, indent=2, ensure_ascii=True) + "\n")
        return path
