"""Long waits for a download or a listing are told by fgssl's own progress, never by another library's bar."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import timm
from hub_server import HubServer, Repository, parquet, serve
from PIL import Image
from rich.console import Console
from safetensors.torch import save

from fgssl.cli import console
from fgssl.config.schema import DataConfig
from fgssl.data import load_images
from fgssl.runtime import reporting as listening
from fgssl.runtime.reporting import Reporter, Told, listen, told_bars

ROOT = Path(__file__).parents[2]
# the command line, told at once of everything; {terminal} makes stderr one
PROGRAM = """
import sys
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 250_000
from rich.console import Console
from fgssl.runtime import reporting as listening
from fgssl.cli import console, main
listening.QUIET_SECONDS = listening.BETWEEN_SECONDS = console.PLAIN_SECONDS = 0
if {terminal}:
    console.err = Console(stderr=True, force_terminal=True, width=120, color_system=None, emoji=False)
main()
"""
WEIGHTS = "test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(24):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)).save(stream, "PNG")
        pictures.append({"bytes": stream.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    rows = datasets.Dataset.from_dict({"image": pictures, "label": [i % 3 for i in range(24)]}, features=features)
    model = timm.create_model("test_resnet", pretrained=False)
    config = {"architecture": "test_resnet", "num_classes": 1000, "num_features": model.num_features,
              "pretrained_cfg": {"input_size": [3, 160, 160], "first_conv": "conv1.0", "classifier": "fc"}}  # fmt: skip
    weights = save({key: value.contiguous() for key, value in model.state_dict().items()})
    repositories = {
        "owner/birds": Repository({"README.md": b"x", "data/train-0.parquet": parquet(rows)}, pause=0.12),
        f"timm/{WEIGHTS}": Repository(
            {"config.json": json.dumps(config).encode(), "model.safetensors": weights}, kind="model", pause=0.12
        ),
    }
    with serve(repositories) as server:
        yield server


@pytest.mark.parametrize("terminal", [False, True])
def test_downloads_are_told(hub: HubServer, tmp_path: Path, terminal: bool) -> None:
    environment = {**os.environ, **hub.environment(tmp_path), "HF_TOKEN": "", "PYTHONPATH": str(ROOT)}
    words = ["pretrain", "--data", "owner/birds", "--backbone", WEIGHTS, "--pretrained", "--device", "cpu", "--dry-run"]
    command = [sys.executable, "-c", PROGRAM.format(terminal=terminal), *words, "--image-size", "64"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    size = round(len(save(timm.create_model("test_resnet", pretrained=False).state_dict())) / 1e6)
    for what in ("downloading train-0.parquet (MB)", "generating train split (examples)"):
        assert what in done.stderr, done.stderr
    assert "it/s" not in done.stderr and "B/s" not in done.stderr  # tqdm's own words
    lines = done.stderr.splitlines()
    if not terminal:
        weights = [line for line in lines if line.startswith("downloading model.safetensors (MB): ")]
        assert weights[-1].endswith(f": {size}/{size}") and len(weights) > 2, lines
        assert any(line.endswith(" left") for line in weights)
        assert "generating train split (examples): 24/24" in lines
        assert not any("\r" in line or "\x1b" in line for line in lines)
    else:
        assert "\x1b" in done.stderr and f"/{size}" in done.stderr
    assert json.dumps("owner/birds")[1:-1] in done.stdout  # the plan itself is on stdout


def test_a_second_run_downloads_nothing_and_says_nothing(hub: HubServer, tmp_path: Path) -> None:
    environment = {**os.environ, **hub.environment(tmp_path), "HF_TOKEN": "", "PYTHONPATH": str(ROOT)}
    words = ["data", "check", "owner/birds", "--workers", "0"]
    command = [sys.executable, "-c", PROGRAM.format(terminal=False), *words]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)
        for _ in range(2)
    )
    assert "downloading" in first.stderr and "downloading" not in second.stderr and first.stdout == second.stdout


# ---- the pieces


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int, int | None]]]:
    """Everything that is told, at once."""
    monkeypatch.setattr(listening, "QUIET_SECONDS", 0)
    monkeypatch.setattr(listening, "BETWEEN_SECONDS", 0)
    calls: list[tuple[str, int, int | None]] = []
    reporter = Reporter()
    monkeypatch.setattr(reporter, "progress", lambda *call: calls.append(call))
    listen(reporter)
    yield calls
    listen(None)


def test_what_is_over_at_once_is_not_told(heard: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "QUIET_SECONDS", 60)
    short = Told("short", 3)
    for done in range(3):
        short(done)
    short.end(3)
    assert heard == []


def test_a_task_ends_once(heard: list[Any]) -> None:
    told = Told("listing")
    told(5)
    told.end(7)
    told.end(7)
    assert heard == [("listing", 5, None), ("listing", 7, 7)]


def test_nobody_listens_by_default() -> None:
    told = Told("listing")
    told._next = 0
    told(1)
    told.end(1)
    assert not told.spoke


def test_bars_are_told_and_drawn_as_ever_afterwards(heard: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    from tqdm.auto import tqdm

    with told_bars():
        for _ in tqdm(range(3), desc="Computing checksums", mininterval=0, disable=True):
            pass
        for _ in tqdm(range(3)):  # nameless: nobody could tell what it is about
            pass
        with tqdm(total=20, desc="Downloading data", unit="files", mininterval=0) as files:
            with tqdm(total=7_600_000, desc="a/b.parquet", unit="B", mininterval=0) as part:
                part.update(5_000_000)  # one of twenty
            files.update(20)
        with tqdm(total=7_600_000, desc="(...)/b.parquet", unit="B", mininterval=0) as alone:
            alone.update(5_000_000)
        with tqdm(total=0, desc="Generating train split", unit=" examples", mininterval=0) as unknown:
            unknown.update(12)
    assert capsys.readouterr().err == ""
    by_task = {task: [call[1:] for call in heard if call[0] == task] for task, _, _ in heard}
    assert list(by_task) == [
        "computing checksums", "downloading data (files)", "downloading b.parquet (MB)",
        "generating train split (examples)",
    ]  # fmt: skip
    assert by_task["downloading data (files)"][-1] == (20, 20)
    assert by_task["downloading b.parquet (MB)"][:2] == [(0, 8), (5, 8)]
    assert (12, None) in by_task["generating train split (examples)"]
    heard.clear()
    with tqdm(total=3, desc="drawn", mininterval=0) as bar:
        bar.update(3)
    assert heard == [] and "drawn" in capsys.readouterr().err


def test_listing_a_large_folder_is_told(heard: list[Any], tmp_path: Path) -> None:
    count = 2500
    for index in range(count):
        (tmp_path / f"{index}.jpg").touch()
    images = load_images(DataConfig(source=str(tmp_path)), "all")
    task = f"listing {tmp_path}"
    assert [call[1:] for call in heard] == [(1024, None), (2048, None), (count, None), (count, count)]
    assert {call[0] for call in heard} == {task} and len(images) == count
    heard.clear()
    images.fingerprint()
    assert [call[1:] for call in heard] == [(0, count), (1024, count), (2048, count), (count, count)]


def test_a_count_without_a_total_reads_well(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0)
    screen = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=screen, highlight=False, width=80))
    reporter = console.PlainReporter()
    for done, total in ((1024, None), (2500, 2500)):
        reporter.progress("listing photos", done, total)
    assert screen.getvalue() == "listing photos: 1024 so far\nlisting photos: 2500/2500\n"
    live = console.LiveReporter()
    live.progress("listing photos", 1024, None)
    assert live._bar.tasks[0].total is None and live._bar.tasks[0].completed == 1024
    live.progress("listing photos", 2500, 2500)
    assert live._bar.tasks == []
    live.close()
