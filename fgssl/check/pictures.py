"""What is noted about every picture of a split, gathered by several processes into arrays.

The perceptual hash is ours: imagehash needs SciPy and PyWavelets for what is two products with a table of cosines.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fgssl.data.decoding import Examined
from fgssl.data.images import ImageSet
from fgssl.errors import FgsslError, UnreadableImage

_THUMB = 12  # side of the colour thumbnail that confirms near copies
_SIDE, _FREQUENCIES = 32, 8
_COSINES = np.cos(np.pi / _SIDE * (np.arange(_SIDE) + 0.5) * np.arange(_FREQUENCIES)[:, None])  # (8, 32), DCT-II
_FLAT = 2.0  # grey levels of standard deviation below which a picture has no structure to hash
_CHUNK = 32  # pictures a process takes at a time


class SplitFacts:
    """A split in numbers; rows of unreadable pictures are zero."""

    def __init__(self, images: ImageSet) -> None:
        count = len(images)
        self.images = images
        self.sizes = np.zeros((count, 2), np.int32)  # upright width and height
        self.digests = np.zeros(count, "V16")  # equal for equal files
        self.hashes = np.zeros(count, np.uint64)  # near for similar pictures
        self.thumbs = np.zeros((count, _THUMB * _THUMB * 3), np.uint8)
        self.modes, self.formats = Counter[str](), Counter[str]()  # as Pillow names them
        self.animated = 0  # only the first frame is used
        self.reasons: dict[int, str] = {}  # why pictures cannot be read

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Which pictures can be read (N,)."""
        return self.sizes[:, 0] > 0


def sweep(images: ImageSet, *, workers: int | None, progress: Callable[[int, int], None]) -> SplitFacts:
    """Look at every picture of a split once, in so many processes (None: all cores; 0: this one alone)."""
    facts = SplitFacts(images)
    for index, found in enumerate(_examine_all(images, workers)):
        if isinstance(found, str):
            facts.reasons[index] = found
        else:
            picture, facts.hashes[index] = found
            facts.sizes[index] = picture.width, picture.height
            facts.digests[index] = picture.digest
            facts.thumbs[index] = np.asarray(picture.image).ravel()
            facts.modes[picture.mode] += 1
            facts.formats[picture.format] += 1
            facts.animated += picture.animated
        progress(index + 1, len(images))
    return facts


def examine(images: ImageSet, index: int) -> tuple[Examined, int] | str:
    """One picture with a thumbnail in place of its pixels, and its hash; or in words why it cannot be read."""
    try:
        found = images.examine(index, 2 * _SIDE)
    except UnreadableImage as error:
        return error.problem
    return found._replace(image=thumbnail(found.image)), perceptual_hash(found.image)


def thumbnail(image: Image.Image) -> Image.Image:
    """The colours of a picture, coarse enough to be alike in near copies."""
    return image.resize((_THUMB, _THUMB), Image.Resampling.BOX)


def perceptual_hash(image: Image.Image) -> int:
    """64 bits of an RGB picture's coarse structure: signs of its 8 x 8 lowest frequencies against their median.

    Resizing, recompression and small shifts flip few bits (pHash; Zauner, 2010). A picture of one colour has hash 0.
    """
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float64)
    if grey.std() < _FLAT:
        return 0
    coefficients = (_COSINES @ grey @ _COSINES.T).ravel()[1:]  # (63,), without the mean brightness
    return int.from_bytes(np.packbits(coefficients > np.median(coefficients)).tobytes(), "big")


def _examine_all(images: ImageSet, workers: int | None) -> Iterator[tuple[Examined, int] | str]:
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if workers < 1 or len(images) <= 4 * _CHUNK:
        yield from (examine(images, index) for index in range(len(images)))
        return
    pool = ProcessPoolExecutor(workers, initializer=_start, initargs=(images,))
    try:
        yield from pool.map(_examine_here, range(len(images)), chunksize=_CHUNK)
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


def _examine_here(index: int) -> tuple[Examined, int] | str:
    return examine(_images[0], index)
