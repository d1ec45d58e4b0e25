"""What is noted about one picture: size, mode, a digest of its bytes, and two small descriptions of its content."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fgssl.data.images import ImageSet
from fgssl.errors import UnreadableImage

THUMB = 12  # side of the colour thumbnail that confirms near copies
_SIDE, _FREQUENCIES = 32, 8
_COSINES = np.cos(np.pi / _SIDE * (np.arange(_SIDE) + 0.5) * np.arange(_FREQUENCIES)[:, None])  # (8, 32), DCT-II
_FLAT = 2.0  # grey levels of standard deviation below which a picture has no structure to hash


class Facts(NamedTuple):
    """One readable picture."""

    width: int  # upright, in pixels
    height: int
    mode: str  # as Pillow names it
    format: str
    animated: bool
    digest: bytes  # 16 bytes, equal for equal files
    hash: int  # 64 bits, near for similar pictures
    thumb: bytes  # THUMB x THUMB x 3, uint8


def examine(images: ImageSet, index: int) -> Facts | str:
    """The facts of one picture, or in words why it cannot be read."""
    try:
        found = images.examine(index, 2 * _SIDE)
    except UnreadableImage as error:
        return error.problem
    thumb = found.image.resize((THUMB, THUMB), Image.Resampling.BOX)
    return Facts(
        found.width,
        found.height,
        found.mode,
        found.format,
        found.animated,
        found.digest,
        perceptual_hash(found.image),
        thumb.tobytes(),
    )


def perceptual_hash(image: Image.Image) -> int:
    """64 bits of a picture's coarse structure: signs of its 8 x 8 lowest frequencies against their median.

    Resizing, recompression and small shifts flip few bits (pHash; Zauner, 2010). A picture of one colour has hash 0.

    Args:
        image: Any RGB picture.
    """
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float64)
    if grey.std() < _FLAT:
        return 0
    return _bits((_COSINES @ grey @ _COSINES.T).ravel()[1:])  # without the mean brightness


def _bits(coefficients: NDArray[np.float64]) -> int:  # (63,)
    above = coefficients > np.median(coefficients)
    return int.from_bytes(np.packbits(above).tobytes(), "big")
