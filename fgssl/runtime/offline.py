"""Without a network: the hub's cached copies at once instead of half a minute of retries, and plain words."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from fgssl.errors import FgsslError
from fgssl.runtime.reporting import told_bars

CONNECT_SECONDS = 3.0  # each of two attempts
PAUSE_SECONDS = 0.5  # between them, for a hiccup


class WeightsError(FgsslError):
    """Published weights that cannot be had; the remedy is for a training run."""


class WeightsOffline(WeightsError):
    """Published weights that are not on this machine, with no network to fetch them."""


def is_offline(error: Exception) -> bool:
    """Whether an error of the hub's client or of timm's download means that nothing answers."""
    if isinstance(error, HTTPError):  # a server answered
        return False
    return isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled, URLError, ConnectionError, TimeoutError))


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Inside the block the hub counts as offline if it cannot be connected to.

    The hub's client, and `datasets` where it is loaded, then take what is cached and fail at once where nothing is.
    What they load is told to the listener. With a proxy, connections are the proxy's business and nothing changes.
    """
    libraries: list[Any] = [constants, *(sys.modules[name] for name in ("datasets.config",) if name in sys.modules)]
    before = [library.HF_HUB_OFFLINE for library in libraries]
    if not any(before) and not {"https", "http", "all"} & getproxies_environment().keys():
        offline = not _reachable(constants.ENDPOINT)
        for library in libraries:
            library.HF_HUB_OFFLINE = offline
    try:
        with told_bars():
            yield
    finally:
        for library, value in zip(libraries, before, strict=True):
            library.HF_HUB_OFFLINE = value


def _reachable(endpoint: str) -> bool:
    address = urlsplit(endpoint)
    port = address.port or (80 if address.scheme == "http" else 443)
    for pause in (PAUSE_SECONDS, 0.0):
        with suppress(OSError):
            socket.create_connection((address.hostname or "", port), timeout=CONNECT_SECONDS).close()
            return True
        time.sleep(pause)
    return False
