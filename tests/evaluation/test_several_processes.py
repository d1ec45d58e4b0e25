"""Processes that embed together: every image once, in order, and the numbers of one process alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import fgssl, make_photos, photos, plain_run, trained_run
from safetensors import safe_open

from fgssl.evaluation.compare import METRICS

ROOT = Path(__file__).parents[2]


def launch(processes: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
               "-m", "fgssl", *map(str, arguments)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=240)


def test_two_processes_write_the_features_of_one(tmp_path: Path) -> None:
    """13 images, so that the parts differ in length and the last batches too, one of them unreadable."""
    folder = make_photos(tmp_path / "photos", 13)
    (folder / "class 1" / "07.png").write_bytes(b"no picture")
    options = ("--data", folder, "--device", "cpu", "--json", "--output")
    assert fgssl("embed", plain_run(), *options, tmp_path / "one", "--batch-size", "13").code == 0
    done = launch(2, "embed", plain_run(), *options, tmp_path / "two", "--batch-size", "2")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)  # a single document: the first process answers
    assert (told["images"], told["unreadable"]) == (12, 1) and done.stderr.count("left out") == 1
    with safe_open(tmp_path / "one", framework="pt") as one, safe_open(tmp_path / "two", framework="pt") as two:
        assert json.loads(one.metadata()["paths"]) == json.loads(two.metadata()["paths"])
        assert torch.equal(one.get_tensor("labels"), two.get_tensor("labels"))
        torch.testing.assert_close(one.get_tensor("features"), two.get_tensor("features"), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_make_the_table_of_one() -> None:
    arguments = ("compare", trained_run(), "--data", photos(), "--pool", "gap", "--device", "cpu", "--json")
    alone = fgssl(*arguments).json()
    done = launch(2, *arguments)
    assert done.returncode == 0, done.stderr
    together = json.loads(done.stdout)
    assert [row["encoder"] for row in together["rows"]] == [row["encoder"] for row in alone["rows"]]
    for one, other in zip(alone["rows"], together["rows"], strict=True):
        assert {metric: other[metric] for metric in METRICS} == {
            metric: pytest.approx(one[metric], abs=1e-3) for metric in METRICS
        }
