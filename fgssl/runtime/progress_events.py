"""Who hears of what goes on deep below: how a download or the listing of a folder goes, what a data set was taken for.

A dozen functions lie between the command line and these, all of which would only hand a callback down. One listener a
process, none by default; work that has a caller who waits for it takes a callback instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Listener = Callable[[str, int, "int | None"], None]
"""Called with a task, what is done of it and the total, or None where nobody knows it; done at last equals total."""

RemarkListener = Callable[[str, str], None]
"""Called with "warning" or "note" and a line, each line once."""

QUIET_SECONDS, BETWEEN_SECONDS = 1.0, 0.2  # nothing is told of what is over within the first

_listener: Listener | None = None
_remark_listener: RemarkListener | None = None
_remarked: set[str] = set()


def listen(listener: Listener | None, *, remarks: RemarkListener | None = None) -> None:
    """Tell these from now on, or nobody."""
    global _listener, _remark_listener
    _listener, _remark_listener = listener, remarks
    _remarked.clear()


def remark(level: str, text: str) -> None:
    """Tell the listener a line, unless it has heard it."""
    if _remark_listener is not None and text not in _remarked:
        _remarked.add(text)
        _remark_listener(level, text)


class Told:
    """One task of which the listener hears now and then, once it has taken a second.

    Args:
        task: In words.
        total: None where nobody knows it.
    """

    def __init__(self, task: str, total: int | None = None) -> None:
        self.task, self.total, self.spoke = task, total, False
        self._next = time.monotonic() + QUIET_SECONDS

    def __call__(self, done: int) -> None:
        """So much is done."""
        now = time.monotonic()
        if now >= self._next and _listener is not None:
            self._next, self.spoke = now + BETWEEN_SECONDS, True
            _listener(self.task, done, self.total)

    def end(self, done: int) -> None:
        """It is over; said only of what was spoken of, and once."""
        if self.spoke and _listener is not None:
            _listener(self.task, done, done)
        self.spoke = False
