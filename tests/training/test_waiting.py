"""Waiting for pictures: told from the start-up, judged over a window, said once, with what this run can change."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from pictures import ArrayImages
from running import TINY, fgssl, flat_photos, photos
from stopping import after_step

from fgssl.config.schema import TrainingConfig
from fgssl.data.cache.pixels import PixelStore, Shrunk
from fgssl.training.diagnosis import Waiting, remedies
from fgssl.training.feed import StepFeed


def told(shares: list[float], *, steps: int = 10, first: int = 0, **options: Any) -> list[str]:
    """What is said over lines of the log, `steps` apart, each step a second long."""
    waiting, found = Waiting(["--workers 8", "smaller pictures"], **options), []
    for line, share in enumerate(shares):
        found.append(waiting.look(first + steps * (line + 1), steps=steps, seconds=steps, share=share))
    return [text for text in found if text]


def test_start_up_and_single_slow_lines_are_no_starvation() -> None:
    assert told([0.95] * 5 + [0.05] * 50) == []  # before the queue of batches is full
    assert told([0.05] * 30 + [0.25] + [0.05] * 30) == []  # (0.25 + 4 * 0.05) / 5 = 0.09
    assert told([0.95] * 9) == []  # no whole window yet


def test_starvation_and_long_waits_are_said_once_each() -> None:
    (hint,) = told([0.2] * 40)
    assert hint == "20 % of the time is spent waiting for pictures: try --workers 8"
    (starved,) = told([0.5] * 40)
    assert "50 % of the last 50 steps" in starved and "2.0 times as fast" in starved
    assert "--resume with --workers 8, or start anew with smaller pictures" in starved
    assert [text.split()[0] for text in told([0.2] * 20 + [0.9] * 20 + [0.2] * 20)] == ["20", "starved"]
    assert [text.split()[0] for text in told([0.9] * 20 + [0.2] * 20)] == ["starved"]  # the hint would say less


def test_the_window_is_the_mean_over_its_time() -> None:
    """Against a sum by hand: 40 seconds of 100 in five lines of unequal length."""
    waiting, said = Waiting(["x"]), ""
    for line, (seconds, share) in enumerate([(10, 0.0), (10, 0.0), (20, 0.5), (20, 0.5), (40, 0.5)]):
        said = waiting.look(60 + 10 * line, steps=10, seconds=seconds, share=share)
    assert "40 % of the last 50 steps" in said


def test_lines_as_long_as_a_window_or_longer() -> None:
    assert told([0.9], steps=200) == []  # it holds the start-up
    assert len(told([0.9, 0.9], steps=200)) == 1


def test_what_a_resumed_run_has_said_is_not_said_again_unless_something_changed() -> None:
    first = Waiting(["--workers 8"])
    assert [bool(first.look(120 + 60 * n, steps=60, seconds=1, share=0.5)) for n in range(3)] == [True, False, False]
    for settings, again in ((["--workers 8"], False), (["--cache auto"], True)):
        second = Waiting(settings, said=sorted(first.said))
        assert bool(second.look(120, steps=60, seconds=1, share=0.5)) is again


def test_views_made_in_the_training_process_take_their_time() -> None:
    assert told([0.45] * 40, least=0.5) == []
    (text,) = told([0.55] * 40, least=0.5)
    assert text.startswith("starved")


@pytest.mark.parametrize(("settings", "kept", "workers", "expected"), [
    ({"cache": "off"}, None, 2, ["--cache auto", "--workers 4 (now 2, 8 cores)"]),
    ({"cache": "auto"}, None, 8, ["--cache FOLDER"]),
    ({"cache": "auto"}, "pixels", 6, ["--workers 8"]),
    ({"cache": "auto"}, "pixels", 0, ["--workers 2"]),
    ({"cache": "auto"}, "pixels", 8, ["more cores"]),
    ({"cache": "/x"}, "jpeg", 8, ["training.cache_budget=0.1"]),
])  # fmt: skip
def test_remedies_follow_the_settings(
    settings: dict[str, str],
    kept: str | None,
    workers: int,
    expected: list[str],
    memory_images: Callable[..., ArrayImages],
) -> None:
    pixels = PixelStore(memory_images(100), Shrunk(500))  # 100 * 500 * 667 * 3 bytes: 0.1 GB
    pixels.decodes = kept != "pixels"
    found = remedies(TrainingConfig(**settings), pixels, workers=workers, cores=8, image_size=224)
    assert len(found) == len(expected) + 1 and "--image-size below 224" in found[-1]
    assert all(text in line for text, line in zip(expected, found, strict=False)), found


@pytest.mark.slow
def test_a_starved_run_says_so_and_its_saves_do_not_count(tmp_path: Path) -> None:
    """The pictures come slowly: said once. Only the saves take long: nothing is said."""
    batches = StepFeed.batches

    def slowly(self: StepFeed, start: int) -> Any:
        for batch in batches(self, start):
            time.sleep(0.1)
            yield batch

    options = ("--max-steps", "30", "--epochs", "30", "--cache", "off", "--no-rationale")
    short = (
        mock.patch("fgssl.training.diagnosis.SETTLED_STEPS", 4),
        mock.patch("fgssl.training.diagnosis.WINDOW_STEPS", 4),
    )
    with short[0], short[1], mock.patch.object(StepFeed, "batches", slowly):
        starved = fgssl("pretrain", "--data", photos(), *TINY, *options, "--output", tmp_path / "starved")
    assert starved.code == 0 and starved.err.count("starved of pictures") == 1 and "--cache auto" in starved.err
    with short[0], short[1], mock.patch("fgssl.training.loop.save_state", lambda *_: time.sleep(0.3)):
        command = ("pretrain", "--data", flat_photos(), *TINY, *options, "--save-every", "1", "--cache", "auto")
        saving = fgssl(*command, "--max-steps", "16", "--output", tmp_path / "saving")
    assert saving.code == 0 and "starved of" not in saving.err
    with short[0], short[1], mock.patch.object(StepFeed, "batches", slowly), after_step(20, interrupt):
        stopped = fgssl("pretrain", "--data", photos(), *TINY, *options, "--output", tmp_path / "resumed")
    assert stopped.err.count("starved of pictures") == 1
    with short[0], short[1], mock.patch.object(StepFeed, "batches", slowly):
        resumed = fgssl("pretrain", "--resume", tmp_path / "resumed")
    assert resumed.code == 0 and "starved of" not in resumed.err


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
