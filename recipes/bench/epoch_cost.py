"""What an epoch of millions of pictures costs, on paper: rates measured on a few, multiplied.

    python recipes/bench/epoch_cost.py --data GROCERY --stored 400 --cores 64 --rate 2500

Measured, in seconds of one core: listing and holding each kind of source (tiny files, list, tar and parquet shards made
for it), decoding a picture for the cache, making two views of a kept one, the order of an epoch. The step is not: its
rate on your machine is what `step_table.py` prints, times the processes (--rate). Table on stderr, JSON on stdout.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import harness
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fgssl.config.schema import DataConfig, ViewsConfig
from fgssl.data import load_images
from fgssl.data.cache.pixels import JPEG_QUALITY, PixelStore, Shrunk, open_pixels
from fgssl.data.feed import Key, ViewDataset
from fgssl.data.images import Subset
from fgssl.data.order import ORDERS

CLASSES, SHARD = 100, 5000
ORDERED = 1_000_000  # pictures of the order that is timed


def folder(place: Path, count: int) -> None:
    for row in range(CLASSES):
        (place / f"class {row:03d}").mkdir(parents=True)
    for row in range(count):
        (place / f"class {row % CLASSES:03d}/IMG_{row:08d}.jpg").touch()


def text(place: Path, count: int) -> None:
    place.mkdir()
    lines = [f"photos/class {row % CLASSES:03d}/IMG_{row:08d}.jpg\t{row % CLASSES}" for row in range(count)]
    (place / "all.txt").write_text("\n".join(lines))


def tar(place: Path, count: int) -> None:
    place.mkdir()
    for first in range(0, count, SHARD):
        with tarfile.open(place / f"train-{first // SHARD:06d}.tar", "w") as file:
            for row in range(first, min(first + SHARD, count)):
                for ending, content in (("jpg", b"x"), ("cls", b"%d" % (row % CLASSES))):
                    member = tarfile.TarInfo(f"{row:09d}.{ending}")
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))


def parquet(place: Path, count: int) -> None:
    place.mkdir()
    for first in range(0, count, SHARD):
        rows = range(first, min(first + SHARD, count))
        images = [{"bytes": b"x", "path": f"{row:09d}.jpg"} for row in rows]
        table = pa.table({"image": images, "label": [row % CLASSES for row in rows]})
        pq.write_table(table, place / f"train-{first // SHARD:05d}.parquet")


KINDS: Mapping[str, Callable[[Path, int], None]] = {"folder": folder, "list": text, "tar": tar, "parquet": parquet}


def held(work: Path, kind: str, count: int) -> dict[str, float]:
    """Opening a source of so many tiny pictures: core seconds the first time and again, and bytes, each a picture."""
    place = work / kind
    KINDS[kind](place, count)
    source = str(place / "all.txt" if kind == "list" else place)

    def opened() -> Any:
        data = DataConfig(source=source, **({"image_column": "image"} if kind == "parquet" else {}))
        return load_images(data, "train" if kind in ("tar", "parquet") else "all", tell=False)

    seconds = [harness.processor_seconds(opened) / count for _ in range(2)]
    tracemalloc.start()
    images = opened()
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(images) == count
    return {"first_us": 1e6 * seconds[0], "again_us": 1e6 * seconds[1], "bytes": now / count, "peak": peak / count}


def enlarged(images: Any, side: int, place: Path) -> Any:
    """The pictures as JPEG files of a short side, as data sets of photographs come."""
    for row in range(len(images)):
        path = place / f"class {row % 2}" / f"{row:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = images.load(row)
        scale = side / min(picture.size)
        picture.resize([round(scale * length) for length in picture.size]).save(path, quality=90)
    return load_images(DataConfig(source=str(place)), "all", tell=False)


def decoding(images: Any, side: int) -> dict[str, float]:
    """Core seconds a picture, and what it takes in the cache."""
    store, pixels, jpegs = PixelStore(images, Shrunk(side)), list[int](), list[int]()
    start = time.process_time()
    pictures = [store[row] for row in range(len(images))]
    seconds = (time.process_time() - start) / len(images)
    for picture in pictures:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        pixels.append(picture.nbytes)
        jpegs.append(stream.tell())
    return {"ms": 1e3 * seconds, "pixel_bytes": float(np.mean(pixels)), "jpeg_bytes": float(np.mean(jpegs))}


def viewing(images: Any, side: int, size: int, work: Path, *, encoded: bool) -> float:
    """Core milliseconds to read a kept picture and make two views of it; where pixels do not fit, from JPEG."""
    budget = len(images) * side * side * 4 * 0.5 / 1e9 if encoded else None
    store = open_pixels(images, Shrunk(side), cache=str(work / f"cache-{encoded}"), budget=budget)
    assert store.encoded == encoded, "the cache was not kept as asked"
    views = ViewDataset(store, ViewsConfig(preset="mocov2"), size=size, seed=0)
    keys = [[Key(epoch, row) for row in range(len(images))] for epoch in range(2)]
    views.__getitems__(keys[0])
    return 1e3 * harness.processor_seconds(lambda: views.__getitems__(keys[1])) / len(images)


def lines(found: dict[str, Any], options: Any) -> Iterator[str]:
    """The measured rates, then the epoch."""
    rows = [
        (kind, f"{r['first_us']:.1f}", f"{r['again_us']:.1f}", f"{r['bytes']:.0f}", f"{r['peak']:.0f}",
         f"{r['bytes'] * options.pictures / 1e9:.2f} GB, {r['first_us'] * options.pictures / 6e7:.0f} min")
        for kind, r in found["sources"].items()
    ]  # fmt: skip
    head = ("source", "µs of a core, first", "again", "bytes a picture", "at most", f"{options.pictures:,} pictures")
    yield from harness.markdown(head, rows)
    yield ""
    count, cores, decoded = options.pictures, options.cores, found["decoding"]

    def hours(milliseconds: float) -> str:
        return f"{milliseconds * count / 3.6e6 / cores:.1f} h"

    cost = [
        ("decode once", f"{decoded['ms']:.1f} ms", hours(decoded["ms"])),
        ("cache: pixels", f"{decoded['pixel_bytes'] / 1e3:.0f} KB", f"{decoded['pixel_bytes'] * count / 1e12:.1f} TB"),
        ("cache: JPEG", f"{decoded['jpeg_bytes'] / 1e3:.0f} KB", f"{decoded['jpeg_bytes'] * count / 1e12:.1f} TB"),
        ("two views from pixels", f"{found['views_ms']:.1f} ms", hours(found["views_ms"])),
        ("two views from JPEG", f"{found['views_from_jpeg_ms']:.1f} ms", hours(found["views_from_jpeg_ms"])),
        ("two views, no cache", "", hours(decoded["ms"] + found["views_ms"])),
    ]
    for name, order in found["orders"].items():
        cost.append((f"order: {name}", f"{order['bytes']:.0f} bytes at most", f"{order['bytes'] * count / 1e6:.0f} MB"))
    if options.rate:
        cost.append(("steps", f"{options.rate:g} images/s", f"{count / options.rate / 3600:.1f} h"))
    yield from harness.markdown(("", "a picture, one core", f"an epoch of {count:,}, {cores} cores"), cost)


def main() -> int:
    """Measure and multiply."""
    parser = harness.parser(__doc__, "--data", "--output")
    parser.add_argument("--pictures", type=int, default=10_000_000)
    parser.add_argument("--cores", type=int, default=64)
    parser.add_argument("--rate", type=float, help="images/s of all processes' steps together")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--measured", type=int, default=128, help="pictures to decode")
    parser.add_argument("--stored", type=int, help="short side that these are enlarged to first [as they are]")
    parser.add_argument("--names", type=int, default=20_000, help="of each source that is made")
    options = harness.begin(parser)
    datasets.disable_progress_bars()
    side = round(1.3 * options.image_size)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        os.environ["FGSSL_CACHE"] = str(work / "cache")
        datasets.config.HF_DATASETS_CACHE = work / "datasets"
        whole = load_images(DataConfig(source=options.data), "train", tell=False)
        few = min(options.measured, len(whole))
        images = Subset(whole, np.linspace(0, len(whole) - 1, few).astype(np.int64))
        if options.stored:
            images = enlarged(images, options.stored, work / "enlarged")
        found: dict[str, Any] = {"sources": {kind: held(work, kind, options.names) for kind in KINDS}}
        found["decoding"] = decoding(images, side)
        found["views_ms"] = viewing(images, side, options.image_size, work, encoded=False)
        found["views_from_jpeg_ms"] = viewing(images, side, options.image_size, work, encoded=True)
        found["orders"] = {}
        for order, make in ORDERS.items():
            tracemalloc.start()
            make(ORDERED, 0, 0)
            found["orders"][order] = {"bytes": tracemalloc.get_traced_memory()[1] / ORDERED}
            tracemalloc.stop()
    harness.report(options, found, lines(found, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
