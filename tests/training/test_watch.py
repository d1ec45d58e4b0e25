"""Training that goes wrong: judged from the log, named, and its images kept."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from running import SHORT, TINY, fgssl, photos
from safetensors.torch import load_file
from stopping import after_step

from fgssl.config.schema import OptimizerConfig
from fgssl.errors import TrainingFault
from fgssl.runs.resume_state import load_state, save_state
from fgssl.runtime.machine import is_out_of_memory, largest_batch
from fgssl.training.diagnosis import CHANCE_STEPS, Watch, absurd_rate
from fgssl.training.log import LogWindow

ROOT = Path(__file__).parents[2]


def warnings(
    ranks: list[float],
    *,
    stds: list[float] | None = None,
    losses: list[float] | None = None,
    every: int = 10,
    **options: bool,
) -> list[str]:
    """What is said over lines of a log, `every` steps apart."""
    watch, found = Watch(total_steps=1000, **options), []
    for line, rank in enumerate(ranks):
        loss = 1.0 if losses is None else losses[line]
        std = 0.5 if stds is None else stds[line]
        means = {"loss": loss, "effective_rank": rank, "feature_std": std}
        found += watch.look(every * (line + 1), means, chance=4.0)
    return found


def test_a_healthy_run_is_left_alone() -> None:
    assert warnings([5.0, 7, 9, 12, 11, 14] * 20) == []
    assert warnings([1.1] * 100) == []  # low from the start, as untrained networks are: nothing fell


def test_a_collapse_is_named_once_and_only_if_it_lasts() -> None:
    assert warnings([10, 1.5, 1.5, 9, 1.5, 1.5, 9]) == []
    (text,) = warnings([10, 12, 1.9, 1.5, 1.2, 1.1, 1.1, 1.1])
    assert "effective rank fell from 12.00 to 1.20 by step 50" in text and "--lr" in text and "views.png" in text


def test_a_collapse_to_a_point_is_told_from_one_to_a_line() -> None:
    (line,) = warnings([10, 12] + [1.1] * 5)  # opposite ends of a line are far apart
    (point,) = warnings([1.5] * 7, stds=[0.2, 0.6] + [0.05] * 5)  # a rank that was never worth losing
    (both,) = warnings([12] * 2 + [1.05] * 5, stds=[0.6] * 2 + [0.01] * 5)
    assert "rank fell" in line and "deviation" not in line
    assert "standard deviation fell from 0.600 to 0.050 by step 50" in point and "rank" not in point
    assert "rank fell from 12.00 to 1.05 and their standard deviation fell from 0.600 to 0.010 by step 50" in both
    assert warnings([5] * 9, stds=[0.03] * 2 + [0.001] * 7) == []  # never spread: nothing to lose
    assert warnings([5] * 9, stds=[0.6, 0.07] * 4 + [0.07]) == []  # less than nine tenths of it lost


@pytest.mark.parametrize("fallen", [
    {"ranks": [10, 12, 1.9, 1.5, 1.2]}, {"ranks": [5] * 5, "stds": [0.4, 0.5, 0.04, 0.02, 0.01]},
])  # fmt: skip
def test_a_collapse_stops_the_run_where_asked(fallen: dict[str, list[float]]) -> None:
    with pytest.raises(TrainingFault, match="the features collapse"):
        warnings(**fallen, stop_on_collapse=True)


def test_a_loss_at_chance_for_long_is_named() -> None:
    lines = CHANCE_STEPS // 10 + 2
    assert warnings([5.0] * lines, losses=[4.0] * (lines - 3) + [3.5] * 3) == []
    (text,) = warnings([5.0] * lines, losses=[4.1] * lines)
    assert "at chance (4.10 of 4.00)" in text and "views.png" in text


@pytest.mark.parametrize(("name", "lr", "fine"), [
    ("adamw", 1e-3, True), ("adamw", 1.0, False), ("adamw", 1e-9, False), ("sgd", 0.03, True), ("sgd", 30.0, False),
])  # fmt: skip
def test_learning_rates_out_of_all_proportion_are_named(name: str, lr: float, fine: bool) -> None:
    text = absurd_rate(OptimizerConfig(name=name, lr=lr))  # type: ignore[arg-type]
    assert text is None if fine else f"--lr {lr:g}" in str(text)


def test_what_was_seen_and_said_survives_a_resume() -> None:
    """Cut anywhere, a run is judged as if it had not been."""
    ranks, losses = [10.0, 12] + [1.1] * 5 + [9.0] * 60, [4.0] * 67
    lines = [
        {"loss": loss, "effective_rank": rank, "feature_std": 0.5} for loss, rank in zip(losses, ranks, strict=True)
    ]
    whole = warnings(ranks, losses=losses)
    assert len(whole) == 2  # one of each kind
    for cut in range(len(lines) + 1):
        first, found = Watch(total_steps=1000), list[str]()
        for line, means in enumerate(lines[:cut]):
            found += first.look(10 * (line + 1), means, chance=4.0)
        second = Watch(total_steps=1000)
        second.restore(json.loads(json.dumps(first.state())))
        for line, means in enumerate(lines[cut:], cut):
            found += second.look(10 * (line + 1), means, chance=4.0)
        assert found == whole, cut


def test_a_state_without_a_memory_is_taken() -> None:
    watch = Watch(total_steps=1000)
    watch.restore({})
    assert watch.state() == Watch(total_steps=1000).state()


def test_a_rate_is_named_once_a_run() -> None:
    config, watch = OptimizerConfig(name="adamw", lr=1.0), Watch(total_steps=10)
    assert [bool(watch.look_at_rate(config)) for _ in range(2)] == [True, False]
    resumed = Watch(total_steps=10)
    resumed.restore(watch.state())
    assert not resumed.look_at_rate(config) and resumed.look_at_rate(OptimizerConfig(name="adamw", lr=2.0))


# ---- memory


@pytest.mark.parametrize("fits", [2, 3, 5, 17, 31, 32, 63])
def test_the_batch_that_fits_is_found_by_trying(fits: int) -> None:
    def attempt(images: int) -> None:
        if images > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")

    found = largest_batch(attempt, 64)
    assert found is not None and found <= fits and found >= max(2, fits * 2 // 3 - 1)


def test_nothing_fits_and_other_errors_are_not_memory() -> None:
    def never(_images: int) -> None:
        raise MemoryError

    def broken(_images: int) -> None:
        raise RuntimeError("shapes differ")

    assert largest_batch(never, 64) is None
    with pytest.raises(RuntimeError, match="shapes"):
        largest_batch(broken, 64)
    cpu = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"
    assert is_out_of_memory(RuntimeError(cpu)) and not is_out_of_memory(ValueError("out of memory"))


LIMITED = """
import resource, sys
from fgssl.cli import main
from fgssl.training.feed import StepFeed
batches = StepFeed.batches
def limited(self, start):
    found = batches(self, start)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 700_000_000, -1))
    return found
