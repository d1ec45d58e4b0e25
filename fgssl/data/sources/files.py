"""Images that are files on disk, whatever named them: a folder or a list."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fgssl.data.decoding.decode import Examined, decode_image, examine_image
from fgssl.data.sources.packed import PackedNames
from fgssl.runtime.progress_events import Told
from fgssl.runtime.text import shown

if TYPE_CHECKING:
    from PIL.Image import Image

TELL_EVERY = 1024  # files


class FileImages:
    """An `ImageSet` of files below (or beside) one folder.

    Args:
        source: The source as the user wrote it.
        split: The split's name.
        folder: Folder the names are relative to, as the user wrote it.
        names: Paths relative to the folder; absolute paths stay as they are.
        labels: Class ids (N,), or None.
        class_names: Name of every class id, or None.
        skipped: "path: reason" of what the listing passed over, for reports.
    """

    def __init__(
        self,
        source: str,
        split: str,
        *,
        folder: bytes,
        names: PackedNames,
        labels: NDArray[np.int64] | None = None,
        class_names: tuple[str, ...] | None = None,
        skipped: tuple[str, ...] = (),
    ) -> None:
        self.source = source
        self.split = split
        self.labels = labels
        self.class_names = class_names
        self.skipped = skipped
        self._shown = folder
        self._root = os.path.abspath(folder)  # a worker or a test may change the current folder
        self._names = names
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> str:
        """Absolute path of one image, usable with `open` (odd bytes surrogate-escaped)."""
        return os.fsdecode(os.path.join(self._root, self._names[index]))

    def identifier(self, index: int) -> str:
        return shown(os.path.normpath(os.path.join(self._shown, self._names[index])))

    def load(self, index: int, min_side: int | None = None) -> Image:
        return decode_image(self.path(index), min_side, name=self.identifier(index))

    def examine(self, index: int, min_side: int | None = None) -> Examined:
        return examine_image(self.path(index), min_side, name=self.identifier(index))

    def fingerprint(self) -> str:
        """Hash of relative paths, sizes and times of change; one `stat` a file the first time."""
        if self._fingerprint is None:
            digest = hashlib.blake2b(digest_size=16)
            told = Told(f"looking at the files of {self.source}", len(self))
            for index in range(len(self)):
                if index % TELL_EVERY == 0:
                    told(index)
                name = self._names[index]
                try:
                    status = os.stat(os.path.join(self._root, name))
                    state = (status.st_size, status.st_mtime_ns)
                except (OSError, ValueError):  # missing, or a name no file system allows
                    state = (-1, -1)
                digest.update(b"%d %d %d " % (len(name), *state) + name)
            told.end(len(self))
            self._fingerprint = digest.hexdigest()
        return self._fingerprint
