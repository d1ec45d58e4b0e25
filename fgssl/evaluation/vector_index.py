"""Embeddings kept in a vector index, which grows with each call: LanceDB's (NAME.lance) or FAISS' (NAME.faiss).

Both hold the rows of `fgssl.evaluation.export`; a picture that is embedded again replaces its row. A LanceDB table is
opened by `lancedb.connect(FOLDER).open_table(NAME)`. A FAISS index holds vectors alone, in 16 bits; NAME.faiss.parquet
beside it says what they are. Searches are exact up to `FLAT_ROWS` rows; above, the index looks only into the cells
nearest to a query (k-means and inverted lists: Jégou et al. 2011, section IV).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from torch import Tensor

from fgssl.errors import FgsslError
from fgssl.evaluation.export import ABOUT, FORMAT, Export
from fgssl.runtime.extras import require
from fgssl.runtime.files import atomic_path, make_folder, not_writable

SUFFIXES = {".lance": "lancedb", ".faiss": "faiss"}  # and the extra, named like the module
FLAT_ROWS = 100_000
PROBED = 64  # cells that a search looks into
Halves = npt.NDArray[np.float16]


class Near(NamedTuple):
    """One picture that is near to a query."""

    path: str
    label: str | None
    score: float  # cosine
    row: int = -1  # in a gallery of embeddings


def is_index(name: str) -> bool:
    """Whether a name is that of a vector index, by its suffix."""
    return Path(name).suffix.lower() in SUFFIXES


def require_index(path: Path) -> Any:
    """The library for an index of this name. Raises FgsslError for a suffix of no index, or where it is missing."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise FgsslError(f"--index '{path}' is no vector index", f"end its name in {' or '.join(SUFFIXES)}")
    return require(SUFFIXES[suffix], extra=SUFFIXES[suffix])


def check_index(path: Path, told: Mapping[str, str]) -> None:
    """Raises FgsslError, before the work, where vectors of what is `told` (see `Export`) cannot go into an index."""
    if require_index(path) and path.exists():
        open_index(str(path)).require_fit(told)


def add_to_index(path: Path, export: Export) -> int:
    """Add rows to an index, made where there is none, and give how many it then holds.

    Raises FgsslError: its library is not here, it cannot be written, or holds vectors of another encoder or pooling.
    """
    require_index(path)
    make_folder(path.parent, option="--index")
    try:
        return _index(path).add(export.table(), export.told)
    except OSError as error:
        raise not_writable(path, error, option="--index") from error


class VectorIndex:
    """An index opened for searching, and what its vectors were made by."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.rows, self.width = 0, 0
        self.pool: str | None = None
        self.checkpoint: str | None = None
        self.encoder: str | None = None

    def open(self) -> None:
        """Read what is there. Raises FgsslError where it cannot be read, or fgssl did not make it."""
        raise NotImplementedError

    def add(self, table: pa.Table, told: Mapping[str, str]) -> int:
        """Add the rows of a table, and give how many there are then."""
        raise NotImplementedError

    def describe(self, rows: int, schema: pa.Schema, width: int) -> None:
        """What was found when it was opened."""
        told = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
        if told.get("format") != FORMAT.decode():
            raise FgsslError(f"'{self.path}' is an index that fgssl did not make", "choose another --index")
        self.rows, self.width = rows, width
        self.pool, self.checkpoint, self.encoder = (told.get(key) for key in ("pool", "checkpoint", "encoder"))

    def require_fit(self, told: Mapping[str, str]) -> None:
        """Raises FgsslError where vectors made by what is told cannot be compared with those in it."""
        for key, word, made_by in (
            ("encoder", "another encoder", self.checkpoint),
            ("pool", "another pooling", self.pool),
        ):
            if getattr(self, key) != told.get(key):
                raise FgsslError(f"'{self.path}' holds vectors of {word} ({made_by})", "choose another --index")

    def nearest(self, queries: Tensor, top: int) -> list[list[Near]]:
        """The `top` rows nearest to each query (N, D) of length 1, best first."""
        raise NotImplementedError


def open_index(name: str) -> VectorIndex:
    """An index that is there. Raises FgsslError where it is not, is damaged, or its library is missing."""
    path = Path(name).expanduser()
    require_index(path)
    if not path.exists():
        raise FgsslError(f"no vector index '{name}'", "make one with fgssl embed --index")
    index = _index(path)
    index.open()
    return index


def _index(path: Path) -> VectorIndex:
    return _LanceIndex(path) if path.suffix.lower() == ".lance" else _FaissIndex(path)


def _label(class_name: str | None, label: int | None) -> str | None:
    return class_name if class_name is not None or label is None else str(label)


class _LanceIndex(VectorIndex):
    """A table of LanceDB."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.place = path
        self.database = require("lancedb", extra="lancedb").connect(str(path.parent))
        self.present: Any = None

    def open(self) -> None:
        try:
            self.present = self.database.open_table(self.place.stem)
        except (ValueError, RuntimeError, OSError) as error:
            raise FgsslError(f"'{self.path}' is no table that LanceDB can open", "make it anew") from error
        schema = self.present.schema
        self.describe(self.present.count_rows(), schema, schema.field("vector").type.list_size)

    def add(self, table: pa.Table, told: Mapping[str, str]) -> int:
        if not self.place.exists():
            self.present = self.database.create_table(self.place.stem, data=table)
        else:
            self.open()
            self.require_fit(told)
            kind = self.present.schema.field("vector").type  # 16 or 32 bits, as it was begun
            place = table.schema.get_field_index("vector")
            table = table.set_column(place, pa.field("vector", kind), table["vector"].cast(kind))
            merge = self.present.merge_insert("path").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(table)
        rows = int(self.present.count_rows())
        if rows > FLAT_ROWS and not self.present.list_indices():
            self.present.create_index(metric="cosine", index_type="IVF_FLAT", num_partitions=_cells(rows))
        self.present.optimize()  # rows added later go into the index, too
        return rows

    def nearest(self, queries: Tensor, top: int) -> list[list[Near]]:
        found = []
        for query in queries.float().numpy():
            asked = self.present.search(query).distance_type("cosine").nprobes(PROBED).limit(top)
            rows = asked.select([*ABOUT, "_distance"]).to_arrow().to_pylist()
            found.append([
                Near(row["path"], _label(row["class_name"], row["label"]), 1 - row["_distance"]) for row in rows
            ])  # fmt: skip
        return found


