"""Stop requests: the first signal lets the step finish and the state be saved, a second Ctrl-C does not."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# SIGUSR1 is what batch systems can send some time before the end; SIGHUP comes when a terminal is closed
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


def heeded_signals() -> tuple[int, ...]:
    """The stop signals this process listens to: not the SIGHUP that `nohup` has switched off."""
    return tuple(n for n in SIGNALS if n == signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN)


class Interrupted(Exception):
    """The run stopped on a signal after saving its state."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name} after step {step}; state saved")
        self.signal_number = signal_number


class StopRequest:
    """Which signal asked for a stop, if any."""

    def __init__(self) -> None:
        self.received = 0

    def agreed(self, device: torch.device, *, due: bool = False) -> tuple[int, bool]:
        """The signal any process received and whether any finds a save due, the same on all after the same step."""
        import torch

        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.received, due
        flags = torch.tensor([self.received, int(due)], device=device)
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
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
    """Catch stop signals inside the block."""
    request = StopRequest()
    with handling_stop_signals(request._receive):
        yield request
