"""One image file, or its bytes, to an upright RGB image; whatever is wrong with it becomes one clear line.

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
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from fgssl.errors import FgsslError, UnreadableImage
from fgssl.runtime.text import shown

# larger images are refused before they are decoded: a small file can unpack to many gigabytes (Pillow's own limit)
MAX_PIXELS = 178_956_970
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "AVIF", "JPEG2000", "DIB", "HEIF")
"""Content is recognised as one of these (HEIF where a plugin has registered it), whatever the file's extension. The
rest of Pillow's formats stay closed: some start other programs (EPS), some accept nearly any bytes (TGA, PCX)."""

# Pillow warns about large images, odd metadata and palettes once per process and kind; a run over a million files
# must not speak about them on the user's terminal. Set once: switching filters around every image is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")

_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
_TURNS = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]
_UPRIGHT = {orientation: Image.Transpose[turn] for orientation, turn in enumerate(_TURNS, start=2)}
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_GREY_SCALES = {"1": 255, "L;2": 85, "L;4": 17}  # what Pillow multiplies grey pixels of few bits by
_WHITE_IS_ZERO = 262  # the TIFF tag, where its value is 0
# what turns up under an image's name: telling it saves the user from opening the file
_KNOWN_STARTS = (
    (b"<!doctype html", "is an HTML page, not an image"),
    (b"<html", "is an HTML page, not an image"),
    (b"<svg", "is an SVG drawing, not a photograph"),
    (b"<?xml", "is an XML file, not an image"),
    (b"{", "is text (JSON?), not an image"),
    (b"%pdf", "is a PDF, not an image"),
    (b"%!ps", "is a PostScript file, not an image"),
    (b"pk\x03\x04", "is a zip archive, not an image"),
    (b"\x1f\x8b", "is a gzip archive, not an image"),
    (b"version https://git-lfs", "is a git LFS pointer: the image itself was not downloaded"),
)

EncodedImage = bytes | str | os.PathLike[str]  # encoded bytes, or the path of a file (bytes are always content)


class Examined(NamedTuple):
    """A decoded image and what is known of the file it came from."""

    image: Image.Image  # RGB, upright, maybe smaller than stored
    width: int  # as stored, upright; as the height
    height: int
    mode: str  # as Pillow names it: RGB, L, P, CMYK, I;16 ...
    format: str  # JPEG, PNG ...
    animated: bool  # only the first frame is used
    digest: bytes  # 16 bytes, of the encoded content


def decode_image(data: EncodedImage, min_side: int | None = None, *, name: str | None = None) -> Image.Image:
    """Decodes an image: upright as EXIF says, RGB, its pixels loaded; the first frame of an animation.

    Args:
        data: The encoded bytes, or the path of a file.
        min_side: Lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, as long as its short side stays at least
            this many pixels. None decodes at full size.
        name: How messages call the image; by default its path.

    Raises:
        UnreadableImage: Missing, empty, cut off, not an image, too large, or broken in any other way.
    """
    return _read(data, min_side, name, digest=False).image


def examine_image(data: EncodedImage, min_side: int | None = None, *, name: str | None = None) -> Examined:
    """As `decode_image`, and what the file itself is: its size, mode, format and a digest of its content."""
    return _read(data, min_side, name, digest=True)


def require_files(paths: Sequence[Path]) -> None:
    """Raises FgsslError for the first of the pictures somebody named that is not there, or is a folder."""
    for path in paths:
        if not os.path.lexists(path):
            raise FgsslError(f"no such file: {shown(path)}", "check the path")
        if path.is_dir():
            raise FgsslError(f"{shown(path)} is a folder, not a picture", "name pictures in it")


def _read(data: EncodedImage, min_side: int | None, name: str | None, *, digest: bool) -> Examined:
    try:
        if isinstance(data, bytes):
            name = name or f"image of {len(data)} bytes"
            return _decode(io.BytesIO(data), min_side, digest=digest)
        name = name or shown(data)
        kind = os.stat(data).st_mode
        if not stat.S_ISREG(kind):  # opening a pipe would wait for ever
            raise _Refused("is a folder, not a file" if stat.S_ISDIR(kind) else "is not a regular file")
        with open(data, "rb") as stream:
            return _decode(stream, min_side, digest=digest)
    except Exception as error:  # on broken bytes Pillow raises nearly anything: OSError, SyntaxError, struct.error ...
        raise UnreadableImage(f"unreadable image {name}: {_reason(error, data)}", "replace or remove it") from error


class _Refused(Exception):
    """A reason found here, already in plain words."""


