"""What a pooling looked at, which of it is alike, and that sheets show it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import fgssl, finished_run, photos, plain_run
from torch.nn import functional

from fgssl.drawing import Part, Window
from fgssl.drawing.figures import looked_words
from fgssl.drawing.maps import PART_COLOURS, with_parts
from fgssl.encoder import Encoder
from fgssl.evaluation.explain import explain
from fgssl.evaluation.looks import Looks, decided_by, looks_at, matched, numbered
from fgssl.rationale import Colocalizer
from fgssl.runs.encoder_file import load_encoder

SQUARE = Window(0.1, 0.1, 0.5, 0.5)


@pytest.fixture
def encoder() -> Encoder:
    found = load_encoder(str(finished_run()[0]))
    assert found.rationale is not None
    found.rationale.register_forward_hook(lambda head, given, maps: (maps / maps.amax((1, 2), keepdim=True)).pow(60))
    return found


def pictures(count: int = 4) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted((photos() / "test").rglob("*.*g"))[:count]]


def looks(features: list[list[float]]) -> Looks:
    parts = functional.normalize(torch.tensor(features, dtype=torch.float32), dim=1)
    return Looks(parts[0], (SQUARE,) * len(parts), parts)


def test_the_number_is_that_of_the_largest_cosine() -> None:
    query, other = looks([[1, 0, 0], [0, 1, 0], [0, 0, 1]]), looks([[0.1, 0.2, 0.9], [0.5, 0.4, 0.1]])
    assert [part.number for part in matched(query, other)] == [3, 1]
    assert matched(query, other)[0].likeness == pytest.approx(0.9 / 0.86**0.5)
    assert [part.number for part in matched(looks([[1, 0, 0]]), other)] == [1, 1]
    assert [(part.number, part.likeness) for part in numbered(query)] == [(1, None), (2, None), (3, None)]
    assert matched(query, Looks(query.whole)) == []


@pytest.mark.parametrize("pool", ["zoom", "parts", "zoom:again", "zoom:middle"])
def test_a_copy_matches_itself_part_by_part(encoder: Encoder, pool: str) -> None:
    seen = pictures()
    query, *others = looks_at(encoder, [*seen, seen[0]], pool)  # type: ignore[arg-type]
    for part, own in zip(matched(query, others[-1]), numbered(query), strict=True):
        assert (part.window, part.number) == (own.window, own.number) and part.likeness == pytest.approx(1)
    assert len(query.windows) == 1 or pool == "parts"
    for each in (query, *others):
        assert each.parts is not None and len(each.parts) == len(each.windows)
        assert all(-1e-6 <= edge <= 1 + 1e-6 for window in each.windows for edge in window)


@pytest.mark.parametrize("pool", ["zoom", "parts"])
def test_looks_are_those_that_the_embedding_is_made_of(encoder: Encoder, pool: str) -> None:
    seen = pictures(3)
    with torch.no_grad():
        embedded = encoder(seen, pool)  # type: ignore[arg-type]
    width = embedded.shape[1] // 3
    for row, look in zip(embedded, looks_at(encoder, seen, pool), strict=True):  # type: ignore[arg-type]
        assert look.parts is not None
        for part, own in ((row[:width], look.whole), (row[2 * width :], look.parts.sum(0))):
            torch.testing.assert_close(functional.normalize(part, dim=0), functional.normalize(own, dim=0))


def test_the_map_that_is_drawn_is_the_one_that_decides(encoder: Encoder) -> None:
    """A colocalizer that is told where: the windows of zoom and of parts follow it."""
    (plain,) = looks_at(encoder, pictures(1), "zoom")
    assert decided_by(encoder, "zoom") == decided_by(encoder, "parts") == "rationale"
    places = Colocalizer(encoder.backbone.channels)
    with torch.no_grad():
        unit = functional.normalize(encoder.maps(encoder.shrunk(encoder.seen(pictures(1), "zoom")))[0], dim=1)[0]
        places.mean[:] = unit.mean((1, 2))
        places.direction[:] = functional.normalize(unit[:, 1, 0] - unit.mean((1, 2)), dim=0)  # the lower left cell
    encoder.look_by(places, torch.nn.Linear(encoder.backbone.channels, encoder.backbone.channels), weight=1.0)
    (common,), (parts,) = looks_at(encoder, pictures(1), "zoom"), looks_at(encoder, pictures(1), "parts")
    assert decided_by(encoder, "zoom") == decided_by(encoder, "parts") == "common"
    assert decided_by(encoder, "zoom:middle") is decided_by(encoder, "gap") is None
    assert common.map is not None and plain.map is not None and parts.map is not None
    assert np.unravel_index(common.map.argmax(), common.map.shape) == (1, 0)
    left, top, right, bottom = common.windows[0]
    assert left < 0.1 and bottom > 0.9 and right < 0.9 and top > 0.1
    assert np.unravel_index(parts.map.argmax(), parts.map.shape) == (1, 0)
    left, top, right, bottom = parts.windows[0]  # the first is at the highest peak
    assert (left + right) / 2 < 0.5 < (top + bottom) / 2
    (maps,) = explain(encoder, pictures(1), with_gradcam=False)
    assert maps.window == common.windows[0] and maps.common is not None and maps.attention is None
    np.testing.assert_allclose(maps.common, common.map, atol=1e-6)


@pytest.mark.parametrize("pool", ["zoom", "parts", "zoom:again"])
def test_a_sheet_says_what_decides(pool: str) -> None:
    """In words of its own for each map, and where no map does."""
    told = [looked_words(pool, decided) for decided in ("rationale", "common", None)]
    assert len(set(told)) == 3 and "in the middle" in told[2] and "common direction" in told[1]
    assert "in the middle" not in looked_words("zoom:mask", None)


def test_a_pooling_that_looks_once_has_no_windows() -> None:
    plain = load_encoder(str(plain_run()))
    (found,) = looks_at(plain, pictures(1), "gap")
    assert found.windows == () and found.parts is None and found.map is None
    assert explain(plain, pictures(1))[0].window is None


def test_parts_are_drawn_in_the_colours_of_their_numbers() -> None:
    plain = Image.new("RGB", (200, 200), (90, 90, 90))
    drawn = np.asarray(with_parts(plain, [Part(SQUARE, 1), Part(Window(0.5, 0.4, 0.9, 0.8), 3, 0.5)]))
    for number, place in ((1, (60, 21)), (3, (120, 101))):
        column = drawn[place[0], place[1] - 4 : place[1] + 4]
        assert (column == PART_COLOURS[number - 1]).all(1).any()
    assert not (drawn == PART_COLOURS[1]).all(2).any() and np.asarray(plain).max() == 90


@pytest.mark.parametrize("pool", ["parts", "zoom"])
def test_the_sheet_of_a_search_shows_what_is_alike(tmp_path: Path, pool: str) -> None:
    query, sheet = next((photos() / "test").rglob("*.*g")), tmp_path / "sheet.png"
    arguments = ("retrieve", finished_run()[0], "--data", photos(), "--pool", pool, "--query", query)
    found = fgssl(*arguments, "--top", "3", "--output", sheet, "--json").json()
    assert found["pool"] == pool and len(found["queries"][0]["hits"]) == 3
    with Image.open(sheet) as drawn:
        pixels = np.asarray(drawn.convert("RGB"))
    assert (pixels == PART_COLOURS[0]).all(2).sum() > 100
