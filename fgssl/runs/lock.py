"""One training process a run folder: RUN/run.lock is locked by the kernel for as long as the process lives.

Where no such lock reaches other machines, the file names host and process and is touched every few seconds; whoever
finds another host's watches whether it still is. filelock has the first (FileLock, which names no owner) and the second
(SoftFileLease, which no kernel ends) apart and not together: hence our own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fgssl.errors import FgsslError
from fgssl.runtime.files import make_folder, not_writable, refuse_file

try:
    import fcntl
except ImportError:  # Windows: the file and its beats alone
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = "run.lock"
BEAT_SECONDS = 5.0
SILENT_SECONDS = 20.0  # without a beat another host's process counts as dead
_own: set[str] = set()  # the locks of this process: to open and close one would give the kernel's lock back
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)


@contextlib.contextmanager
def hold_run(output: Path, *, note: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Keep other processes out of a run folder, made where it is missing; FgsslError names one that is there already.

    `note` is told when another host's lock has to be watched for a while.
    """
    path, done = output / LOCK_FILE, threading.Event()
    try:
        refuse_file(output, option="--output")
        make_folder(output)
        handle = _locked(path, note)
    except OSError as error:
        raise not_writable(output, error) from error

    def beat() -> None:
        while not done.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(path)

    threading.Thread(target=beat, daemon=True).start()
    _own.add(os.path.realpath(path))
    try:
        yield
    finally:
        _own.discard(os.path.realpath(path))
        done.set()
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def is_held(output: Path) -> bool:
    """Whether a process trains in a run folder now, judged by what its lock says; the lock itself is not touched.

    Another host's is believed as long as its file is young, by this host's clock.
    """
    path = output / LOCK_FILE
    if os.path.realpath(path) in _own:
        return True
    try:
        owner = json.loads(path.read_bytes()[:4096])
        if owner["host"] == socket.gethostname() and (born := _born(owner["pid"])) is not None:
            return bool(born == owner["born"])
        elsewhere = owner["host"] != socket.gethostname() or not Path("/proc").is_dir()
        return elsewhere and time.time() - path.stat().st_mtime < SILENT_SECONDS
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _locked(path: Path, note: Callable[[str], None]) -> int:
    while True:
        handle = os.open(path, _FLAGS, 0o666)
        try:
            kernel = _lock(handle, path)
            owner = _owner(handle)
            if owner and _alive(owner, path, kernel=kernel, note=note):
                raise _held_by(path, owner)
            # a lock on a file that its owner has removed in between locks nothing
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                own = {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}
                os.ftruncate(handle, 0)
                os.write(handle, json.dumps(own).encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, path: Path) -> bool:
    """Whether the kernel gave the lock; False where it has none to give. Record locks: forked loaders inherit none."""
    try:
        if fcntl is not None:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fcntl is not None
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise _held_by(path, _owner(handle)) from error
        return False


def _born(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks; None where that cannot be told or it is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _owner(handle: int) -> dict[str, Any]:
    """Who wrote the lock; empty where nobody did, or was killed while writing."""
    try:  # through the handle: closing another one of the same file would give the kernel's lock back
        owner = json.loads(os.pread(handle, 4096, 0))
        return owner if isinstance(owner, dict) and isinstance(owner.get("pid"), int) else {}
    except (OSError, ValueError):
        return {}


def _alive(owner: dict[str, Any], path: Path, *, kernel: bool, note: Callable[[str], None]) -> bool:
    if owner.get("host") == socket.gethostname():
        born = None if kernel or owner["pid"] == os.getpid() else _born(owner["pid"])
        return born is not None and born == owner.get("born")
    note(f"the run was last trained on {owner.get('host')}: watching for {SILENT_SECONDS:.0f} s whether it still is")
    seen, until = path.stat().st_mtime_ns, time.monotonic() + SILENT_SECONDS
    while time.monotonic() < until:
        time.sleep(min(1.0, SILENT_SECONDS / 4))
        with contextlib.suppress(FileNotFoundError):  # only compared with itself, as clocks of two hosts differ
            if path.stat().st_mtime_ns != seen:
                return True
    return False


def _held_by(path: Path, owner: dict[str, Any]) -> FgsslError:
    who = f"process {owner.get('pid', '?')} on {owner.get('host', 'this machine')}"
    return FgsslError(f"'{path.parent}' is being trained by {who}", "wait for it, stop it, or choose another --output")
