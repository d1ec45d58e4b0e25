"""Writing a picture whole or not at all, in the format of its suffix; how a picture or a page of ours is known."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import ExifTags, Image

from fgssl.errors import FgsslError
from fgssl.runtime.files import OutputKind, atomic_path, check_output

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
# PNG at less than zlib's usual 6: a photograph in less than half the time, 2 % larger
_OPTIONS = {"PNG": {"compress_level": 4}, "JPEG": {"quality": 93, "subsampling": 0}, "WEBP": {"quality": 93}}
_LARGEST = {"JPEG": 65_500, "WEBP": 16_383}  # pixels of a side
_SOFTWARE = "fgssl"  # in the Exif of every picture: how one of ours is known
PAGE_START = "<!doctype html>\n<!-- written by fgssl -->\n"  # of every page


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Writes a picture atomically; the suffix chooses the format: .png, .jpg, .jpeg or .webp.

    Raises FgsslError, and leaves nothing behind, where the suffix is another, the picture is too large for the format,
    the folder is missing or not writable, or the disk is full.
    """
    target = Path(path)
    check_output(target, kind=PICTURE, overwrite=True)
    kind = _FORMATS[target.suffix.lower()]
    if max(image.size) > _LARGEST.get(kind, max(image.size)):
        size = f"{image.width}x{image.height}"
        raise FgsslError(f"cannot write {target}: a picture of {size} does not fit into {kind}", "use .png")
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = _SOFTWARE
    ready = image if kind == "PNG" else image.convert("RGB")
    with atomic_path(target) as temporary:
        ready.save(temporary, kind, exif=exif, **_OPTIONS.get(kind, {}))
    return target


def _is_own(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            return bool(picture.getexif().get(ExifTags.Base.Software) == _SOFTWARE)
    except Exception:  # whatever a damaged file makes Pillow raise: it is none of ours
        return False


PICTURE = OutputKind("a picture", tuple(_FORMATS), _is_own)


def _is_own_page(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(PAGE_START)) == PAGE_START.encode()
    except OSError:
        return False


PAGE = OutputKind("a page", (".html", ".htm"), _is_own_page)
