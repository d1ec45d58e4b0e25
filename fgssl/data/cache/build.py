"""Decode every picture once: the pixels of a whole split in one memory-mapped file, shared by workers and runs.

The file is outside the run (`~/.cache/fgssl`, or `FGSSL_CACHE`), keyed by the content of the split and by what was done
to its pictures, and appears under its name only when complete. Two processes building the same file do not disturb each
other: each writes its own temporary file, and the last rename wins with equal content. Where pixels would take more
than the budget, the shrunk pictures of a training split are kept as JPEG instead, about a quarter of the size, and
decoded at each reading; evaluation never sees anything but the pictures themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from fgssl.data.cache.folder import cache_folder, cache_label, remove_unused
from fgssl.data.cache.pixels import (
    ENCODED_MAGIC,
    FOOTER,
    PIXEL_MAGIC,
    Fault,
    PixelStore,
    Preparation,
    Shrunk,
    decode,
    to_jpeg,
)
from fgssl.data.images import ImageSet
from fgssl.runtime.files import umask
from fgssl.runtime.stopping import ignore_stop_signals

__all__ = ["Fault", "PixelStore", "Preparation", "Shrunk", "cache_bytes", "cache_path", "decode", "open_pixels"]

FREE_SPACE_SHARE = 0.25  # of the free disk a cache may take
ENCODED_SHARE = 0.25  # of the pixels' size that JPEG takes: photographs of groceries 0.25 at 125 px, 0.19 at 291 px
RETRIED_FAULTS = 100  # unreadable images tried again when a cache is opened
ABANDONED_DAYS = 1  # a file still being built was written to more recently than this

Progress = Callable[[int, int], None]


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
        budget: Gigabytes the file may take. Above them a training split is kept as JPEG, or, where even that is too
            large, decoded each time, as a split for evaluation is. None: a share of the free disk.
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
    """A store whose items are readings, for the builder's loader."""

    def __getitem__(self, index: int) -> np.ndarray | str:  # type: ignore[override]
        return self.read(index)


def first_of(batch: list[np.ndarray | str]) -> np.ndarray | str:
    """Collate a batch of one."""
    return batch[0]


def _build(images: ImageSet, prepare: Preparation, path: Path, workers: int, progress: Progress | None) -> None:
    count, encoded = len(images), path.suffix == ".jpegs"
    offsets, shapes = np.zeros(count + 1, np.int64), np.zeros((count, 2), np.int32)
    faults: dict[int, str] = {}
    remove_unused(path.parent, ".building-*", days=ABANDONED_DAYS)  # what builders that were killed have left
    loader: DataLoader[np.ndarray | str] = DataLoader(
        _Readings(images, prepare),
        collate_fn=first_of,
        num_workers=workers if count > 64 else 0,
        worker_init_fn=ignore_stop_signals,
    )
    handle = tempfile.NamedTemporaryFile(dir=path.parent, prefix=".building-", delete=False)  # noqa: SIM115
    try:
        with handle:
            for index, pixels in enumerate(loader):
                if isinstance(pixels, str):
                    faults[index] = pixels
                    offsets[index + 1] = offsets[index]
                else:
                    content = to_jpeg(pixels) if encoded else np.ascontiguousarray(pixels).data
                    shapes[index] = pixels.shape[:2]
                    offsets[index + 1] = offsets[index] + handle.write(content)
                if progress is not None:
                    progress(index + 1, count)
            padding = -int(offsets[-1]) % 8  # keeps the int64 index aligned
            notes = json.dumps({"faults": faults}).encode()
            handle.write(b"\0" * padding + offsets.tobytes() + shapes.tobytes() + notes)
            handle.write(
                FOOTER.pack(count, int(offsets[-1]) + padding, len(notes), ENCODED_MAGIC if encoded else PIXEL_MAGIC)
            )
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(handle.name, 0o666 & ~umask())  # a temporary file is private; the cache may serve several users
        os.replace(handle.name, path)
    except BaseException:
        Path(handle.name).unlink(missing_ok=True)
        raise
