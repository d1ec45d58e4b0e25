"""Pictures: maps land where they belong, text fits what it was measured for, files are whole or absent."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fgssl import drawing
from fgssl.drawing import maps, sheets, text
from fgssl.errors import FgsslError
from fgssl.runtime.files import check_output

LIGHT = np.array([0.2126, 0.7152, 0.0722])  # Rec. 709: another definition of light than the code's


def delta(height: int, width: int, row: int, column: int) -> np.ndarray:
    values = np.zeros((height, width))
    values[row, column] = 1.0
    return values


def photograph(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# maps


@pytest.mark.parametrize(("grid", "size"), [((3, 5), (250, 90)), ((7, 7), (90, 210)), ((4, 2), (64, 64))])
def test_heat_shows_the_cells_and_nothing_between_them(grid: tuple[int, int], size: tuple[int, int]) -> None:
    """Of one hot cell the pixels whose middle lies in it, and of any map no level that it has not."""
    rows, columns = (np.arange(size[1]) + 0.5) / size[1] * grid[0], (np.arange(size[0]) + 0.5) / size[0] * grid[1]
    for row in range(grid[0]):
        for column in range(grid[1]):
            drawn = maps.heat(delta(*grid, row, column), size)
            inside = (row <= rows) & (rows < row + 1), (column <= columns) & (columns < column + 1)
            assert np.array_equal(drawn, np.outer(*inside).astype(float))
    values = np.random.default_rng(1).permutation(grid[0] * grid[1]).reshape(grid)
    assert len(np.unique(maps.heat(values, size))) == values.size


def test_heat_at_the_maps_own_size_is_the_scaled_map() -> None:
    values = np.arange(12.0).reshape(3, 4) * 5 - 20
    np.testing.assert_allclose(maps.heat(values, (4, 3)), np.arange(12).reshape(3, 4) / 11, atol=1e-6)


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 1e6), st.floats(-1e3, 1e3))
@settings(max_examples=30, deadline=None)
def test_heat_ignores_scale_and_offset_and_stays_in_range(height: int, width: int, scale: float, offset: float) -> None:
    values = np.random.default_rng(height * 10 + width).random((height, width))
    if maps.is_flat(values) or maps.is_flat(values * scale + offset):
        return
    drawn = maps.heat(values, (33, 21))
    assert drawn.min() >= 0.0 and drawn.max() <= 1.0
    np.testing.assert_allclose(maps.heat(values * scale + offset, (33, 21)), drawn, atol=1e-4)


@pytest.mark.parametrize(
    "values",
    [np.zeros((3, 3)), np.full((7, 7), 0.14286), np.full((2, 2), np.nan), np.full((1, 1), 5.0),
     np.array([[0.142857, 0.142862]])],
)  # fmt: skip
def test_a_flat_map_shows_no_structure(values: np.ndarray) -> None:
    image = photograph()
    assert maps.is_flat(values)
    assert not maps.heat(values, (5, 4)).any()
    assert np.array_equal(np.asarray(maps.overlay(image, values)), np.asarray(image))


def test_places_that_are_not_finite_count_as_the_lowest() -> None:
    values = np.array([[1.0, np.nan], [3.0, -np.inf]])
    np.testing.assert_allclose(maps.heat(values, (2, 2)), [[0, 0], [1, 0]], atol=1e-6)


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((0, 3)), np.zeros((1, 3, 3))])
def test_a_map_of_another_shape_is_refused(values: np.ndarray) -> None:
    with pytest.raises(FgsslError, match="shape"):
        maps.heat(values, (4, 4))


def test_colours_get_lighter_all_along() -> None:
    table = maps.colormap(np.linspace(0, 1, 256)).astype(float)
    light = ((table / 255) ** 2.2) @ LIGHT
    assert (np.diff(light) >= 0).all()
    assert light[0] < 0.01 and light[-1] > 0.8
    assert np.array_equal(maps.colormap(np.array([-3.0, 9.0])), maps.colormap(np.array([0.0, 1.0])))


def test_overlay_colours_the_hot_side_and_keeps_the_edges_of_the_photograph() -> None:
    stripes = np.zeros((40, 80, 3), dtype=np.uint8)
    stripes[:, ::8] = stripes[:, 1::8] = 255
    drawn = np.asarray(maps.overlay(Image.fromarray(stripes), np.array([[0.0, 1.0]])), dtype=float)
    chroma = drawn.max(axis=2) - drawn.min(axis=2)
    assert chroma[:, :40].mean() < 12 < 60 < chroma[:, 40:].mean()
    columns = drawn[20] @ LIGHT
    assert columns[64] - columns[67] > 25  # a stripe under the hottest place is still seen
    assert columns[8] - columns[11] > 200


# text

ANY_TEXT = st.text(st.characters(), max_size=80) | st.sampled_from(["🐦 bird.jpg", "\udcff\x00\x1b[31m", "a" * 5000])


@given(ANY_TEXT, st.integers(0, 240), st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_lines_fit_the_width_they_were_made_for(words: str, width: int, lines: int) -> None:
    face = text.font(12)
    fitted = text.fit_lines(words, face, width, lines=lines)
    assert len(fitted) <= lines
    for line in fitted:
        left, _, right, _ = face.getbbox(line)
        assert right - min(left, 0) <= width
        assert face.getmask(line).size[0] <= width


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@settings(max_examples=60, deadline=None)
def test_printable_text_is_only_what_the_font_has(words: str) -> None:
    once = text.printable(words)
    assert text.printable(once) == once
    assert all(c == "\n" or c.isascii() or text._drawable(c) for c in once)


def test_what_the_font_lacks_is_spelled_or_escaped() -> None:
    assert text.printable("Café – crème") == "Cafe - creme"  # noqa: RUF001
    assert text.printable("漢🐦") == "\\u6f22\\U0001f426"
    assert text.printable("a\x00\t\udcffb") == "a\\x00\\t\\udcffb"


def test_short_text_stays_whole_and_long_text_loses_its_middle() -> None:
    face = text.font(12)
    assert text.fit_lines("Granny-Smith", face, 200) == ["Granny-Smith"]
    (line,) = text.fit_lines("Granny-Smith/" + "x" * 200 + "/image_0042.jpg", face, 160)
    head, tail = line.split("…")
    assert "Granny-Smith/".startswith(head[:13]) and "image_0042.jpg".endswith(tail[-8:]) and head and tail
    assert text.text_width(line, face) > 140  # no more is cut than has to be


def test_wrapping_loses_no_character() -> None:
    face = text.font(12)
    name = "a_class-of birds/" * 6 + "y" * 90
    assert "".join(text.wrap(name, face, 90)).replace(" ", "") == name.replace(" ", "")


# sheets


@pytest.mark.parametrize("size", [(1, 1), (500, 20), (20, 500), (3000, 2000), (64, 64)])
def test_an_image_fills_its_box_without_distortion(size: tuple[int, int]) -> None:
    fitted = sheets.fit_image(Image.new("RGB", size), (120, 90))
    assert fitted.width == 120 or fitted.height == 90
    assert fitted.width <= 120 and fitted.height <= 90
    scale = min(120 / size[0], 90 / size[1])
    assert abs(fitted.width - size[0] * scale) <= 1 and abs(fitted.height - size[1] * scale) <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "RGB"])
def test_every_mode_becomes_rgb_with_transparent_parts_white(mode: str) -> None:
    fitted = sheets.fit_image(Image.new(mode, (8, 8)), (16, 16))
    assert fitted.mode == "RGB"
    if mode in ("LA", "RGBA"):
        assert fitted.getpixel((3, 3)) == (255, 255, 255)


def test_the_size_of_a_plain_sheet_is_the_sum_of_its_parts() -> None:
    rows = [[sheets.Panel(photograph(50, 50))] * 3, [sheets.Panel(photograph(50, 50)), None]]
    drawn = sheets.sheet(rows, panel_size=100)
    assert drawn.width == 2 * sheets.MARGIN + 3 * 100 + 2 * sheets.GAP
    assert drawn.height == 2 * sheets.MARGIN + 2 * (100 + 2 * sheets.BORDER) + 14


def test_a_panel_is_pasted_pixel_for_pixel_and_its_border_surrounds_it() -> None:
    image = photograph(100, 100)
    drawn = sheets.sheet([[sheets.Panel(image, border=sheets.RED)]], panel_size=100)
    left, top = sheets.MARGIN, sheets.MARGIN + sheets.BORDER
    assert np.array_equal(np.asarray(drawn)[top : top + 100, left : left + 100], np.asarray(image))
    for corner in [(left - 4, top - 4), (left + 103, top - 4), (left - 4, top + 103), (left + 103, top + 103)]:
        assert drawn.getpixel(corner) == sheets.RED
    assert drawn.getpixel((left - 5, top - 5)) == (255, 255, 255)


def test_a_row_of_landscapes_is_as_high_as_they_are() -> None:
    flat = sheets.sheet([[sheets.Panel(photograph(100, 25))]], panel_size=100)
    square = sheets.sheet([[sheets.Panel(photograph(100, 100))]], panel_size=100)
    assert square.height - flat.height == 75


@pytest.mark.parametrize("panel_size", [48, 160])
def test_nothing_reaches_into_the_margin(panel_size: int) -> None:
    name = "/a/very/long name/" + "x" * 400 + "🐦" * 50
    panel = sheets.Panel(photograph(), name, sheets.GREEN, "check")
    words = {"column_titles": [name] * 3, "title": name, "footer": name}
    drawn = sheets.sheet(
        [[panel, None, panel], [panel]],
        **words,
        legend=[sheets.Key(None, name)],
        panel_size=panel_size,
        separators=[1],
        rules=True,
    )
    pixels = np.asarray(drawn)
    margin = sheets.MARGIN - sheets.BORDER
    assert (pixels[:margin] == 255).all() and (pixels[-margin:] == 255).all()
    assert (pixels[:, :margin] == 255).all() and (pixels[:, -margin:] == 255).all()


def test_nothing_to_draw_is_one_clear_line() -> None:
    for call in (lambda: sheets.sheet([]), lambda: sheets.sheet([[None]]), lambda: sheets.sheet([[]])):
        with pytest.raises(FgsslError, match="no image to draw"):
            call()
    with pytest.raises(FgsslError, match="no pixels"):
        sheets.sheet([[sheets.Panel(Image.new("RGB", (0, 4)))]])


def test_a_sheet_keeps_reading_order() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    panels = [sheets.Panel(Image.new("RGB", (9, 9), c)) for c in colours]
    drawn = sheets.sheet([panels[:2], panels[2:]], panel_size=50)
    step = 50 + sheets.GAP
    middle = sheets.MARGIN + 25
    below = middle + 50 + 2 * sheets.BORDER + 14
    found = [drawn.getpixel(p) for p in [(middle, middle + 4), (middle + step, middle + 4), (middle, below + 4)]]
    assert found == colours


# figures


def overview(labels: bool = True) -> list[drawing.QueryRow]:
    hits = [
        drawing.Neighbour(photograph(seed=1), "wren", True if labels else None, 0.91),
        drawing.Neighbour(photograph(seed=2), "robin", False if labels else None, 0.5),
    ]
    return [
        drawing.QueryRow(photograph(50, 50), "wren", hits, delta(7, 7, 4, 4), delta(7, 7, 2, 3)),
        drawing.QueryRow(photograph(50, 50), "odd", hits[:1], np.ones((7, 7))),
    ]


def has_colour(image: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((np.asarray(image) == colour).all(axis=2).any())


def test_overview_frames_neighbours_by_agreement_and_greys_them_without_labels() -> None:
    with_labels, without = drawing.overview_sheet(overview()), drawing.overview_sheet(overview(labels=False))
    assert has_colour(with_labels, sheets.GREEN) and has_colour(with_labels, sheets.RED)
    assert not has_colour(without, sheets.GREEN) and not has_colour(without, sheets.RED)
    assert has_colour(without, sheets.GREY)


def test_overview_leaves_out_a_column_nobody_has() -> None:
    full = drawing.overview_sheet(overview())
    plain = drawing.overview_sheet([row._replace(rationale=None) for row in overview()])
    assert full.width - plain.width == 144 + sheets.GAP


def test_explain_sheet_grows_its_panels_for_few_images() -> None:
    row = drawing.ExplainRow(photograph(50, 50), "a.jpg", delta(3, 3, 1, 1), delta(3, 3, 0, 0))
    widths = [drawing.explain_sheet([row] * count).width for count in (1, 2, 4)]
    assert widths == [2 * sheets.MARGIN + 2 * sheets.GAP + 3 * size for size in (448, 320, 224)]


def test_view_pairs_and_search_sheets_take_any_count() -> None:
    three = (photograph(), photograph(seed=1), photograph(seed=2))
    narrow, wide = drawing.view_pairs_sheet([three] * 3, ["a"]), drawing.view_pairs_sheet([three] * 5)
    assert wide.width > narrow.width
    hits = [drawing.Neighbour(photograph(), "hit", None, 0.5)] * 11
    drawing.search_sheet([drawing.QueryRow(photograph(), "query", hits), drawing.QueryRow(photograph(), "none")])
    drawing.search_sheet([drawing.QueryRow(photograph(), "none")])


@pytest.mark.parametrize(("decided", "word"), [("common", "Common direction"), ("rationale", "Rationale"), (None, "")])
def test_a_search_sheet_says_which_map_decided_and_where_it_is_flat(decided: str | None, word: str) -> None:
    hits = [drawing.Neighbour(photograph(), "hit", None, 0.5, np.ones((3, 3)))]
    row = drawing.QueryRow(photograph(), "query", hits, map=delta(3, 3, 0, 0))
    with mock.patch("fgssl.drawing.figures.sheet") as drawn:
        drawing.search_sheet([row], decided=decided)
    (panels,), legend = drawn.call_args.args[0], [key.text for key in drawn.call_args.kwargs["legend"]]
    assert ["flat" in panel.caption for panel in panels] == [False, True]
    said = [text for text in legend if "decides where --pool zoom looks again" in text]
    assert [text.startswith(word) for text in said] == [True] * bool(decided)


def test_the_same_call_draws_the_same_bytes() -> None:
    assert drawing.overview_sheet(overview()).tobytes() == drawing.overview_sheet(overview()).tobytes()


# files


def test_save_writes_the_picture_with_ordinary_permissions(tmp_path: Path) -> None:
    image = photograph()
    target = drawing.save_png(image, tmp_path / "sheet.png")
    with Image.open(target) as opened:
        assert np.array_equal(np.asarray(opened), np.asarray(image))
    (tmp_path / "plain").write_text("")
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize(("suffix", "kind"), [(".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP"), (".PNG", "PNG")])
def test_the_suffix_chooses_the_format(tmp_path: Path, suffix: str, kind: str) -> None:
    with Image.open(drawing.save_png(photograph(), tmp_path / f"sheet{suffix}")) as opened:
        assert opened.format == kind


@pytest.mark.parametrize(
    "name", ["sheet", "sheet.gif", "sheet.png.txt", "missing/sheet.png", "folder.png", "file/x.png"]
)
def test_a_path_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    for call in (
        lambda: drawing.save_png(photograph(), tmp_path / name),
        lambda: check_output(tmp_path / name, kind=drawing.PICTURE),
    ):
        with pytest.raises(FgsslError) as caught:
            call()
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    target = tmp_path / "sheet.png"
    target.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FgsslError if isinstance(failure, OSError) else KeyboardInterrupt):
        drawing.save_png(photograph(), target)
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_a_picture_too_large_for_its_format_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FgsslError, match=r"use \.png"):
        drawing.save_png(Image.new("RGB", (70000, 1)), tmp_path / "long.jpg")
    assert not list(tmp_path.iterdir())


def test_drawing_needs_neither_torch_nor_matplotlib() -> None:
    code = "import sys, fgssl.drawing; print([m for m in ('torch', 'matplotlib', 'timm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_colour_bar_runs_from_grey_to_the_hottest_colour() -> None:
    bar = np.asarray(maps.colour_bar(), dtype=float)
    chroma = (bar.max(axis=2) - bar.min(axis=2)).mean(axis=0)
    assert chroma[0] < 5 and chroma[-1] > 60
