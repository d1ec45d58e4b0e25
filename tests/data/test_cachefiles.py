"""fgssl data cache: lists by kind, deletes what it listed and nothing else."""

from __future__ import annotations

import os
import time

import pytest
from running import fgssl, make_photos, plain_run

from fgssl.data.cache.folder import cache_label


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
    assert "unknown --kind 'x'" in fgssl("data", "cache", "--kind", "x").error(2)


def test_names_tell_what_a_file_is_of(tmp_path):
    make_photos(tmp_path / "my photos", 8)
    cache = tmp_path / "cache"
    assert (
        fgssl("embed", plain_run(), "--data", tmp_path / "my photos", "--cache", cache, "-o", tmp_path / "x").code == 0
    )
    (name,) = names(fgssl("data", "cache", "--cache", cache, "--json"))
    assert name.startswith("my-photos-all-") and name.endswith(".pixels")
    assert name in fgssl("data", "cache", "--cache", cache).out


def test_labels_of_any_source_are_short_file_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cache_label(".", "train") == f"{tmp_path.name}-train"
    assert cache_label("owner/name", "train+test") == "owner-name-train+test"
    assert len(os.fsencode(cache_label("🐦" * 300 + "\n/../x", "a" * 300))) <= 160
