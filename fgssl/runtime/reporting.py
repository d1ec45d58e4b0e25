"""What a long task tells whoever runs it. The library never prints: it calls a Reporter, which is silent by default.

What goes on deep below (a download, a listing) is told to the one that listens in this process, handed down by nobody.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

QUIET_SECONDS, BETWEEN_SECONDS = 1.0, 0.2  # nothing is told of what is over within the first


class StepReport(NamedTuple):
    """State of a training run, every few steps."""

    epoch: int  # from 1
    epochs: int
    step: int  # done so far, from 1
    total_steps: int
    loss: float
    chance: float | None  # the loss of an encoder that knows nothing; None where the loss does not tell
    fit: float | None  # None without rationale
    target_entropy: float | None  # of the GradCAM target, relative to uniform
    effective_rank: float
    feature_std: float  # of length-1 features: 0 is collapse, 1 evenly spread
    images_per_second: float
    wait_share: float  # of the time, waiting for data
    seconds_left: float


class Reporter:
    """Receives progress; override what is of interest."""

    def note(self, text: str) -> None:
        """One line worth reading."""

    def warn(self, text: str) -> None:
        """One line that should be read."""

    def fatal(self, problem: str, remedy: str) -> None:
        """The last line of a process that hangs in a call and is about to end itself."""

    def progress(self, task: str, done: int, total: int | None) -> None:
        """A side task (building the cache, embedding) got to `done` of `total`; None where nobody knows it."""

    def step(self, report: StepReport) -> None:
        """Training got on."""

    def planned(self, description: dict[str, Any], facts: dict[str, Any]) -> None:
        """The run is about to start, with these settings (value and origin) and sizes."""


_listener: Reporter | None = None
_remarked: set[str] = set()


def listen(reporter: Reporter | None) -> None:
    global _listener
    _listener = reporter
    _remarked.clear()


def remark(level: str, text: str) -> None:
    """A "warning" or "note" for the listener, unless it has heard it."""
    if _listener is not None and text not in _remarked:
        _remarked.add(text)
        (_listener.warn if level == "warning" else _listener.note)(text)


class Told:
    """One task, in words, of which the listener hears now and then, once it has taken a second."""

    def __init__(self, task: str, total: int | None = None) -> None:
        self.task, self.total, self.spoke = task, total, False
        self._next = time.monotonic() + QUIET_SECONDS

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now >= self._next and _listener is not None:
            self._next, self.spoke = now + BETWEEN_SECONDS, True
            _listener.progress(self.task, done, self.total)

    def end(self, done: int) -> None:
        """It is over; said only of what was spoken of, and once."""
        if self.spoke and _listener is not None:
            _listener.progress(self.task, done, done)
        self.spoke = False


@contextmanager
def told_bars() -> Iterator[None]:
    """Inside the block tqdm, by which timm, `datasets` and `huggingface_hub` draw, draws nothing; the listener hears.

    timm takes no bar of ours and `datasets` draws several at once: so their base class tells what it would have drawn.
    """
    from tqdm.std import tqdm

    former = tqdm.__init__, tqdm.display, tqdm.close
    files: list[Any] = []  # bars that count files: those of each file's bytes would only take turns with them

    def scaled(bar: Any, count: float) -> int:
        return round(count / (1_000_000 if bar.unit == "B" else 1))

    def begin(self: Any, *arguments: Any, **options: Any) -> None:
        former[0](self, *arguments, **{**options, "disable": False, "file": io.StringIO()})

    def show(self: Any, *_: Any, **__: Any) -> None:
        if not hasattr(self, "fgssl_told"):
            words = self.desc.strip().rstrip(":")
            if self.unit == "B":
                words = f"downloading {words.rsplit('/', 1)[-1]} (MB)"
            elif self.unit != "it":
                words = f"{words} ({self.unit.strip()})"
            self.fgssl_told = Told(words[:1].lower() + words[1:])
            files.extend([self] if self.unit == "files" else [])
        self.fgssl_told.total = scaled(self, self.total) if self.total else None  # some say 0 where they do not know
        if self.desc and (self.unit != "B" or all(bar.n >= bar.total for bar in files)):
            self.fgssl_told(scaled(self, self.n))

    def close(self: Any) -> None:
        former[2](self)
        if hasattr(self, "fgssl_told"):
            self.fgssl_told.end(scaled(self, self.n))

    tqdm.__init__, tqdm.display, tqdm.close = begin, show, close
    try:
        yield
    finally:
        tqdm.__init__, tqdm.display, tqdm.close = former