def _decode(stream: IO[bytes], min_side: int | None, *, digest: bool) -> Examined:
    if stream.seek(0, os.SEEK_END) == 0:
        raise _Refused("is empty (0 bytes)")
    stream.seek(0)
    content = hashlib.blake2b(digest_size=16)
    while digest and (block := stream.read(1 << 20)):
        content.update(block)
    stream.seek(0)
    Image.init()
    try:
        image: Image.Image = Image.open(stream, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        stream.seek(0)
        raise _Refused(_what_it_is(stream.read(512))) from None
    width, height, mode, form = image.width, image.height, image.mode, image.format or "?"
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError
    animated = form in _ANIMATED and _is_animated(image)
    if min_side is not None:
        image.draft(None, (min_side, min_side))  # no-op for all but JPEG; never below the size asked for
    raw = _raw_mode(image)
    image.load()
    exif = _exif(image)
    if exif.get(ExifTags.Base.Software) == "fgssl":  # as `fgssl.drawing` marks them
        raise _Refused("is a sheet that fgssl drew, not a photograph")
    orientation = exif.get(ExifTags.Base.Orientation, 1)
    if raw == "RGB;16B" and "transparency" in image.info:
        image = _with_transparent_colour(image, stream)
    image = to_rgb(image, raw)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
        width, height = (height, width) if orientation >= 5 else (width, height)
    # a plain Image: without the file handle and metadata of the format's class, and cheap to pickle
    plain = image if type(image) is Image.Image else image.copy()
    return Examined(plain, width, height, mode, form, animated, content.digest())


def upright_turn(image: Image.Image) -> Image.Transpose | None:
    """How a stored picture is turned to stand upright, as decoding does; None for as it is."""
    return _UPRIGHT.get(_exif(image).get(ExifTags.Base.Orientation, 1))


def _exif(image: Image.Image) -> dict[int, Any]:
    try:
        return dict(image.getexif())
    except Exception:  # broken metadata around good pixels: the pixels are what counts
        return {}


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # broken after the first frame, which is all that is used
        return True


def _what_it_is(start: bytes) -> str:
    head = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for prefix, words in _KNOWN_STARTS:
        if head.startswith(prefix):
            return words
    kind = start[8:12] if start[4:8] == b"ftyp" else b"avif"
    if kind in (b"heic", b"heix", b"mif1", b"hevc", b"heim", b"heis", b"msf1"):
        return "is a HEIC photograph, which Pillow cannot open (convert it to JPEG)"
    if kind not in (b"avif", b"avis"):
        return "is a video, not an image"
    if not any(start):
        return "holds only zero bytes (an interrupted copy?)"
    return "is not an image of a known format"


def _reason(error: Exception, data: EncodedImage) -> str:
    if isinstance(error, _Refused):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"is larger than {MAX_PIXELS // 1_000_000} megapixels (a decompression bomb?)"
    if isinstance(error, FileNotFoundError):
        return "is a link to a file that does not exist" if os.path.islink(data) else "does not exist"
    if isinstance(error, PermissionError):
        return "may not be read (no permission)"
    if isinstance(error, MemoryError):
        return "does not fit into memory"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror})"
    words = shown(str(error)) or type(error).__name__
    return f"is {'cut off' if 'truncated' in words.lower() else 'damaged'} ({words})"


def _raw_mode(image: Image.Image) -> str:
    """How the pixels are stored, in Pillow's words ("L;4", "RGB;16B"); "" once they are loaded."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments or "")


def to_rgb(image: Image.Image, raw: str = "") -> Image.Image:
    """Converts a loaded image of any mode to RGB by the rules of this module; `raw` is its mode before it was loaded.

    Pillow keeps a transparent colour as it is stored, and scales pixels of less or more than 8 bits: the two meet here.
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
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _with_transparent_colour(image: Image.Image, stream: IO[bytes]) -> Image.Image:
    """A PNG of 16 bits a channel, of which Pillow keeps the upper 8, with its transparent colour made white.

    The stream is read once more for the lower 8: shadows that only begin like the colour are opaque.
    """
    key, pixels = np.array(image.info["transparency"]), np.asarray(image)
    stream.seek(0)
    with Image.open(stream, formats=("PNG",)) as lower:
        # what reads a little-endian value's upper byte reads a big-endian one's lower byte
        lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
        clear = ((pixels == key >> 8) & (np.asarray(lower) == key & 255)).all(-1)
    return Image.fromarray(np.where(clear[..., None], np.uint8(255), pixels))


def _to_8_bit(values: NDArray[np.generic], *, top: int) -> NDArray[np.uint8]:  # (H, W) -> (H, W)
    numbers, is_float = values.astype(np.float64), values.dtype.kind == "f"
    finite = np.isfinite(numbers)
    if not finite.any():
        return np.zeros(values.shape, dtype=np.uint8)
    low, high = float(numbers[finite].min()), float(numbers[finite].max())
    full = (1 if high <= 1 else 255) if is_float else top  # what becomes white
    if low >= 0 and high <= full:
        offset, scale = 0.0, 255 / full
    else:
        offset, scale = low, 255 / (high - low) if high > low else 0.0
    scaled = np.where(finite, (numbers - offset) * scale, 0.0)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
