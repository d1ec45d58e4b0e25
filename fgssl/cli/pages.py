"""--report FILE: checked before a verb's long work, written after its results are on the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from typer import Option

from fgssl.cli.console import process_rank, reporting, say
from fgssl.drawing import PAGE
from fgssl.runtime.files import Inputs, check_output

ReportFile = Annotated[
    Path | None, Option("--report", metavar="FILE.html", help="Page to write: one file to open, with its pictures.")
]


def check_page(path: Path | None, *, inputs: Inputs = (), overwrite: bool = False) -> None:
    """Refuses a place where a page cannot be written, or where something of the user's lies."""
    if path is not None:
        check_output(path, kind=PAGE._replace(option="--report"), inputs=inputs, overwrite=overwrite)


def write_page(path: Path | None, text: Callable[[], str], *, told: bool, quiet: bool) -> None:
    """Write the page that was asked for, by the first of several processes; `told` says where, on stdout."""
    if path is None or process_rank() != 0:
        return
    from fgssl.report import save_page

    with reporting(quiet=quiet):
        save_page(text(), path)
    if told:
        say(f"report: {path}")
