"""Names of many files in one buffer: a million paths without a million Python objects."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class PackedNames:
    """A read-only sequence of byte strings held in one buffer.

    A Python list of a million paths costs some 120 MB and is copied page by page into every forked worker, because
    reading an object writes its reference count. One buffer and its offsets are shared and pickle as two blocks.

    Args:
        names: The byte strings, in order; consumed once.
    """

    def __init__(self, names: Iterable[bytes] = ()) -> None:
        buffer = bytearray()
        lengths: list[NDArray[np.int64]] = []
        block: list[int] = []
        for name in names:
            buffer += name
            block.append(len(name))
            if len(block) == 65536:  # numbers leave Python objects early, so that listing stays lean
                lengths.append(np.array(block, dtype=np.int64))
                block = []
        lengths.append(np.array(block, dtype=np.int64))
        self._buffer = buffer
        self._offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.concatenate(lengths))])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} outside 0..{len(self) - 1}")
        return bytes(self._buffer[int(self._offsets[index]) : int(self._offsets[index + 1])])
