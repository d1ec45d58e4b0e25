"""The shell of every page: sections -> one HTML file that opens from a disk or a mail, with no network.

Plots are drawn by Observable Plot and D3 (ISC licence), 0.49 MB together; of their rivals, Plotly's basic bundle is
1.19 MB, Vega with Vega-Lite 0.77 MB. A page is one of many in a mail, and thumbnails need the room. D3 zooms by wheel,
touch and key. Both lie in `static/` as npm publishes them, each beside its licence.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from fgssl import __version__
from fgssl.drawing import PAGE, PAGE_START
from fgssl.report.sections import Section, render
from fgssl.runtime.files import check_output, write_text

__all__ = ["LARGEST", "PAGE", "page", "save_page"]

LARGEST = 5_000_000  # bytes of a page: what a mail takes
_STATIC = Path(__file__).parent / "static"
# name -> file, in the order in which they are needed
SCRIPTS = {
    "d3": "d3-7.9.0.min.js",
    "plot": "plot-0.6.17.min.js",
    "page": "page.js",
    "curves": "curves.js",
    "embedding": "embedding.js",
    "maps": "maps.js",
}
NEEDS = {"curves": ("d3", "plot"), "embedding": ("d3",)}


def page(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """One HTML document: a heading, a table of contents where there are several sections, and the sections.

    Args:
        title: Foreign text is safe here, as in every section: it is escaped.
        sections: In order; what they need of scripts is inlined once.
        subtitle: A line below the title.
    """
    wanted = {"page"}.union(*(section.scripts for section in sections))
    wanted = wanted.union(*(NEEDS.get(name, ()) for name in wanted))
    scripts = [_script(name) for name in SCRIPTS if name in wanted]
    # as plain text: added to Markup, the start would be escaped
    return PAGE_START + str(render(
        "page.html",
        title=title,
        subtitle=subtitle,
        sections=[(f"section-{number}", section) for number, section in enumerate(sections, 1)],
        style=_static("page.css"),
        scripts=scripts,
        allowed=" ".join(f"'sha256-{_hash(script)}'" for script in scripts),
        version=__version__,
    ))  # fmt: skip


def save_page(text: str, path: Path) -> Path:
    """Write a page whole or not at all. Raises FgsslError where the disk refuses, or another's file is in the way."""
    check_output(path, kind=PAGE, overwrite=True)
    write_text(path, text)
    return path


@functools.cache
def _static(name: str) -> Markup:
    """A file of ours, trusted as it is."""
    return Markup((_STATIC / name).read_text(encoding="utf-8"))


@functools.cache
def _script(name: str) -> Markup:
    """A script; of another's with its licence, which has to go wherever it goes."""
    licence = _STATIC / f"{name}-LICENSE.txt"
    told = f"/*!\n{licence.read_text(encoding='utf-8')}*/\n" if licence.is_file() else ""
    return Markup(told) + _static(SCRIPTS[name])


@functools.cache
def _hash(script: Markup) -> str:
    """By which the page's policy knows a script as its own: no other one runs."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
