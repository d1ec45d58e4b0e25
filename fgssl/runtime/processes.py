"""The processes of a run: how they are asked to stop, and several of them started, told of signals and ended together.

The first signal lets a step finish and the state be saved, a second Ctrl-C does not. torch's own launcher
(`torch.distributed.run`) hears neither SIGUSR1 nor SIGHUP, kills after 30 seconds a process that still saves its state,
and tells of a death by a traceback for each process; it also imports torch, which takes seconds.
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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

# SIGUSR1 is what batch systems can send some time before the end; SIGHUP comes when a terminal is closed
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
SPOKEN = "FGSSL_SPOKEN"  # names a file that the first process with something to say creates; set only by `launch`
PATIENCE = timedelta(days=2)  # of collectives: who dies or hangs is noticed otherwise
GRACE_SECONDS = 5.0  # for the others to end by themselves when one has died


def heeded_signals() -> tuple[int, ...]:
    """The stop signals this process listens to: not the SIGHUP that `nohup` has switched off."""
    return tuple(n for n in SIGNALS if n == signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN)


class Interrupted(Exception):
    """The run stopped on a signal after saving its state."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name} after step {step}; state saved")
        self.signal_number = signal_number


class StopRequest:
    """Whether somebody has asked this run to stop, and by which signal."""

    def __init__(self) -> None:
        self.received = 0
        self._hosts: Any = None  # the group in which they agree; None is the one of the run

    def agreed(self, device: torch.device, *, due: bool = False) -> tuple[int, bool]:
        """The signal any process received and whether any finds a save due, the same on all after the same step."""
        import torch

        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.received, due
        if device.type != "cpu" and self._hosts is None:  # to ask a GPU would be to wait for it, at every step
            self._hosts = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        flags = torch.tensor([self.received, int(due)])
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX, group=self._hosts)
        number, save = flags.tolist()
        return int(number), bool(save)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a third one ends the process even inside a call that hangs
            raise KeyboardInterrupt
        self.received = number


def ignore_stop_signals(_worker: int = 0) -> None:
    """For loader processes: Ctrl-C and batch systems signal the whole group, and a run without loaders cannot save."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def handling_stop_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Stop signals go to a handler inside the block (in the main thread only); the former ones return afterwards."""
    numbers = heeded_signals() if threading.current_thread() is threading.main_thread() else ()
    former = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)


@contextlib.contextmanager
def listen_for_stop() -> Iterator[StopRequest]:
    """Stop signals become a `StopRequest` for the block, instead of ending the process."""
    request = StopRequest()
    with handling_stop_signals(request._receive):
        yield request


class End(NamedTuple):
    code: int
    problem: str  # which process died of what; empty where it has said so itself


def may_speak() -> bool:
    """Whether this process is the one that tells what went wrong: each would have its own version of it."""
    with contextlib.suppress(OSError):
        if SPOKEN in os.environ:  # else alone
            Path(os.environ[SPOKEN]).touch(exist_ok=False)
        return True
    return False


def launch(command: Sequence[str], count: int) -> End:
    """Run a command in `count` processes that find each other as torchrun's do, until all have ended.

    Signals go on to each of them. The first that dies takes the others down.
    """
    with tempfile.TemporaryDirectory(prefix="fgssl-launch-") as folder:
        spoken = Path(folder) / "spoken"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
        environment = {
            "OMP_NUM_THREADS": str(max(1, cores // count)),
            "TORCH_CPP_LOG_LEVEL": "ERROR",  # when one ends, torch shows where in its code the others lost it
            **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), SPOKEN: str(spoken),
            "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        }  # fmt: skip
        children = [
            subprocess.Popen(
                list(command),
                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=None if rank == 0 else subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C comes once, through this process
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
            for rank in range(count)
        ]
        with _forwarding(children) as received:
            first = _first_failure(children, received)
        if first is None:
            return End(128 + signal.SIGINT if any(child.returncode for child in children) else 0, "")
        code = children[first].returncode
        if 128 < code < 160:  # stopped by a signal, as told
            return End(code, "")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        hint = " (often for lack of memory)" if code == -getattr(signal, "SIGKILL", 9) else ""
        problem = f"process {first} of {count} {how}{hint}; the others were stopped"
        return End(1, "" if spoken.exists() else problem)


class Ended(NamedTuple):
    """What a command of its own left."""

    code: int  # 128 + the number of the signal that stopped it
    output: str  # what it wrote to stdout


def run_command(command: Sequence[str]) -> Ended:
    """Run a command in a process of its own until it has ended, its stdout kept and its stderr shown.

    Stop signals go on to it, which has the time that it takes to save its state.
    """
    child = subprocess.Popen(
        list(command),
        stdout=subprocess.PIPE,
        start_new_session=True,  # a terminal's Ctrl-C comes once, through this process
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )
    with _forwarding([child]) as received:
        output = child.communicate()[0].decode("utf-8", "surrogateescape")
    code = 128 + received[0] if received else child.returncode
    return Ended(128 - code if code < 0 else code, output)


def _end_with_parent() -> None:
    """Ask Linux for a SIGTERM when the launching process is gone: the run saves its state and stops."""
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@contextlib.contextmanager
def _forwarding(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Signals go on to the children inside the block, which is told of them; at its end no child is left."""
    received: list[int] = []

    def forward(number: int, _frame: Any) -> None:
        received.append(number)
        for child in children:
            child.send_signal(number)  # to none that has ended

    try:
        with handling_stop_signals(forward):
            yield received
    finally:
        for child in children:
            child.kill()
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):  # who waits for a dead mount cannot be killed
                child.wait(GRACE_SECONDS)


def _first_failure(children: Sequence[subprocess.Popen[bytes]], received: Sequence[int]) -> int | None:
    """The first process that did not end well; the others get a moment, or as long as they save on a signal.

    A second Ctrl-C leaves them no more than a moment either: one that hangs keeps the others from hearing it.
    """
    first, until, running = None, float("inf"), True
    while running and time.monotonic() < until:
        time.sleep(0.05)
        codes = [child.poll() for child in children]
        running = None in codes
        if first is None:
            first = next((rank for rank, code in enumerate(codes) if code), None)
        saving = first is None or 128 < (codes[first] or 0) < 160
        if not saving or received.count(signal.SIGINT) > 1:
            until = min(until, time.monotonic() + GRACE_SECONDS)
    return first
