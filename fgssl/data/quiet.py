"""Keeps the data set library's progress bars and routine remarks out of the way."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import datasets

# what these say is either routine ("no metadata block in the card", a retried request) or comes again as our own error
_TALKATIVE = ("datasets", "huggingface_hub")


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Shows bars of downloads and conversions on a terminal only; in a log they would be thousands of lines."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    hide_bars = not (sys.stderr.isatty() or datasets.are_progress_bars_disabled())
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    if hide_bars:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if hide_bars:
            datasets.enable_progress_bars()
