"""Any pixel format Pillow knows to 8-bit RGB, by rules that do not depend on the other images.

| stored as | becomes |
|---|---|
| alpha in any form (RGBA, LA, premultiplied, a transparent palette entry or colour) | composited on white |
| 16-bit grey, and 32-bit integers within 0..65535 | value * 255 / 65535, rounded |
| other 32-bit integers | stretched from their smallest to their largest value |
| floats within 0..1 | value * 255, rounded |
| floats within 0..255 | value, rounded |
| other floats | stretched from their smallest to their largest finite value; what is not a number becomes 0 |
| CMYK, YCbCr, LAB, HSV, grey, bilevel, palette | Pillow's conversion (colour profiles are not applied) |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts a decoded image of any mode to RGB by the rules of this module.

    Args:
        image: A loaded Pillow image.

    Returns:
        An RGB image of the same size; the same object where it is RGB already.

    Raises:
        ValueError: Pillow has no conversion for the mode.
    """
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _to_8_bit(values: NDArray[np.generic]) -> NDArray[np.uint8]:  # (H, W) -> (H, W)
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
    elif not is_float and low >= 0 and high <= 65535:
        offset, scale = 0.0, 255 / 65535
    else:
        offset, scale = low, 255 / (high - low) if high > low else 0.0
    scaled = np.where(finite, (numbers - offset) * scale, 0.0)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
