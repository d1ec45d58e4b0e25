"""The loop of one's own: a few steps of it, and fgssl opens what it leaves."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from running import fgssl, photos

from fgssl.runs.encoder_file import load_encoder

RECIPE = Path(__file__).parents[2] / "recipes" / "own_loop.py"


def test_what_it_trains_is_an_encoder_of_fgssls(tmp_path: Path) -> None:
    loop = runpy.run_path(str(RECIPE))
    trained = loop["train"](str(photos()), steps=3, batch=8)
    start = loop["train"](str(photos()), steps=0)
    moved = [not torch.equal(new, old) for new, old in zip(trained.parameters(), start.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)  # the rationale's among them
    assert not torch.equal(trained.rationale.project.weight, start.rationale.project.weight)
    loop["save_encoder"](tmp_path / "own.safetensors", trained)
    opened = load_encoder(str(tmp_path / "own.safetensors"))
    images = torch.randint(0, 256, (2, 3, opened.view_size("zoom"), opened.view_size("zoom")), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(opened(images, "zoom"), trained(images, "zoom"))
    assert opened.has_loss_gradcam
    found = fgssl("retrieve", tmp_path / "own.safetensors", "--data", photos(), "--json")
    assert found.code == 0, found.err
    assert found.json()["queries"] == 12


def test_it_runs_as_its_header_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "own.safetensors"
    monkeypatch.setattr(sys, "argv", ["own_loop.py", str(output), "--data", "demo", "--steps", "1"])
    runpy.run_path(str(RECIPE), run_name="__main__")
    assert load_encoder(str(output)).rationale is not None
