"""Any pixel format Pillow knows to 8-bit RGB, by rules that do not depend on the other images.

| stored as | becomes |
|---|---|
| alpha in any form (RGBA, LA, premultiplied, a transparent palette entry or colour) | composited on white |
| 16-bit grey, and 32-bit integers within 0..65535 | value * 255 / 65535, rounded |
| 12-bit grey | value * 255 / 4095, rounded |
| other 32-bit integers | stretched from their smallest to their largest value |
| floats within 0..1 | value * 255, rounded |
| floats within 0..255 | value, rounded |
| other floats | stretched from their smallest to their largest finite value; what is not a number becomes 0 |
| CMYK, YCbCr, LAB, HSV, grey, bilevel, palette | Pillow's conversion (colour profiles are not applied) |

Pillow keeps a transparent colour as it is stored, and scales pixels of less or more than 8 bits: the two meet here.
"""

from __future__ import annotations

from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_GREY_SCALES = {"1": 255, "L;2": 85, "L;4": 17}  # what Pillow multiplies grey pixels of few bits by
_WHITE_IS_ZERO = 262  # the TIFF tag, where its value is 0


def raw_mode(image: Image.Image) -> str:
    """How the pixels are stored, in Pillow's words ("L;4", "RGB;16B"); "" once they are loaded."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments or "")


def to_rgb(image: Image.Image, raw: str = "") -> Image.Image:
    """Converts a decoded image of any mode to RGB by the rules of this module.

    Args:
        image: A loaded Pillow image.
        raw: Its `raw_mode` before it was loaded.

    Returns:
        An RGB image of the same size; the same object where it is RGB already.

    Raises:
        ValueError: Pillow has no conversion for the mode.
    """
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    key = image.info.get("transparency")
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if raw.startswith("I;32") and not raw.endswith("S"):  # Pillow's own have a sign, these have none
            values = values.view(np.uint32)
        grey = _to_8_bit(values, top=4095 if raw == "I;12" else 65535)
        if image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(_WHITE_IS_ZERO) == 0:
            grey = 255 - grey
        if isinstance(key, int):
            grey[values == key] = 255
        return Image.fromarray(grey).convert("RGB")
    if raw in _GREY_SCALES and isinstance(key, int):
        grey = np.array(image.convert("L"))
        grey[grey == key * _GREY_SCALES[raw]] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def with_transparent_colour(image: Image.Image, stream: IO[bytes]) -> Image.Image:
    """A PNG of 16 bits a channel, of which Pillow keeps the upper 8, with its transparent colour made white.

    Args:
        image: As loaded.
        stream: Its content, read once more for the lower 8: shadows that only begin like the colour are opaque.
    """
    key = np.array(image.info["transparency"])
    pixels = np.array(image)
    stream.seek(0)
    with Image.open(stream, formats=("PNG",)) as lower:
        # what reads a little-endian value's upper byte reads a big-endian one's lower byte
        lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
        clear = ((pixels == key >> 8) & (np.asarray(lower) == key & 255)).all(-1)
    pixels[clear] = 255
    return Image.fromarray(pixels)


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _to_8_bit(values: NDArray[np.generic], *, top: int) -> NDArray[np.uint8]:  # (H, W) -> (H, W)
    numbers = values.astype(np.float64)
    is_float = values.dtype.kind == "f"
    finite = np.isfinite(numbers)
    if not finite.any():
        return np.zeros(values.shape, dtype=np.uint8)
    low, high = float(numbers[finite].min()), float(numbers[finite].max())
    if is_float and low >= 0 and high <= 1:
        offset, scale = 0.0, 255.0
    elif is_float and low >= 0 and high <= 255:
        offset, scale = 0.0, 1.0
    elif not is_float and low >= 0 and high <= top:
        offset, scale = 0.0, 255 / top
    else:
        offset, scale = low, 255 / (high - low) if high > low else 0.0
    scaled = np.where(finite, (numbers - offset) * scale, 0.0)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
