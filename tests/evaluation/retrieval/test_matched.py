"""The parts of a query and its hits: which is like which, and that the sheet shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from running import fgssl, finished_run, photos
from torch.nn import functional

from fgssl.drawing import Part, Window
from fgssl.drawing.maps import PART_COLOURS, with_parts
from fgssl.evaluation.retrieval.matched import best_matches, matched_parts
from fgssl.runs.encoder_file import load_encoder


def test_the_number_is_that_of_the_largest_cosine() -> None:
    query = functional.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), dim=1)
    parts = functional.normalize(torch.tensor([[0.1, 0.2, 0.9], [0.5, 0.4, 0.1]]), dim=1)
    assert best_matches(parts, query) == [3, 1]
    assert best_matches(parts, query[:1]) == [1, 1]


def test_a_copy_matches_itself_part_by_part() -> None:
    encoder = load_encoder(str(finished_run()[0]))
    assert encoder.rationale is not None
    encoder.rationale.register_forward_hook(lambda head, given, maps: (maps / maps.amax((1, 2), keepdim=True)).pow(60))
    pictures = [Image.open(path).convert("RGB") for path in sorted((photos() / "test").rglob("*.*g"))[:4]]
    found = matched_parts(encoder, [*pictures, pictures[0]])
    assert len(found) == 5 and found[4] == found[0]
    assert [part.number for part in found[0]] == list(range(1, len(found[0]) + 1))
    for parts in found:
        assert all(1 <= part.number <= len(found[0]) for part in parts)
        assert all(-1e-6 <= edge <= 1 + 1e-6 for part in parts for edge in part.window)


def test_parts_are_drawn_in_the_colours_of_their_numbers() -> None:
    plain = Image.new("RGB", (200, 200), (90, 90, 90))
    drawn = np.asarray(with_parts(plain, [Part(Window(0.1, 0.1, 0.5, 0.5), 1), Part(Window(0.5, 0.4, 0.9, 0.8), 3)]))
    for number, place in ((1, (60, 21)), (3, (120, 101))):
        column = drawn[place[0], place[1] - 4 : place[1] + 4]
        assert (column == PART_COLOURS[number - 1]).all(1).any()
    assert not (drawn == PART_COLOURS[1]).all(2).any() and np.asarray(plain).max() == 90


def test_the_sheet_of_a_search_by_parts(tmp_path: Path) -> None:
    query, sheet = next((photos() / "test").rglob("*.*g")), tmp_path / "sheet.png"
    arguments = ("retrieve", finished_run()[0], "--data", photos(), "--pool", "parts", "--query", query)
    found = fgssl(*arguments, "--top", "3", "--output", sheet, "--json").json()
    assert found["pool"] == "parts" and len(found["queries"][0]["hits"]) == 3
    with Image.open(sheet) as drawn:
        pixels = np.asarray(drawn.convert("RGB"))
    assert (pixels == PART_COLOURS[0]).all(2).sum() > 100
