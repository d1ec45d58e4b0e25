"""Images from the wild, through the command line: nothing stops a run, and everything unreadable is named."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from running import EVALUATED, SHORT, fgssl, finished_run, make_photos
from wild_images import READABLE, UNREADABLE, write_readable, write_unreadable

from fgssl.config.schema import DataConfig
from fgssl.data import load_images
from fgssl.data.cache.pixels import PixelStore, Shrunk
from fgssl.data.decoding import decode_image
from fgssl.errors import UnreadableImage
from fgssl.runtime.text import shown


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kinds, and as many good pictures that less than a tenth cannot be read."""
    folder = tmp_path_factory.mktemp("wild")
    make_photos(folder, 10 * len(UNREADABLE), classes=0)
    write_unreadable(folder)
    write_readable(folder)
    return folder


def test_there_are_enough_kinds() -> None:
    assert len(UNREADABLE) >= 30 and len(READABLE) >= 25


def test_a_run_over_all_kinds_ends_well_and_names_each_unreadable_one(zoo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = fgssl("pretrain", "--data", zoo, *EVALUATED, "--max-steps", "2", "--output", run)
    assert outcome.code == 0, outcome.err
    listed = json.loads((run / "summary.json").read_text())["unreadable"]
    assert len(listed) == len(UNREADABLE)
    for name, (_, reason) in UNREADABLE.items():
        visible = shown(name)
        (text,) = (line for line in listed if f"/{visible}: " in line)
        assert reason in text
        for place in (" ".join(listed), outcome.err, outcome.out):
            assert f"{visible}: " in place, name
    assert f"{len(UNREADABLE)} unreadable" in outcome.out
    # names cannot steer the terminal: no escape code, no bell, markup visible as it is
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", outcome.err + outcome.out)
    assert r"[red]ma[bold]\x1b[31mrkup\x07<b>.jpg" in outcome.out


def test_data_check_tells_beforehand_what_a_run_would_say(zoo: Path) -> None:
    outcome = fgssl("data", "check", zoo, "--json")
    report = outcome.json()
    assert outcome.code == 0 and outcome.out.isascii()
    found = {entry["image"].removeprefix(f"{zoo}/"): entry["reason"] for entry in report["unreadable"]}
    assert found.keys() == {shown(name) for name in UNREADABLE}
    assert all(reason in found[shown(name)] for name, (_, reason) in UNREADABLE.items())
    assert report["splits"][0]["animated"] == 3 and report["splits"][0]["width"]["min"] == 1
    visible = fgssl("data", "check", zoo)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", visible.err + visible.out)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*UNREADABLE, *READABLE], ids=shown)
def test_a_run_with_one_of_each_kind(name: str | bytes, tmp_path: Path) -> None:
    make_photos(tmp_path / "set", 12, classes=0)
    write = UNREADABLE[name][0] if name in UNREADABLE else READABLE[name]
    write(Path(os.fsdecode(os.path.join(os.fsencode(tmp_path / "set"), os.fsencode(name)))))
    outcome = fgssl("pretrain", "--data", tmp_path / "set", *SHORT, "--output", tmp_path / "run", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json()["train_images"] == 13 and len(outcome.json()["unreadable"]) == (name in UNREADABLE)


@pytest.mark.parametrize("name", READABLE, ids=shown)
def test_unusual_pictures_become_small_rgb_pixels(name: str | bytes, zoo: Path) -> None:
    path = os.fsdecode(os.path.join(os.fsencode(zoo), os.fsencode(name)))
    images = load_images(DataConfig(source=str(zoo)), "all")
    (index,) = (i for i in range(len(images)) if images.content(i) == path)
    pixels = PixelStore(images, Shrunk(125))[index]
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and pixels.min() >= 0
    assert pixels.nbytes <= 125 * 8 * 125 * 3  # also 100 x 1,000,000 pixels


def test_a_decompression_bomb_takes_no_memory(zoo: Path) -> None:
    with (
        mock.patch.object(Image.core, "new", side_effect=AssertionError("pixels were allocated")),
        pytest.raises(UnreadableImage, match="megapixels"),
    ):
        decode_image(zoo / "bomb.png")


def test_a_file_without_permission(tmp_path: Path) -> None:
    """Root reads everything, so the system's answer is made up."""
    make_photos(tmp_path, 3, classes=0)
    with (
        mock.patch("fgssl.data.decoding.open", side_effect=PermissionError(13, "Permission denied"), create=True),
        pytest.raises(UnreadableImage, match="no permission"),
    ):
        load_images(DataConfig(source=str(tmp_path)), "all").load(0)


@pytest.mark.parametrize(("change", "cache"), [("vanish", False), ("rot", True)])
def test_pictures_that_vanish_or_change_during_a_run(change: str, cache: bool, tmp_path: Path) -> None:
    """From the first step on two pictures are gone; or all are HTML, but decoded already."""
    from fgssl.training.loop import Trainer

    make_photos(tmp_path / "set", 24, classes=0)
    done, step = [], Trainer.step

    def spoiling(self: Trainer, number: int, batch: object) -> object:
        if not done:
            for path in sorted((tmp_path / "set").iterdir())[: None if cache else 2]:
                path.unlink() if change == "vanish" else path.write_bytes(b"<html>")
            done.append(number)
        return step(self, number, batch)

    options = ("--data", tmp_path / "set", *EVALUATED, "--output", tmp_path / "run")
    with mock.patch.object(Trainer, "step", spoiling):
        if cache:
            outcome = fgssl("pretrain", *options)
        else:
            with mock.patch("fgssl.data.cache.pixels.FREE_SPACE_SHARE", 0.0):
                outcome = fgssl("pretrain", *options)
    assert outcome.code == 0 and done, outcome.err
    listed = json.loads((tmp_path / "run" / "summary.json").read_text())["unreadable"]
    assert len(listed) == (0 if cache else 2) and all("does not exist" in line for line in listed)
    assert ("warning: no retrieval of the trained encoder" in outcome.err) == cache
    assert (tmp_path / "run" / "overview.png").exists() != cache and (tmp_path / "run" / "encoder.safetensors").exists()


def test_more_than_a_tenth_still_stops_a_run(tmp_path: Path) -> None:
    make_photos(tmp_path / "set", 20, classes=0)
    for number in range(3):
        (tmp_path / "set" / f"bad {number}.jpg").touch()
    outcome = fgssl("pretrain", "--data", tmp_path / "set", *SHORT, "--output", tmp_path / "run")
    assert "3 of 23 images" in outcome.error() and "bad 0.jpg: is empty" in outcome.error()


def test_visualize_names_a_bad_picture(zoo: Path) -> None:
    assert "is an HTML page" in fgssl("visualize", zoo / "page.jpg", "--checkpoint", finished_run()[0]).error()
