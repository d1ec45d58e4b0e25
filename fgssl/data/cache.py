"""Decode every picture once: uint8 pixels of a whole split in one memory-mapped file, shared by workers and runs.

The file is outside the run (`~/.cache/fgssl`, or `FGSSL_CACHE`), keyed by the content of the split and by what was done
to its pictures, and appears under its name only when complete. Two processes building the same file do not disturb each
other: each writes its own temporary file, and the last rename wins with equal content.

Layout: pixels (each image H x W x 3, one after another), then offsets (N + 1) int64, shapes (N, 2) int32, then JSON
{"faults": {index: reason}}, then a fixed footer (counts and a magic number).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from fgssl.data.images import ImageSet
from fgssl.data.location import cache_folder
from fgssl.errors import UnreadableImage
from fgssl.files import umask
from fgssl.stopping import ignore_stop_signals
from fgssl.views import EvaluationView, resize_short_side

_FOOTER = struct.Struct("<qqq8s")  # images, bytes of pixels, bytes of JSON, magic
_MAGIC = b"fgsslpx1"
FREE_SPACE_SHARE = 0.25  # of the free disk a cache may take; above it pictures are decoded each time
RETRIED_FAULTS = 100  # unreadable images tried again when a cache is opened
ABANDONED_SECONDS = 86_400  # a file still being built was written to more recently than this

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fault:
    """An unreadable image of a split."""

    index: int  # (hides tuple.index, which nobody wants)
    reason: str


class Shrunk(NamedTuple):
    """Preparation for training: the whole picture, short side at most `side` pixels."""

    side: int

    def __call__(self, image: Image.Image) -> Image.Image:
        """The shrunk RGB picture."""
        return resize_short_side(image, self.side)


Preparation = Shrunk | EvaluationView


class PixelStore(Dataset[np.ndarray]):
    """The prepared pixels of a split, from the cache file or decoded on the fly.

    Args:
        images: The split.
        prepare: What is done to each decoded picture.
        path: The complete cache file, or None to decode at each access.
    """

    def __init__(self, images: ImageSet, prepare: Preparation, path: Path | None = None) -> None:
        self.images, self.prepare, self.path = images, prepare, path
        self.faults: dict[int, str] = {}
        if path is not None:
            self._open(path)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 pixels. Raises UnreadableImage."""
        if self.path is None:
            return decode(self.images, index, self.prepare)
        height, width = self._shapes[index]
        if height == 0:
            raise UnreadableImage(self.faults.get(index, self.images.identifier(index)))
        start = self._offsets[index]
        return self._pixels[start : start + height * width * 3].reshape(height, width, 3)

    def read(self, index: int) -> np.ndarray | str:
        """The pixels, or in words why there are none: for loaders, which an exception would stop."""
        try:
            return self[index]
        except UnreadableImage as error:
            return str(error)

    def _open(self, path: Path) -> None:
        pixels = np.memmap(path, np.uint8, mode="r")
        try:
            count, pixel_bytes, json_bytes, magic = _FOOTER.unpack(pixels[-_FOOTER.size :].tobytes())
            expected = pixel_bytes + 8 * (count + 1) + 8 * count + json_bytes + _FOOTER.size
            if magic != _MAGIC or count != len(self.images) or expected != len(pixels):
                raise ValueError("footer")
            index = pixels[pixel_bytes : pixel_bytes + 16 * count + 8]
            offsets = index[: 8 * (count + 1)].view(np.int64)
            shapes = index[8 * (count + 1) :].view(np.int32).reshape(count, 2)
            sizes = shapes.astype(np.int64).prod(1) * 3
            if shapes.min(initial=0) < 0 or offsets[0] != 0 or (np.diff(offsets) != sizes).any():
                raise ValueError("index")
            notes = json.loads(pixels[pixel_bytes + len(index) : -_FOOTER.size].tobytes())
            faults = {int(k): str(v) for k, v in notes["faults"].items()}
            if set(faults) != set(np.flatnonzero(shapes[:, 0] == 0).tolist()):
                raise ValueError("faults")
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a complete cache file") from error
        self._offsets, self._shapes, self._pixels, self.faults = offsets, shapes, pixels, faults

    def __getstate__(self) -> dict[str, object]:
        # a memory map would be pickled as its whole content; spawned workers open the file again
        return {"images": self.images, "prepare": self.prepare, "path": self.path}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def decode(images: ImageSet, index: int, prepare: Preparation) -> np.ndarray:
    """(H, W, 3) uint8 pixels of one picture. Raises UnreadableImage."""
    least = prepare.side if isinstance(prepare, Shrunk) else 2 * prepare.size
    return np.asarray(prepare(images.load(index, least)))


