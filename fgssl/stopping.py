"""Stop requests: the first Ctrl-C or SIGTERM lets the step finish and the state be saved, a second Ctrl-C does not."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import torch

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Interrupted(Exception):
    """The run stopped on a signal after saving its state."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name} after step {step}; state saved")
        self.signal_number = signal_number


class StopRequest:
    """Which signal asked for a stop, if any."""

    def __init__(self) -> None:
        self.received = 0

    def agreed(self, device: torch.device) -> int:
        """The signal any process received, the same on all: they must stop after the same step."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.received
        flag = torch.tensor([self.received], device=device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return int(flag)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


def ignore_stop_signals(_worker: int = 0) -> None:
    """For loader processes: Ctrl-C and batch systems signal the whole group, and a run without loaders cannot save."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def listen_for_stop() -> Iterator[StopRequest]:
    """Catch stop signals inside the block (in the main thread only); the former handlers return afterwards."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = {number: signal.signal(number, request._receive) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
