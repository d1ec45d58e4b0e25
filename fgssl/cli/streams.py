"""Standard streams that never stop the work: closed, full, without a reader, or unable to encode a character."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any


class LastingStream:
    """A text stream whose writes never fail; what comes after the first failure is dropped.

    Attributes:
        failure: Why the stream is lost. A reader that has gone had what it wanted, and is none.
    """

    def __init__(self, stream: Any) -> None:
        # a process may be started with a closed stream, which Python shows as None
        self._stream: Any = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        self.failure: OSError | None = None
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """As that of a text stream."""
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """As that of a text stream."""
        self._attempt(self._stream.flush)

    def _attempt(self, act: Any, *arguments: str) -> None:
        try:
            act(*arguments)
        except (OSError, ValueError) as error:  # ValueError: closed by someone in this process
            if isinstance(error, OSError) and error.errno != errno.EPIPE:
                self.failure = error
            try:  # what is still buffered must not fail once more when Python ends
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
            except (OSError, ValueError):
                self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def secure_streams() -> LastingStream:
    """Puts such streams in the place of stdout and stderr. Returns the one of results, stdout."""
    # no file of ours may get the number of a closed one, where libraries write their warnings
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(number)
    results = LastingStream(sys.stdout)
    sys.stdout, sys.stderr = results, LastingStream(sys.stderr)
    return results
