"""fgssl data cache: lists by kind, deletes what it listed and nothing else."""

from __future__ import annotations

import os
import time

import pytest
from running import fgssl


@pytest.fixture
def folder(tmp_path):
    sizes = {"decoded/a.pixels": 3000, "decoded/b.pixels": 10, "features/c.safetensors": 500, "features/notes.txt": 9,
             "decoded/.building-x": 70, "other/d.pixels": 1, "e.pixels": 1}  # fmt: skip
    for name, size in sizes.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * size)
    old = time.time() - 10 * 86_400
    os.utime(tmp_path / "decoded/b.pixels", (old, old))
    return tmp_path


def names(outcome) -> list[str]:
    return [os.path.basename(row["path"]) for row in outcome.json()["files"]]


def test_listing_is_by_size_and_leaves_out_builds_and_other_files(folder):
    outcome = fgssl("data", "cache", "--cache", folder, "--json")
    assert names(outcome) == ["a.pixels", "c.safetensors", "b.pixels"]
    assert outcome.json()["bytes"] == 3510 and outcome.json()["folder"] == str(folder)
    table = fgssl("data", "cache", "--cache", folder).out
    assert "decoded pictures" in table and "a.pixels" in table and "3 files, 0.0 MB" in table


@pytest.mark.parametrize(
    "options,gone",
    [
        ((), ["a.pixels", "c.safetensors", "b.pixels"]),
        (("--kind", "decoded"), ["a.pixels", "b.pixels"]),
        (("--unused-days", "5"), ["b.pixels"]),
        (("--kind", "features", "--unused-days", "5"), []),
    ],
)
def test_clearing_deletes_what_was_listed(options, gone, folder):
    before = {p.name for p in folder.rglob("*") if p.is_file()}
    assert names(fgssl("data", "cache", "--cache", folder, *options, "--clear", "--json")) == gone
    assert before - {p.name for p in folder.rglob("*") if p.is_file()} == set(gone)


def test_an_empty_cache_and_an_unknown_kind(tmp_path):
    assert "0 files" in fgssl("data", "cache", "--cache", tmp_path / "none").out
    (tmp_path / "file").touch()
    assert "is a file; name a folder" in fgssl("data", "cache", "--cache", tmp_path / "file").error()
    assert "unknown --kind 'x'" in fgssl("data", "cache", "--kind", "x").error()
