"""--output of every verb: a file of the user survives, and the verb says so before it works."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from running import fgssl, finished_run, flat_photos

VERBS = ("embed", "visualize", "retrieve")


def command(verb: str, output: Path, query: Path) -> tuple[str | Path, ...]:
    run = finished_run()[0]
    return {
        "embed": ("embed", run, "--data", query.parent, "-o", output),
        "visualize": ("visualize", query, "--checkpoint", run, "-o", output),
        "retrieve": ("retrieve", run, "--query", query, "--gallery", query.parent, "-o", output),
    }[verb]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return Path(shutil.copytree(flat_photos(), tmp_path / "photos"))


@pytest.mark.parametrize("verb", VERBS)
def test_foreign_files_survive_and_own_ones_are_replaced(verb: str, photos: Path, tmp_path: Path) -> None:
    pictures = sorted(photos.iterdir())
    query, other = pictures[:2]
    suffix = ".safetensors" if verb == "embed" else ".png"
    before = {path: path.read_bytes() for path in pictures}
    for output in pictures[:2]:
        assert f"'{output}'" in fgssl(*command(verb, output, query)).error()
        if output == query or verb != "visualize":  # an input, or a picture of the gallery
            fgssl(*command(verb, output, query), "--overwrite").error()
    assert {path: path.read_bytes() for path in pictures} == before
    foreign = tmp_path / f"thesis{suffix}"
    shutil.copy(other, foreign)
    assert "--overwrite" in fgssl(*command(verb, foreign, query)).error()
    assert foreign.read_bytes() == before[other]
    assert fgssl(*command(verb, foreign, query), "--overwrite").code == 0  # replaces it
    written = foreign.read_bytes()
    assert written != before[other]
    assert fgssl(*command(verb, foreign, query)).code == 0  # known as fgssl's own
    os.mkfifo(tmp_path / f"pipe{suffix}")
    assert "pipe" in fgssl(*command(verb, tmp_path / f"pipe{suffix}", query), "--overwrite").error()


def test_an_encoder_is_no_features_file_that_may_be_replaced(tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run()[0], tmp_path / "run"))
    encoder = run / "encoder.safetensors"
    former = encoder.read_bytes()
    shutil.copy(encoder, tmp_path / "copy.safetensors")
    assert "--overwrite" in fgssl("embed", run, "-o", tmp_path / "copy.safetensors").error()
    assert "input" in fgssl("embed", run, "-o", encoder, "--overwrite").error()
    assert encoder.read_bytes() == former


def test_stats_alone_write_nothing(tmp_path: Path) -> None:
    (tmp_path / "features.safetensors").write_text("mine")
    assert fgssl("embed", finished_run()[0], "--stats", cwd=tmp_path).code == 0
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_probe_keeps_tables_that_no_probe_wrote(tmp_path: Path) -> None:
    (tmp_path / "per_class.csv").write_text("my thesis")
    ask = ("probe", finished_run()[0], "-o", tmp_path)
    assert "per_class.csv" in fgssl(*ask).error()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["my thesis"]
    assert fgssl(*ask, "--overwrite").code == 0
    assert fgssl(*ask).code == 0  # the folder of a probe
