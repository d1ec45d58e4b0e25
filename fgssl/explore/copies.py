"""Near copies, by what `fgssl data check` knows them by, of the pictures as the encoder sees them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fgssl.check.copies import join, members
from fgssl.check.pictures import perceptual_hash, thumbnail
from fgssl.check.similar import near_pairs
from fgssl.data.cache.pixels import PixelStore


def find_near_copies(
    pixels: PixelStore, rows: NDArray[np.int64], progress: Callable[[int, int], None]
) -> list[list[int]]:
    """Groups of places in `rows` (N,), pictures of a store, that show the same, equal files included.

    The views come from the cache, where the embedding left them: nothing is decoded again.
    """
    hashes, thumbs = np.zeros(len(rows), np.uint64), list[NDArray[np.uint8]]()
    for place, row in enumerate(rows.tolist()):
        picture = Image.fromarray(pixels[row])
        hashes[place] = perceptual_hash(picture)
        thumbs.append(np.asarray(thumbnail(picture)).ravel())
        progress(place + 1, len(rows))
    component = np.arange(len(rows))
    for pairs in near_pairs(hashes, np.stack(thumbs), lambda done, total: None):
        join(component, *pairs)
    return members(np.arange(len(rows)), component)