def cache_path(images: ImageSet, prepare: Preparation, folder: Path) -> Path:
    """The file that would hold this split prepared this way."""
    identity = f"{images.fingerprint()} {prepare!r} {_MAGIC!r}"
    return folder / "decoded" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.pixels"


def open_pixels(
    images: ImageSet,
    prepare: Preparation,
    *,
    cache: str = "auto",
    budget: float | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> PixelStore:
    """The pixels of a split through the cache, which is built first if it is missing.

    Args:
        images: The split.
        prepare: `Shrunk(side)` for training, `EvaluationView` for evaluation.
        cache: "auto" (used where it can be written and fits), "off", or a folder.
        budget: Gigabytes the file may take; above them pictures are decoded each time. None: a share of the free disk.
        workers: Processes that decode while the cache is built.
        progress: Called with (done, total).
    """
    if cache == "off":
        return PixelStore(images, prepare)
    folder = cache_folder() if cache == "auto" else Path(cache).expanduser()
    path = cache_path(images, prepare, folder)
    try:
        store = PixelStore(images, prepare, path)
        if not _mended(store):
            return store
    except (OSError, ValueError):  # missing, or damaged by somebody: build it
        pass
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        side = prepare.side if isinstance(prepare, Shrunk) else prepare.size
        room = FREE_SPACE_SHARE * shutil.disk_usage(path.parent).free if budget is None else budget * 1e9
        if len(images) * side * side * 4 > room:
            return PixelStore(images, prepare)
        _build(images, prepare, path, workers, progress)
        return PixelStore(images, prepare, path)
    except OSError:  # a cache is a convenience: a full or read-only disk must not stop the run
        return PixelStore(images, prepare)


def _mended(store: PixelStore) -> bool:
    """Whether an image that could not be read can be read now: `chmod` changes neither size nor time of a file."""
    fresh = PixelStore(store.images, store.prepare)
    return any(not isinstance(fresh.read(index), str) for index in list(store.faults)[:RETRIED_FAULTS])


class _Readings(Dataset["np.ndarray | str"]):
    """`PixelStore.read` as a data set, for the builder's loader."""

    def __init__(self, pixels: PixelStore) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> np.ndarray | str:
        return self.pixels.read(index)


def first_of(batch: list[np.ndarray | str]) -> np.ndarray | str:
    """Collate a batch of one."""
    return batch[0]


def _decoded(images: ImageSet, prepare: Preparation, workers: int) -> Iterator[np.ndarray | str]:
    loader: DataLoader[np.ndarray | str] = DataLoader(
        _Readings(PixelStore(images, prepare)),
        batch_size=1,
        collate_fn=first_of,
        num_workers=workers if len(images) > 64 else 0,
        worker_init_fn=ignore_stop_signals,
    )
    yield from loader


def _build(images: ImageSet, prepare: Preparation, path: Path, workers: int, progress: Progress | None) -> None:
    count = len(images)
    offsets, shapes = np.zeros(count + 1, np.int64), np.zeros((count, 2), np.int32)
    faults: dict[int, str] = {}
    _remove_abandoned(path.parent)
    handle = tempfile.NamedTemporaryFile(dir=path.parent, prefix=".building-", delete=False)  # noqa: SIM115
    try:
        with handle:
            for index, pixels in enumerate(_decoded(images, prepare, workers)):
                if isinstance(pixels, str):
                    faults[index] = pixels
                    offsets[index + 1] = offsets[index]
                else:
                    handle.write(np.ascontiguousarray(pixels).data)
                    shapes[index] = pixels.shape[:2]
                    offsets[index + 1] = offsets[index] + pixels.size
                if progress is not None:
                    progress(index + 1, count)
            padding = -int(offsets[-1]) % 8  # keeps the int64 index aligned
            notes = json.dumps({"faults": faults}).encode()
            handle.write(b"\0" * padding + offsets.tobytes() + shapes.tobytes() + notes)
            handle.write(_FOOTER.pack(count, int(offsets[-1]) + padding, len(notes), _MAGIC))
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(handle.name, 0o666 & ~umask())  # a temporary file is private; the cache may serve several users
        os.replace(handle.name, path)
    except BaseException:
        Path(handle.name).unlink(missing_ok=True)
        raise


def _remove_abandoned(folder: Path) -> None:
    """Delete what builders that were killed have left."""
    for path in folder.glob(".building-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()
