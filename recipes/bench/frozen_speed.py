"""How much faster an epoch is above a frozen backbone whose feature maps are kept.

    python recipes/bench/frozen_speed.py --data GROCERY

Full training and training with --freeze backbone are timed in one process, with the same model, data, size and batch:
a few steps of full training, then of the first frozen epoch (maps are made) and of the second (maps are read). Weights
are random: speed does not depend on them. Whole steps, loading included. A table on stderr, JSON on stdout.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import harness
from step_sides import Side, our_side

from fgssl.training.plan import Plan


def build(arguments: argparse.Namespace, backbone: str, folder: str, freeze: str) -> tuple[Side, Plan]:
    """Steps that could go on for ever."""
    settings = {"backbone.name": backbone, "backbone.freeze": freeze, "training.epochs": 1000}
    plan = harness.plan_for(arguments, **settings)
    side = our_side(plan, Path(folder))
    side.warm = arguments.warm
    return side, plan


def measure(arguments: argparse.Namespace, backbone: str) -> dict[str, Any]:
    """Images per second of full training and of both kinds of frozen epochs."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FGSSL_CACHE"] = folder  # no maps of earlier runs
        full, _ = build(arguments, backbone, folder, "none")
        full.block(arguments.steps)
        frozen, plan = build(arguments, backbone, folder, "backbone")
        for _ in ("maps are made", "maps are read"):
            frozen.block(plan.steps_per_epoch - arguments.warm)
    names = ("full", "first_epoch", "later_epochs")
    speeds = [arguments.batch_size / seconds for seconds in (*full.seconds, *frozen.seconds)]
    found = {f"{name}_images_per_second": speed for name, speed in zip(names, speeds, strict=True)}
    return {**found, "ratio": speeds[2] / speeds[0], "cache_gb": plan.facts()["feature_cache_gb"]}


def main() -> None:
    """Print the table and the JSON."""
    parser = harness.parser(__doc__, *(name for name in harness.SHARED if name != "--backbone"))
    parser.add_argument("--backbones", nargs="+", default=["vit_tiny_patch16_224", "resnet18"])
    parser.add_argument("--steps", type=int, default=10, help="timed steps of full training")
    parser.add_argument("--warm", type=int, default=3, help="steps before the clock runs")
    arguments = harness.begin(parser)
    found = {backbone: measure(arguments, backbone) for backbone in arguments.backbones}
    lines = [
        f"{backbone:24} full {row['full_images_per_second']:.1f} images/s, frozen: first epoch "
        f"{row['first_epoch_images_per_second']:.1f}, later {row['later_epochs_images_per_second']:.1f}, "
        f"{row['ratio']:.1f} times full training"
        for backbone, row in found.items()
    ]
    harness.report(arguments, found, lines)


if __name__ == "__main__":
    main()
