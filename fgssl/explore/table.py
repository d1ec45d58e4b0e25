"""The survey as a table, a row a picture: CSV for a spreadsheet, parquet for pandas and the like."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fgssl.data.images import ImageSet
from fgssl.data.sources.files import list_line
from fgssl.errors import FgsslError
from fgssl.evaluation.feature_file import lasting_names
from fgssl.explore.groups import typical_first
from fgssl.explore.survey import Survey
from fgssl.runtime.files import OutputKind, atomic_path, write_text
from fgssl.runtime.text import csv_text, shown

KINDS = {
    "path": pa.string(), "label": pa.string(), "group": pa.int64(), "typical": pa.int64(), "x": pa.float32(),
    "y": pa.float32(), "distance": pa.float32(), "copies": pa.int64(), "selected": pa.int64(),
}  # fmt: skip
"""Columns: group from 1, the largest first; place in it, the most typical first; map; mean distance to the ten nearest;
number of a group of near copies; place in the selection. Empty where there is none."""
_SCHEMA, _MARK = pa.schema(list(KINDS.items()), metadata={"fgssl": "explore-1"}), b"fgssl"
_LIST_START = "# the most different pictures first, chosen by fgssl explore\n"


def columns(survey: Survey) -> dict[str, list[Any]]:
    """Of every row of a survey; strings as they are, None for nothing."""
    count = len(survey.groups)
    typical, copies, selected = (list[int | None]([None] * count) for _ in range(3))
    for rows in survey.group_rows():
        for place, row in enumerate(typical_first(survey.features, rows).tolist(), 1):
            typical[row] = place
    for number, alike in enumerate(survey.copies, 1):
        for row in alike:
            copies[row] = number
    for place, row in enumerate(survey.selection.rows.tolist(), 1):
        selected[row] = place
    groups = [None if number < 0 else number + 1 for number in survey.groups.tolist()]
    labels = [survey.found.class_of(row) for row in range(count)]
    x, y = survey.points.T.tolist()
    values = (lasting_names(survey.found), labels, groups, typical, x, y, survey.distance.tolist(), copies, selected)
    return dict(zip(KINDS, values, strict=True))


def save_table(path: Path, survey: Survey) -> None:
    """Write the table in the form of its suffix, whole or not at all."""
    found = columns(survey)
    if path.suffix.lower() == ".csv":
        rows = zip(*(_rounded(values) for values in found.values()), strict=True)
        write_text(path, csv_text([tuple(found), *rows]))
        return
    # a path with bytes that are no text has no place in a column of text
    found["path"] = [name if _is_text(name) else shown(name) for name in found["path"]]
    table = pa.table(found, schema=_SCHEMA)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def require_files_to_list(images: ImageSet) -> None:
    """Raises FgsslError, before the work, where pictures are no files that a list could name."""
    if not os.path.lexists(images.name(0)):
        problem = f"--select-list names files, and {images.identifier(0)} is none"
        raise FgsslError(problem, "use --export, or give a folder")


def save_list(path: Path, survey: Survey) -> None:
    """Write the selected pictures as a list that `--data` reads, the most different first."""
    names = [survey.found.identifiers[row] for row in survey.selection.rows.tolist()]
    lines = [list_line(os.path.abspath(name), None) for name in names]
    write_text(path, "".join([_LIST_START, *lines]))


def _rounded(values: Sequence[Any]) -> list[Any]:
    return ["" if value is None else float(f"{value:.5g}") if isinstance(value, float) else value for value in values]


def _is_text(name: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in name)


def _is_own_table(path: Path) -> bool:
    if path.suffix.lower() == ".csv":
        with path.open("rb") as file:
            return file.readline().decode("utf-8", "replace").strip() == ",".join(KINDS)
    try:
        return _MARK in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def _is_own_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_LIST_START)) == _LIST_START.encode()


TABLE = OutputKind("a table of pictures", (".csv", ".parquet"), _is_own_table, makes_folder=True)
LIST = OutputKind("a list of pictures", (".txt",), _is_own_list, makes_folder=True)
