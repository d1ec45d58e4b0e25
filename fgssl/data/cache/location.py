"""Where the cache is."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where decoded pictures live: FGSSL_CACHE, else XDG_CACHE_HOME/fgssl, else ~/.cache/fgssl."""
    if os.environ.get("FGSSL_CACHE"):
        return Path(os.environ["FGSSL_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fgssl"
