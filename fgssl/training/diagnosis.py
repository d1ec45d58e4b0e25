"""Training that goes wrong, named and with a remedy: collapse, chance, an absurd rate, want of pictures or memory."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from fgssl.backbones import GivenMap
from fgssl.config.schema import OptimizerConfig, PretrainConfig, TrainingConfig, filled, flatten
from fgssl.data.cache.pixels import PixelStore, cache_bytes
from fgssl.errors import FgsslError, TrainingFault
from fgssl.objectives import OBJECTIVES
from fgssl.rationale import RationaleHead
from fgssl.runtime.machine import free_memory, is_out_of_memory, sensible_threads

COPIES = 3  # of a trained weight: itself, its gradient, and one average of the optimiser
WORTH_NAMING = 0.1  # share of the free memory
PATIENCE = 3  # lines of the log in a row
LOST_SHARE = 0.9  # of the best that a signal had above its floor
CHANCE_SHARE, CHANCE_STEPS, CHANCE_PART = 0.98, 500, 0.1  # a loss above it, for so many steps and this part of the run
# outside them nothing is learned, or nothing survives
RATES = {"adamw": (1e-7, 0.05), "sgd": (1e-6, 10.0), "lars": (1e-3, 100.0)}
COLLAPSE_REMEDY = "lower --lr, add --set optimizer.warmup_epochs=1, and look at views.png: can a pair be told apart?"
SETTLED_STEPS = 50  # of a process: before them the queue of batches fills and the disk is read for the first time
WINDOW_STEPS = 50  # judged together: one slow file says nothing
LONG_WAIT, STARVED = 0.1, 0.3  # shares of the time that are worth a hint, and a message of their own
SLOW_TIMES, SLOW_SECONDS = 5.0, 0.2  # what it took before, and at least so long
IN_PROCESS = 0.5  # up to here, a training process on few cores that makes the views itself works and does not wait


# What a collapse takes away, its value then, the best that must have been for a fall to mean anything, and its format
SPREADS = {
    "effective_rank": ("effective rank", 1.0, 2.0, ".2f"),
    "feature_std": ("standard deviation", 0.0, 0.05, ".3f"),
}


class Watch:
    """Looks at each line of the log; every process sees the same lines and comes to the same judgement."""

    def __init__(self, *, total_steps: int, stop_on_collapse: bool = False) -> None:
        self.total_steps, self.stop_on_collapse = total_steps, stop_on_collapse
        self.best = {name: floor for name, (_, floor, _, _) in SPREADS.items()}
        self.low_lines = dict.fromkeys(SPREADS, 0)
        self.learned_at: int | None = None  # the last step whose loss was below chance
        self.said: set[str] = set()

    def look(self, step: int, means: Mapping[str, float], *, chance: float | None) -> list[str]:
        """What to warn of after `step`, each kind once; a collapse raises TrainingFault where it shall stop the run."""
        fallen = " and ".join(filter(None, (self._fallen(name, means[name]) for name in SPREADS)))
        collapse = f"the features collapse: {fallen} by step {step}" if fallen else ""
        if collapse and self.stop_on_collapse:
            raise TrainingFault(collapse, COLLAPSE_REMEDY)
        at_chance = "" if chance is None else self._chance(step, means["loss"], chance)
        found = {"collapse": collapse and f"{collapse}; {COLLAPSE_REMEDY}", "chance": at_chance}
        return [text for kind, text in found.items() if text and self._is_new(kind)]

    def look_at_rate(self, config: OptimizerConfig) -> str:
        """A warning where the learning rate is out of all proportion for its optimiser; once a run and rate."""
        text = absurd_rate(config)
        return text if text and self._is_new(text) else ""

    def _is_new(self, kind: str) -> bool:
        known = kind in self.said
        self.said.add(kind)
        return not known

    def state(self) -> dict[str, Any]:
        seen = {"best": dict(self.best), "low_lines": dict(self.low_lines), "learned_at": self.learned_at}
        return {**seen, "said": sorted(self.said)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.best |= state.get("best", {})
        self.low_lines |= state.get("low_lines", {})
        self.learned_at = state.get("learned_at", self.learned_at)
        self.said |= set(state.get("said", ()))

    def _fallen(self, name: str, value: float) -> str:
        words, floor, worth_losing, shown = SPREADS[name]
        best = self.best[name] = max(self.best[name], value)
        lost = value - floor <= (1 - LOST_SHARE) * (best - floor) and best >= worth_losing
        self.low_lines[name] = self.low_lines[name] + 1 if lost else 0
        fell = f"their {words} fell from {best:{shown}} to {value:{shown}}"
        return fell if self.low_lines[name] >= PATIENCE else ""

    def _chance(self, step: int, loss: float, chance: float) -> str:
        if self.learned_at is None or loss < CHANCE_SHARE * chance:
            self.learned_at = step
        idle = step - self.learned_at
        problem = f"the loss has been at chance ({loss:.2f} of {chance:.2f}) for {idle} steps, nothing is learned"
        remedy = "try another --lr, ten times more or less, and look at views.png: a pair must show the same thing"
        return f"{problem}; {remedy}" if idle >= max(CHANCE_STEPS, CHANCE_PART * self.total_steps) else ""


def absurd_rate(config: OptimizerConfig) -> str | None:
    """A warning where the learning rate is out of all proportion for its optimiser."""
    (low, high), rate = RATES[filled(config.name)], filled(config.lr)
    usable = f"what {config.name} can use ({low:g} to {high:g})"
    return None if low <= rate <= high else f"--lr {rate:g} is outside {usable}: nothing good will come of it"


class Waiting:
    """Says once what helps against waiting for pictures, once more if starved; shares up to `least` are usual."""

    def __init__(self, remedies: Sequence[str], *, least: float = LONG_WAIT, said: Iterable[str] = ()) -> None:
        self.remedies, self.least, self.said = remedies, least, set(said)
        self._recent: deque[tuple[int, float, float]] = deque()  # steps, seconds and seconds waited of lines of the log

    def look(self, done: int, *, steps: int, seconds: float, share: float) -> str:
        """What to warn of after a line of `steps` that took `seconds`, a `share` of them waiting; `done` so far."""
        if done - steps < SETTLED_STEPS:
            return ""
        self._recent.append((steps, seconds, seconds * share))
        while sum(line[0] for line in self._recent) - self._recent[0][0] >= WINDOW_STEPS:
            self._recent.popleft()
        window, total, waited = map(sum, zip(*self._recent, strict=True))
        share = waited / max(total, 1e-9)
        level = "starved" if share > max(STARVED, self.least) else "long" if share > self.least else ""
        # said again by a resumed run that was given other settings to no avail
        known = {f"{name}: {self.remedies}" for name in (("starved",) if level == "starved" else ("starved", "long"))}
        if window < WINDOW_STEPS or not level or known & self.said:
            return ""
        self.said.add(f"{level}: {self.remedies}")
        if level == "long":
            return f"{100 * share:.0f} % of the time is spent waiting for pictures: try {self.remedies[0]}"
        took, faster = f"{100 * share:.0f} % of the last {window} steps", f"{1 / (1 - share):.1f} times as fast"
        remedy = f"{', '.join(self.remedies[:-1])}, or start anew with {self.remedies[-1]}"
        problem = f"starved of pictures: waiting for them took {took}, without it training would be {faster}"
        return f"{problem}; stop (Ctrl-C) and go on by --resume with {remedy}"


class Slowness:
    """Says once that a step takes many times what it took: on a CPU mostly because others are busy on its cores."""

    def __init__(self, training: TrainingConfig, output: Path) -> None:
        self.training, self.output = training, output
        self.least: float | None = None  # seconds of a step, in the quickest line of the log
        self.said = False

    def look(self, computed: Sequence[float]) -> str:
        """What to warn of after a line of the log whose steps took so many seconds each, without waiting."""
        if not computed:
            return ""
        now, least = median(computed), self.least
        self.least = now if least is None else min(now, least)
        if self.said or least is None or now < max(SLOW_TIMES * least, SLOW_SECONDS):
            return ""
        self.said = True
        problem = f"a step takes {now:.2g} s, {now / least:.0f} times what the quickest ones of this run took"
        threads, (fewer, _) = torch.get_num_threads(), sensible_threads()
        if fewer >= threads:
            return f"{problem}; look at what else runs on this machine, and at its memory"
        remedy = f"stop (Ctrl-C) and go on by --resume {self.output} --threads {fewer}"
        return f"{problem}: others are busy on its cores, and {threads} threads wait for each other; {remedy}"


def remedies(settings: TrainingConfig, pixels: PixelStore, *, workers: int, cores: int, image_size: int) -> list[str]:
    """What gives pictures faster in a run with these settings, the best first; the last makes it another run."""
    found, gigabytes = list[str](), cache_bytes(pixels.images, pixels.prepare, encoded=False) / 1e9
    if settings.cache == "off":
        found.append("--cache auto, so that pictures are decoded once only")
    elif pixels.decodes:
        room = f"--set training.cache_budget={1.2 * gigabytes:.1f} allows it"
        found.append(f"--cache FOLDER on a disk with room (pixels take about {gigabytes:.1f} GB; {room})")
    if workers < cores:
        found.append(f"--workers {min(cores, max(2, 2 * workers))} (now {workers}, {cores} cores)")
    found = found or [f"a machine with more cores (--workers {workers} takes all {cores})"]
    return [*found, f"smaller pictures (--image-size below {image_size})"]


def memory_needs(
    config: PretrainConfig, *, channels: int, map_size: tuple[int, ...], images: int, world: int = 1
) -> dict[str, float]:
    """Bytes by the setting that decides them, of a config without gaps, a map's channels and a rationale's size (H, W).

    A lower bound: what exceeds the memory could not have trained; what passes may still not fit.
    """
    objective, rationale = config.objective, config.rationale
    batch = filled(config.training.batch_size) / (world * config.training.accumulate)
    whole = {key: value for key, value in flatten(objective).items() if isinstance(value, int)}
    heads = _bytes(lambda: OBJECTIVES[objective.name](GivenMap(channels), objective))
    similarities = 4 * batch * (objective.queue_size or 0)
    sizes = {f"objective.{max(whole, key=lambda key: whole[key])}": heads + similarities}
    if rationale.enabled:
        maps = 2 * 4 * batch * rationale.projections * math.prod(map_size)
        sizes["rationale.projections"] = maps + _bytes(lambda: RationaleHead(channels, rationale))
    sizes["backbone.image_size"] = 2 * 3 * 4 * batch * float(filled(config.backbone.image_size)) ** 2
    if objective.teacher is not None:
        sizes["objective.teacher"] = 2.0 * images * filled(objective.projector_dim)
    if (views := config.views).local_count:
        sizes["views.local_count"] = views.local_count * 3 * 4 * batch * float(filled(views.local_size)) ** 2
    if config.backbone.freeze == "backbone":
        sizes["backbone.cached_views"] = float(config.backbone.cached_views) * images
    return sizes


def _bytes(build: Callable[[], nn.Module]) -> float:
    """Of a module that is only planned; infinite where its sizes cannot even be counted."""
    try:
        with torch.device("meta"):
            module = build()
    except Exception as error:  # an objective from elsewhere may not be plannable
        return math.inf if is_out_of_memory(error) else 0.0
    weights = sum((COPIES if weight.requires_grad else 1) * weight.nbytes for weight in module.parameters())
    return float(weights + sum(buffer.nbytes for buffer in module.buffers()))


def check_memory(needs: Mapping[str, float], values: Mapping[str, Any], device: torch.device) -> None:
    """Raises FgsslError, naming the setting that takes most, where the needs exceed the free memory of the device."""
    free = free_memory(device)
    if sum(needs.values()) <= free:
        return
    key = max(needs, key=lambda key: needs[key])
    size = f"{needs[key] / 1e9:,.1f} GB or more" if math.isfinite(needs[key]) else "more than can be counted"
    problem = f"{key} {values[key]} takes {size}, {device} has {free / 1e9:,.1f} GB free"
    raise FgsslError(problem, f"make {key} smaller")


def largest_settings(needs: Mapping[str, float], device: torch.device) -> str:
    """The settings that take a good part of the memory, with their sizes; empty where none does."""
    large = sorted(needs, key=lambda key: -needs[key])
    least = WORTH_NAMING * free_memory(device)
    return ", ".join(f"{key} ({needs[key] / 1e9:,.1f} GB)" for key in large if needs[key] > least)


@contextlib.contextmanager
def memory_named(needs: Mapping[str, float], device: torch.device) -> Iterator[None]:
    """Memory that runs out anywhere in a run is a matter of its settings: say which."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error) or "none is left").splitlines()[0]
        smaller = ", ".join(filter(None, (largest_settings(needs, device), "--batch-size, --image-size")))
        problem = f"the memory of {device} is exhausted ({reason})"
        raise FgsslError(problem, f"use a smaller {smaller} or --backbone, or fewer --workers") from error
