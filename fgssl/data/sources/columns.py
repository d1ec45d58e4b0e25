"""Which column of a table holds the images and which the classes: found by type, then by name; options override."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fgssl.data.images import About
from fgssl.data.sources.files import LABEL_NAMES, sorted_classes
from fgssl.errors import FgsslError
from fgssl.runtime.text import shown

# names of columns taken for images, in this order, where no column is typed as one
_IMAGE_NAMES = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "picture", "photo")

Features = Mapping[str, Any]  # the columns of a table and their types


class Column(NamedTuple):
    """The column that was taken, and in words which it was taken before; "" where there was one."""

    name: str
    remark: str = ""


def find_image_column(features: Features, wanted: str | None, *, source: str) -> Column:
    """The column of the images: the one the user wants, else the first of type Image, else encoded bytes by name.

    Raises FgsslError where the wanted one does not exist or cannot hold images, or none is found.
    """
    if wanted is not None:
        fits = isinstance(features.get(wanted), datasets.Image) or _holds_bytes(features.get(wanted))
        return _wanted(features, wanted, fits, source, ("image", "images", "the image column"))
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    encoded = [name for name, feature in features.items() if _holds_bytes(feature)]
    named = [name for name in _IMAGE_NAMES if name in encoded]
    found = typed or named or [name for name in encoded if isinstance(features[name], dict)]
    if found:
        return _first(found, "pictures", "image")
    remedy = "name it with --set data.image_column=NAME, or choose another data set or --set data.subset=NAME"
    raise FgsslError(f"no image column in {source} (its columns: {_shown(features)})", remedy)


def find_label_column(features: Features, wanted: str | None, *, source: str) -> Column | None:
    """The column of the classes: the wanted one, else the first ClassLabel, else one of `LABEL_NAMES`; may be None."""
    if wanted is not None:
        words = ("label", "classes", "a column of classes, whole numbers or text")
        return _wanted(features, wanted, _holds_classes(features.get(wanted)), source, words)
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    named = [name for name in LABEL_NAMES if name in features and _holds_classes(features[name])]
    found = list(dict.fromkeys((*typed, *named)))
    return _first(found, "classes", "label") if found else None


def read_labels(splits: Mapping[str, Sequence[datasets.Dataset]], column: str, *, source: str) -> dict[str, About]:
    """The labels of every split, in one mapping; classes of different tables are matched by their names.

    ClassLabels that agree keep their ids and names. Numbers and text become ids in the order of the sorted distinct
    values. A split in which any label is missing (null, or -1 as hub data sets mark it) counts as unlabelled.

    Raises:
        FgsslError: Numbers in one table and names in another, or a number that a ClassLabel has no name for.
    """
    lacking = {name: _lacking(tables, column) for name, tables in splits.items()}
    parts = {name: [_part(table, column, source) for table in splits[name]] for name in splits if not lacking[name]}
    names = _class_names([part for found in parts.values() for part in found], column, source)
    number, shown_names = {text: index for index, text in enumerate(names)}, tuple(map(shown, names))
    abouts = {name: About(unlabelled=reason) for name, reason in lacking.items()}
    for name, found in parts.items():
        ids = [np.array([number[text] for text in part.texts], np.int64)[part.places] for part in found]
        abouts[name] = About(np.concatenate(ids), shown_names) if ids else abouts[name]
    return abouts


class _Part(NamedTuple):
    """The labels of one table."""

    listed: tuple[str, ...]  # names of a ClassLabel
    bare: bool  # whole numbers without names
    texts: list[str]  # the distinct labels
    places: NDArray[np.int64]  # (N,) of each row's label in them


def _part(table: datasets.Dataset, column: str, source: str) -> _Part:
    encoded = _values(table, column).dictionary_encode().combine_chunks()
    distinct = encoded.dictionary.to_pylist()
    listed = tuple(getattr(table.features[column], "names", None) or ())
    if listed and not all(0 <= value < len(listed) for value in distinct):
        problem = f"column {column!r} of {source} holds {max(distinct)}, and has {len(listed)} class names"
        remedy = "name another column with --set data.label_column=NAME, or save the table with all its names"
        raise FgsslError(problem, remedy)
    texts = [listed[value] if listed else str(value) for value in distinct]
    bare = not listed and pa.types.is_integer(encoded.dictionary.type)
    return _Part(listed, bare, texts, encoded.indices.to_numpy())


def _class_names(parts: Sequence[_Part], column: str, source: str) -> tuple[str, ...]:
    """All classes of all tables: those of the longest ClassLabel first, in its order."""
    lists = sorted((part.listed for part in parts if part.listed), key=len, reverse=True)
    listed = dict.fromkeys(text for names in lists for text in names)
    named = listed.keys() | {text for part in parts if not part.bare for text in part.texts}
    bare = {text for part in parts if part.bare for text in part.texts}
    if named and bare - named:
        problem = f"column {column!r} of {source} holds names in one split and numbers ({min(bare - named)}) in another"
        remedy = "they cannot be matched: save the column alike in all splits, as text or as one ClassLabel"
        raise FgsslError(problem, remedy)
    return (*listed, *sorted_classes((named | bare) - listed.keys()))


def _lacking(tables: Sequence[datasets.Dataset], column: str) -> str:
    """Why a split has no labels; "" where it has them all."""
    for table in tables:
        if column not in table.features:
            return f"it has no column {column!r}; its columns are: {_shown(table.features)}"
    rows = sum(map(len, tables))
    missing = sum(_missing(_values(table, column)) for table in tables)
    return f"the column {column!r} is missing (null or -1) in {missing} of {rows} rows" if missing else ""


def _values(table: datasets.Dataset, column: str) -> pa.ChunkedArray:
    values = table.select_columns([column]).with_format("arrow")[:].column(column)
    return pa.chunked_array([values]) if isinstance(values, pa.Array) else values


def _missing(values: pa.ChunkedArray) -> int:
    absent = int((values.drop_null().to_numpy() == -1).sum()) if pa.types.is_integer(values.type) else 0
    return int(values.null_count) + absent


def _first(found: list[str], what: str, role: str) -> Column:
    others = ", ".join(map(shown, found[1:]))
    words = f"the column {found[0]!r} is taken for the {what}, not {others} (--set data.{role}_column=NAME)"
    return Column(found[0], words if others else "")


def _wanted(features: Features, name: str, fits: bool, source: str, words: tuple[str, str, str]) -> Column:
    role, content, column = words
    listed = _shown(features)
    if name not in features:
        raise FgsslError(f"{source} has no column {name!r} (data.{role}_column)", f"its columns are: {listed}")
    if not fits:
        feature = features[name]
        kind = str(feature.dtype) if isinstance(feature, datasets.Value) else type(feature).__name__
        problem = f"column {name!r} of {source} holds no {content} (it is {kind})"
        raise FgsslError(problem, f"name {column}, one of: {listed}")
    return Column(name)


def _holds_bytes(feature: Any) -> bool:
    if isinstance(feature, dict):
        return _holds_bytes(feature.get("bytes"))
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _holds_classes(feature: Any) -> bool:
    if isinstance(feature, datasets.ClassLabel):
        return True
    kinds = ("int", "uint", "string", "large_string", "bool")
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(kinds)


def _shown(features: Features) -> str:
    return ", ".join(map(shown, features)) or "none"
