"""What is said and kept of a step that went wrong, for whoever looks for the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from fgssl.data.feed import StepSampler
from fgssl.errors import FgsslError, TrainingFault
from fgssl.runtime.files import atomic_path, write_text
from fgssl.runtime.machine import largest_batch
from fgssl.training.memory_need import largest_settings
from fgssl.training.model import NotFinite
from fgssl.training.setup import Setup

FAULT_FOLDER = "fault"


def with_its_images(setup: Setup, fault: NotFinite) -> TrainingFault:
    """The fault with the place where the images of its step are kept, which happens now."""
    try:
        path = _save_images(setup, fault)
    except (OSError, FgsslError, SafetensorError) as error:  # a full disk must not hide what went wrong first
        return TrainingFault(f"{fault.problem} (its images could not be kept: {error})", fault.remedy)
    return TrainingFault(f"{fault.problem} (its images: {path})", fault.remedy)


def _save_images(setup: Setup, fault: NotFinite) -> Path:
    """RUN/fault/step-N.json with the names of the images of a step, and step-N.safetensors with their two views."""
    plan, step, views = setup.plan, fault.step, setup.views
    batch_size = plan.config.training.batch_size or 0
    sampler = StepSampler(len(plan.train), batch_size, seed=views.seed, start=step - 1, stop=step)
    batch = views.__getitems__(next(iter(sampler)))  # they depend on seed, epoch and image alone
    path = setup.output / FAULT_FOLDER / f"step-{step:09d}.json"
    with atomic_path(path.with_suffix(".safetensors")) as temporary:
        made = batch.views_on(torch.device("cpu")).contiguous()
        save_file({"views": made, "index": batch.index}, temporary)
    names = [plan.train.identifier(int(index)) for index in batch.index]
    facts = {"step": step, "problem": fault.problem, "lr": setup.rate(), "images": names}
    write_text(path, json.dumps(facts, indent=2, ensure_ascii=True) + "\n")
    return path


def out_of_memory(setup: Setup, attempt: Callable[[int], None], images: int, reason: str) -> TrainingFault:
    """What to say where a step did not fit, whose allocator gave the reason.

    `attempt` takes a step with so many images: the run is over, so that this may spoil its weights.
    """
    training = setup.plan.config.training
    problem = f"--batch-size {training.batch_size} does not fit into the memory of {setup.plan.device}"
    if setup.accelerator.num_processes > 1:  # the others wait for this one: no step can be tried
        return TrainingFault(problem, "use a smaller one, a smaller --image-size or more processes")
    fits = largest_batch(attempt, -(-images // training.accumulate))
    if fits is None:
        large = largest_settings(setup.plan.needs, setup.plan.device)
        smaller = f"a smaller {large}, --image-size or --backbone" if large else "a smaller --image-size or --backbone"
        return TrainingFault(problem, f"not even two images fit ({reason}): use {smaller}")
    parts = next(n for n in range(1, images + 1) if images % n == 0 and images // n <= fits)
    return TrainingFault(
        problem, f"{fits} fits (tried): work through it in parts by --accumulate {parts}, or use --batch-size {fits}"
    )
