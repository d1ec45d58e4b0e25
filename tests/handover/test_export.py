"""An encoder as a graph: the oracle is PyTorch, and batches of sizes that the graph was not made with."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from running import SHORT, fgssl, photos, shared
from safetensors.torch import save_file

from fgssl.encoder import Pool
from fgssl.runs.encoder_file import load_encoder

NETWORK = "test_resnet"  # of few layers: to make a graph takes as long as there are


@functools.cache
def plain_run() -> Path:
    """2 steps from random weights: windows are the branch's."""
    return shared("graph of scratch", lambda run: trained(run, *SHORT))


@functools.cache
def whitened_run() -> Path:
    """2 steps from weights that count as trained: whitened, with windows of their own."""

    def make(folder: Path) -> None:
        folder.mkdir()
        save_file(timm.create_model(NETWORK, num_classes=0).state_dict(), folder / "w.safetensors")
        options = (word for word in SHORT if word != "--no-pretrained")
        trained(folder / "run", *options, "--init", folder / "w.safetensors", "--set", "training.choose=false")

    return shared("graph of weights", make) / "run"


def trained(run: Path, *options: str | Path) -> None:
    outcome = fgssl("pretrain", "--data", photos(), *options, "--backbone", NETWORK, "--output", run)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("pool", ["gap", "zoom"])
def test_onnx_computes_what_pytorch_does(pool: Pool, tmp_path: Path) -> None:
    run, path = whitened_run(), tmp_path / "a.onnx"
    done = fgssl("export", run, "--pool", pool, "--output", path, "--json")
    assert done.code == 0, done.err
    encoder, session = load_encoder(str(run)), onnxruntime.InferenceSession(path)
    assert encoder.whitening is not None and encoder.colocalizer is not None
    size = encoder.view_size(pool)
    images = np.random.default_rng(5).integers(0, 256, (4, 3, size, size), dtype=np.uint8)
    found = dict(zip(done.json()["outputs"], session.run(None, {"images": images}), strict=True))
    with torch.inference_mode():
        wanted = encoder(torch.from_numpy(images), pool).numpy()
    np.testing.assert_allclose(found["embedding"], wanted, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["rationale"].sum((1, 2)), 1, atol=1e-4)
    assert ("window" in found) == (pool == "zoom")


def test_torch_export_opens_without_fgssl(tmp_path: Path) -> None:
    run, path = plain_run(), tmp_path / "a.pt2"
    assert fgssl("export", run, "--format", "torch-export", "--output", path).code == 0
    encoder = load_encoder(str(run))
    size = encoder.view_size("zoom")
    images = torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(
            torch.export.load(path).module()(images)[0], encoder(images, "zoom"), rtol=0, atol=1e-4
        )


def test_slips_are_one_line_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = plain_run()
    assert "end the name in .onnx" in fgssl("export", run, "--output", tmp_path / "a.pt2").error()
    (tmp_path / "mine.onnx").write_text("mine")
    assert "mine.onnx" in fgssl("export", run, "--output", tmp_path / "mine.onnx").error()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    told = fgssl("export", run, "--output", tmp_path / "a.onnx").error()
    assert "onnxscript is not installed; pip install 'fgssl[export]'" in told
    assert [path.name for path in tmp_path.iterdir()] == ["mine.onnx"]
