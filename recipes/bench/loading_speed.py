"""Loading and views alone, per core: fgssl against the pipeline of ImageFolder and MoCo v2's transforms of torchvision.

    python recipes/bench/loading_speed.py --data ../shared/data/grocery/train --image-size 96 --batch-size 64

Both make two views of every image in this process on one thread, in turns, after one warm round each (fgssl's cache is
built before). Processor seconds are counted, so that other load on the machine matters little. The folder must hold
class folders. Prints a table on stderr and one JSON document on stdout.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torchvision import datasets
from torchvision import transforms as v1

from fgssl.config.presets import VIEW_PRESETS
from fgssl.config.schema import DataConfig, ViewsConfig
from fgssl.data import available_splits, load_images
from fgssl.data.cache.build import Shrunk, open_pixels
from fgssl.data.feed.views import StepSampler, ViewDataset, build_feed
from fgssl.runs.folder import versions
from fgssl.training.pretrain import SHRINK


def folder_batches(path: str, *, size: int, batch: int) -> Iterator[Any]:
    """The usual way: decode, two times MoCo v2's transforms, stack."""
    blur = v1.GaussianBlur(2 * round(4 * 2.0 * size / 224) // 2 * 2 + 1, (0.1 * size / 224, 2.0 * size / 224))
    transform = v1.Compose(
        [
            v1.RandomResizedCrop(size, scale=(0.2, 1.0)),
            v1.RandomApply([v1.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v1.RandomGrayscale(0.2),
            v1.RandomApply([blur], 0.5),
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    images = datasets.ImageFolder(path, lambda image: (transform(image), transform(image)))
    loader = torch.utils.data.DataLoader(images, batch, shuffle=True, drop_last=True)
    return itertools.chain.from_iterable(itertools.repeat(loader))


def our_batches(path: str, *, size: int, batch: int) -> Iterator[Any]:
    """From the cache, in this process."""
    data = DataConfig(source=path)
    images = load_images(data, available_splits(data)[0])
    pixels = open_pixels(images, Shrunk(round(SHRINK * size)))
    sampler = StepSampler(len(images), batch, seed=0, start=0, stop=1_000_000)
    views = dataclasses.replace(ViewsConfig(), **VIEW_PRESETS["mocov2"])
    return iter(build_feed(ViewDataset(pixels, views, size=size, seed=0), sampler, workers=0, pin=False))


def main() -> None:
    """Print the table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"size": arguments.image_size, "batch": arguments.batch_size}
    feeds = {"fgssl": our_batches(arguments.data, **sizes), "ImageFolder": folder_batches(arguments.data, **sizes)}
    seconds: dict[str, list[float]] = {name: [] for name in feeds}
    for turn, name in itertools.product(range(arguments.rounds + 1), feeds):
        start = time.process_time()
        next(feeds[name])
        if turn:
            seconds[name].append(time.process_time() - start)
    speed = {name: arguments.batch_size / statistics.median(values) for name, values in seconds.items()}
    for name, value in speed.items():
        print(f"{name:12} {value:8.1f} images/s per core, two views each", file=sys.stderr)
    result = {
        "settings": vars(arguments),
        "machine": platform.processor() or platform.machine(),
        "versions": versions(),
        "images_per_second_per_core": speed,
        "ratio": speed["fgssl"] / speed["ImageFolder"],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
