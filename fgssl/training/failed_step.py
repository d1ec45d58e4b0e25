"""What is kept of a step that went wrong, for whoever looks for the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fgssl.data.feed.views import StepSampler, ViewDataset
from fgssl.data.images import ImageSet
from fgssl.runtime.files import atomic_path, write_text

FAULT_FOLDER = "fault"


def save_evidence(
    output: Path, step: int, images: ImageSet, views: ViewDataset, *, batch_size: int, facts: dict[str, Any]
) -> Path:
    """RUN/fault/step-N.json with the names of the images of a step, and step-N.safetensors with their two views.

    Args:
        output: The run folder.
        step: From 1.
        images: The training split.
        views: Makes the views again: they depend on seed, epoch and image alone.
        batch_size: Images of a step over all processes.
        facts: What else is worth knowing.

    Returns:
        The JSON file.
    """
    sampler = StepSampler(len(images), batch_size, seed=views.seed, start=step - 1, stop=step)
    batch = views.__getitems__(next(iter(sampler)))
    path = output / FAULT_FOLDER / f"step-{step:09d}.json"
    with atomic_path(path.with_suffix(".safetensors")) as temporary:
        views_made = batch.views_on(torch.device("cpu")).contiguous()
        save_file({"views": views_made, "index": batch.index}, temporary)
    names = [images.identifier(int(index)) for index in batch.index]
    write_text(path, json.dumps({"step": step, **facts, "images": names}, indent=2, ensure_ascii=True) + "\n")
    return path
