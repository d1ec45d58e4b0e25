"""The grid of rationale forms: what is held out, controls, paired differences by hand."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fgssl.config.schema import DataConfig, RationaleConfig
from fgssl.errors import FgsslError
from fgssl.evaluation.maps import centre_prior, feature_norm, uniform

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "bench"))

from rationale_bench.grid import INIT, Protocol, make_cell, open_slice, pooling_config, read_grid
from rationale_bench.tables import markdown, summarise

GRID = Path(__file__).parents[2] / "recipes" / "bench" / "rationale_final.yaml"
PROTOCOL = Protocol(None, None, (), "images", False)


# ---- the grid


def test_every_cell_of_the_shipped_grid_has_settings_that_can_be():
    grid = read_grid(GRID)
    cells = [make_cell(grid, PROTOCOL, name, seed) for name in (INIT, *grid.variants) for seed in (0, 1)]
    assert len({cell.name for cell in cells}) == len(cells)
    for sets in grid.poolings.values():
        assert pooling_config(RationaleConfig(), sets) != RationaleConfig()


def test_a_cell_is_another_one_with_other_settings_only_if_they_are_learned():
    grid = read_grid(GRID)
    plain = make_cell(grid, PROTOCOL, "plain", 0)
    for sets, same in ((("optimizer.lr=0.5",), False), (("training.workers=1",), True), ((), True)):
        assert (make_cell(grid, dataclasses.replace(PROTOCOL, sets=sets), "plain", 0).name == plain.name) is same
    assert make_cell(grid, PROTOCOL, "plain", 1).digest != plain.digest != make_cell(grid, PROTOCOL, INIT, 0).digest


@pytest.mark.parametrize(
    "text", ["variants: 3", "base: []", "variants: {a: x}", "variants: {init: []}", "baseline: b\nvariants: {a: []}"]
)
def test_what_is_no_grid_is_refused(tmp_path, text):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(FgsslError, match=r"grid\.yaml"):
        read_grid(tmp_path / "grid.yaml")


def test_a_pooling_sets_pooling_alone():
    with pytest.raises(FgsslError, match=r"rationale\.sign"):
        pooling_config(RationaleConfig(), ("rationale.sign=lower",))


# ---- what is held out


def identifiers(images) -> set[str]:
    return {images.identifier(index) for index in range(len(images))}


def test_held_out_images_are_a_fifth_of_every_class_that_pretraining_never_sees():
    slice_ = open_slice(DataConfig(), "images")
    assert identifiers(slice_.train) == identifiers(slice_.gallery)
    assert not identifiers(slice_.train) & identifiers(slice_.queries)
    assert len(slice_.train) + len(slice_.queries) == 1280
    assert np.bincount(slice_.queries.labels).tolist() == [16] * 16
    assert not any("test" in name for name in identifiers(slice_.train) | identifiers(slice_.queries))


def test_held_out_classes_are_apart():
    slice_ = open_slice(DataConfig(), "classes")
    assert not set(slice_.train.labels) & set(slice_.gallery.labels)
    assert set(slice_.gallery.labels) == set(slice_.queries.labels) and len(set(slice_.queries.labels)) == 4
    assert not identifiers(slice_.gallery) & identifiers(slice_.queries)


def test_only_final_touches_the_test_split():
    slice_ = open_slice(DataConfig(), "images", final=True)
    assert (len(slice_.train), len(slice_.queries), slice_.queries.split) == (1280, 640, "test")


@pytest.mark.parametrize("select,final", [("images", False), ("classes", False), ("images", True)])
def test_masks_are_those_of_the_query(select, final):
    slice_ = open_slice(DataConfig(), select, final=final)
    name = slice_.queries.identifier(7)
    from fgssl.data.demo.demo_set import DemoSet

    expected = DemoSet("test" if final else "train").masks(int(name.rpartition("#")[2]))
    assert np.array_equal(slice_.masks(7).parts, expected.parts)


def test_files_of_a_pattern_are_held_out(tmp_path):
    """Judged by the names on disk; a pattern that fits nothing is told."""
    from PIL import Image

    for name in ("a/1.png", "a/val_1.png", "b/2.png", "b/val_2.png", "b/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    slice_ = open_slice(DataConfig(source=str(tmp_path)), "val_*")
    held = {slice_.queries.identifier(row) for row in range(2)}
    assert {name.rpartition("/")[2] for name in held} == {"val_1.png", "val_2.png"}
    kept = [slice_.train.identifier(row).rpartition("/")[2] for row in range(3)]
    assert sorted(kept) == ["1.png", "2.png", "3.png"]
    with pytest.raises(FgsslError, match="0 of 5"):
        open_slice(DataConfig(source=str(tmp_path)), "test_*")


# ---- controls


def test_control_maps_are_distributions_with_their_own_shape():
    features, images = torch.randn(2, 5, 6, 6), torch.zeros(2, 3, 96, 96, dtype=torch.uint8)
    for control in (uniform, centre_prior, feature_norm):
        maps = control(features, images)
        assert maps.shape == (2, 6, 6) and torch.allclose(maps.sum((1, 2)), torch.ones(2), atol=1e-6)
    centre = centre_prior(features, images)[0]
    assert torch.allclose(centre, centre.flip(0).T, atol=1e-7) and centre[2, 2] > centre[2, 1] > centre[0, 0]
    expected = np.exp(-((0.5 / 6) ** 2 - (2.5 / 6) ** 2) / (2 * 0.25**2))  # in a row, from the edge to the middle
    assert float(centre[2, 2] / centre[2, 0]) == pytest.approx(float(expected), rel=1e-4)
    norms = features.square().sum(1).sqrt()
    assert torch.allclose(feature_norm(features, images), norms / norms.sum((1, 2), keepdim=True), atol=1e-6)


# ---- tables


def row(variant: str, seed: int, rank1: float, pooling: str = "gap") -> dict:
    return {"kind": "pooling", "variant": variant, "branch": "", "pooling": pooling, "seed": seed, "rank1": rank1}


def test_differences_are_paired_by_seed():
    """Seeds differ by 20, variants by 1 and 3: the spread of the difference is that of (1, 3), sqrt 2."""
    rows = [row("plain", 0, 30.0), row("plain", 1, 50.0), row("new", 1, 53.0), row("new", 0, 31.0), row("new", 2, 9.0)]
    rows.append(row("plain", 1, 51.0, "centre prior"))
    table = summarise(rows, "plain")["pooling"]
    by_name = {(entry["variant"], entry["name"]): entry for entry in table}
    new = by_name["new", "gap"]
    assert new["rank1"]["n"] == 3 and new["rank1"]["mean"] == pytest.approx(31.0)
    assert new["versus_gap"]["rank1"] == {"mean": 2.0, "sd": pytest.approx(2**0.5), "n": 2}
    assert new["versus_centre"]["rank1"] == {"mean": 2.0, "sd": None, "n": 1}
    assert by_name["plain", "gap"]["versus_gap"]["rank1"]["sd"] == 0
    text = markdown(summarise(rows, "plain"), "T", "N")
    assert "+2.00 ± 1.41" in text and "| - |" in text
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith("| ")}
    assert len(widths) == 1
