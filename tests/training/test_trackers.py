"""Runs followed elsewhere: what TensorBoard's own reader finds, resumed runs, and trackers that fail."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
from running import SHORT, fgssl, photos
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fgssl.config.resolve import load_config
from fgssl.runtime.reporting import Reporter
from fgssl.training import trackers
from fgssl.training.trackers import Trackers


class Listener(Reporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Fake:
    """One of Accelerate's trackers as far as a run calls it."""

    made: ClassVar[list[Fake]] = []

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.name, self.arguments, self.options, self.rows = "wandb", arguments, options, list[Any]()
        Fake.made.append(self)

    def start(self) -> None:
        print("welcome")

    def log(self, values: dict[str, Any], step: int) -> None:
        self.rows.append((step, values))

    def log_images(self, values: dict[str, Any], step: int) -> None:
        self.rows.append((step, {name: np.asarray(pixels).shape for name, pixels in values.items()}))

    def finish(self) -> None:
        self.rows.append("finished")


def opened(folder: Path, kind: type[Fake], *, names: str = "trackio", step: int = 0) -> tuple[Trackers, Listener]:
    listener = Listener()
    found = Trackers(load_config(sets=[f"training.track={names}"]).config, folder, listener)
    fakes = dict.fromkeys(names.split(","), kind)
    with mock.patch.object(trackers, "LOGGER_TYPE_TO_CLASS", fakes):
        found.begin(step)
    return found, listener


def events(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_reads_the_lines_of_metrics_and_the_pictures(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = (*SHORT, "--max-steps", "4", "--track", "tensorboard", "--set", "training.signals_every=2")
    first = fgssl("pretrain", "--data", photos(), *options, "--output", run, "--json")
    assert first.code == 0 and first.json()["steps"] == 4 and "warning: --track" not in first.err
    found = events(run)
    for row in lines(run):
        for key, value in row.items():
            if value is not None:
                assert [event.value for event in found.Scalars(key) if event.step == row["step"]] == [
                    pytest.approx(value, rel=1e-6)
                ], key
    assert {"views", "curve"} <= set(found.Tags()["images"]) and "config/text_summary" in found.Tags()["tensors"]
    # the same run there, without what is logged twice
    options = ("--resume", run, "--max-steps", "6", "--allow-changes", "--quiet")
    assert fgssl("pretrain", *options).code == 0
    steps = [event.step for event in events(run).Scalars("loss")]
    assert steps == sorted(set(steps)) == [row["step"] for row in lines(run)] and steps[-1] == 6


def test_ids_last_and_stdout_stays_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Fake.made.clear()
    found, listener = opened(tmp_path, Fake)
    found.log({"loss": 1.5, "fit": None}, 10)
    found.close()
    known = (tmp_path / "trackers" / "trackio.id").read_text().strip()
    opened(tmp_path, Fake, step=10)[0].close()  # resumed: the same run there
    opened(tmp_path, Fake)[0].close()  # begun anew: another
    names = [fake.options["name"] for fake in Fake.made]
    assert names[0] == names[1] == f"{tmp_path.name}-{known[:6]}" != names[2]
    assert Fake.made[0].rows == [(10, {"loss": 1.5}), "finished"] and listener.warnings == []
    assert capsys.readouterr().out == ""


class Failing(Fake):
    def log(self, values: dict[str, Any], step: int) -> None:
        raise ConnectionError("the server is gone\nreally")


class Exiting(Fake):
    def start(self) -> None:
        sys.exit("no key")


class Hanging(Fake):
    answers: ClassVar[threading.Event] = threading.Event()

    def start(self) -> None:
        self.answers.wait(60)


@pytest.mark.parametrize(
    ("kind", "words"), [(Failing, "ConnectionError: the server is gone"), (Exiting, "no key"), (Hanging, "no answer")]
)
def test_a_tracker_that_fails_costs_one_warning(kind: type[Fake], words: str, tmp_path: Path) -> None:
    Hanging.answers.clear()
    with mock.patch.object(trackers, "LAST_SECONDS", 0.5 if kind is Hanging else 60.0):
        found, listener = opened(tmp_path, kind)
        (thread,) = found.threads
        for step in range(5):
            found.log({"loss": 1.0}, step)
            time.sleep(0.01)
        found.close()
    Hanging.answers.set()
    thread.join(60)  # or it would speak in another test
    assert len(listener.warnings) == 1 and words in listener.warnings[0] and "goes on without" in listener.warnings[0]


def test_a_tracker_is_the_one_that_was_known_when_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = threading.Event()
    run = trackers._Thread.run
    monkeypatch.setattr(trackers._Thread, "run", lambda thread: begin.wait(60) and run(thread))
    Fake.made.clear()
    found, listener = opened(tmp_path, Fake)
    begin.set()  # a thread that comes late, on a busy machine
    found.close()
    assert len(Fake.made) == 1 and listener.warnings == []


def test_unknown_and_missing_trackers_are_told_at_once(tmp_path: Path) -> None:
    assert "choose from tensorboard" in fgssl("pretrain", "--track", "tensorbord", "--dry-run").error(2)
    with mock.patch.dict(sys.modules, {"mlflow": None}):
        error = fgssl("pretrain", "--data", photos(), *SHORT, "--track", "mlflow", "--output", tmp_path / "run").error()
    assert "mlflow is not installed" in error and "pip install 'fgssl[mlflow]'" in error
    assert not (tmp_path / "run").exists()
