"""The pixels of a split, decoded once into one memory-mapped file that workers and runs share, or at each access.

The file is outside the run (`~/.cache/fgssl`, or `FGSSL_CACHE`), keyed by the content of the split and by what was done
to its pictures, and appears under its name only when complete. Two processes building the same file do not disturb each
other: each writes its own temporary file, and the last rename wins with equal content. Where pixels would take more
than the budget, the shrunk pictures of a training split are kept as JPEG instead, about a quarter of the size, and
decoded at each reading; evaluation never sees anything but the pictures themselves.

Layout: pictures (each H x W x 3 pixels, or JPEG), one after another, then offsets (N + 1) int64, shapes (N, 2) int32,
then JSON {"faults": {index: reason}}, then a fixed footer (counts and a magic number).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import mmap
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from fgssl.data.cache.folder import cache_folder, cache_label, remove_unused
from fgssl.data.images import ImageSet
from fgssl.errors import UnreadableImage
from fgssl.runtime.files import umask
from fgssl.runtime.processes import ignore_stop_signals
from fgssl.views import EvaluationView, resize_short_side

FOOTER = struct.Struct("<qqq8s")  # images, bytes of pictures, bytes of JSON, magic
PIXEL_MAGIC, ENCODED_MAGIC = b"fgsslpx2", b"fgssljp2"
NEAR = 1.15  # a picture this much larger than asked is kept: resampling by so little blurs, and saves next to nothing
JPEG_QUALITY = 95  # a level of photographs of groceries changes by 1.5 on average at 125 px, by 0.7 at 291 px
FREE_SPACE_SHARE = 0.25  # of the free disk a cache may take
ENCODED_SHARE = 0.25  # of the pixels' size that JPEG takes: photographs of groceries 0.25 at 125 px, 0.19 at 291 px
RETRIED_FAULTS = 100  # unreadable images tried again when a cache is opened
ABANDONED_DAYS = 1  # a file still being built was written to more recently than this

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fault:
    """An unreadable image of a split."""

    index: int
    reason: str


class Shrunk(NamedTuple):
    """Preparation for training: the whole picture, short side `side` pixels, or its own where at most 1.15 of that."""

    side: int

    def __call__(self, image: Image.Image) -> Image.Image:
        own = min(image.size)
        return resize_short_side(image, own if own <= round(NEAR * self.side) else self.side)


Preparation = Shrunk | EvaluationView


class PixelStore(Dataset[np.ndarray]):
    """The prepared pixels of a split, from its complete cache file or (where `path` is None) decoded at each access."""

    def __init__(self, images: ImageSet, prepare: Preparation, path: Path | None = None) -> None:
        self.images, self.prepare, self.path = images, prepare, path
        self.encoded = False  # the file holds JPEG, not pixels
        self.faults: dict[int, str] = {}
        if path is not None:
            self._open(path)
        self.decodes = path is None or self.encoded  # reading is work, for processes of its own

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8. Raises UnreadableImage."""
        if self.path is None:
            return decode(self.images, index, self.prepare)
        height, width = self._shapes[index]
        if height == 0:
            raise UnreadableImage(self.faults.get(index, self.images.identifier(index)))
        stored = self._pixels[self._offsets[index] : self._offsets[index + 1]]
        if not self.encoded:
            return stored.reshape(height, width, 3)
        with contextlib.suppress(Exception):  # on broken bytes Pillow raises nearly anything
            with Image.open(io.BytesIO(stored.tobytes()), formats=("JPEG",)) as image:
                pixels = np.array(image)
            if pixels.shape == (height, width, 3):
                return pixels
        return decode(self.images, index, self.prepare)  # the file was damaged since it was made

    def read(self, index: int) -> np.ndarray | str:
        """The pixels, or in words why there are none: for loaders, which an exception would stop."""
        try:
            return self[index]
        except UnreadableImage as error:
            return str(error)

    def will_need(self, indices: Iterable[int]) -> None:
        """Have the system fetch pictures meanwhile: a file that is not in memory would be read picture by picture."""
        if self.path is None or not hasattr(mmap, "MADV_WILLNEED"):
            return
        for index in indices:
            start, stop = int(self._offsets[index]), int(self._offsets[index + 1])
            start -= start % mmap.PAGESIZE  # the system wants whole pages
            with contextlib.suppress(OSError):  # advice: a disk that cannot take it is read later
                if stop > start:
                    self._map.madvise(mmap.MADV_WILLNEED, start, stop - start)

    def _open(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        pixels = np.frombuffer(self._map, np.uint8)
        try:
            count, pixel_bytes, json_bytes, magic = FOOTER.unpack(pixels[-FOOTER.size :].tobytes())
            expected = pixel_bytes + 8 * (count + 1) + 8 * count + json_bytes + FOOTER.size
            self.encoded = magic == ENCODED_MAGIC
            if magic not in (PIXEL_MAGIC, ENCODED_MAGIC) or count != len(self.images) or expected != len(pixels):
                raise ValueError("footer")
            index = pixels[pixel_bytes : pixel_bytes + 16 * count + 8]
            offsets = index[: 8 * (count + 1)].view(np.int64)
            shapes = index[8 * (count + 1) :].view(np.int32).reshape(count, 2)
            pixel_sizes, sizes = shapes.astype(np.int64).prod(1) * 3, np.diff(offsets)
            fits = (sizes > 0) == (pixel_sizes > 0) if self.encoded else sizes == pixel_sizes
            if shapes.min(initial=0) < 0 or offsets[0] != 0 or offsets[-1] > pixel_bytes or not fits.all():
                raise ValueError("index")
            notes = json.loads(pixels[pixel_bytes + len(index) : -FOOTER.size].tobytes())
            faults = {int(k): str(v) for k, v in notes["faults"].items()}
            if set(faults) != set(np.flatnonzero(shapes[:, 0] == 0).tolist()):
                raise ValueError("faults")
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a complete cache file") from error
        self._offsets, self._shapes, self._pixels, self.faults = offsets, shapes, pixels, faults

    def __reduce__(self) -> tuple[Any, ...]:
        # a memory map would be pickled as its whole content; spawned workers open the file again
        return type(self), (self.images, self.prepare, self.path)


def decode(images: ImageSet, index: int, prepare: Preparation) -> np.ndarray:
    """A picture as the cache keeps it: (H, W, 3) uint8."""
    least = prepare.side if isinstance(prepare, Shrunk) else 2 * prepare.size
    return np.asarray(prepare(images.load(index, least)))


def _to_jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def cache_path(images: ImageSet, prepare: Preparation, folder: Path, *, encoded: bool = False) -> Path:
    """The file that would hold this split prepared this way, as pixels or as JPEG."""
    identity = f"{images.fingerprint()} {prepare!r} {ENCODED_MAGIC if encoded else PIXEL_MAGIC!r}"
    kind = "jpegs" if encoded else "pixels"
    label, digest = cache_label(images.source, images.split), hashlib.sha256(identity.encode()).hexdigest()
    return folder / "decoded" / f"{label}-{digest[:32]}.{kind}"


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
        budget: Gigabytes the file may take; None is a share of the free disk. What is larger even as JPEG is decoded
            each time.
        workers: Processes that decode while the cache is built.
        progress: Called with (done, total).
    """
    if cache == "off":
        return PixelStore(images, prepare)
    folder = cache_folder() if cache == "auto" else Path(cache).expanduser()
    try:
        for encoded in (False, True):
            path = cache_path(images, prepare, folder, encoded=encoded)
            kept = _complete(images, prepare, path)
            if kept is not None:
                return kept
            path.parent.mkdir(parents=True, exist_ok=True)
            room = FREE_SPACE_SHARE * shutil.disk_usage(path.parent).free if budget is None else budget * 1e9
            if cache_bytes(images, prepare, encoded=encoded) <= room:
                _build(images, prepare, path, workers, progress)
                return PixelStore(images, prepare, path)
            if not isinstance(prepare, Shrunk):
                break
    except OSError:  # a cache is a convenience: a full or read-only disk must not stop the run
        pass
    return PixelStore(images, prepare)


def _complete(images: ImageSet, prepare: Preparation, path: Path) -> PixelStore | None:
    """What is kept in a file, if it is there and whole, and no picture that could not be read can be read now."""
    try:
        store = PixelStore(images, prepare, path)
    except (OSError, ValueError):  # missing, or damaged by somebody: build it
        return None
    # tried again: `chmod` changes neither size nor time of a file
    fresh = PixelStore(images, prepare)
    mended = any(not isinstance(fresh.read(index), str) for index in list(store.faults)[:RETRIED_FAULTS])
    return None if mended else store


def cache_bytes(images: ImageSet, prepare: Preparation, *, encoded: bool) -> float:
    """Bytes that a cache is likely to take, pictures being 4 by 3."""
    side = prepare.side if isinstance(prepare, Shrunk) else prepare.size
    return len(images) * side * side * 4 * (ENCODED_SHARE if encoded else 1)


class _Readings(PixelStore):
    """A store whose batches are readings, for the builder's loader."""

    def __getitems__(self, indices: list[int]) -> list[np.ndarray | str]:
        return [self.read(index) for index in indices]


def _first_of(batch: list[np.ndarray | str]) -> np.ndarray | str:
    return batch[0]


def _build(images: ImageSet, prepare: Preparation, path: Path, workers: int, progress: Progress | None) -> None:
    count, encoded = len(images), path.suffix == ".jpegs"
    offsets, shapes = np.zeros(count + 1, np.int64), np.zeros((count, 2), np.int32)
    faults: dict[int, str] = {}
    remove_unused(path.parent, ".building-*", days=ABANDONED_DAYS)  # what builders that were killed have left
    readings, used = _Readings(images, prepare), workers if count > 64 else 0
    loader = DataLoader(readings, collate_fn=_first_of, num_workers=used, worker_init_fn=ignore_stop_signals)
    handle = tempfile.NamedTemporaryFile(dir=path.parent, prefix=".building-", delete=False)  # noqa: SIM115
    try:
        with handle:
            for index, pixels in enumerate(loader):
                offsets[index + 1] = offsets[index]
                if isinstance(pixels, str):
                    faults[index] = pixels
                else:
                    shapes[index] = pixels.shape[:2]
                    offsets[index + 1] += handle.write(
                        _to_jpeg(pixels) if encoded else np.ascontiguousarray(pixels).data
                    )
                if progress is not None:
                    progress(index + 1, count)
            padding = -int(offsets[-1]) % 8  # keeps the int64 index aligned
            notes = json.dumps({"faults": faults}).encode()
            handle.write(b"\0" * padding + offsets.tobytes() + shapes.tobytes() + notes)
            magic = ENCODED_MAGIC if encoded else PIXEL_MAGIC
            handle.write(FOOTER.pack(count, int(offsets[-1]) + padding, len(notes), magic))
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(handle.name, 0o666 & ~umask())  # a temporary file is private; the cache may serve several users
        os.replace(handle.name, path)
    except BaseException:
        Path(handle.name).unlink(missing_ok=True)
        raise
