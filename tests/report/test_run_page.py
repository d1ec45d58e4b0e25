"""The page of a run from made-up results: content, the command that repeats it, odd splits, and a browser's view."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import needs_chromium, opened
from pictures import make_picture
from PIL import Image

from fgssl.config.resolve import load_config
from fgssl.config.schema import flatten
from fgssl.drawing import Window
from fgssl.evaluation.embed import Embeddings
from fgssl.report.maps import Explained
from fgssl.report.page import LARGEST
from fgssl.report.run import RunContent, against_start, command, duration, run_page
from fgssl.report.split import MOST_POINTS, SplitView, map_section, nearest_sections, principal_plane

EVIL = "<script>alert(1)</script>"
WINDOW = Window(0.25, 0.25, 0.75, 0.75)
SUMMARY: dict[str, Any] = {
    "backbone": "resnet18", "train_images": 24, "test_images": 12, "map_size": [2, 3], "parameters_trained": 11_000,
    "steps": 6, "train_seconds": 3700.0, "seed": 0, "retrieval": [], "signals": None, "choice": None,
    "against_start": None, "unreadable": [f"unreadable image {EVIL}.jpg: is broken"], "versions": {"fgssl": "0.1.0"},
}  # fmt: skip
METRICS = [
    {"step": step, "loss": 3.0 - 0.1 * step, "chance": 3.5, "fit": None, "target_entropy": 0.5, "effective_rank": 9.0,
     "lr": 0.01, **({"sample_effective_rank": 20.0, "start_effective_rank": 15.0} if step == 6 else {})}
    for step in range(1, 7)
]  # fmt: skip


def settings(*asked: str) -> dict[str, dict[str, Any]]:
    resolved = load_config(sets=asked)
    flat = flatten(resolved.config)
    return {key: {"value": value, "origin": resolved.origins.get(key, "default")} for key, value in flat.items()}


def embedded(
    count: int, *, labels: torch.Tensor | None = None, picture: Callable[[int], Image.Image | None] | None = None
) -> SplitView:
    features = torch.nn.functional.normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    names = tuple(f"photos/{row}{EVIL}.jpg" for row in range(count))
    classes = None if labels is None else ("apple", EVIL, "pear")
    found = Embeddings(features, labels, names, classes, np.arange(count), ())
    return SplitView(found, picture or (lambda row: make_picture(row, 40, 30)), "gap")


def whole(split: SplitView, **values: Any) -> str:
    explained = [
        Explained(make_picture(1, 64, 64), f"{EVIL}.jpg", np.eye(2), np.arange(4.0).reshape(2, 2), windows=[WINDOW]),
        Explained(make_picture(2, 64, 64), "flat.jpg", np.ones((2, 2)), None),
    ]  # fmt: skip
    pairs = [(EVIL, [make_picture(seed, 48, 48) for seed in range(3)])]
    asked = settings("data.source=./my 'photos'", "training.epochs=3")
    return run_page(RunContent({**SUMMARY, **values}, METRICS, asked, pairs, explained, split))


@needs_chromium
def test_the_page_of_a_run_in_a_browser(tmp_path: Path) -> None:
    labels = torch.arange(12) % 3
    view = embedded(12, labels=labels)
    view = view._replace(start=view.found.features.flip(0))
    path = tmp_path / "report.html"
    path.write_text(whole(view), encoding="utf-8")
    assert path.stat().st_size < LARGEST
    with opened(path) as window:
        titles = window.locator("h2").all_inner_texts()
        expected = ["Summary", "Learning curves", "Map of the embedding", "Worst confusions", "Where the encoder looks"]
        for title in [*expected, "Views", "Unreadable files", "Repeat it", "Settings"]:
            assert title in titles
        plots = window.locator(".curves h3").all_inner_texts()
        assert plots == ["Loss", "Entropy of the GradCAM", "Effective rank", "Learning rate"]  # fit was never known
        assert "chance 3.50" in window.locator(".plot").first.inner_text()
        window.locator("summary", has_text="The numbers").click()
        assert window.locator("details[open] tbody tr").count() == 6
        window.locator("canvas").focus()
        window.keyboard.press("ArrowRight")
        window.keyboard.press("Enter")
        heads = window.locator(".chosen h3").all_inner_texts()
        assert heads[1:] == ["Nearest, by the start", "Nearest, by this encoder"]
        window.locator(".near").nth(3).press("Enter")  # a button: the keyboard reaches it
        assert window.locator(".chosen h3").first.inner_text() != heads[0]
        assert f"{EVIL}.jpg" in window.locator("main").inner_text()


@needs_chromium
def test_maps_fade_by_a_slider_and_stay_cells(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(whole(embedded(3)), encoding="utf-8")
    with opened(path, width=400, dark=True) as window:
        first, flat = window.locator(".maps figure").nth(0), window.locator(".maps figure").nth(1)
        shown = "layers => layers.map(layer => Number(layer.style.opacity))"
        assert first.locator(".cells").evaluate_all(shown) == [0, 0.72]  # all begin at the rationale
        slider = first.locator("input")
        slider.fill("1")
        assert first.locator(".cells").evaluate_all(shown) == [0.72, 0]
        slider.focus()
        window.keyboard.press("Home")
        assert first.locator(".cells").evaluate_all(shown) == [0, 0]
        cells = first.locator(".cells").first
        assert cells.evaluate("image => [image.naturalWidth, getComputedStyle(image).imageRendering]") == [
            2,
            "pixelated",
        ]
        assert "flat: no place preferred" in flat.inner_text()
        outline = first.locator(".window")
        box, whole_box = outline.bounding_box(), first.locator(".stack").bounding_box()
        assert box["width"] == pytest.approx(whole_box["width"] / 2, abs=1)
        window.get_by_label("what zoom sees enlarged").click()
        assert outline.is_hidden()
        assert window.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_pictures_without_labels_make_a_page(count: int) -> None:
    text = whole(embedded(count))
    assert "Map of the embedding" in text and "Worst confusions" not in text


def test_of_very_many_pictures_a_sample_is_loaded_and_said() -> None:
    loaded = []

    def picture(row: int) -> Image.Image:
        loaded.append(row)
        return make_picture(row % 7, 40, 30)

    text = map_section(embedded(200_000, picture=picture)).body
    assert len(loaded) == MOST_POINTS and loaded[-1] == 199_999
    assert "1,200 of 200,000 pictures" in text and len(text) < 3_000_000


def test_the_worst_names_and_pictures_stay_below_the_largest_page() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    view = embedded(MOST_POINTS, labels=torch.arange(MOST_POINTS), picture=lambda row: Image.fromarray(noise))
    names = tuple("鳥" * 400 + str(row) for row in range(MOST_POINTS))
    view = view._replace(found=view.found._replace(identifiers=names, class_names=names))
    assert len(whole(view).encode()) < LARGEST


def test_pictures_that_are_gone_leave_their_points() -> None:
    section = map_section(embedded(4, picture=lambda row: None))
    assert '"thumbnails":[null,null,null,null]' in section.body


def test_confusions_are_those_of_the_nearest_other_picture() -> None:
    # on a line: 0 and 1 are neighbours of different classes, 2 and 3 of one
    angles = torch.tensor([0.0, 0.1, 1.0, 1.1])
    features = torch.stack([angles.cos(), angles.sin()], 1)
    view = embedded(4, labels=torch.tensor([0, 1, 2, 2]))
    view = view._replace(found=view.found._replace(features=features))
    body = nearest_sections(view)[0].body
    cells = [part.split("<")[0] for part in body.split("<td")[1:]]
    told = "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert [cell.partition(">")[2] for cell in cells] == ["apple", told, "1", told, "apple", "1"]


@pytest.mark.parametrize("shape", [(40, 5), (5, 40), (3, 1), (1, 4)])
def test_the_plane_is_that_of_a_singular_value_decomposition(shape: tuple[int, int]) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    plane, share = principal_plane(features)
    centred = (features - features.mean(0)).double().numpy()
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    width = min(2, len(values))
    np.testing.assert_allclose(np.abs(plane[:, :width]), np.abs(left[:, :width] * values[:width]), atol=1e-5)
    total = (values**2).sum()
    assert share == pytest.approx((values[:2] ** 2).sum() / total if total else 1.0)


def test_the_command_repeats_the_settings() -> None:
    asked = settings(
        "data.source=./my 'photos' $HOME", "training.epochs=3", "rationale.enabled=false", "backbone.init=null"
    )
    words = shlex.split(command(asked))
    assert words[:2] == ["fgssl", "pretrain"] and len(words) == 8
    again = load_config(sets=[word for word in words[2:] if word != "--set"])
    assert flatten(again.config) == {key: each["value"] for key, each in asked.items()}


def test_what_a_run_gained_is_said_in_a_sentence() -> None:
    beside = {"rank1": 57.4, "start_rank1": 40.3, "difference": 17.1, "low": 15.0, "high": 19.0, "p": 0.001}
    assert "+17.1 points" in against_start({**SUMMARY, "against_start": beside})
    assert "beyond chance" in against_start({**SUMMARY, "against_start": beside})
    rows = [{"encoder": "init", "pool": "gap", "rank1": 10.0}, {"encoder": "trained", "pool": "zoom", "rank1": 30.0}]
    assert against_start({**SUMMARY, "retrieval": rows}).startswith("Rank-1 is 30.0 % (zoom)")
    signals = {"start": {"neighbour_overlap": 0.2}, "end": {"neighbour_overlap": 0.5}}
    assert "20.0 %" in against_start({**SUMMARY, "signals": signals}) and against_start(SUMMARY) == ""


def test_times_are_said_as_people_do() -> None:
    assert [duration(each) for each in (5, 65, 3700)] == ["5 s", "1 min 5 s", "1 h 1 min"]
