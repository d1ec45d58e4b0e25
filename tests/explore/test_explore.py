"""fgssl explore from the command line: the page, the table, the list, montages, and what a folder may hold."""

from __future__ import annotations

import csv
import functools
import io
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from browser import needs_chromium, opened
from pictures import ArrayImages, make_picture
from PIL import Image
from running import fgssl, make_photos, photos, plain_run, shared

from fgssl.check.copies import find_copies
from fgssl.check.pictures import sweep
from fgssl.data.cache.pixels import PixelStore
from fgssl.explore.copies import find_near_copies
from fgssl.explore.table import KINDS
from fgssl.views import EvaluationView

ODD = 'a "b"\n<img src=x onerror=alert(1)>.png'


@functools.cache
def folder() -> Path:
    """22 unlabelled pictures of odd names, one of them copied and one broken."""

    def make(place: Path) -> None:
        make_photos(place, 20, classes=0, seed=300)
        make_picture(7, 60, 60).save(place / ODD)
        with Image.open(place / "01.png") as picture:
            picture.resize((40, 44)).save(place / "again.jpg", quality=90)
        (place / "broken.jpg").write_bytes(b"\xff\xd8 no picture")

    return shared("to explore", make)


def test_a_folder_is_looked_over(tmp_path: Path) -> None:
    page, table, chosen = tmp_path / "page.html", tmp_path / "t.csv", tmp_path / "chosen.txt"
    arguments = ("explore", folder(), "--checkpoint", plain_run(), "--select", "5", "--group-size", "2")
    wanted = ("-o", page, "--export", table, "--select-list", chosen, "--montages", tmp_path / "groups")
    outcome = fgssl(*arguments, *wanted, "--json")
    found = outcome.json()
    assert outcome.code == 0 and found["pictures"] == 22 and found["unreadable"] == 1 and "broken.jpg" in outcome.err
    assert any({Path(name).name for name in group} >= {"01.png", "again.jpg"} for group in found["near_copies"])
    assert len(found["selected"]) == 5 and len(found["montages"]) == len(found["groups"])
    text = page.read_text()
    assert "<img src=x" not in text and "&lt;img src=x" in text and len(text) < 5_000_000
    assert not re.search(r"(src|href)=.https?:", text) and "broken.jpg" in text
    rows = [*csv.DictReader(io.StringIO(table.read_text()))]
    assert [*rows[0]] == [*KINDS] and len(rows) == 22
    in_order = sorted((row for row in rows if row["selected"]), key=lambda row: int(row["selected"]))
    assert [row["path"] for row in in_order] == [re.sub("\n", r"\\n", name) for name in found["selected"]]
    assert sum(bool(row["copies"]) for row in rows) == sum(map(len, found["near_copies"]))
    float(rows[0]["x"])  # a number, negative ones too
    listed = fgssl("data", "check", chosen, "--json").json()
    assert listed["splits"][0]["images"] == 5 and listed["splits"][0]["unreadable"] == 0
    again = fgssl(*arguments, *wanted)
    assert again.code == 0, again.err  # its own files are replaced
    assert "5 selected" in again.out and f"page: {page}" in again.out


def test_a_parquet_file_says_the_same(tmp_path: Path) -> None:
    arguments = ("explore", photos(), "--split", "test", "--checkpoint", plain_run(), "-o", tmp_path / "page.html")
    assert fgssl(*arguments, "--export", tmp_path / "t.parquet").code == 0
    assert fgssl(*arguments, "--export", tmp_path / "t.csv").code == 0
    table = pq.read_table(tmp_path / "t.parquet").to_pydict()
    rows = [*csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text()))]
    assert len(rows) == 12
    for name, values in table.items():
        for value, row in zip(values, rows, strict=True):
            same = pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value
            assert (type(value)(row[name]) if row[name] else None) == same
    assert {*table["label"]} == {"class 0", "class 1", "class 2"}


@pytest.mark.parametrize("count", [1, 3])
def test_a_few_pictures_are_enough(tmp_path: Path, count: int) -> None:
    make_photos(tmp_path / "few", count, classes=0)
    outcome = fgssl("explore", tmp_path / "few", "--checkpoint", plain_run(), "-o", tmp_path / "page.html", "--json")
    assert outcome.code == 0, outcome.err
    assert len(outcome.json()["selected"]) == count and (tmp_path / "page.html").is_file()
    assert f"--select 100: all {count} pictures are selected" in outcome.err


