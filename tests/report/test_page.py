"""Pages as text: foreign names stay text, data cannot leave its block, pictures keep to their bytes."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import make_picture
from PIL import Image

from fgssl.errors import FgsslError
from fgssl.report import PAGE, facts, gallery, note, page, save_page, table, thumbnails
from fgssl.report.pictures import cells, spread
from fgssl.report.sections import Picture, data

EVIL = "<script>alert(1)</script>\"'&<!--\u202e\x1b[31m\n"


class Tags(HTMLParser):
    """The tags and the text of a document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, text: str) -> None:
        self.words += text


def everything(name: str) -> str:
    pictures = [[Picture(None, name), Picture("data:,", name, "wrong")]]
    sections = [
        facts(name, {name: name}, told=name),
        table(name, [name], [[name], [1.0], [None]], told=name, after=name),
        note(name, name),
        gallery(name, pictures, columns=[name, name]),
    ]
    return page(name, sections, subtitle=name)


def test_a_name_from_the_disk_is_text_wherever_it_stands() -> None:
    plain, evil = Tags(everything("name")), Tags(everything(EVIL))
    assert plain.tags == evil.tags
    assert "\u202e" not in evil.words and "\x1b" not in evil.words
    assert evil.words.count("<script>alert(1)</script>") >= 12


@given(st.recursive(st.text() | st.floats() | st.none() | st.integers(), lambda inner: st.lists(inner)))
def test_data_stays_in_its_block_and_reads_back(value: object) -> None:
    text = data([value, "</script><!--<script>"])
    assert not re.search("[<>&]", text)
    assert json.loads(text)[1] == "</script><!--<script>"


def test_what_is_not_finite_is_null() -> None:
    assert json.loads(data({"a": float("nan"), "b": [float("-inf"), 1.5]})) == {"a": None, "b": [None, 1.5]}


def test_long_tables_are_cut_and_say_so() -> None:
    body = table("t", ["n"], [[n] for n in range(1000)]).body
    assert body.count("<tr>") == 201 and "800 more rows" in body


@pytest.mark.parametrize("budget", [0, 3_000, 20_000, 10**6])
def test_thumbnails_keep_to_their_bytes_and_to_their_places(budget: int) -> None:
    pictures = [None if seed == 5 else make_picture(seed, 120, 80) for seed in range(30)]
    found = thumbnails(iter(pictures), budget=budget)
    assert len(found) == 30 and found[5] is None
    assert sum(len(each) for each in found if each) <= budget
    if budget == 10**6:
        assert sum(each is not None for each in found) == 29
        shown = Image.open(io.BytesIO(base64.b64decode((found[0] or "").partition(",")[2])))
        assert shown.size == (96, 64)
    if budget == 3_000:
        assert 0 < sum(each is not None for each in found) < 29


def test_a_map_is_a_pixel_a_cell_and_a_flat_one_is_none() -> None:
    text = cells(np.array([[0.0, 1.0, 2.0], [3.0, 4.0, float("nan")]]))
    assert text is not None
    grid = np.asarray(Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2]))))
    assert grid.shape[:2] == (2, 3)
    light = grid[..., :3].astype(float).sum(-1)
    assert light[0, 0] < light[0, 1] < light[0, 2] < light[1, 0] < light[1, 1] and light[1, 2] == light[0, 0]
    assert cells(np.ones((3, 3))) is None


def test_places_are_spread_evenly() -> None:
    assert spread(5, 10) == [0, 1, 2, 3, 4] and spread(101, 3) == [0, 50, 100] and spread(0, 3) == []


def test_a_page_is_ours_and_replaces_only_ours(tmp_path: Path) -> None:
    text, path = page("a", [note("b", "c")]), tmp_path / "report.html"
    assert PAGE.is_own(save_page(text, path)) and path.read_text(encoding="utf-8") == text
    save_page(text, path)
    with pytest.raises(FgsslError, match="suffix"):
        save_page(text, tmp_path / "report.txt")
    path.write_text("<html>mine</html>")
    assert not PAGE.is_own(path)


def test_only_the_scripts_that_are_needed_come_with_a_page() -> None:
    plain = page("a", [note("b", "c")])
    assert len(plain) < 20_000 and "Bostock" not in plain
    assert plain.count("sha256-") == 1
