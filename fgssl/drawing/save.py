"""Writing a picture whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from pathlib import Path

from PIL import Image

from fgssl.errors import FgsslError

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


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
    target = check_picture_path(path)
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


def check_picture_path(path: str | os.PathLike[str]) -> Path:
    """Refuses, before hours of work, a path that `save_png` would refuse for its suffix or its folder.

    Raises:
        FgsslError: As `save_png`.
    """
    target = Path(path)
    _format(target)
    if target.is_dir():
        raise FgsslError(f"cannot write a picture to {target}: it is a folder", "name a file in it, such as sheet.png")
    if not target.parent.is_dir():
        raise FgsslError(f"cannot write {target}: there is no folder {target.parent}", "create it first")
    if not os.access(target.parent, os.W_OK):
        raise FgsslError(f"cannot write {target}: Permission denied", "name a file in a folder you can write to")
    return target


def _format(target: Path) -> str:
    try:
        return _FORMATS[target.suffix.lower()]
    except KeyError:
        raise FgsslError(
            f"cannot write a picture to {target}: its suffix is {target.suffix or 'missing'!r}",
            f"end the name in {', '.join(sorted(_FORMATS))}",
        ) from None


def _encoded(image: Image.Image, target: Path) -> bytes:
    buffer = io.BytesIO()
    kind = _format(target)
    options = {"JPEG": {"quality": 93, "subsampling": 0}, "WEBP": {"quality": 93}}.get(kind, {})
    ready = image if kind == "PNG" else image.convert("RGB")
    try:
        ready.save(buffer, kind, **options)
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
