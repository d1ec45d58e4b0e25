"""Files appear whole or not at all: write beside, flush to disk, rename. And only where nothing of the user is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fgssl.errors import FgsslError

TEMPORARY = ".fgssl-"  # how the name of a file begins that is being written
LONGEST_NAME = 255  # bytes
Inputs = Iterable[str | Path | None]
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)  # None: a failure of a writer, mostly for want of space
# how torch.save (twice) and safetensors report a full disk: as errors of their own, not as OSError
_WRITER_FAILURES = ("inline_container", "PytorchStreamWriter", "I/O error")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends well, else removed.

    Raises FgsslError: the folder cannot be written, or the disk is full.
    """
    make_folder(path.parent)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY, suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, path)
        # the new name survives a power cut as well, where the system can promise that
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            handle = os.open(path.parent, os.O_RDONLY)
            stack.callback(os.close, handle)
            os.fsync(handle)
    except OSError as error:
        raise not_writable(path, error) from error
    except Exception as error:
        if any(words in str(error) for words in _WRITER_FAILURES):
            raise not_writable(path, OSError("the disk is full or failing")) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class OutputKind(NamedTuple):
    """What a verb writes to a file that the user names."""

    noun: str  # as in "cannot write NOUN to"
    suffixes: tuple[str, ...]  # those a name may end in, the usual one first; "" for none
    is_own: Callable[[Path], bool]  # whether the content of a file is of this kind and was written by fgssl
    makes_folder: bool = False  # whether folders that are missing above the file are made
    option: str = "--output"  # that names the file


def check_output(path: Path, *, kind: OutputKind, inputs: Inputs = (), overwrite: bool = False) -> None:
    """Decides for every verb, before its long work, whether a file may be written.

    What is there already is replaced only where fgssl wrote it, as the same kind of file. `overwrite` replaces other
    regular files and links (not what they point to), too, but never an input, a folder, a device or a pipe. `inputs` is
    what the verb reads: files, or folders (also as NAME:FOLDER), in which no foreign file may be replaced; what is no
    path is passed over.

    Raises FgsslError: it may not or cannot be written.
    """
    if os.path.isdir(path):
        raise FgsslError(f"output '{path}' is a folder", f"name a file in it, such as result{kind.suffixes[0]}")
    if path.suffix.lower() not in kind.suffixes:
        has = f"its suffix is '{path.suffix}'" if path.suffix else "its suffix is missing"
        endings = ", ".join(filter(None, kind.suffixes))
        raise FgsslError(f"cannot write {kind.noun} to '{path}': {has}", f"end the name in {endings}")
    if kind.makes_folder:
        make_folder(path.parent)
    elif not os.path.isdir(path.parent):
        raise FgsslError(f"cannot write '{path}': there is no folder {path.parent}", "create it first")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
        present = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise not_writable(path, error, option=kind.option) from error
    _check_replaced(path, present, kind, inputs, overwrite=overwrite)


def _check_replaced(path: Path, mode: int, kind: OutputKind, inputs: Inputs, *, overwrite: bool) -> None:
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise FgsslError(f"output '{path}' is a device or a pipe", f"name a file: {kind.noun} is written whole")
    own = stat.S_ISREG(mode) and kind.is_own(path)
    for name in inputs:
        given = os.path.expanduser(os.fspath(name or ""))
        behind = os.path.expanduser(given.partition(":")[2])  # as in cub:FOLDER
        if _is_input(path, given, own=own) or _is_input(path, behind, own=own):
            raise FgsslError(f"output '{path}' is an input, of '{name}'", f"choose another {kind.option}")
    if overwrite or own:
        return
    if stat.S_ISLNK(mode):
        raise FgsslError(f"output '{path}' is a link", "name the file itself, or replace the link by --overwrite")
    problem = f"output '{path}' exists and is not {kind.noun} that fgssl wrote"
    raise FgsslError(problem, f"choose another {kind.option}, or replace it by --overwrite")


def _is_input(path: Path, given: str, *, own: bool) -> bool:
    if os.path.isdir(given):
        return not own and Path(os.path.realpath(given)) in Path(os.path.realpath(path.parent), path.name).parents
    return os.path.exists(given) and os.path.exists(path) and os.path.samefile(path, given)


def derived_name(stem: str, ending: str) -> str:
    """A file's name, the stem cut where file systems take no longer one."""
    while len(os.fsencode(f"{stem}{ending}")) > LONGEST_NAME:
        stem = stem[:-1]
    return f"{stem}{ending}"


def check_folder(path: Path, *, option: str = "--output") -> None:
    """Make a folder for results, before the work that leads to them. Raises FgsslError where it cannot be written."""
    refuse_file(path, option=option)
    make_folder(path, option=option)
    try:
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise not_writable(path, error, option=option) from error


def refuse_file(path: Path, *, option: str) -> None:
    """Raises FgsslError where a folder is wanted and a file lies there."""
    if path.exists() and not path.is_dir():
        raise FgsslError(f"{option.strip('-')} '{path}' is a file", "name a folder")


def make_folder(path: Path, *, option: str = "--output") -> None:
    """Make a folder and those above it. Raises FgsslError, naming the option to change, where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(path, error, option=option, act="create the folder") from error


def not_writable(path: Path, error: OSError, *, option: str = "--output", act: str = "write") -> FgsslError:
    """What to say where the disk refuses."""
    free = "free the disk or " if error.errno in _NO_ROOM else ""
    return FgsslError(f"cannot {act} '{path}': {error.strerror or error}", f"{free}choose another {option}")


def umask() -> int:
    """The permission bits this process takes from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
