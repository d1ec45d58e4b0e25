"""Features in the files of other tools, by suffix: parquet, CSV and NumPy; with safetensors, fgssl's own, four in all.

A row is a picture: its path, split, label, class name and vector. A parquet file holds them in columns, its metadata
what it was made of; a CSV file spreads the vector over columns f0, f1, ...; a NumPy file is the matrix (N, D) alone,
and NAME.rows.csv beside it says what its rows are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
from torch import Tensor

from fgssl import __version__
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.feature_file import is_own_features, lasting_names, save_features
from fgssl.runtime.files import Inputs, OutputKind, atomic_path, check_output, write_text
from fgssl.runtime.text import csv_cell, csv_text, shown

FORMAT = b"fgssl-vectors-1"
KINDS = {"path": pa.string(), "split": pa.string(), "label": pa.int64(), "class_name": pa.string()}
ABOUT = tuple(KINDS)  # the columns before the vector
CHUNK = 1024  # rows that are written at once


class Export(NamedTuple):
    """What is written of a split: float32 or float16 features, where each row is from, and what they were made by."""

    embeddings: Embeddings
    splits: tuple[str, ...]  # of each row
    told: dict[str, str]  # source, split, pool, checkpoint, encoder

    @property
    def features(self) -> Tensor:
        return self.embeddings.features

    def about(self) -> dict[str, list[Any]]:
        """The columns before the vector; None where there is no label or no name."""
        labels, names = self.embeddings.labels, self.embeddings.class_names
        numbers = [None] * len(self.splits) if labels is None else labels.tolist()
        classes = [None if names is None or number is None else names[number] for number in numbers]
        columns = (lasting_names(self.embeddings), list(self.splits), numbers, classes)
        return dict(zip(ABOUT, columns, strict=True))

    def columns(self, written: Callable[[str], str]) -> dict[str, pa.Array]:
        """The same for Arrow, each string as it is `written`."""
        return {
            key: pa.array([written(value) if isinstance(value, str) else value for value in values], KINDS[key])
            for key, values in self.about().items()
        }

    def table(self) -> pa.Table:
        """Rows as an Arrow table, the vector a list of fixed length, with what is told as its metadata."""
        vectors = self.features.numpy()
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        return pa.table({**self.columns(storable), "vector": flat}).replace_schema_metadata(self.metadata())

    def metadata(self) -> dict[bytes, bytes]:
        """As Arrow keeps it."""
        told = {"fgssl": __version__, **{key: shown(value) for key, value in self.told.items()}}
        return {b"format": FORMAT, **{key.encode(): value.encode() for key, value in told.items()}}


def storable(name: str) -> str:
    """A name as it is; one that holds bytes which are no UTF-8 as it is shown."""
    return shown(name) if any("\ud800" <= sign <= "\udfff" for sign in name) else name


def halved(embeddings: Embeddings) -> Embeddings:
    """The same in 16 bits a number."""
    return embeddings._replace(features=embeddings.features.to(torch.float16))


def check_export(path: Path, *, inputs: Inputs, overwrite: bool) -> None:
    """As `check_output`, for the file and what is written beside it."""
    check_output(path, kind=EXPORT, inputs=inputs, overwrite=overwrite)
    if path.suffix.lower() == ".npy":
        check_output(rows_path(path), kind=EXPORT, inputs=inputs, overwrite=overwrite)


def save_export(path: Path, export: Export) -> None:
    """Write features in the format of the suffix: .safetensors (or none), .parquet, .csv or .npy."""
    suffix = path.suffix.lower()
    if suffix in (".safetensors", ""):
        save_features(path, export.embeddings, **export.told)
    elif suffix == ".npy":
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, export.features.numpy())
        write_text(rows_path(path), csv_text([ABOUT, *zip(*export.about().values(), strict=True)]))
    elif suffix == ".parquet":
        with atomic_path(path) as temporary:
            pyarrow.parquet.write_table(export.table(), temporary)
    else:
        _save_csv(path, export)


def rows_path(path: Path) -> Path:
    """Where it is said what the rows of a NumPy file are."""
    return path.with_name(f"{path.stem}.rows.csv")


def _save_csv(path: Path, export: Export) -> None:
    """By Arrow, which is fast and writes each number in the fewest digits that read back as it."""
    with atomic_path(path) as temporary:
        schema = next(_csv_batches(export)).schema
        with pyarrow.csv.CSVWriter(temporary, schema) as writer:
            for batch in _csv_batches(export):
                writer.write_batch(batch)


def _csv_batches(export: Export) -> Iterator[pa.RecordBatch]:
    columns = export.columns(csv_cell)
    names = [*ABOUT, *(f"f{place}" for place in range(export.features.shape[1]))]
    for first in range(0, len(export.splits), CHUNK):
        numbers = export.features[first : first + CHUNK].float().T.contiguous().numpy()
        about = [column[first : first + CHUNK] for column in columns.values()]
        yield pa.record_batch([*about, *map(pa.array, numbers)], names=names)


def _is_own(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return rows_path(path).is_file() and _is_own(rows_path(path))
    if suffix == ".csv":
        with path.open("rb") as file:
            return file.readline(200).replace(b'"', b"").rstrip().startswith(",".join(ABOUT).encode())
    if suffix == ".parquet":
        try:
            return bool((pyarrow.parquet.read_schema(path).metadata or {}).get(b"format") == FORMAT)
        except (pa.ArrowInvalid, OSError):
            return False
    return is_own_features(path)


EXPORT = OutputKind("features", (".safetensors", "", ".parquet", ".csv", ".npy"), _is_own, makes_folder=True)
