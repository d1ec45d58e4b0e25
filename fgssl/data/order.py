"""In which order an epoch shows the pictures: a pure function of seed and epoch, whoever asks, from whatever step.

So a run that is resumed sees what it would have seen, with as many processes as it then has.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

BLOCK = 512  # neighbours on the disk, that are read together
WINDOW = 8  # blocks whose pictures are shuffled among each other
LANES = 64  # read side by side; processes whose number divides it have lanes of their own

Order = Callable[[int, int, int], NDArray[np.int64]]  # number of images, seed, epoch -> their order


def epoch_order(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The (length,) order of images in an epoch: any may follow any."""
    return np.random.default_rng([seed, epoch, 0x0DE5]).permutation(length)


def local_order(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The (length,) order in which shards are read nearly as they lie on the disk, and every batch still mixes them.

    Blocks of neighbours are dealt at random to lanes, in each of which some blocks at a time are shuffled. Position p
    of the epoch is lane p % LANES, and process r of W takes every W-th position: lanes of its own where W divides
    LANES. The few that are left where lanes differ in length come last. Small sets have smaller blocks.
    """
    rng = np.random.default_rng([seed, epoch, 0x10CA])
    block = max(1, min(BLOCK, length // (LANES * WINDOW)))
    starts = block * rng.permutation(-(-length // block))
    lanes = [_shuffled(starts[lane::LANES], block, length, rng) for lane in range(LANES)]
    least = min(map(len, lanes))
    together = np.stack([lane[:least] for lane in lanes], 1).reshape(-1)
    return np.concatenate([together, rng.permutation(np.concatenate([lane[least:] for lane in lanes]))])


def _shuffled(starts: NDArray[np.int64], block: int, length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The images of blocks, in windows of some blocks, each window shuffled."""
    parts = [np.empty(0, np.int64)]
    for first in range(0, len(starts), WINDOW):
        images = (starts[first : first + WINDOW, None] + np.arange(block)).reshape(-1)
        parts.append(rng.permutation(images[images < length]))
    return np.concatenate(parts)


ORDERS: dict[str, Order] = {"whole": epoch_order, "local": local_order}
