"""Threads on a machine that others use, too, and steps that take longer than they did."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from running import BACKBONE, SHORT, fgssl, photos

from fgssl.config.resolve import load_config
from fgssl.config.resumed import as_begun
from fgssl.config.schema import TrainingConfig
from fgssl.runtime import machine
from fgssl.training import diagnosis
from fgssl.training.diagnosis import Slowness


@pytest.mark.parametrize(("idle", "most", "threads"), [(2.0, 2, 2), (1.6, 2, 2), (1.1, 2, 1), (0.0, 2, 1),
                                                       (15.9, 8, 8), (5.2, 8, 5), (5.7, 8, 6)])  # fmt: skip
def test_threads_are_the_cores_that_are_free(
    idle: float, most: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with mock.patch.object(machine, "idle_cores", return_value=idle), mock.patch("torch.get_num_threads", lambda: most):
        assert machine.sensible_threads()[0] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with mock.patch("torch.get_num_threads", lambda: 3):
        assert machine.sensible_threads() == (3, "OMP_NUM_THREADS")


def test_idle_cores_are_counted() -> None:
    assert 0 <= machine.idle_cores() <= machine.available_cores()


def test_a_step_that_takes_many_times_what_it_took_is_said_once() -> None:
    with mock.patch.object(diagnosis, "sensible_threads", return_value=(1, "")), \
         mock.patch("torch.get_num_threads", lambda: 4):  # fmt: skip
        slow = Slowness(TrainingConfig(), Path("runs/photos"))
        quiet = [slow.look(times) for times in ([2.0, 9.0, 2.0], [0.1, 0.1], [0.11, 9.0, 0.1], [0.3], [])]
        said, again = slow.look([1.2, 1.1, 1.3]), slow.look([9.0])
    assert quiet == [""] * 5 and again == ""
    assert "a step takes 1.2 s, 12 times" in said and "--resume runs/photos --threads 1" in said


def test_short_steps_may_vary() -> None:
    slow = Slowness(TrainingConfig(), Path("run"))
    assert [slow.look([seconds]) for seconds in (0.01, 0.15)] == ["", ""]


def test_the_setting_is_used_kept_and_may_change_on_resume(tmp_path: Path) -> None:
    run, former = tmp_path / "run", torch.get_num_threads()
    try:
        assert fgssl("pretrain", "--data", photos(), *SHORT, "--threads", "2", "--output", run).code == 0
        assert torch.get_num_threads() == 2
        assert load_config(run / "config.yaml").config.training.threads == 2
        more = ("--resume", run, "--max-steps", "4", "--allow-changes", "--threads", "1")
        assert fgssl("pretrain", *more).code == 0 and torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(former)


def test_a_run_from_before_there_was_the_setting_keeps_torchs_number_and_ten_steps_a_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("training:\n  epochs: 3\n")
    found = as_begun(load_config(tmp_path / "config.yaml"))
    assert found.config.training.threads is None and found.origins["training.threads"] == "as it began"
    assert found.config.training.log_every == 10


@pytest.mark.parametrize(("batch", "every"), [("8", 3), ("2", 10)])
def test_every_epoch_has_a_point(batch: str, every: int) -> None:
    """Of 24 pictures: an epoch of 3 steps, and one of 12."""
    options = (
        "--backbone",
        BACKBONE,
        "--no-pretrained",
        "--image-size",
        "64",
        "--batch-size",
        batch,
        "--device",
        "cpu",
    )
    plan = fgssl("pretrain", "--data", photos(), *options, "--dry-run", "--json").json()
    assert plan["settings"]["training.log_every"]["value"] == every
