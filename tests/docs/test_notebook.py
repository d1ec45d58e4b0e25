"""The notebook runs from its first cell to its last, on a folder of few pictures."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from running import photos

ROOT = Path(__file__).parents[2]
SHORT = {
    "backbone.name": "test_resnet", "backbone.pretrained": False, "backbone.image_size": 64, "training.max_steps": 2,
    "training.batch_size": 8, "training.device": "cpu", "training.workers": 0,
}  # fmt: skip


def test_it_runs_on_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    asked = {'SOURCE = "demo"': f"SOURCE = {str(photos())!r}", '{"training.max_steps": 40}': repr(SHORT)}
    for text, put in asked.items():
        assert text in first.source
        first.source = first.source.replace(text, put)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 3  # map, where it looks, search
    printed = "".join(output.get("text", "") for output in shown)
    assert "neighbours say class" in printed and "rank-1" in printed
    assert (tmp_path / "runs" / "notebook" / "encoder.safetensors").is_file()
