"""What one verb has embedded the next one reads, and nothing of it when anything has changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest import mock

import pytest
from running import fgssl, finished_run, make_photos, photos

from fgssl.data.cache import tensors
from fgssl.encoder import Encoder
from fgssl.evaluation import kept


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "LEAST_KEPT", 1)


def embedded(*words: object) -> tuple[dict, int]:
    """What a verb says, and how many pictures it embedded for it."""
    seen, forward = [], Encoder.embeddings

    def counted(self, views, pools, *told):
        seen.append(len(views))
        return forward(self, views, pools, *told)

    with mock.patch.object(Encoder, "embeddings", counted):
        said = fgssl(*words, "--device", "cpu", "--json")
    assert said.code == 0, said.err
    return said.json(), sum(seen)


def test_the_next_verb_embeds_only_what_none_did_before(tmp_path: Path) -> None:
    run, cache = finished_run()[0], ("--cache", tmp_path)
    test, train = (sum(file.is_file() for file in (photos() / split).rglob("*")) for split in ("test", "train"))
    first, seen = embedded("retrieve", run, *cache)
    assert seen == test == first["queries"]
    assert embedded("retrieve", run, *cache) == (first, 0)
    assert embedded("retrieve", run, "--gallery-split", "train", *cache)[1] == train
    found, seen = embedded("probe", run, *cache)
    assert seen == 0 and found == embedded("probe", run, "--cache", "off")[0]
    assert embedded("retrieve", run, "--pool", "gap", *cache)[1] == test


def test_compare_embeds_the_poolings_that_are_missing(tmp_path: Path) -> None:
    run, options = finished_run()[0], ("--cache", tmp_path)
    embedded("probe", run, "--pool", "gap", *options)
    both = ("compare", run, "--pool", "gap,rationale", *options)
    found, seen = embedded(*both)
    again, none = embedded(*both)
    assert seen and not none and again == found
    assert found == embedded(*both[:-1], "off")[0]


def test_another_picture_encoder_or_program_embeds_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, folder = tmp_path / "run", make_photos(tmp_path / "photos", 6)
    shutil.copytree(finished_run()[0], run)
    asked = ("retrieve", run, "--data", folder, "--cache", tmp_path / "cache")
    counts = [embedded(*asked)[1]]
    picture = next(folder.rglob("*.jpg"))
    shutil.copy(next(path for path in folder.rglob("*.jpg") if path != picture), picture)
    counts += [embedded(*asked)[1]]
    monkeypatch.setattr(kept, "_code", lambda: "a later version")
    counts += [embedded(*asked)[1]]
    assert len(set(counts)) == 1 and counts[0] > 0
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 1  # the former ones are gone
    assert embedded(*asked)[1] == 0


def test_how_many_may_be_unreadable_is_asked_of_kept_ones_too(tmp_path: Path) -> None:
    folder, options = make_photos(tmp_path / "photos", 6), ("--cache", tmp_path / "cache")
    for picture in sorted(file for file in folder.rglob("*") if file.is_file())[::2]:
        picture.write_bytes(b"no picture")
    run = finished_run()[0]
    survey = ("explore", folder, "--checkpoint", run, *options, "--output", tmp_path / "page.html")
    assert fgssl(*survey).code == 0
    assert list((tmp_path / "cache" / "features").iterdir())
    refused = fgssl("retrieve", run, "--data", folder, *options)
    assert refused.code == 1 and "cannot be read" in refused.err


def test_few_pictures_are_embedded_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "LEAST_KEPT", 100)
    embedded("retrieve", finished_run()[0], "--cache", tmp_path)
    assert not (tmp_path / "features").exists()


def test_embeddings_that_are_large_for_the_disk_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "FREE_SPACE_SHARE", 0.0)
    embedded("retrieve", finished_run()[0], "--cache", tmp_path)
    assert not list((tmp_path / "features").iterdir())
