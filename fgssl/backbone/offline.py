"""Without a network, the hub's cached copies at once instead of half a minute of retries."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from huggingface_hub import constants

PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Inside the block the hub counts as offline if its name cannot be resolved.

    The hub's client then takes what is cached and fails at once where nothing is. With a proxy, names are the proxy's
    business and nothing changes.
    """
    offline = constants.HF_HUB_OFFLINE
    if not offline and not any(os.environ.get(variable) for variable in PROXY_VARIABLES):
        constants.HF_HUB_OFFLINE = not _resolves(urlsplit(constants.ENDPOINT).hostname or "")
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
