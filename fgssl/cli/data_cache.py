"""fgssl data cache: what lies in the cache, and how to be rid of it."""

from __future__ import annotations

from typing import Annotated

import typer

from fgssl.cli import options
from fgssl.cli.console import print_json, print_table, say
from fgssl.errors import FgsslError


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete the files instead of listing them.")] = False,
    kind: Annotated[
        str | None, typer.Option(help="Only this kind: decoded, features or maps.", metavar="KIND", show_default=False)
    ] = None,
    unused_days: Annotated[
        float, typer.Option(help="Only files that nobody has read or written for so many days.", min=0)
    ] = 0.0,
    folder: Annotated[
        str | None, typer.Option("--cache", help="Another cache folder. [FGSSL_CACHE or ~/.cache/fgssl]")
    ] = None,
    json_output: options.Json = False,
) -> None:
    """List or clear the cache. It holds decoded pictures and features; what is needed is made anew."""
    from pathlib import Path

    from fgssl.data.cache.folder import KINDS, cache_files, cache_folder, clear_cache
    from fgssl.runtime.files import refuse_file

    if kind is not None and kind not in KINDS:
        raise FgsslError(f"unknown --kind '{kind}'", f"choose one of {', '.join(KINDS)}")
    where = cache_folder() if folder is None else Path(folder).expanduser()
    refuse_file(where, option="--cache")
    files = [f for f in cache_files(where) if kind in (None, f.kind) and f.age_days >= unused_days]
    if clear:
        files = clear_cache(files)
    total = sum(file.size for file in files)
    if json_output:
        rows = [{**file._asdict(), "path": str(file.path)} for file in files]
        print_json({"folder": str(where), "cleared": clear, "bytes": total, "files": rows})
        return
    if files:
        print_table(
            ("kind", "file", "MB", "unused days"),
            [(KINDS[f.kind][0], str(f.path.relative_to(where)), f.size / 1e6, f.age_days) for f in files],
            text=(0, 1),
        )
    word = "freed" if clear else "in"
    say(f"{word} {where}: {len(files)} files, {total / 1e6:.1f} MB")
