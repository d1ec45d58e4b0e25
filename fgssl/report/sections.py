"""Parts of a page that hold no plot: facts, tables, pictures, words. Every text from elsewhere is escaped."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from fgssl.runtime.text import shown

ROWS_SHOWN = 200  # of a table: more are counted
LONGEST_TEXT = 300  # characters of one foreign text


class Section(NamedTuple):
    """One part of a page."""

    title: str
    body: Markup  # HTML that is safe already
    scripts: tuple[str, ...] = ()  # of `fgssl.report.page.SCRIPTS`, that bring it to life


def render(template: str, **values: Any) -> Markup:
    """A template of `templates/`, whose values are escaped unless they are Markup."""
    return Markup(_templates().get_template(template).render(**values))


@functools.cache
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    made = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=_safe,
    )  # fmt: skip
    made.filters |= {"cell": cell, "data": data}
    return made


def _safe(value: Any) -> Any:
    """What every value goes through on its way into a template, before it is escaped: no invisible character."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def short(text: str, longest: int = LONGEST_TEXT) -> str:
    """Foreign text for a page: visible characters alone, the middle left out of what is very long."""
    text, half = shown(text), longest // 2
    return text if len(text) <= longest else f"{text[:half]} … {text[-half:]}"


def file_name(path: str) -> str:
    """The last part of a path, or of a name in a data set."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def data(value: Any) -> Markup:
    """JSON to stand in a script block, which no text in it can end; what is not finite is null."""
    text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def cell(value: Any) -> str:
    """A value as people read it: two decimals, as on the terminal, and a dash for what is not known."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"  # noqa: RUF001
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}" if type(value) is int else short(str(value))


def note(title: str, *paragraphs: str) -> Section:
    """Words alone."""
    return Section(title, render("note.html", paragraphs=paragraphs))


def facts(title: str, values: Mapping[str, Any], *, told: str = "") -> Section:
    """Names with their values, one below the other."""
    return Section(title, render("facts.html", values=values, told=told))


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    told: str = "",
    after: str = "",
    folded: bool = False,
) -> Section:
    """A table whose columns sort by a click, with words before and after it.

    Args:
        columns: Titles.
        rows: Values: numbers stand to the right. The first 200 are shown, and how many more there are is said.
        folded: Whether it is opened by its reader, as one to look things up in.
    """
    left_out = len(rows) - ROWS_SHOWN
    values: dict[str, Any] = {"columns": columns, "rows": rows[:ROWS_SHOWN], "folded": folded}
    body = render("table.html", **values, told=told, after=after, left_out=max(0, left_out), title=title)
    return Section(title, body)


class Picture(NamedTuple):
    """A picture with its words; `source` is a data: address, None where it cannot be shown."""

    source: str | None
    caption: str = ""
    mark: str = ""  # "right", "wrong" or nothing


def gallery(title: str, rows: Sequence[Sequence[Picture]], *, columns: Sequence[str] = (), told: str = "") -> Section:
    """Rows of pictures side by side."""
    kept = [[each._replace(caption=short(each.caption)) for each in row] for row in rows]
    return Section(title, render("gallery.html", rows=kept, columns=columns, told=told))
