"""Parts of an embedding: the same whoever makes them, found again, and none that is damaged or another's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from running import fgssl, make_photos, plain_run

from fgssl.backbones import build_backbone
from fgssl.encoder import Encoder
from fgssl.evaluation import parts
from fgssl.evaluation.embed import embed
from fgssl.evaluation.parts import LARGEST, PARTS, part_rows
from fgssl.runtime.processes import End


@given(st.integers(0, 3_000_000), st.sampled_from([1, 7, 64, 256, 5000]))
def test_parts_are_whole_batches_and_all_of_the_split(total: int, batch: int) -> None:
    found = part_rows(total, batch)
    assert [row.stop for row in found[:-1]] == [row.start for row in found[1:]]
    assert (found[0].start, found[-1].stop) == (0, total) if found else total == 0
    assert all(len(rows) % batch == 0 for rows in found[:-1]) and all(
        len(rows) <= max(LARGEST, batch) for rows in found
    )
    assert len(found) >= min(PARTS / 2, total / batch) or len(found[0]) == batch


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(build_backbone("test_resnet", image_size=64))


def cut(encoder: Encoder, images, folder: Path, *, after: int, batch_size: int = 2):
    """An embedding that dies after so many batches."""
    seen, forward = [], Encoder.embeddings

    def counted(self, views, pools, *told):
        if len(seen) == after:
            raise KeyboardInterrupt
        seen.append(len(views))
        return forward(self, views, pools, *told)

    with mock.patch.object(Encoder, "embeddings", counted):
        try:
            found = embed(encoder, images, pools=("gap",), batch_size=batch_size, workers=0, cache=str(folder))
        except KeyboardInterrupt:
            found = None
    return found, sum(seen)


def test_what_was_embedded_is_not_embedded_again(encoder, memory_images, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parts, "LEAST_KEPT", 1)
    images = memory_images(21, broken=(4, 5))  # a part has two pictures, one of them none that can be read
    whole, _ = cut(encoder, images, tmp_path / "other", after=99)
    nothing, before = cut(encoder, images, tmp_path, after=3)
    kept = sorted((tmp_path / "features").glob("*-part-*.safetensors"))
    assert (nothing, before, len(kept)) == (None, 6, 4)
    kept[0].write_bytes(b"damaged")
    found, after = cut(encoder, images, tmp_path, after=99)
    assert after == 19 - before + 2  # the damaged one's again
    assert torch.equal(found["gap"].features, whole["gap"].features)
    assert found["gap"].identifiers == whole["gap"].identifiers and found["gap"].faults == whole["gap"].faults
    assert not list((tmp_path / "features").iterdir())  # it is whole: the parts are gone


def test_parts_of_another_encoder_or_another_batch_are_not_taken(encoder, memory_images, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parts, "LEAST_KEPT", 1)
    images = memory_images(10)
    cut(encoder, images, tmp_path, after=3)
    assert cut(encoder, images, tmp_path, after=99, batch_size=5)[1] == 10
    with torch.no_grad():
        next(encoder.parameters()).add_(0.1)
    assert cut(encoder, images, tmp_path, after=99)[1] == 10


def test_small_splits_and_those_without_a_cache_keep_nothing(encoder, memory_images, tmp_path, monkeypatch) -> None:
    cut(encoder, memory_images(10), tmp_path, after=3)
    assert not (tmp_path / "features").exists()
    monkeypatch.setattr(parts, "LEAST_KEPT", 1)
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path))
    with mock.patch.object(Encoder, "embeddings", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        embed(encoder, memory_images(10), pools=("gap",), batch_size=2, workers=0, cache="off")
    assert not (tmp_path / "features").exists()


def test_a_flag_starts_the_processes(tmp_path: Path) -> None:
    """retrieve in two: the numbers of one. What two write with embed, `test_several_processes` reads."""
    folder = make_photos(tmp_path / "photos", 9)
    options = ("--data", folder, "--device", "cpu", "--json", "--batch-size", "2")
    scored, said = fgssl("retrieve", plain_run(), *options).json(), tmp_path / "retrieve.json"
    with said.open("w") as file, mock.patch("fgssl.runtime.processes.subprocess.Popen", to(file)):
        done = fgssl("retrieve", plain_run(), *options, "--processes", "2")
    assert done.code == 0, done.err
    together = json.loads(said.read_text())
    assert together["mAP"] == pytest.approx(scored["mAP"], abs=1e-6) and together["queries"] == scored["queries"]
    words = ("embed", plain_run(), *options, "--output", tmp_path / "two", "--processes", "2")
    with mock.patch("fgssl.cli.options.launch", return_value=End(0, "")) as launched:
        assert fgssl(*words).code == 0
    launched.assert_called_once_with([sys.executable, "-m", "fgssl", *map(str, words)], 2)


def to(file):
    """Popen whose first process writes into a file, as in this test nothing is read from the real stdout."""
    from subprocess import Popen

    return lambda words, **options: Popen(words, **{**options, "stdout": options["stdout"] or file})
