"""Progress bars of the hub's libraries, told to fgssl's own listener: one look on a terminal, plain lines in a log.

timm, `datasets` and `huggingface_hub` draw theirs by tqdm. timm takes no bar of ours, and `datasets` draws several at
once; so tqdm's base class, which all of them share, tells us what it would have drawn.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.std import tqdm

from fgssl.runtime.progress_events import Told

MEGABYTE = 1_000_000


@contextmanager
def told_bars() -> Iterator[None]:
    """Inside the block no bar is drawn; the listener hears of those that take long."""
    former = tqdm.__init__, tqdm.display, tqdm.close
    files: list[Any] = []  # bars that count files: those of each file's bytes would only take turns with them

    def begin(self: Any, *arguments: Any, **options: Any) -> None:
        former[0](self, *arguments, **{**options, "disable": False, "file": io.StringIO()})

    def show(self: Any, msg: str | None = None, pos: int | None = None) -> None:
        if not hasattr(self, "fgssl_told"):
            self.fgssl_told = Told(_task(self))
            files.extend([self] if self.unit == "files" else [])
        told, scale = self.fgssl_told, MEGABYTE if self.unit == "B" else 1
        known = self.total is not None and self.total > 0  # some say 0 where they do not know
        told.total = round(self.total / scale) if known else None
        if self.desc and (self.unit != "B" or all(bar.n >= bar.total for bar in files)):
            told(round(self.n / scale))

    def close(self: Any) -> None:
        former[2](self)
        if hasattr(self, "fgssl_told"):
            self.fgssl_told.end(round(self.n / (MEGABYTE if self.unit == "B" else 1)))

    tqdm.__init__, tqdm.display, tqdm.close = begin, show, close
    try:
        yield
    finally:
        tqdm.__init__, tqdm.display, tqdm.close = former


def _task(bar: Any) -> str:
    """What a bar is about, in our words: "downloading model.safetensors (MB)", "generating train split"."""
    words = bar.desc.strip().rstrip(":")
    if bar.unit == "B":
        return f"downloading {words.rsplit('/', 1)[-1]} (MB)"
    return f"{words[:1].lower()}{words[1:]}{f' ({bar.unit.strip()})' if bar.unit != 'it' else ''}"
