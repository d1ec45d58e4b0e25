"""Slips in paths, answered before the heavy imports: a moment, not seconds, for a typing error.

Only whether something is there is looked at, by the rules of those who open it; what it holds is seen later.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fgssl.errors import FgsslError
from fgssl.runs.location import TIMM_PREFIX, encoder_path
from fgssl.runtime.files import check_folder


def check_data(source: str | None) -> None:
    """Refuses a data source that is no preset, path or hub id. Raises FgsslError."""
    if source is not None:
        from fgssl.data.sources.open import require_source

        require_source(source)


def check_checkpoint(checkpoint: str) -> None:
    """Refuses a checkpoint that is not there; files of features, joined by "+", may stand in its place.

    Raises FgsslError.
    """
    if not checkpoint.startswith(TIMM_PREFIX) and not all(Path(part).is_file() for part in checkpoint.split("+")):
        encoder_path(checkpoint)


def check_pictures(paths: Sequence[Path]) -> None:
    """Refuses pictures that are not there. Raises FgsslError."""
    from fgssl.data.decoding.decode import require_files

    require_files(paths)


def check_cache(cache: str | None) -> None:
    """Makes the cache folder asked for. Raises FgsslError where it cannot be written."""
    if cache is not None and not cache.strip():
        raise FgsslError("--cache names no folder", "use auto, off or a path")
    if cache not in (None, "auto", "off"):
        check_folder(Path(cache).expanduser(), option="--cache")


def check_paths(checkpoint: str, data: str | None, cache: str | None) -> None:
    """What the verbs that evaluate are given. Raises FgsslError."""
    check_checkpoint(checkpoint)
    check_data(data)
    check_cache(cache)
