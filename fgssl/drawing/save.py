"""Writing a picture whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from pathlib import Path

from PIL import ExifTags, Image

from fgssl.errors import FgsslError
from fgssl.runtime.files import OutputKind, check_output

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_SOFTWARE = "fgssl"  # in the Exif of every picture: how one of ours is known


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Writes a picture atomically: the file at `path` is the old one or the new one, never half of one.

    Args:
        image: The picture.
        path: Where to; the folder must exist. The suffix chooses the format: .png, or .jpg, .jpeg, .webp.

    Returns:
        The path written.

    Raises:
        FgsslError: The suffix is another, the picture is too large for the format, the folder is missing or not
            writable, the disk is full. Nothing is left behind.
    """
    target = Path(path)
    check_output(target, kind=PICTURE, overwrite=True)
    content = _encoded(image, target)
    temporary = target.parent / f".fgssl-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        _write(temporary, content)
        os.replace(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        reason = error.strerror or str(error)
        raise FgsslError(f"cannot write {target}: {reason}", "name a file in a folder you can write to") from error
    except BaseException:  # Ctrl-C must not leave the half either
        temporary.unlink(missing_ok=True)
        raise
    return target


def _is_own(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            return bool(picture.getexif().get(ExifTags.Base.Software) == _SOFTWARE)
    except Exception:  # whatever a damaged file makes Pillow raise: it is none of ours
        return False


PICTURE = OutputKind("a picture", tuple(_FORMATS), _is_own)


def _encoded(image: Image.Image, target: Path) -> bytes:
    buffer = io.BytesIO()
    kind = _FORMATS[target.suffix.lower()]
    options = {"JPEG": {"quality": 93, "subsampling": 0}, "WEBP": {"quality": 93}}.get(kind, {})
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = _SOFTWARE
    ready = image if kind == "PNG" else image.convert("RGB")
    try:
        ready.save(buffer, kind, exif=exif, **options)
    except (OSError, ValueError, KeyError) as error:  # JPEG and WebP have a largest side
        size = f"{image.width}x{image.height}"
        raise FgsslError(
            f"cannot write {target}: a picture of {size} as {kind} failed ({error})", "use .png"
        ) from error
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb") as stream:  # not tempfile: its 0600 would stay on the finished picture
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
