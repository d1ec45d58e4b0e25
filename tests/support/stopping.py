"""Runs that are stopped: by a signal after a given step in the test's own process, or as a process of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from running import SHORT, TINY, fgssl, photos, shared

from fgssl.training.log import LogWindow
from fgssl.training.model import StepOutput


@contextmanager
def after_step(number: int, action: Callable[[], object]) -> Iterator[None]:
    """Calls `action` when the step is done, before anything is logged or saved."""
    original = LogWindow.add

    def add(self: LogWindow, step: int, output: StepOutput, **times: float) -> None:
        original(self, step, output, **times)
        if step == number:
            action()

    with mock.patch.object(LogWindow, "add", add):
        yield


def stopped_run(output: Path, options: tuple[str, ...] = TINY, *, step: int = 3, number: int = signal.SIGTERM) -> Path:
    """A run stopped by a signal after a step, in the middle of a line of metrics and at the end of an epoch.

    The one of the default arguments is trained once for all tests; each gets its copy.
    """
    if (options, step, number) == (TINY, 3, signal.SIGTERM):
        return Path(shutil.copytree(shared("stopped", lambda run: _stop(run, options, step, number)), output))
    _stop(output, options, step, number)
    return output


def _stop(output: Path, options: tuple[str, ...], step: int, number: int) -> None:
    with after_step(step, lambda: os.kill(os.getpid(), number)):
        outcome = fgssl("pretrain", "--data", photos(), *options, "--output", output)
    assert outcome.code == 128 + number
    assert f"after step {step}; state saved" in outcome.err and "fgssl pretrain --resume" in outcome.err
    assert outcome.out == ""


def start_run(output: Path) -> subprocess.Popen[str]:
    """A run too long to end by itself, in a process group of its own."""
    command = [sys.executable, "-m", "fgssl", "pretrain", "--data", str(photos()), *SHORT, "--max-steps", "100000"]
    command += ["--epochs", "100000", "--workers", "1", "--set", "training.log_every=1", "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=environment)
