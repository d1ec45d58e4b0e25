"""What more pictures cost: the same pictures listed ten times, and a list of a million; used by step_table.py."""

from __future__ import annotations

import gc
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from fgssl.config.schema import DataConfig
from fgssl.data import available_splits, load_images
from fgssl.data.cache.pixels import PixelStore, Shrunk, open_pixels
from fgssl.data.feed import epoch_order
from fgssl.data.images import ImageSet
from fgssl.data.sources.files import FileImages


def write_list(images: FileImages, count: int, path: Path) -> None:
    """A list of `count` pictures: those of a set over and over, in its order."""
    names = [images.content(index) for index in range(len(images))]
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, count, len(names)):
            file.writelines(f"{name}\n" for name in names[: count - start])


class Repeated(ImageSet):
    """A longer list of pictures that are decoded already: its cache is a matter of copying."""

    def __init__(self, listed: FileImages, pixels: PixelStore) -> None:
        super().__init__(listed.source, listed.split)
        self._listed, self._pixels = listed, pixels

    def __len__(self) -> int:
        return len(self._listed)

    def name(self, index: int) -> str:
        return self._listed.name(index)

    def load(self, index: int, min_side: int | None = None) -> Image.Image:
        return Image.fromarray(np.asarray(self._pixels[index % len(self._pixels)]))

    def fingerprint(self) -> str:
        return self._listed.fingerprint()


def cached_times_ten(images: FileImages, prepare: Shrunk, folder: Path) -> Path:
    """A list of ten times the pictures and, below the folder, its cache, as a run would have made it."""
    path = folder / "ten-times.txt"
    write_list(images, 10 * len(images), path)
    listed = load_images(DataConfig(source=str(path)), "all")
    assert isinstance(listed, FileImages)
    open_pixels(Repeated(listed, open_pixels(images, prepare)), prepare, cache=str(folder), budget=1000.0)
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
        path = Path(folder) / "list.txt"
        write_list(images, count, path)
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
