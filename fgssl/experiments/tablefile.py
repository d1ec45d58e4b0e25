"""tables.yaml of a folder of recipes: which rows make a table, on which data, and what others published."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fgssl.errors import FgsslError
from fgssl.experiments.plan import Row, check_measures

TABLES_FILE = "tables.yaml"
_TABLE = ("title", "data", "weights", "images", "layout", "seeds", "measures", "notes", "rows")
_ROW = ("recipe", "set", "pool", "published")


class Table(NamedTuple):
    """A table as it is planned."""

    name: str
    title: str
    data: str | None  # None: named by the user
    weights: str | None  # where every row starts: a checkpoint; None: named by the user
    images: tuple[int, int]  # train and test, to plan by
    layout: str | None  # of the archive that a rehearsal draws; None draws class folders
    seeds: int
    measures: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def published(self) -> dict[str, Mapping[str, float]] | None:
        """Row -> column -> number; None where no row has one."""
        found = {row.name: row.published or {} for row in self.rows}
        return found if any(found.values()) else None


def read_tables(folder: Path) -> dict[str, Table]:
    """Name -> table, of FOLDER/tables.yaml. Raises FgsslError, naming file and place, where it is none."""
    path = folder / TABLES_FILE
    if not path.is_file():
        raise FgsslError(f"'{folder}' has no {TABLES_FILE}", "give a folder of recipes such as recipes/paper")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FgsslError(f"'{path}' cannot be read: {reason}", "mend it") from error
    if not isinstance(found, dict) or not found:
        raise FgsslError(f"'{path}' holds no tables", "write NAME: with rows below it")
    return {str(name): _table(str(name), fields, path) for name, fields in found.items()}


def _table(name: str, fields: Any, path: Path) -> Table:
    fields = _checked(fields, _TABLE, f"'{path}': {name}")
    try:
        rows = tuple(_row(str(row), own, path, name) for row, own in fields["rows"].items())
        train, test = fields.get("images", (1, 1))
        return Table(
            name, str(fields.get("title", name)), _text(fields.get("data")), _text(fields.get("weights")),
            (int(train), int(test)), _text(fields.get("layout")), int(fields.get("seeds", 1)),
            check_measures([str(measure) for measure in fields["measures"]]), rows,
            tuple(" ".join(str(note).split()) for note in fields.get("notes", ())),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FgsslError(
            f"'{path}': {name} is no table: {type(error).__name__} {error}", "see recipes/paper"
        ) from error


def _row(name: str, fields: Any, path: Path, table: str) -> Row:
    fields = _checked(fields, _ROW, f"'{path}': {table}: {name}")
    recipe = None if fields.get("recipe") is None else path.parent / str(fields["recipe"])
    if recipe is not None and (recipe.parent != path.parent or not recipe.is_file()):
        raise FgsslError(
            f"'{path}': {table}: {name} has no recipe {recipe.name} beside it", "write it, or mend the name"
        )
    sets = tuple(f"{key}={_shown(value)}" for key, value in (fields.get("set") or {}).items())
    published = {str(column): float(number) for column, number in (fields.get("published") or {}).items()}
    return Row(name, recipe, sets, _text(fields.get("pool")), published)


def _checked(fields: Any, known: tuple[str, ...], place: str) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise FgsslError(f"{place} holds no settings", f"it takes {', '.join(known)}")
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            remedy = f"did you mean '{near[0]}'?" if near else f"it takes {', '.join(known)}"
            raise FgsslError(f"{place}: unknown '{key}'", remedy)
    return fields


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)
