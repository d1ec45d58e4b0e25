"""Files appear whole or not at all: write beside, flush to disk, rename."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fgssl.errors import FgsslError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)  # None: a failure of a writer, mostly for want of space
# how torch.save (twice) and safetensors report a full disk: as errors of their own, not as OSError
_WRITER_FAILURES = ("inline_container", "PytorchStreamWriter", "I/O error")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends well, removed otherwise.

    Raises:
        FgsslError: the folder cannot be written, or the disk is full.
    """
    make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
    except OSError as error:
        raise not_writable(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise not_writable(path, error) from error
    except Exception as error:
        if any(words in str(error) for words in _WRITER_FAILURES):
            raise not_writable(path, OSError("the disk is full or failing")) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """The new name survives a power cut as well, where the system can promise that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_folder(path: Path, *, option: str = "--output") -> None:
    """Make a folder for results, before the work that leads to them. Raises FgsslError where it cannot be written."""
    refuse_file(path, option=option)
    make_folder(path, option=option)
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise not_writable(path, error, option=option) from error


def refuse_file(path: Path, *, option: str = "--output") -> None:
    """Raises FgsslError for what is there and no folder."""
    if path.exists() and not path.is_dir():
        raise FgsslError(f"{option.strip('-')} '{path}' is a file", "name a folder")


def make_folder(path: Path, *, option: str = "--output") -> None:
    """Make a folder and those above it. Raises FgsslError, naming the option to change, where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot create the folder '{path}': {error.strerror or error}"
        raise FgsslError(problem, _remedy(error, option)) from error


def not_writable(path: Path, error: OSError, *, option: str = "--output") -> FgsslError:
    """One line for a file that could not be written."""
    return FgsslError(f"cannot write '{path}': {error.strerror or error}", _remedy(error, option))


def _remedy(error: OSError, option: str) -> str:
    return f"free the disk or choose another {option}" if error.errno in _NO_ROOM else f"choose another {option}"


def umask() -> int:
    """The permission bits this process takes from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
