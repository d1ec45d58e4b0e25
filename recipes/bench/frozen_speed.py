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
import time
from pathlib import Path

import harness

from fgssl.runtime.reporting import Reporter
from fgssl.training.loop import Trainer
from fgssl.training.pretrain import build_trainer


def build(arguments: argparse.Namespace, backbone: str, folder: str, freeze: str) -> Trainer:
    """A trainer that could go on for ever."""
    settings = {"backbone.name": backbone, "backbone.freeze": freeze, "training.epochs": 1000}
    trainer = build_trainer(harness.plan_for(arguments, **settings), Path(folder), Reporter())
    trainer.model.train()
    return trainer


def images_per_second(trainer: Trainer, start: int, steps: int, warm: int) -> float:
    """Of whole steps from `start` on, after some that are not timed."""
    batches = trainer.batches(start)
    for step in range(start, start + warm):
        trainer.step(step, next(batches))
    began = time.perf_counter()
    for step in range(start + warm, start + warm + steps):
        trainer.step(step, next(batches)).total.item()
    return steps * int(trainer.plan.config.training.batch_size or 0) / (time.perf_counter() - began)


def measure(arguments: argparse.Namespace, backbone: str) -> dict[str, float]:
    """Images per second of full training and of both kinds of frozen epochs."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FGSSL_CACHE"] = arguments.cache or folder  # no maps of earlier runs
        full = images_per_second(build(arguments, backbone, folder, "none"), 0, arguments.steps, arguments.warm)
        trainer = build(arguments, backbone, folder, "backbone")
        epoch = trainer.plan.steps_per_epoch
        first_steps = epoch - arguments.warm
        first = images_per_second(trainer, 0, first_steps, arguments.warm)
        later = images_per_second(trainer, epoch, first_steps, arguments.warm)
    return {
        "full_images_per_second": full,
        "first_epoch_images_per_second": first,
        "later_epochs_images_per_second": later,
        "ratio": later / full,
        "cache_gb": trainer.plan.facts()["feature_cache_gb"],
    }


def main() -> None:
    """Print the table and the JSON."""
    parser = harness.parser(
        __doc__, "--data", "--image-size", "--batch-size", "--workers", "--device", "--threads", "--output"
    )
    parser.add_argument("--backbones", nargs="+", default=["vit_tiny_patch16_224", "resnet18"])
    parser.add_argument("--steps", type=int, default=10, help="timed steps of full training")
    parser.add_argument("--warm", type=int, default=3, help="steps before the clock runs")
    parser.add_argument("--cache", help="cache folder (default: a temporary one)")
    arguments = harness.begin(parser)
    found = {backbone: measure(arguments, backbone) for backbone in arguments.backbones}
    lines = []
    for backbone, row in found.items():
        full, first, later = (row[f"{key}_images_per_second"] for key in ("full", "first_epoch", "later_epochs"))
        lines.append(
            f"{backbone:24} full {full:.1f} images/s, frozen: first epoch {first:.1f}, later {later:.1f}, "
            f"{row['ratio']:.1f} times full training"
        )
    harness.report(arguments, found, lines)


if __name__ == "__main__":
    main()
