"""The map of an embedding in a real browser: pointing, choosing, zooming, by mouse, touch width and keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import needs_chromium, opened
from pictures import make_picture

from fgssl.drawing import Window
from fgssl.errors import FgsslError
from fgssl.report import Colouring, embedding_map, page, thumbnails
from fgssl.report.embedding import Neighbourhood

# four corners and the middle, which is a little nearer to the upper right
CORNERS = np.array([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.51, 0.51)])
NAMES = [
    "<script>alert(1)</script>.jpg",
    "low right.jpg",
    "up/left.jpg",
    "</script><img src=x onerror=alert(2)>",
    "mid",
]


def built(folder: Path) -> Path:
    near = np.array([[1, 2], [0, 3], [0, 3], [1, 2], [3, 0]])
    section = embedding_map(
        "Map",
        CORNERS,
        names=NAMES,
        thumbnails=thumbnails([make_picture(seed, 60, 40) for seed in range(5)], budget=100_000),
        colourings=[Colouring("class", [0, 0, 1, 1, -1], ["<b>one</b>", "two"]), Colouring("distance", np.arange(5.0))],
        neighbours=[Neighbourhood("at the start", near[:, ::-1]), Neighbourhood("after training", near)],
        windows=[[Window(0.25, 0.5, 0.75, 1.0)], [], [Window(-0.1, 0, 0.5, 0.5), Window(0.5, 0.5, 1, 1.2)], [], []],
    )
    path = folder / "map.html"
    path.write_text(page("A map", [section]), encoding="utf-8")
    return path


def place(window: Any, row: int) -> tuple[float, float]:
    """Where a point is in the window: the map's longer side fills the canvas but for its margins."""
    box = window.locator("canvas").bounding_box()
    unit = min(box["width"], box["height"]) - 2 * 24
    x, y = CORNERS[row] - 0.5
    return box["x"] + box["width"] / 2 + x * unit, box["y"] + box["height"] / 2 - y * unit


@needs_chromium
def test_pointing_shows_a_picture_and_choosing_its_neighbours(tmp_path: Path) -> None:
    with opened(built(tmp_path)) as window:
        window.mouse.move(*place(window, 1))
        tip = window.locator(".tip")
        assert "low right.jpg" in tip.inner_text() and tip.locator("img").count() == 1
        window.mouse.click(*place(window, 0))
        lines = window.locator(".chosen .line")
        assert window.locator(".chosen h3").first.inner_text() == f"{NAMES[0]} · <b>one</b> · distance 0"
        told = [[card.get_attribute("title") for card in lines.nth(n).locator("button").all()] for n in range(3)]
        assert told == [[NAMES[0]], [NAMES[2], NAMES[1]], [NAMES[1], NAMES[2]]]
        assert "right" in lines.nth(2).locator("button").first.get_attribute("class").split()
        assert "wrong" in lines.nth(2).locator("button").last.get_attribute("class").split()
        lines.nth(2).locator("button").first.click()
        assert window.locator(".chosen h3").first.inner_text().startswith("low right.jpg")
        assert window.evaluate("document.querySelectorAll('main img[src=x], main script:not([type])').length") == 0


@needs_chromium
def test_what_was_seen_enlarged_is_outlined_on_thumbnails(tmp_path: Path) -> None:
    with opened(built(tmp_path)) as window:
        window.mouse.click(*place(window, 0))
        own, after = window.locator(".chosen .line").first, window.locator(".chosen .line").last
        assert own.locator(".window").count() == 1 and after.locator(".near").count() == 2
        assert after.locator(".window").count() == 2  # of the second of them
        picture, outline = (own.locator(each).bounding_box() for each in (".seen", ".window"))
        assert abs(outline["x"] - picture["x"] - picture["width"] / 4) < 2
        assert abs(outline["y"] - picture["y"] - picture["height"] / 2) < 2
        assert abs(outline["width"] - picture["width"] / 2) < 4


@needs_chromium
def test_everything_is_reached_by_keyboard_on_a_narrow_dark_window(tmp_path: Path) -> None:
    with opened(built(tmp_path), width=400, dark=True) as window:
        assert window.evaluate("document.documentElement.scrollWidth <= 400")
        window.locator("canvas").focus()
        window.keyboard.press("ArrowRight")  # first the one in the middle
        assert "mid" in window.locator(".tip").inner_text()
        window.keyboard.press("ArrowUp")
        assert NAMES[3] in window.locator(".tip").inner_text()
        window.keyboard.press("ArrowLeft")
        window.keyboard.press("Enter")
        assert window.locator(".chosen h3").first.inner_text().startswith("up/left.jpg")
        window.keyboard.press("Escape")
        assert window.locator(".chosen").inner_text() == ""
        background = "getComputedStyle(document.body).backgroundColor"
        dark = window.evaluate(background)
        window.locator("#theme").click()
        assert window.evaluate(background) != dark == "rgb(22, 23, 28)"


@needs_chromium
def test_zooming_moves_points_and_the_whole_map_comes_back(tmp_path: Path) -> None:
    with opened(built(tmp_path)) as window:
        window.mouse.move(*place(window, 4))
        window.mouse.wheel(0, -400)
        window.mouse.move(*place(window, 1))
        assert window.locator(".tip").is_hidden()  # the corner is far away by now
        window.get_by_role("button", name="Whole map").click()
        window.mouse.move(*place(window, 1))
        assert "low right.jpg" in window.locator(".tip").inner_text()
        window.get_by_label("Find").fill("up/")
        window.mouse.move(*place(window, 0))
        assert window.locator(".tip").is_hidden()
        window.mouse.move(*place(window, 2))
        assert "up/left.jpg" in window.locator(".tip").inner_text()
        window.get_by_label("Colour by").select_option("distance")
        assert window.locator(".legend .scale").count() == 1


@pytest.mark.parametrize("count", [0, 1, 2])
@needs_chromium
def test_maps_of_none_one_and_two_equal_points(tmp_path: Path, count: int) -> None:
    path = tmp_path / "small.html"
    section = embedding_map("Map", np.zeros((count, 2)), names=["a"] * count)
    path.write_text(page("Small", [section]), encoding="utf-8")
    with opened(path) as window:
        window.locator("canvas").focus()
        for key in ("ArrowLeft", "Enter", "+", "0"):
            window.keyboard.press(key)
        assert window.locator(".chosen h3").count() == min(count, 1)


def test_parts_of_another_length_are_refused() -> None:
    with pytest.raises(FgsslError, match="one row a picture"):
        embedding_map("Map", np.zeros((3, 2)), names=["a", "b"])
