"""Other libraries on the same pictures, used by step_table.py where they are installed, as their documentation has it.

lightly's MoCo v2 as its tutorial builds it: its blocks, transforms and data set, the usual DataLoader, float32. And
LightlyTrain as its command runs it: it has no MoCo, and its nearest, DenseCL, does not start beside lightly 1.6
(0.18.0); so SimCLR, with two views as well, but gradients through both, half more work for the backbone than a query
and a key. It trains in a process of its own and tells the seconds of its steps.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import timm
import torch

from fgssl.runtime.machine import available_cores, resolve_device

MEMORY_BANK = 4096  # keys, as in the tutorial
MOMENTUM = 0.996
STEPS = 20  # of LightlyTrain
WARM = 5  # steps of LightlyTrain that do not count: the loader starts, memory is taken
RUN = "import json, sys, lightly_train; lightly_train.pretrain(**json.loads(sys.argv[1]))"


def missing(package: str) -> str | None:
    """Why it cannot be measured here, or None."""
    there = importlib.util.find_spec(package.replace("-", "_")) is not None
    return None if there else f"{package} is not installed (pip install {package})"


def installed() -> dict[str, str]:
    """Versions of those that are here."""
    return {name: metadata.version(name) for name in ("lightly", "lightly-train") if missing(name) is None}


def loader_workers(arguments: argparse.Namespace) -> int:
    """Loader processes: all cores, at most 8, unless told."""
    told: int | None = arguments.lightly_workers
    return min(8, available_cores()) if told is None else told


class LightlyLoop:
    """One step of lightly's MoCo at a time, of a timm model with random weights on a folder of pictures."""

    def __init__(self, folder: str, arguments: argparse.Namespace, device: torch.device) -> None:
        from lightly.data import LightlyDataset
        from lightly.loss import NTXentLoss
        from lightly.models.modules import MoCoProjectionHead
        from lightly.models.utils import deactivate_requires_grad
        from lightly.transforms import MoCoV2Transform

        self.device = device
        self.backbone = timm.create_model(arguments.backbone, pretrained=False, num_classes=0).to(device).train()
        width = self.backbone.num_features
        self.head = MoCoProjectionHead(width, width, 128).to(device).train()
        self.key_backbone, self.key_head = copy.deepcopy(self.backbone), copy.deepcopy(self.head)
        deactivate_requires_grad(self.key_backbone)
        deactivate_requires_grad(self.key_head)
        self.criterion = NTXentLoss(memory_bank_size=(MEMORY_BANK, 128)).to(device)
        trained = [*self.backbone.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.SGD(trained, lr=0.06)
        pictures, batch = LightlyDataset(folder, transform=MoCoV2Transform(arguments.image_size)), arguments.batch_size
        options = {"shuffle": True, "drop_last": True, "num_workers": loader_workers(arguments)}
        self.loader = torch.utils.data.DataLoader(pictures, batch, **options)

    def batches(self) -> Iterator[Any]:
        """Epochs without end; the loader's processes go when the iterator does."""
        while True:
            yield from self.loader

    def step(self, batch: Any) -> None:
        """Momentum update, two forwards, loss, backward, optimiser."""
        from lightly.models.utils import update_momentum

        (query_view, key_view), *_ = batch
        update_momentum(self.backbone, self.key_backbone, m=MOMENTUM)
        update_momentum(self.head, self.key_head, m=MOMENTUM)
        query = self.head(self.backbone(query_view.to(self.device)).flatten(start_dim=1))
        with torch.no_grad():
            key = self.key_head(self.key_backbone(key_view.to(self.device)).flatten(start_dim=1))
        self.criterion(query, key.detach()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def lightly_train(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Images a second and share of time waiting, medians over the steps, and its precision; or `failed`, why not."""
    device, size, batch = resolve_device(options.device).type, options.image_size, options.batch_size
    with tempfile.TemporaryDirectory() as output:
        arguments = {
            "out": output, "overwrite": True, "data": folder, "model": f"timm/{options.backbone}", "method": "simclr",
            "model_args": {"pretrained": False}, "epochs": 10_000, "batch_size": batch, "devices": 1,
            "num_workers": loader_workers(options), "accelerator": "gpu" if device == "cuda" else device,
            "transform_args": {"image_size": [size, size]}, "loggers": {"jsonl": {}, "tensorboard": None},
            "trainer_args": {"max_steps": WARM + STEPS, "log_every_n_steps": 1},
        }  # fmt: skip
        done = subprocess.run([sys.executable, "-c", RUN, json.dumps(arguments)], capture_output=True, text=True)
        log = Path(output, "metrics.jsonl")
        if done.returncode or not log.exists():
            return {"failed": (done.stderr.strip().splitlines() or ["no reason given"])[-1]}
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        settings = Path(output, "train.log").read_text()
    rows = [row for row in rows if "profiling/batch_time" in row and row["step"] >= WARM]
    waits = [row.get("profiling/data_time", 0.0) for row in rows]
    seconds = [row["profiling/batch_time"] + wait for row, wait in zip(rows, waits, strict=True)]
    return {
        "images_per_second": batch / statistics.median(seconds),
        "seconds": seconds,
        "wait_share": statistics.median(waits) / statistics.median(seconds),
        "precision": settings.rpartition("Using precision '")[2].partition("'")[0],
    }