StepFeed.batches = limited
main()
"""


@pytest.mark.slow  # alone on its machine: how much address space threads have reserved by then depends on the load
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc")
def test_memory_exhausted_in_a_step_names_a_batch_that_trains(tmp_path: Path) -> None:
    def train(batch: str) -> subprocess.CompletedProcess[str]:
        options = (*SHORT, "--image-size", "320", "--batch-size", batch, "--no-rationale", "--set", "views.crop_min=1")
        words = ["pretrain", "--data", str(photos()), *options, "--output", str(tmp_path / batch)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", LIMITED, *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)

    failed = train("24")
    (error,) = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert failed.returncode == 1 and "--batch-size 24 does not fit into the memory of cpu" in error
    fits = error.rpartition("--batch-size ")[2]
    assert 2 <= int(fits) < 24 and f"{fits} fits (tried)" in error


# ---- whole runs


def test_a_collapse_stops_a_run_and_leaves_its_state(tmp_path: Path) -> None:
    means = LogWindow.means

    def falling(self: LogWindow) -> dict[str, float]:
        return {**means(self), "effective_rank": 9.0 if self.steps[-1] < 3 else 1.05}

    options = ("--max-steps", "9", "--epochs", "9", "--set", "training.log_every=1", "--save-every", "2")
    for stop in (True, False):
        run = tmp_path / str(stop)
        with mock.patch.object(LogWindow, "means", falling):
            outcome = fgssl(
                "pretrain", "--data", photos(), *TINY, *options, *["--stop-on-collapse"][: int(stop)], "--output", run
            )
        if stop:
            assert "the features collapse" in outcome.error() and "--lr" in outcome.err
            assert sorted(path.stem for path in (run / "resume").glob("*.pt")) == ["000000002", "000000004"]
        else:
            assert outcome.code == 0 and outcome.err.count("the features collapse") == 1


def test_a_resumed_run_does_not_repeat_itself(tmp_path: Path) -> None:
    run, options = tmp_path / "run", ("--epochs", "20", "--max-steps", "20", "--set", "training.log_every=1")
    means = LogWindow.means

    def falling(self: LogWindow) -> dict[str, float]:
        return {**means(self), "feature_std": 0.6 if self.steps[-1] < 3 else 0.01}

    command = ("pretrain", "--data", photos(), *TINY, *options, "--lr", "0.06")
    with mock.patch.object(LogWindow, "means", falling):
        with after_step(10, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            stopped = fgssl(*command, "--output", run)
        old = load_state(shutil.copytree(run, tmp_path / "old"))
        assert old is not None and old.state.pop("watch")["said"]
        save_state(tmp_path / "old", old.step, old.state)  # as runs begun before there was a memory have it
        assert fgssl("pretrain", "--resume", tmp_path / "old").code == 0
        resumed = fgssl("pretrain", "--resume", run)
    for text in ("standard deviation fell from 0.600 to 0.010 by step 5", "--lr 0.06 is outside"):
        assert stopped.err.count(text) == 1
    assert resumed.code == 0 and "warning" not in resumed.err


def test_the_images_of_a_step_that_failed_are_kept(tmp_path: Path) -> None:
    seen: list[list[int]] = []
    original = LogWindow.add
    step_of = __import__("fgssl.training.loop", fromlist=["Trainer"]).Trainer.step

    def step(self, number, batch):  # type: ignore[no-untyped-def]
        seen.append(batch.index.tolist())
        return step_of(self, number, batch)

    def add(self, number, output, **times):  # type: ignore[no-untyped-def]
        original(self, number, output._replace(loss=output.loss * (torch.nan if number >= 3 else 1)), **times)

    run = tmp_path / "run"
    with mock.patch("fgssl.training.loop.Trainer.step", step), mock.patch.object(LogWindow, "add", add):
        error = fgssl("pretrain", "--data", photos(), *TINY, "--output", run).error()
    found = json.loads((run / "fault" / "step-000000003.json").read_text())
    assert f"not finite since step 3 (its images: {run}/fault/step-000000003.json)" in error
    kept = load_file(run / "fault" / "step-000000003.safetensors")
    assert kept["index"].tolist() == seen[2] and kept["views"].shape == (2, 8, 3, 64, 64)
    assert found["step"] == 3 and len(found["images"]) == 8 and all(Path(name).is_file() for name in found["images"])


def test_what_went_wrong_is_told_even_where_its_images_cannot_be_kept(tmp_path: Path) -> None:
    original = LogWindow.add

    def add(self, number, output, **times):  # type: ignore[no-untyped-def]
        original(self, number, output._replace(loss=output.loss * (torch.nan if number >= 3 else 1)), **times)

    full = mock.patch("fgssl.training.log.save_file", side_effect=OSError(28, "No space left on device"))
    with full, mock.patch.object(LogWindow, "add", add):
        error = fgssl("pretrain", "--data", photos(), *TINY, "--output", tmp_path / "run").error()
    assert "not finite since step 3" in error and "No space left" in error and "lower --lr" in error


def test_the_first_signal_saves_and_the_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGINT)

    with after_step(2, twice):
        outcome = fgssl("pretrain", "--data", photos(), *TINY, "--output", tmp_path / "run")
    assert outcome.code == 130 and not (tmp_path / "run" / "resume").exists()
    with after_step(2, lambda: os.kill(os.getpid(), signal.SIGUSR1)):
        outcome = fgssl("pretrain", "--resume", tmp_path / "run")
    assert outcome.code == 128 + signal.SIGUSR1 and "stopped by SIGUSR1 after step 2; state saved" in outcome.err
