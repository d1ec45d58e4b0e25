"""What step_table.py measures: fgssl's step and its parts, the bare backbones, lightly's loop; in blocks of steps."""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import other_libraries
import torch
from torchvision import datasets, transforms

from fgssl.backbones import Backbone, build_backbone
from fgssl.backbones.products import drop_products
from fgssl.config.schema import DataConfig
from fgssl.data import available_splits, load_images
from fgssl.data.order import epoch_order
from fgssl.data.sources.files import FileImages
from fgssl.runtime.reporting import Reporter
from fgssl.training.plan import Plan
from fgssl.training.pretrain import build_trainer

PLAIN, RATIONALE, TENFOLD = "step, plain", "step, rationale", "step, rationale, 10x pictures"
COMPILED = "step, rationale, --compile"
FLOOR, OWN_FLOOR = "floor: timm's backbone", "floor, fgssl's convolutions"
FEED, LIGHTLY = "loading alone", "lightly MoCo, fp32"


def plan_for(arguments: argparse.Namespace, *, rationale: bool = True, **settings: Any) -> Plan:
    """The run that is measured."""
    fixed = {"training.epochs": 10_000, "views.preset": "mocov2", "rationale.enabled": rationale}
    return harness.plan_for(arguments, **fixed, **settings)


class Side:
    """Something that takes steps (each returns the seconds it waited for data), a block at a time.

    Some steps before each block warm it up, so that what was loaded while others ran does not count.
    """

    def __init__(self, step: Callable[[], float], *, warm: int, device: torch.device) -> None:
        self.step, self.warm, self.device = step, warm, device
        self.seconds: list[float] = []
        self.waits: list[float] = []

    def block(self, steps: int, *, counted: bool = True) -> None:
        """Some steps in a row; the mean of a step is noted."""
        for _ in range(self.warm):
            self.step()
        self._synchronize()
        start = time.perf_counter()
        waited = sum(self.step() for _ in range(steps))
        self._synchronize()
        taken = time.perf_counter() - start
        if counted:
            self.seconds.append(taken / steps)
            self.waits.append(waited / taken)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Fed:
    """Steps that take a batch from an iterator first."""

    def __init__(self, batches: Iterator[Any], use: Callable[[int, Any], Any]) -> None:
        self.batches, self.use, self.number = batches, use, 0

    def step(self) -> float:
        """One step; returns the seconds waited."""
        start = time.perf_counter()
        batch = next(self.batches)
        waited = time.perf_counter() - start
        self.use(self.number, batch)
        self.number += 1
        return waited


def our_side(plan: Plan, folder: Path, *, only_loading: bool = False) -> Side:
    """fgssl's own step, or its feed alone."""
    trainer = build_trainer(plan, folder, Reporter())
    trainer.model.train()
    use = (lambda _number, batch: batch.views_on(plan.device)) if only_loading else trainer.step
    return Side(Fed(trainer.batches(0), use).step, warm=max(1, 2 * trainer.feed.workers), device=plan.device)


def floor_side(plan: Plan, *, own: bool = False) -> Side:
    """What a loop with timm's model cannot avoid: query forward and backward, key forward, on tensors in place.

    With `own`, fgssl's convolutions are left in: the strict measure of what surrounds the backbones.
    """
    config, device = plan.config, plan.device
    layout = torch.channels_last if plan.backbone.channels_last else torch.contiguous_format

    def build() -> Backbone:
        size, stride = plan.backbone.image_size, config.backbone.output_stride
        backbone = build_backbone(config.backbone.name, image_size=size, output_stride=stride)
        if not own:
            drop_products(backbone)
        return backbone.to(device).to(memory_format=layout).train()

    query, key, size = build(), build(), plan.backbone.image_size
    images = torch.randn(config.training.batch_size, 3, size, size, device=device).contiguous(memory_format=layout)
    dtype = torch.bfloat16 if config.training.mixed_precision == "bf16" else torch.float16

    def step() -> float:
        with torch.autocast(device.type, dtype, enabled=config.training.mixed_precision != "no"):
            feature_map = query(images)
            with torch.no_grad():
                key(images)
        feature_map.float().mean().backward()
        query.zero_grad(set_to_none=True)
        return 0.0

    return Side(step, warm=1, device=device)


