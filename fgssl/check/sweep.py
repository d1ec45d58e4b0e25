"""The facts of every picture of a split, gathered by several processes into arrays."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fgssl.check.facts import THUMB, Facts, examine
from fgssl.data.images import ImageSet
from fgssl.errors import FgsslError

Progress = Callable[[int, int], None]
_CHUNK = 32  # pictures a process takes at a time


@dataclass
class SplitFacts:
    """A split in numbers; rows of unreadable pictures are zero.

    Attributes:
        images: The split.
        sizes: Width and height (N, 2) int32; zero where unreadable.
        digests: Of the encoded content (N, 16) uint8.
        hashes: Perceptual (N,) uint64.
        thumbs: Colour thumbnails (N, THUMB * THUMB * 3) uint8.
        modes: Number of pictures by Pillow's name of the mode.
        formats: Number of pictures by file format.
        animated: Pictures of which only the first frame is used.
        reasons: Why pictures cannot be read, by index.
    """

    images: ImageSet
    sizes: NDArray[np.int32]
    digests: NDArray[np.uint8]
    hashes: NDArray[np.uint64]
    thumbs: NDArray[np.uint8]
    modes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    animated: int = 0
    reasons: dict[int, str] = field(default_factory=dict)

    @property
    def readable(self) -> NDArray[np.bool_]:
        """(N,) which pictures can be read."""
        return self.sizes[:, 0] > 0


def sweep(images: ImageSet, *, workers: int | None = None, progress: Progress | None = None) -> SplitFacts:
    """Look at every picture of a split once.

    Args:
        images: The split.
        workers: Processes (default: all cores); 0 or few pictures: this process alone.
        progress: Called with (done, total).

    Raises:
        FgsslError: A process died.
    """
    count = len(images)
    facts = SplitFacts(
        images,
        sizes=np.zeros((count, 2), np.int32),
        digests=np.zeros((count, 16), np.uint8),
        hashes=np.zeros(count, np.uint64),
        thumbs=np.zeros((count, THUMB * THUMB * 3), np.uint8),
    )
    for index, found in enumerate(_all_facts(images, available_cores() if workers is None else workers)):
        if isinstance(found, str):
            facts.reasons[index] = found
        else:
            _note(facts, index, found)
        if progress is not None:
            progress(index + 1, count)
    return facts


def _note(facts: SplitFacts, index: int, found: Facts) -> None:
    facts.sizes[index] = found.width, found.height
    facts.digests[index] = np.frombuffer(found.digest, np.uint8)
    facts.hashes[index] = found.hash
    facts.thumbs[index] = np.frombuffer(found.thumb, np.uint8)
    facts.modes[found.mode] += 1
    facts.formats[found.format] += 1
    facts.animated += found.animated


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _all_facts(images: ImageSet, workers: int) -> Iterator[Facts | str]:
    if workers < 1 or len(images) <= 4 * _CHUNK:
        yield from (examine(images, index) for index in range(len(images)))
        return
    starts = range(0, len(images), _CHUNK)
    pool = ProcessPoolExecutor(workers, initializer=_start, initargs=(images,))
    try:
        for chunk in pool.map(_examine_chunk, starts):
            yield from chunk
    except BrokenProcessPool as error:
        raise FgsslError(
            f"a process that read pictures of {images.source} died", "mostly for lack of memory: use fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


_images: list[ImageSet] = []  # of a process of the pool: handed over once, not with every chunk


def _start(images: ImageSet) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the first process answers it
    _images[:] = [images]


def _examine_chunk(start: int) -> list[Facts | str]:
    (images,) = _images
    return [examine(images, index) for index in range(start, min(start + _CHUNK, len(images)))]
