"""Several processes of one run on this machine: started, told of signals, and stopped when one of them dies.

torch's own launcher (`torch.distributed.run`) hears neither SIGUSR1 nor SIGHUP, kills after 30 seconds a process that
still saves its state, and tells of a death by a traceback for each process; it also imports torch, which takes seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fgssl.runtime.stopping import heeded_signals

SPOKEN = "FGSSL_SPOKEN"  # names a file that the first process with something to say creates
GRACE_SECONDS = 5.0  # for the others to end by themselves when one has died


class End(NamedTuple):
    """How the processes ended."""

    code: int
    problem: str  # which process died of what; empty where it has said so itself


def may_speak() -> bool:
    """Whether this process is the one that tells what went wrong: each would have its own version of it."""
    try:
        Path(os.environ[SPOKEN]).touch(exist_ok=False)
    except OSError:
        return False
    except KeyError:  # alone
        pass
    return True


def launched() -> bool:
    """Whether `launch` started this process, and will tell of the death of another."""
    return SPOKEN in os.environ


def launch(command: Sequence[str], count: int) -> End:
    """Run a command in `count` processes that find each other as torchrun's do, until all have ended.

    Signals go on to each of them. The first that dies takes the others down.
    """
    with tempfile.TemporaryDirectory(prefix="fgssl-launch-") as folder:
        spoken = Path(folder) / "spoken"
        port = _free_port()
        children = [_start(command, rank, count, port, spoken) for rank in range(count)]
        with _forwarding(children) as received:
            first = _first_failure(children, received)
        if first is None:
            return End(0, "") if not any(child.returncode for child in children) else End(128 + signal.SIGINT, "")
        code = children[first].returncode
        spoke = spoken.exists() or 128 < code < 160  # stopped by a signal, as told
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        hint = " (often for lack of memory)" if code == -getattr(signal, "SIGKILL", 9) else ""
        problem = "" if spoke else f"process {first} of {count} {how}{hint}; the others were stopped"
        return End(code if 128 < code < 160 else 1, problem)


def _start(command: Sequence[str], rank: int, count: int, port: int, spoken: Path) -> subprocess.Popen[bytes]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    environment = {
        "OMP_NUM_THREADS": str(max(1, cores // count)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # when one ends, torch shows where in its code the others lost it
        **os.environ,
        **{name: str(number) for name, number in ranks.items()},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        SPOKEN: str(spoken),
    }
    # sessions of their own: a terminal's Ctrl-C comes once, through this process
    return subprocess.Popen(
        list(command),
        env=environment,
        stdout=None if rank == 0 else subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )


def _end_with_parent() -> None:
    """Ask Linux for a SIGTERM when the launching process is gone: the run saves its state and stops."""
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _forwarding(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Signals go on to the children inside the block, which is told of them; at its end no child is left."""
    received: list[int] = []

    def forward(number: int, _frame: Any) -> None:
        received.append(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    former = {number: signal.signal(number, forward) for number in heeded_signals()}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        for child in children:
            if child.poll() is None:
                child.kill()
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):  # who waits for a dead mount cannot be killed
                child.wait(GRACE_SECONDS)


def _first_failure(children: Sequence[subprocess.Popen[bytes]], received: Sequence[int] = ()) -> int | None:
    """The first process that did not end well; the others get a moment, or as long as they save on a signal.

    A second Ctrl-C leaves them no more than a moment either: one that hangs keeps the others from hearing it.
    """
    first: int | None = None
    until = float("inf")
    while any(child.poll() is None for child in children) and time.monotonic() < until:
        failed = [rank for rank, child in enumerate(children) if child.poll()]
        if failed and first is None:
            first = failed[0]
            if not 128 < children[first].returncode < 160:
                until = time.monotonic() + GRACE_SECONDS
        if received.count(signal.SIGINT) > 1:
            until = min(until, time.monotonic() + GRACE_SECONDS)
        time.sleep(0.05)
    failed = [rank for rank, child in enumerate(children) if child.poll()]
    return first if first is not None else (failed[0] if failed else None)