def folder_batches(path: str, arguments: argparse.Namespace) -> Iterator[Any]:
    """torchvision's usual way, without end: ImageFolder decodes, two times MoCo v2's transforms, stacked."""
    plan = plan_for(arguments)
    views = harness.torchvision_views(plan.config.views, arguments.image_size)
    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    transform = transforms.Compose([views, transforms.ConvertImageDtype(torch.float32), normalize])
    images = datasets.ImageFolder(path, lambda image: (transform(image), transform(image)))
    loader = torch.utils.data.DataLoader(images, arguments.batch_size, shuffle=True, drop_last=True)
    return itertools.chain.from_iterable(itertools.repeat(loader))


class LightlySide(Side):
    """lightly's loop; its loader's processes end after each block, or they would work beside the others."""

    def __init__(self, arguments: argparse.Namespace, folder: str, device: torch.device) -> None:
        self.loop = other_libraries.LightlyLoop(folder, arguments, device)
        super().__init__(lambda: 0.0, warm=max(2, self.loop.loader.num_workers), device=device)

    def block(self, steps: int, *, counted: bool = True) -> None:
        """A block with an iterator of its own."""
        batches = self.loop.batches()
        self.step = Fed(batches, lambda _number, batch: self.loop.step(batch)).step
        super().block(steps, counted=counted)
        self.step = lambda: 0.0
        batches.close()  # type: ignore[attr-defined]


def picture_folder(plan: Plan) -> str | None:
    """The folder of the training pictures, for loaders that know folders only."""
    if not isinstance(plan.train, FileImages) or not Path(plan.config.data.source).is_dir():
        return None
    return os.path.commonpath([plan.train.content(0), plan.train.content(len(plan.train) - 1)])


def make_sides(
    arguments: argparse.Namespace, folder: Path, notes: list[str], only: str | None = None
) -> dict[str, Side]:
    """Every side that can be measured here (or one), by name; why others cannot goes to the notes."""
    plan = plan_for(arguments)
    makers: dict[str, Callable[[], Side]] = {
        FLOOR: lambda: floor_side(plan),
        OWN_FLOOR: lambda: floor_side(plan, own=True),
        PLAIN: lambda: our_side(plan_for(arguments, rationale=False), folder),
        RATIONALE: lambda: our_side(plan, folder),
        FEED: lambda: our_side(plan, folder, only_loading=True),
    }
    if arguments.compile:
        makers[COMPILED] = lambda: our_side(plan_for(arguments, **{"training.compile": True}), folder)
    pictures = picture_folder(plan)
    if pictures is None:
        notes.append("growth, lightly and ImageFolder need a folder of pictures as --data")
    else:
        if not arguments.quick:
            assert isinstance(plan.train, FileImages)
            listed = write_list(plan.train, 10 * len(plan.train), folder / "ten-times.txt")
            longer = {"data.source": str(listed), "training.cache": str(folder)}
            makers[TENFOLD] = lambda: our_side(plan_for(arguments, **longer), folder)
        if (why := other_libraries.missing("lightly")) is None:
            makers[LIGHTLY] = lambda: LightlySide(arguments, pictures, plan.device)
        else:
            notes.append(f"not measured: {why}")
    return {name: make() for name, make in makers.items() if only in (None, name)}


def write_list(images: FileImages, count: int, path: Path) -> Path:
    """A list of `count` pictures: those of a set over and over, in its order."""
    names = [images.content(index) for index in range(len(images))]
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, count, len(names)):
            file.writelines(f"{name}\n" for name in names[: count - start])
    return path


def _memory(name: str) -> float:
    """A line of /proc/self/status in megabytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def list_pictures(source: str, count: int) -> dict[str, float]:
    """Seconds and megabytes of opening a list of so many pictures, to the first batch's order (Linux)."""
    data = DataConfig(source=source)
    images = load_images(data, available_splits(data)[0])
    assert isinstance(images, FileImages)
    with tempfile.TemporaryDirectory() as folder:
        path = write_list(images, count, Path(folder) / "list.txt")
        gc.collect()
        before, start = _memory("VmRSS"), time.perf_counter()
        listed = load_images(DataConfig(source=str(path)), "all")
        seconds = time.perf_counter() - start
        listed.fingerprint()
        epoch_order(len(listed), 0, 0)
        total = time.perf_counter() - start
        gc.collect()
        held = _memory("VmRSS") - before
    return {"pictures": count, "list_seconds": seconds, "seconds": total, "megabytes": held,
            "peak_megabytes": _memory("VmHWM") - before}  # fmt: skip
