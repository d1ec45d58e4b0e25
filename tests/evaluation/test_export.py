"""Embeddings in the files and indexes of other tools, read back by those tools."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from unittest import mock

import faiss
import lancedb
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from running import fgssl, finished_run
from torch import Tensor

from fgssl.errors import FgsslError
from fgssl.evaluation import vector_index
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.export import EXPORT, Export, check_export, halved, save_export
from fgssl.evaluation.feature_file import read_features
from fgssl.evaluation.vector_index import add_to_index, check_index, open_index

MADE = {"source": "photos", "split": "test", "pool": "gap", "checkpoint": "run", "encoder": "1f"}


def unit(*shape: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def export(rows: int = 4, width: int = 3, *, names: tuple[str, ...] = (), labels: bool = True, seed: int = 0) -> Export:
    names = names or tuple(f"photos/{seed}-{row}.jpg" for row in range(rows))
    numbers = torch.arange(rows) % 2 if labels else None
    found = Embeddings(unit(rows, width, seed=seed), numbers, names, ("x, y", "=z") if labels else None,
                       np.arange(rows), ())  # fmt: skip
    return Export(found, ("test",) * rows, MADE)


def test_parquet_is_a_table_of_pandas(tmp_path: Path) -> None:
    written = export(names=("a", "ü 'b'\n", "c", "\udcff"))
    save_export(tmp_path / "f.parquet", written)
    frame = pd.read_parquet(tmp_path / "f.parquet")
    assert list(frame) == ["path", "split", "label", "class_name", "vector"]
    assert list(frame["path"]) == ["a", "ü 'b'\n", "c", "\\xff"] and list(frame["class_name"][:2]) == ["x, y", "=z"]
    assert np.array_equal(np.stack(list(frame["vector"])), written.features.numpy())
    assert pyarrow.parquet.read_schema(tmp_path / "f.parquet").metadata[b"encoder"] == b"1f"


def test_csv_reads_back_to_the_bit_and_runs_nothing(tmp_path: Path) -> None:
    written = export(1030, 3)  # more than is written at once
    save_export(tmp_path / "f.csv", written)
    frame = pd.read_csv(tmp_path / "f.csv", dtype={f"f{place}": np.float32 for place in range(3)})
    assert np.array_equal(frame[["f0", "f1", "f2"]].to_numpy(), written.features.numpy())
    assert list(frame["class_name"][:2]) == ["x, y", "'=z"] and list(frame["label"][:3]) == [0, 1, 0]


def test_numpy_has_its_rows_beside_it(tmp_path: Path) -> None:
    written = export()
    save_export(tmp_path / "f.npy", Export(halved(written.embeddings), written.splits, MADE))
    assert np.load(tmp_path / "f.npy", mmap_mode="r").dtype == np.float16
    rows = list(csv.DictReader((tmp_path / "f.rows.csv").open(encoding="utf-8")))
    assert [row["path"] for row in rows] == list(written.embeddings.identifiers) and rows[0]["label"] == "0"


def test_without_labels_the_columns_are_empty(tmp_path: Path) -> None:
    for name in ("f.csv", "f.parquet", "f.npy"):
        save_export(tmp_path / name, export(labels=False))
    assert pd.read_csv(tmp_path / "f.csv")[["label", "class_name"]].isna().all(axis=None)
    assert pd.read_parquet(tmp_path / "f.parquet")[["label", "class_name"]].isna().all(axis=None)


@pytest.mark.parametrize("name", ["f.safetensors", "f", "f.parquet", "f.csv", "f.npy"])
def test_only_a_file_of_ours_is_replaced(name: str, tmp_path: Path) -> None:
    save_export(tmp_path / name, export())
    check_export(tmp_path / name, inputs=(), overwrite=False)
    assert EXPORT.is_own(tmp_path / name)
    for path in tmp_path.iterdir():
        path.write_bytes(b"mine")
    with pytest.raises(FgsslError, match="--overwrite"):
        check_export(tmp_path / name, inputs=(), overwrite=False)


def test_the_verb_writes_by_suffix_and_into_an_index(tmp_path: Path) -> None:
    run, index = finished_run()[0], tmp_path / "i.lance"
    done = fgssl("embed", run, "-o", tmp_path / "f.parquet", "--index", index, "--pool", "gap", "--half", "--json")
    assert done.json()["index"] == {"path": str(index), "rows": 12}
    frame = pd.read_parquet(tmp_path / "f.parquet")
    assert set(frame["split"]) == {"test"} and set(frame["class_name"]) == {"class 0", "class 1", "class 2"}
    assert frame["vector"][0].dtype == np.float16
    again = fgssl("embed", run, "--index", index, "--pool", "gap", "--split", "train+test", "--json").json()
    assert again["output"] is None and again["index"]["rows"] == 36  # the 12 were replaced
    assert "another pooling (gap)" in fgssl("embed", run, "--index", index, "--pool", "zoom").error()
    assert ".lance or .faiss" in fgssl("embed", run, "--index", tmp_path / "i.db").error()


# ---- indexes


@pytest.mark.parametrize("name", ["i.lance", "i.faiss"])
def test_an_index_finds_what_a_loop_finds_grows_and_replaces(name: str, tmp_path: Path) -> None:
    path, first, more = tmp_path / "new" / name, export(40, 8), export(20, 8, seed=1)
    assert add_to_index(path, first) == 40 and add_to_index(path, more) == 60
    moved = Export(first.embeddings._replace(features=unit(40, 8, seed=2)), first.splits, MADE)
    assert add_to_index(path, moved) == 60
    vectors = torch.cat([moved.features, more.features])
    names = [*first.embeddings.identifiers, *more.embeddings.identifiers]
    index, queries = open_index(str(path)), unit(3, 8, seed=3)
    assert (index.rows, index.width, index.pool, index.encoder) == (60, 8, "gap", "1f")
    for query, near in zip(queries, index.nearest(queries, 5), strict=True):
        best = sorted(
            ((float(query @ vector), name) for vector, name in zip(vectors, names, strict=True)), reverse=True
        )
        assert [each.path for each in near] == [name for _, name in best[:5]]
        assert [each.score for each in near] == pytest.approx([score for score, _ in best[:5]], abs=2e-3)
        assert {each.label for each in near} <= {"x, y", "=z"}
    check_index(path, MADE)
    with pytest.raises(FgsslError, match="another encoder"):
        check_index(path, {**MADE, "encoder": "2f"})


@pytest.mark.parametrize("name", ["i.lance", "i.faiss"])
def test_a_large_index_has_cells(name: str, tmp_path: Path) -> None:
    """Probing all of few cells is exact, so they must lose nothing, also when the index grows and is built anew."""
    path, first, more = tmp_path / name, export(600, 8), export(700, 8, seed=1)
    with mock.patch.object(vector_index, "FLAT_ROWS", 500):
        add_to_index(path, first)
        assert add_to_index(path, more) == 1300
        found = open_index(str(path)).nearest(more.features[:4], 1)
    assert [near[0].path for near in found] == list(more.embeddings.identifiers[:4])


def test_other_tools_open_the_indexes(tmp_path: Path) -> None:
    """As the page on exports shows it."""
    written = export(10, 4)
    for name in ("photos.lance", "photos.faiss"):
        add_to_index(tmp_path / name, written)
    table = lancedb.connect(str(tmp_path)).open_table("photos")
    query = written.features[3].numpy()
    assert table.search(query).distance_type("cosine").limit(1).to_list()[0]["path"] == "photos/0-3.jpg"
    scores, rows = faiss.read_index(str(tmp_path / "photos.faiss")).search(query[None], 2)
    assert pd.read_parquet(tmp_path / "photos.faiss.parquet")["path"][rows[0][0]] == "photos/0-3.jpg"
    assert scores[0][0] == pytest.approx(1, abs=1e-3)


def test_a_torn_or_foreign_index_is_told(tmp_path: Path) -> None:
    add_to_index(tmp_path / "i.faiss", export())
    (tmp_path / "i.faiss.parquet").unlink()
    with pytest.raises(FgsslError, match="beside it"):
        open_index(str(tmp_path / "i.faiss"))
    lancedb.connect(str(tmp_path)).create_table("own", data=[{"path": "a", "vector": [1.0, 2.0]}])
    with pytest.raises(FgsslError, match="did not make"):
        add_to_index(tmp_path / "own.lance", export())
    with pytest.raises(FgsslError, match="no vector index"):
        open_index(str(tmp_path / "none.faiss"))


def test_a_missing_extra_names_the_command(tmp_path: Path) -> None:
    with mock.patch.dict(sys.modules, {"faiss": None}), pytest.raises(FgsslError) as raised:
        add_to_index(tmp_path / "i.faiss", export())
    assert raised.value.remedy == "pip install 'fgssl[faiss]'"


def test_16_bits_stay_in_the_file_where_a_search_reads_them(tmp_path: Path) -> None:
    written = export(6, 4)
    save_export(tmp_path / "f", Export(halved(written.embeddings), written.splits, MADE))
    assert read_features(str(tmp_path / "f")).embeddings.features.dtype == torch.float32
    kept = read_features(str(tmp_path / "f"), half=True).embeddings.features
    assert torch.equal(kept, written.features.half())
