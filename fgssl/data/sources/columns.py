"""Which column of a table holds the images and which the classes: found by type, then by name; options override."""

from __future__ import annotations

from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fgssl.data.sources.textlist import sorted_classes
from fgssl.errors import FgsslError
from fgssl.runtime.text import shown

LABEL_NAMES = ("label", "labels", "target", "variant", "cls", "fine_label", "class", "category")
"""Column names taken for classes, in this order, where no column is typed as one."""

_IMAGE_NAMES = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "picture", "photo")


class Labels(NamedTuple):
    """Class ids of each split and the names they share."""

    ids: dict[str, NDArray[np.int64] | None]  # per split: (N,), or None where that split has no labels
    class_names: tuple[str, ...]


def find_image_column(features: datasets.Features, wanted: str | None, *, source: str) -> str:
    """The column of the images: the wanted one, else the first of type Image, else encoded bytes by name.

    Args:
        features: The table's columns and their types.
        wanted: The column the user names, if any.
        source: The source as the user wrote it, for messages.

    Raises:
        FgsslError: The wanted column does not exist or cannot hold images, or none is found.
    """
    if wanted is not None:
        _check_exists(features, wanted, option="data.image_column", source=source)
        if not (isinstance(features[wanted], datasets.Image) or _holds_bytes(features[wanted])):
            raise FgsslError(
                f"column {wanted!r} of {source} holds no images (it is {_kind(features[wanted])})",
                f"name the image column, one of: {_shown(features)}",
            )
        return wanted
    for name, feature in features.items():
        if isinstance(feature, datasets.Image):
            return str(name)
    encoded = [name for name in features if _holds_bytes(features[name])]
    for name in (*_IMAGE_NAMES, *(name for name in encoded if isinstance(features[name], dict))):
        if name in encoded:
            return str(name)
    raise FgsslError(
        f"no image column in {source} (its columns: {_shown(features)})",
        "name it with --set data.image_column=NAME, or choose another data set or --set data.subset=NAME",
    )


def find_label_column(features: datasets.Features, wanted: str | None, *, source: str) -> str | None:
    """The column of the classes: the wanted one, else the first ClassLabel, else one of `LABEL_NAMES`; may be None.

    Raises:
        FgsslError: The wanted column does not exist or holds neither classes, whole numbers nor text.
    """
    if wanted is not None:
        _check_exists(features, wanted, option="data.label_column", source=source)
        if not _holds_classes(features[wanted]):
            raise FgsslError(
                f"column {wanted!r} of {source} holds no classes (it is {_kind(features[wanted])})",
                f"name a column of classes, whole numbers or text, one of: {_shown(features)}",
            )
        return wanted
    for name, feature in features.items():
        if isinstance(feature, datasets.ClassLabel):
            return str(name)
    return next((name for name in LABEL_NAMES if name in features and _holds_classes(features[name])), None)


def read_labels(splits: dict[str, datasets.Dataset], column: str) -> Labels:
    """Class ids of every split, in one mapping.

    A ClassLabel keeps its ids and names. Numbers and text become ids in the order of the sorted distinct values of all
    splits. A split in which any label is missing (null, or -1 as hub data sets mark it) counts as unlabelled.

    Args:
        splits: The splits of one source; those without the column count as unlabelled.
        column: The column of the classes.
    """
    raw = {name: _column(split, column) for name, split in splits.items() if column in split.features}
    complete = {name: values for name, values in raw.items() if len(values) and not _missing(values)}
    feature = next(split.features[column] for split in splits.values() if column in split.features)
    ids: dict[str, NDArray[np.int64] | None] = dict.fromkeys(splits)
    if isinstance(feature, datasets.ClassLabel) and feature.names:
        for name, values in complete.items():
            ids[name] = values.to_numpy().astype(np.int64)
        return Labels(ids, tuple(shown(text) for text in feature.names))
    encoded = {name: values.dictionary_encode().combine_chunks() for name, values in complete.items()}
    texts = {name: [str(value) for value in values.dictionary.to_pylist()] for name, values in encoded.items()}
    names = sorted_classes({text for distinct in texts.values() for text in distinct})
    number = {text: index for index, text in enumerate(names)}
    for name, values in encoded.items():
        order = np.array([number[text] for text in texts[name]], dtype=np.int64)
        ids[name] = order[values.indices.to_numpy()]
    return Labels(ids, tuple(shown(text) for text in names))


def _column(split: datasets.Dataset, column: str) -> pa.ChunkedArray:
    table = split.select_columns([column]).with_format("arrow")[:]
    values = table.column(column)
    return pa.chunked_array([values]) if isinstance(values, pa.Array) else values


def _missing(values: pa.ChunkedArray) -> bool:
    if values.null_count:
        return True
    return pa.types.is_integer(values.type) and bool((values.to_numpy() == -1).any())


def _check_exists(features: datasets.Features, wanted: str, *, option: str, source: str) -> None:
    if wanted not in features:
        raise FgsslError(f"{source} has no column {wanted!r} ({option})", f"its columns are: {_shown(features)}")


def _holds_bytes(feature: Any) -> bool:
    if isinstance(feature, dict):
        return _holds_bytes(feature.get("bytes"))
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _holds_classes(feature: Any) -> bool:
    if isinstance(feature, datasets.ClassLabel):
        return True
    kinds = ("int", "uint", "string", "large_string", "bool")
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(kinds)


def _kind(feature: Any) -> str:
    return str(feature.dtype) if isinstance(feature, datasets.Value) else type(feature).__name__


def _shown(features: datasets.Features) -> str:
    return ", ".join(shown(str(name)) for name in features) or "none"
