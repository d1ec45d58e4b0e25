"""An encoder as a graph: the oracle is PyTorch, and batches of sizes that the graph was not made with."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from running import fgssl, finished_run, trained_run

from fgssl.encoder import Pool
from fgssl.runs.encoder_file import load_encoder


@pytest.mark.parametrize("pool", ["gap", "zoom"])
def test_onnx_computes_what_pytorch_does(pool: Pool, tmp_path: Path) -> None:
    run, path = trained_run(), tmp_path / "a.onnx"  # whitened, with windows of its own
    done = fgssl("export", run, "--pool", pool, "--output", path, "--json")
    assert done.code == 0, done.err
    encoder, session = load_encoder(str(run)), onnxruntime.InferenceSession(path)
    size = encoder.view_size(pool)
    images = np.random.default_rng(5).integers(0, 256, (4, 3, size, size), dtype=np.uint8)
    found = dict(zip(done.json()["outputs"], session.run(None, {"images": images}), strict=True))
    with torch.inference_mode():
        wanted = encoder(torch.from_numpy(images), pool).numpy()
    np.testing.assert_allclose(found["embedding"], wanted, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["rationale"].sum((1, 2)), 1, atol=1e-4)
    assert ("window" in found) == (pool == "zoom")


def test_torch_export_opens_without_fgssl(tmp_path: Path) -> None:
    run, path = finished_run()[0], tmp_path / "a.pt2"
    assert fgssl("export", run, "--format", "torch-export", "--output", path).code == 0
    encoder = load_encoder(str(run))
    size = encoder.view_size("zoom")
    images = torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(
            torch.export.load(path).module()(images)[0], encoder(images, "zoom"), rtol=0, atol=1e-4
        )


def test_slips_are_one_line_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished_run()[0]
    assert "end the name in .onnx" in fgssl("export", run, "--output", tmp_path / "a.pt2").error()
    (tmp_path / "mine.onnx").write_text("mine")
    assert "mine.onnx" in fgssl("export", run, "--output", tmp_path / "mine.onnx").error()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    told = fgssl("export", run, "--output", tmp_path / "a.onnx").error()
    assert "onnxscript is not installed; pip install 'fgssl[export]'" in told
    assert [path.name for path in tmp_path.iterdir()] == ["mine.onnx"]
