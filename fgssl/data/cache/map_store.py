"""Feature maps of a frozen backbone on disk: one file of equal entries, each written once and checked when read.

An entry holds the maps of both views of an image as float16, the position of the image that was used (another one where
it could not be read), and a checksum: what a crash left half written counts as missing. Plain reads and writes, no
memory map: on a full disk a write is an error, not the end of the process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np

from fgssl.data.cache.folder import remove_unused

_HEADER = struct.Struct("<IIq")  # checksum, mark, position of the image
_MARK = 0x6D617001
LARGEST = float(np.finfo(np.float16).max)
FREE_SPACE_SHARE = 0.25  # of the free disk; images beyond it are not kept
UNUSED_DAYS = 14  # after which a file is removed when another one is made


def entry_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of an entry whose maps have this shape, (2, C, H, W)."""
    return _HEADER.size + 2 * int(np.prod(shape))


class MapStore:
    """Maps by (image, slot); several processes may read and write the same file.

    It is made where it is missing, with `slots` entries of a shape (2, C, H, W) for each image of the split that a
    quarter of the free disk has room for. Raises OSError where it cannot be made.
    """

    def __init__(self, path: Path, *, images: int, slots: int, shape: tuple[int, ...]) -> None:
        self.path, self.images, self.slots, self.shape = path, images, slots, shape
        self._size = entry_bytes(shape)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_unused(path.parent, "*.maps", days=UNUSED_DAYS)
            room = FREE_SPACE_SHARE * shutil.disk_usage(path.parent).free
            kept = min(images, int(room // (self._size * slots)))
            with contextlib.suppress(FileExistsError), path.open("xb") as file:
                file.truncate(kept * slots * self._size)
        os.utime(path)
        self._file = os.open(path, os.O_RDWR)
        self.kept = min(images, os.fstat(self._file).st_size // (self._size * slots))
        self.full = False

    def has(self, image: int, slot: int) -> bool:
        """Whether the entry was written, damaged or not."""
        if image >= self.kept:
            return False
        _, mark, _ = _HEADER.unpack(os.pread(self._file, _HEADER.size, self._place(image, slot)))
        return bool(mark == _MARK)

    def read(self, image: int, slot: int) -> tuple[np.ndarray, int] | None:
        """The maps (2, C, H, W) float16 and the position of the image used; None where they are missing or damaged."""
        if image >= self.kept:
            return None
        content = os.pread(self._file, self._size, self._place(image, slot))
        checksum, mark, used = _HEADER.unpack_from(content)
        data = memoryview(content)[_HEADER.size :]
        if mark != _MARK or zlib.crc32(data) != checksum:
            return None
        return np.frombuffer(data, np.float16).reshape(self.shape), used

    def write(self, image: int, slot: int, maps: np.ndarray, used: int) -> None:
        """Keep the maps of an image, if there is room for it; a full disk ends the keeping, not the run."""
        if image >= self.kept or self.full:
            return
        data = np.ascontiguousarray(maps, np.float16).tobytes()
        content = _HEADER.pack(zlib.crc32(data), _MARK, used) + data
        try:
            written = os.pwrite(self._file, content, self._place(image, slot))
            self.full = written < len(content)
        except OSError:
            self.full = True

    def _place(self, image: int, slot: int) -> int:
        return (image * self.slots + slot) * self._size

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "images": self.images, "slots": self.slots, "shape": self.shape}

    def __setstate__(self, state: dict[str, object]) -> None:  # in a spawned worker
        self.__init__(**state)  # type: ignore[misc]

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            os.close(self._file)


def rounded(maps: np.ndarray) -> np.ndarray:
    """Maps as the store holds them: float16, clipped to what it can hold."""
    clipped: np.ndarray = np.clip(maps, -LARGEST, LARGEST).astype(np.float16)
    return clipped
