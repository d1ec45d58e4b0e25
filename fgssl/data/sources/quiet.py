"""Keeps the data set library's progress bars and routine remarks out of the way."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fgssl.runtime.hub_progress import told_bars

# what these say is either routine ("no metadata block in the card", a retried request) or comes again as our own error
_TALKATIVE = ("datasets", "huggingface_hub")


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Bars of downloads and conversions go to the listener, remarks nowhere."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with told_bars():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
