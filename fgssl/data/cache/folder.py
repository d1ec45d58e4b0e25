"""The cache folder: where it is, what lies in it by kind, and what of it goes."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from fgssl.runtime.text import shown

# subfolder of the cache -> what its files are, and their names: nothing else is ever listed or deleted
KINDS = {
    "decoded": ("decoded pictures", ("*.pixels", "*.jpegs", ".building-*")),
    "features": ("features", ("*.safetensors",)),
    "maps": ("maps of frozen backbones", ("*.maps",)),
    "targets": ("features of teachers", ("*.safetensors",)),
    "shards": ("where pictures lie in tar shards", ("*.npz",)),
}
BUILDING_SECONDS = 3600  # a hidden file written to more recently is still being built
DAY = 86_400  # seconds


class CacheFile(NamedTuple):
    """One file of the cache."""

    kind: str  # subfolder
    path: Path
    size: int  # bytes
    age_days: float  # since it was last read, where the disk notes that, else since it was written


def cache_folder() -> Path:
    """Where decoded pictures live: FGSSL_CACHE, else XDG_CACHE_HOME/fgssl, else ~/.cache/fgssl."""
    if os.environ.get("FGSSL_CACHE"):
        return Path(os.environ["FGSSL_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fgssl"


def cache_label(source: str, split: str) -> str:
    """What a file of the cache is of, as the beginning of its name: "photos-train"."""
    place = os.path.expanduser(source)
    name = os.path.basename(os.path.abspath(place)) if os.path.exists(place) else source
    return re.sub(r"[^\w.+]+", "-", shown(f"{name}-{split}")).strip("-.")[-40:]


def cache_files(folder: Path) -> list[CacheFile]:
    """Every file of the known kinds, largest first; those that a build is still writing are left out."""
    found = []
    for kind, (_, patterns) in KINDS.items():
        for path in (path for pattern in patterns for path in (folder / kind).glob(pattern)):
            with contextlib.suppress(OSError):  # another process may clear as well
                status = path.stat()
                age = max(0.0, time.time() - max(status.st_atime, status.st_mtime))
                building = path.name.startswith(".") and age < BUILDING_SECONDS
                if path.is_file() and not building:
                    found.append(CacheFile(kind, path, status.st_size, age / DAY))
    return sorted(found, key=lambda file: -file.size)


def clear_cache(files: list[CacheFile]) -> list[CacheFile]:
    """Delete the files; runs that read them now keep them until they end. Returns those that are gone."""
    for file in files:
        with contextlib.suppress(OSError):
            file.path.unlink()
    return [file for file in files if not file.path.exists()]


def remove_unused(folder: Path, pattern: str, *, days: float) -> None:
    """Delete files that nobody has written to for so long."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > days * DAY:
                path.unlink()
