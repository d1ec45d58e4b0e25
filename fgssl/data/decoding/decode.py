"""One image file, or its bytes, to an upright RGB image; whatever is wrong with it becomes one clear line."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from fgssl.data.decoding.modes import raw_mode, to_rgb, with_transparent_colour
from fgssl.errors import FgsslError, UnreadableImage
from fgssl.runtime.text import shown

MAX_PIXELS = 178_956_970
"""Larger images are refused before they are decoded: a small file can unpack to many gigabytes (Pillow's own limit)."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "AVIF", "JPEG2000", "DIB")
"""Content is recognised as one of these, whatever the file's extension. The rest of Pillow's formats stay closed:
some start other programs (EPS), some accept nearly any bytes (TGA, PCX)."""

# Pillow warns about large images, odd metadata and palettes once per process and kind; a run over a million files
# must not speak about them on the user's terminal. Set once: switching filters around every image is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")

_REMEDY = "replace or remove it"
_ORIENTATION_TAG, _SOFTWARE_TAG = 0x0112, 0x0131
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# what turns up under an image's name: telling it saves the user from opening the file
_KNOWN_STARTS: tuple[tuple[bytes, str], ...] = (
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


EncodedImage = bytes | str | os.PathLike[str]
"""Encoded bytes, or the path of a file (bytes are always content)."""


class Examined(NamedTuple):
    """A decoded image and what is known of the file it came from."""

    image: Image.Image  # RGB, upright, maybe smaller than stored
    width: int  # as stored, upright
    height: int
    mode: str  # as Pillow names it: RGB, L, P, CMYK, I;16 ...
    format: str  # JPEG, PNG ...
    animated: bool  # only the first frame is used
    digest: bytes  # 16 bytes, of the encoded content


def decode_image(data: EncodedImage, min_side: int | None = None, *, name: str | None = None) -> Image.Image:
    """Decodes an image: upright, RGB, the first frame of an animation.

    Args:
        data: The encoded bytes, or the path of a file.
        min_side: Lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, as long as its short side stays at least
            this many pixels. None decodes at full size.
        name: How messages call the image; by default its path.

    Returns:
        An RGB image, its pixels loaded. Orientation from EXIF is applied; see `fgssl.data.decoding.modes` for colours.

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
        raise UnreadableImage(f"unreadable image {name}: {_reason(error, data)}", _REMEDY) from error


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
    Image.preinit()
    try:
        image: Image.Image = Image.open(stream, formats=_formats())
    except UnidentifiedImageError:
        stream.seek(0)
        raise _Refused(_what_it_is(stream.read(512))) from None
    width, height, mode, form = image.width, image.height, image.mode, image.format or "?"
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError
    animated = form in _ANIMATED and _is_animated(image)
    if min_side is not None:
        image.draft(None, (min_side, min_side))  # no-op for all but JPEG; never below the size asked for
    raw = raw_mode(image)
    image.load()
    exif = _exif(image)
    if exif.get(_SOFTWARE_TAG) == "fgssl":  # as `fgssl.drawing` marks them
        raise _Refused("is a sheet that fgssl drew, not a photograph")
    orientation = exif.get(_ORIENTATION_TAG, 1)
    if raw == "RGB;16B" and "transparency" in image.info:
        image = with_transparent_colour(image, stream)
    image = to_rgb(image, raw)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
        width, height = (height, width) if orientation >= 5 else (width, height)
    # a plain Image: without the file handle and metadata of the format's class, and cheap to pickle
    plain = image if type(image) is Image.Image else image.copy()
    return Examined(plain, width, height, mode, form, animated, content.digest())


def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in (*FORMATS, "HEIF") if name in Image.OPEN)  # HEIF where a plugin has registered it


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
    if start[4:8] == b"ftyp":
        if start[8:12] in (b"heic", b"heix", b"mif1", b"hevc", b"heim", b"heis", b"msf1"):
            return "is a HEIC photograph, which Pillow cannot open (convert it to JPEG)"
        if start[8:12] not in (b"avif", b"avis"):
            return "is a video, not an image"
    if not any(start):
        return "holds only zero bytes (an interrupted copy?)"
    return "is not an image of a known format"


def _reason(error: Exception, data: object) -> str:
    if isinstance(error, _Refused):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"is larger than {MAX_PIXELS // 1_000_000} megapixels (a decompression bomb?)"
    if isinstance(error, FileNotFoundError):
        is_link = isinstance(data, (str, Path)) and os.path.islink(data)
        return "is a link to a file that does not exist" if is_link else "does not exist"
    if isinstance(error, PermissionError):
        return "may not be read (no permission)"
    if isinstance(error, MemoryError):
        return "does not fit into memory"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror})"
    words = shown(str(error)) or type(error).__name__
    if "truncated" in words or "Truncated" in words:
        return f"is cut off ({words})"
    return f"is damaged ({words})"
