"""How close the whole training step comes to the bare backbone.

    python recipes/bench/step_speed.py --data ../shared/data/grocery --backbone resnet18 --image-size 96 --batch-size 64

The floor of a step is what a loop with timm's model cannot avoid: forward and backward of the query backbone and
forward of the key backbone on tensors already in place, same precision, same memory format. The whole step can be below
it, as fgssl computes convolutions of small maps its own way (`fgssl/backbones/products.py`); with `--own-floor` the
floor does so, too: the strict measure of what surrounds the backbones. The whole step adds loading, views, projector,
loss, GradCAM and fit, queue, optimiser, momentum update. Both are timed in turns in one process, so that other load on
the machine meets both alike; medians are compared. Prints a table on stderr and one JSON document on stdout.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fgssl.backbones import Backbone, build_backbone
from fgssl.backbones.products import drop_products
from fgssl.config.resolve import load_config
from fgssl.runs.folder import versions
from fgssl.runtime.reporting import Reporter
from fgssl.training.plan import Plan, make_plan
from fgssl.training.pretrain import build_trainer

BLOCK = 5  # steps in a row before the other side has its turn


class Floor:
    """Query forward and backward, key forward; nothing else.

    Args:
        plan: Names the backbone.
        own: Leave fgssl's convolutions in it; otherwise it is timm's model as it is.
    """

    def __init__(self, plan: Plan, *, own: bool = False) -> None:
        config, self.own = plan.config, own
        self.device, self.precision = plan.device, config.training.mixed_precision
        self.query, self.key = self._backbone(plan).train(), self._backbone(plan).train()
        size, batch = plan.backbone.image_size, config.training.batch_size
        images = torch.randn(batch, 3, size, size, device=self.device)
        if plan.backbone.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        self.images = images

    def _backbone(self, plan: Plan) -> Backbone:
        name, size = plan.config.backbone.name, plan.backbone.image_size
        backbone = build_backbone(name, image_size=size, output_stride=plan.config.backbone.output_stride)
        if not self.own:
            drop_products(backbone)
        backbone.to(self.device)
        return backbone.to(memory_format=torch.channels_last) if plan.backbone.channels_last else backbone

    def step(self) -> None:
        """One floor step."""
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        with torch.autocast(self.device.type, dtype, enabled=self.precision != "no"):
            feature_map = self.query(self.images)
            with torch.no_grad():
                self.key(self.images)
        feature_map.float().mean().backward()
        self.query.zero_grad(set_to_none=True)


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call, the device's work included."""
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(arguments: argparse.Namespace, *, rationale: bool) -> dict[str, float]:
    """Median seconds of the floor and of the whole step, taken in turns."""
    flags = {
        "data.source": arguments.data,
        "backbone.name": arguments.backbone,
        "backbone.pretrained": False,
        "backbone.image_size": arguments.image_size,
        "training.batch_size": arguments.batch_size,
        "training.workers": arguments.workers,
        "training.device": arguments.device,
        "training.epochs": 10_000,
        "views.preset": "mocov2",  # of all presets the most work
        "rationale.enabled": rationale,
        "training.evaluate": False,
    }
    plan = make_plan(load_config(flags=flags))
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(plan, Path(folder), Reporter())
        floor = Floor(plan, own=arguments.own_floor)
        batches = trainer.batches(0)
        trainer.model.train()
        whole: list[float] = []
        bare: list[float] = []
        waits: list[float] = []
        number = 0

        def step() -> None:
            nonlocal number
            start = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - start)
            trainer.step(number, batch)
            number += 1

        for _ in range(BLOCK):
            step()
            floor.step()
        while number < arguments.steps + BLOCK:
            bare += [timed(floor.step, plan.device) for _ in range(BLOCK)]
            # the loader worked ahead meanwhile: let it fall back to its own pace before the clock runs
            for _ in range(arguments.warm):
                step()
            whole += [timed(step, plan.device) for _ in range(BLOCK)]
    floor_s, whole_s = statistics.median(bare), statistics.median(whole)
    batch = arguments.batch_size
    return {
        "floor_images_per_second": batch / floor_s,
        "whole_images_per_second": batch / whole_s,
        "efficiency": floor_s / whole_s,
        "wait_share": statistics.median(waits) / whole_s,
    }


def main() -> None:
    """Print the table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--device")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warm", type=int, default=4, help="whole steps before each timed block")
    parser.add_argument("--own-floor", action="store_true", help="the floor's backbones with fgssl's convolutions")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "settings": {k: v for k, v in vars(arguments).items()},
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": versions(),
    }
    for name, rationale in (("plain", False), ("rationale", True)):
        row = result[name] = measure(arguments, rationale=rationale)
        floor, whole = row["floor_images_per_second"], row["whole_images_per_second"]
        print(
            f"{name:10} floor {floor:.1f} images/s, whole {whole:.1f}, efficiency {row['efficiency']:.3f}, "
            f"waiting {row['wait_share']:.1%}",
            file=sys.stderr,
        )
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
