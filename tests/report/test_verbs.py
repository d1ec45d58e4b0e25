"""--report of retrieve, probe, compare and data check: the page holds what the terminal says, and names are text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser import needs_chromium, opened
from pictures import make_picture
from running import fgssl, finished_run, photos

from fgssl.drawing import PAGE
from fgssl.report.page import LARGEST

EVIL = "<script>alert(1)<script>\"'\n&.jpg"
VERBS = {
    "retrieve": ("retrieve", "RUN"),
    "query": ("retrieve", "RUN", "--top", "3", "--query", "PHOTO"),
    "probe": ("probe", "RUN", "--protocol", "knn", "--k", "3"),
    "fewshot": ("probe", "RUN", "--protocol", "fewshot", "--ways", "2", "--episodes", "3", "--shots", "1"),
    "compare": ("compare", "RUN", "--pool", "gap", "--k", "3"),
}


def words(verb: str) -> list[str]:
    photo = next(path for path in sorted(photos().rglob("*")) if path.is_file())
    known = {"RUN": str(finished_run()[0]), "PHOTO": str(photo)}
    return [known.get(word, word) for word in VERBS[verb]]


@needs_chromium
@pytest.mark.parametrize("verb", VERBS)
def test_a_page_holds_what_the_terminal_says(verb: str, tmp_path: Path) -> None:
    path = tmp_path / f"{verb}.html"
    outcome = fgssl(*words(verb), "--report", path)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == f"report: {path}"
    assert PAGE.is_own(path) and path.stat().st_size < LARGEST
    with opened(path, width=400) as window:
        text = window.locator("main").inner_text()
        told = {number for number in re.findall(r"\d+\.\d\d\b", outcome.out)}
        shown = set(re.findall(r"\d+\.\d\d\b", text))
        assert {"retrieve", "probe"} & {verb} == set() or len(told & shown) > 2
        assert window.evaluate("document.documentElement.scrollWidth") <= 400
        assert window.locator("canvas").count() == (1 if verb in ("retrieve", "probe") else 0)


@needs_chromium
def test_a_set_with_evil_names_and_damage_is_checked_on_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "<b>class</b>"
    folder.mkdir(parents=True)
    for seed in range(4):
        make_picture(seed, 40, 40).save(folder / f"{seed}.png")
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    (folder / EVIL.replace("/", "")).write_bytes(b"no picture")
    path = tmp_path / "check.html"
    outcome = fgssl("data", "check", folder.parent, "--workers", "0", "--report", path)
    assert path.is_file(), outcome.err
    with opened(path, dark=True) as window:
        text = window.locator("main").inner_text()
        assert "<script>alert(1)<script>" in text and "Unreadable files" in text and "Exact copies" in text
        assert window.locator(".gallery img").count() == 2
        window.get_by_role("button", name="pictures", exact=True).click()
        assert window.locator("th[aria-sort=descending]").count() == 1


def test_a_place_that_cannot_be_is_refused_before_the_work(tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<html>mine</html>")
    error = fgssl("data", "check", photos(), "--report", mine).error()
    assert "choose another --report" in error and mine.read_text() == "<html>mine</html>"
    assert "suffix" in fgssl("data", "check", photos(), "--report", tmp_path / "page.pdf").error()
    assert "no folder" in fgssl("data", "check", photos(), "--report", tmp_path / "none" / "page.html").error()
    replaced = fgssl("data", "check", photos(), "--workers", "0", "--report", mine, "--overwrite", "--json")
    assert replaced.json()["verdict"] and PAGE.is_own(mine)  # stdout is still one document