class _FaissIndex(VectorIndex):
    """An index of FAISS and the table of its rows."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.place, self.about_path = path, path.with_name(f"{path.name}.parquet")
        self.faiss = require("faiss", extra="faiss")
        self.index: Any = None
        self.about: pa.Table = None

    def open(self) -> None:
        try:
            self.index = self.faiss.read_index(self.path)
            self.about = pyarrow.parquet.read_table(self.about_path)
        except (RuntimeError, OSError, pa.ArrowInvalid) as error:
            problem = f"'{self.path}' cannot be read, or {self.about_path.name} beside it"
            raise FgsslError(problem, "make both anew with fgssl embed --index") from error
        self.describe(int(self.index.ntotal), self.about.schema, int(self.index.d))
        if self.rows != len(self.about):
            problem = f"'{self.path}' holds {self.rows} vectors and {self.about_path.name} {len(self.about)} rows"
            raise FgsslError(problem, "make both anew with fgssl embed --index")
        if self.rows > FLAT_ROWS:
            self.faiss.extract_index_ivf(self.index).nprobe = PROBED

    def add(self, table: pa.Table, told: Mapping[str, str]) -> int:
        vectors = _matrix(table["vector"])
        about = table.select(ABOUT)
        if self.place.exists() or self.about_path.exists():
            self.open()
            self.require_fit(told)
            kept = pyarrow.compute.invert(pyarrow.compute.is_in(self.about["path"], about["path"].combine_chunks()))
            before, replaced = self.rows, self.rows - pyarrow.compute.sum(kept).as_py()
            about = pa.concat_tables([self.about.filter(kept), about])
            if not replaced and self._description(before) == self._description(len(about)):
                self.index.add(vectors.astype(np.float32))
                return self._save(about)
            vectors = np.concatenate([self._stored()[np.asarray(kept)], vectors])
        self.index = self._built(vectors)
        return self._save(about)

    def _description(self, rows: int) -> str:
        """As FAISS' index_factory reads it; another one when an index has grown fourfold."""
        return f"IVF{_cells(rows)},SQfp16" if rows > FLAT_ROWS else "SQfp16"

    def _built(self, vectors: Halves) -> Any:
        rows, width = vectors.shape
        index = self.faiss.index_factory(width, self._description(rows), self.faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:  # on as many as FAISS asks for, spread evenly
            wanted = min(rows, 64 * _cells(rows))
            index.train(vectors[np.linspace(0, rows - 1, wanted).astype(np.int64)].astype(np.float32))
        for first in range(0, rows, FLAT_ROWS):
            index.add(vectors[first : first + FLAT_ROWS].astype(np.float32))
        return index

    def _stored(self) -> Halves:
        if self.rows > FLAT_ROWS:
            self.faiss.extract_index_ivf(self.index).make_direct_map()
        return np.asarray(self.index.reconstruct_n(0, self.rows), np.float16)

    def _save(self, about: pa.Table) -> int:
        """Both files whole, one after the other: `open` sees it where one of them is missing or older."""
        with atomic_path(self.about_path) as temporary:
            pyarrow.parquet.write_table(about, temporary)
        with atomic_path(self.place) as temporary:
            self.faiss.write_index(self.index, str(temporary))
        return int(self.index.ntotal)

    def nearest(self, queries: Tensor, top: int) -> list[list[Near]]:
        scores, rows = self.index.search(queries.float().numpy(), min(top, self.rows))
        return [self._near(*found) for found in zip(rows, scores, strict=True)]

    def _near(self, rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]) -> list[Near]:
        there = rows >= 0  # fewer may be found in the cells looked into
        about = self.about.take(rows[there]).to_pylist()
        return [
            Near(row["path"], _label(row["class_name"], row["label"]), float(score))
            for row, score in zip(about, scores[there], strict=True)
        ]


def _matrix(column: pa.ChunkedArray) -> Halves:
    array = column.combine_chunks()
    return np.asarray(array.values).reshape(len(array), -1).astype(np.float16)


def _cells(rows: int) -> int:
    """The power of two next to the square root."""
    return int(2 ** round(math.log2(math.sqrt(rows))))
