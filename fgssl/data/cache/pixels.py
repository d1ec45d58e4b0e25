"""The pixels of a split: from its cache file, where there is one, or decoded at each access.

Layout of a cache file: pictures (each H x W x 3 pixels, or JPEG), one after another, then offsets (N + 1) int64, shapes
(N, 2) int32, then JSON {"faults": {index: reason}}, then a fixed footer (counts and a magic number).
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from fgssl.data.images import ImageSet
from fgssl.errors import UnreadableImage
from fgssl.views import EvaluationView, resize_short_side

FOOTER = struct.Struct("<qqq8s")  # images, bytes of pictures, bytes of JSON, magic
PIXEL_MAGIC, ENCODED_MAGIC = b"fgsslpx2", b"fgssljp2"
NEAR = 1.15  # a picture this much larger than asked is kept: resampling by so little blurs, and saves next to nothing
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Fault:
    """An unreadable image of a split."""

    index: int  # (hides tuple.index, which nobody wants)
    reason: str


class Shrunk(NamedTuple):
    """Preparation for training: the whole picture, short side `side` pixels, or its own where at most 1.15 of that."""

    side: int

    def __call__(self, image: Image.Image) -> Image.Image:
        """The shrunk RGB picture."""
        own = min(image.size)
        return resize_short_side(image, own if own <= round(NEAR * self.side) else self.side)


Preparation = Shrunk | EvaluationView


class PixelStore(Dataset[np.ndarray]):
    """The prepared pixels of a split, from the cache file or decoded on the fly.

    Args:
        images: The split.
        prepare: What is done to each decoded picture.
        path: The complete cache file, or None to decode at each access.

    Attributes:
        encoded: Whether the file holds JPEG, not pixels.
        decodes: Whether reading a picture means decoding it, which is work for processes of its own.
    """

    def __init__(self, images: ImageSet, prepare: Preparation, path: Path | None = None) -> None:
        self.images, self.prepare, self.path = images, prepare, path
        self.encoded = False
        self.faults: dict[int, str] = {}
        if path is not None:
            self._open(path)
        self.decodes = path is None or self.encoded

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 pixels. Raises UnreadableImage."""
        if self.path is None:
            return decode(self.images, index, self.prepare)
        height, width = self._shapes[index]
        if height == 0:
            raise UnreadableImage(self.faults.get(index, self.images.identifier(index)))
        stored = self._pixels[self._offsets[index] : self._offsets[index + 1]]
        if not self.encoded:
            return stored.reshape(height, width, 3)
        pixels = from_jpeg(stored)
        if pixels is None or pixels.shape != (height, width, 3):  # the file was damaged since it was made
            return decode(self.images, index, self.prepare)
        return pixels

    def read(self, index: int) -> np.ndarray | str:
        """The pixels, or in words why there are none: for loaders, which an exception would stop."""
        try:
            return PixelStore.__getitem__(self, index)
        except UnreadableImage as error:
            return str(error)

    def will_need(self, indices: Iterable[int]) -> None:
        """Have the system fetch pictures from the disk while something else is done; returns at once.

        Without it a batch waits for the disk picture by picture where the file exceeds memory or was not read lately.
        """
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

    def __getstate__(self) -> dict[str, object]:
        # a memory map would be pickled as its whole content; spawned workers open the file again
        return {"images": self.images, "prepare": self.prepare, "path": self.path}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def decode(images: ImageSet, index: int, prepare: Preparation) -> np.ndarray:
    """(H, W, 3) uint8 pixels of one picture. Raises UnreadableImage."""
    least = prepare.side if isinstance(prepare, Shrunk) else 2 * prepare.size
    return np.asarray(prepare(images.load(index, least)))


def to_jpeg(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as JPEG of quality 95 without chroma subsampling.

    A level of photographs of groceries changes by 1.5 on average at a short side of 125 pixels, by 0.7 at 291.
    """
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def from_jpeg(stored: np.ndarray) -> np.ndarray | None:
    """The pixels of JPEG bytes; None where they are damaged."""
    try:
        with Image.open(io.BytesIO(stored.tobytes()), formats=("JPEG",)) as image:
            return np.array(image)
    except Exception:  # on broken bytes Pillow raises nearly anything
        return None