def test_what_cannot_be_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = ("explore", folder(), "--checkpoint", plain_run())
    (tmp_path / "page.html").write_text("<p>mine</p>")
    assert "exists and is not" in fgssl(*base, "-o", tmp_path / "page.html").error()
    (tmp_path / "groups").mkdir()
    make_picture(0, 9, 9).save(tmp_path / "groups" / "group-001.png")
    taken = fgssl(*base, "-o", tmp_path / "other.html", "--montages", tmp_path / "groups").error()
    assert "exists and is not a picture that fgssl wrote" in taken
    assert ".csv, .parquet" in fgssl(*base, "-o", tmp_path / "o.html", "--export", tmp_path / "t.xlsx").error()
    assert fgssl(*base, "--select", "0").code == 2 and fgssl(*base, "--group-size", "1").code == 2
    listed = fgssl("explore", "demo", "--checkpoint", plain_run(), "--split", "test", "-o", tmp_path / "o.html",
                   "--select-list", tmp_path / "chosen.txt").error()  # fmt: skip
    assert "names files, and demo[test]#0 is none" in listed and not (tmp_path / "o.html").exists()
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.jpg").write_bytes(b"no")
    bad = fgssl("explore", tmp_path / "none", "--checkpoint", plain_run(), "-o", tmp_path / "o.html").error()
    assert "1 of 1 images" in bad and not (tmp_path / "o.html").exists()


def test_a_missing_library_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    make_photos(tmp_path / "many", 33, classes=0)
    bad = fgssl("explore", tmp_path / "many", "--checkpoint", plain_run(), "-o", tmp_path / "o.html")
    assert "pip install 'fgssl[explore]'" in bad.error() and "embedding" not in bad.err


def test_former_montages_go(tmp_path: Path) -> None:
    shutil.copytree(folder(), tmp_path / "in")
    base = ("explore", tmp_path / "in", "--checkpoint", plain_run(), "-o", tmp_path / "o.html", "--montages",
            tmp_path / "g")  # fmt: skip
    many = fgssl(*base, "--group-size", "2", "--json").json()["montages"]
    few = fgssl(*base, "--group-size", "22", "--json").json()["montages"]
    assert len(few) < len(many) and sorted(map(str, (tmp_path / "g").iterdir())) == few


def test_near_copies_are_those_of_data_check() -> None:
    pictures = [make_picture(seed, 80, 80) for seed in range(6)]
    pictures += [pictures[2].resize((70, 70)).resize((80, 80)), pictures[4].copy(), pictures[2].copy()]
    images = ArrayImages(pictures)
    store = PixelStore(images, EvaluationView(80, 1.0, "bicubic"))
    checked = find_copies([sweep(images, workers=0, progress=lambda done, total: None)], lambda done, total: None)
    groups = find_near_copies(store, np.arange(9), lambda done, total: None)
    assert groups == [[2, 6, 8], [4, 7]]
    linked = [{place.picture for place in group} for group in (*checked.exact, *checked.near)]
    assert all(any(set(group) & alike for alike in linked) for group in groups)


@needs_chromium
def test_the_page_lives_in_a_browser_and_runs_no_name(tmp_path: Path) -> None:
    arguments = ("explore", folder(), "--checkpoint", plain_run(), "--group-size", "2", "-o", tmp_path / "page.html")
    assert fgssl(*arguments).code == 0
    with opened(tmp_path / "page.html", width=400, dark=True) as window:
        titles = [heading.inner_text() for heading in window.locator("h2").all()]
        assert titles[:2] == ["What there is", "Map"] and titles[-3:] == ["Outliers", "Selection", "Unreadable files"]
        assert "Near copies" in titles and window.evaluate("document.documentElement.scrollWidth <= 400")
        assert window.evaluate("document.querySelectorAll('main img[src=x]').length") == 0
        shown = window.evaluate("[...document.querySelectorAll('main img')].every(image => image.naturalWidth > 0)")
        assert shown and window.locator("figure").count() > 40
        window.locator("canvas").focus()
        window.keyboard.press("ArrowRight")
        window.keyboard.press("Enter")
        itself, nearest = window.locator(".chosen .line").all()
        assert itself.locator("button").count() == 1 and nearest.locator("button").count() == 8
