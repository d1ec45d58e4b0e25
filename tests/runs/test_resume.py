"""Stops of the hard kind: kill -9, full disks, two processes in one folder, other settings; and how often to save."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from run_results import assert_equal_encoders, metrics
from running import SHORT, TINY, fgssl, photos
from stopping import after_step, start_run, stopped_run

from fgssl.config.resolve import load_config
from fgssl.config.resumed import AS_BEGUN, as_begun, changed, with_changes
from fgssl.config.values import Interval, interval
from fgssl.errors import FgsslError
from fgssl.runs import lock as runlock
from fgssl.runs.lock import LOCK_FILE, hold_run
from fgssl.runs.resume_state import load_state, remove_states, save_state

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def run_python(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False)


# ---- kill -9

KILLS = (sys.executable, str(ROOT / "recipes/bench/reliability.py"), "--parts", "kills")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
def test_a_run_killed_ten_times_equals_one_left_alone() -> None:
    """Real processes, at random moments: while they decode, evaluate, train, save and write results."""
    command = [*KILLS, "--kills", "10", "--steps", "16"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)["kills"]
    assert sum(found["kills"].values()) == 10 and len(found["kills"]) >= 3
    assert found["weights_equal"] and found["metrics_equal"]
    assert found["steps"] == list(range(2, 17, 2))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_hundreds_of_kills(seed: int) -> None:
    command = [*KILLS, "--kills", "60", "--steps", "80"]
    done = subprocess.run([*command, "--seed", str(seed)], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_two_processes_killed_and_resumed_equal_two_left_alone(tmp_path: Path) -> None:
    """One of them by kill -9, after which its launcher ends the other; random numbers of both go on where they were."""
    options = (*TINY, "--max-steps", "24", "--epochs", "24", "--processes", "2", "--save-every", "4")
    command = [sys.executable, "-m", "fgssl", "pretrain"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    new = [*command, "--data", str(photos()), *options, "--output"]
    subprocess.run([*new, str(whole)], env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    launcher = subprocess.Popen([*new, str(cut)], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while launcher.poll() is None and not (cut / "resume" / "000000008.sha256").exists():
        time.sleep(0.02)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert launcher.wait(120) == 1
    resume = [*command, "--resume", str(cut), "--processes", "2"]
    subprocess.run(resume, env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    assert_equal_encoders(whole, cut)
    assert metrics(whole) == metrics(cut)


def test_states_of_a_finished_run_go_all_or_not_at_all(tmp_path: Path) -> None:
    save_state(tmp_path, 1, {"x": 1})
    with mock.patch("shutil.rmtree", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        remove_states(tmp_path)
    assert load_state(tmp_path) is None  # not a damaged state
    remove_states(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".resume-removed"] or not list(tmp_path.iterdir())


# ---- how often


@pytest.mark.parametrize(("text", "expected"), [
    ("200", (200, None)), ("0", (1, None)), ("90s", (None, 90)), ("10m", (None, 600)), ("2h", (None, 7200)),
    ("1.5h", (None, 5400)), (" 10 min ", (None, 600)), ("10.0", (None, 600)), ("0m", (None, 0)),
])  # fmt: skip
def test_intervals_are_steps_or_times(text: str, expected: tuple[int | None, float | None]) -> None:
    assert interval(text) == expected


@pytest.mark.parametrize("text", ["", "often", "-1", "10d", "m", "1e3", "10 m s", "nan"])
def test_other_intervals_are_refused_by_name(text: str) -> None:
    assert interval(text) is None
    with pytest.raises(FgsslError, match=r"training.save_every .*steps \(200\) or time"):
        load_config(flags={"training.save_every": text})


def test_an_interval_is_over_by_its_own_measure() -> None:
    assert [Interval(3, None).over(steps, 1e9) for steps in (2, 3, 4)] == [False, True, True]
    assert [Interval(None, 60.0).over(10**9, seconds) for seconds in (59, 61)] == [False, True]


def test_states_are_saved_every_so_many_steps(tmp_path: Path) -> None:
    saved: list[int] = []
    with mock.patch("fgssl.training.loop.save_state", side_effect=lambda _run, step, _state: saved.append(step)):
        assert fgssl("pretrain", "--data", photos(), *TINY, "--save-every", "4", "--output", tmp_path / "r").code == 0
    assert saved == [4, 6]


# ---- a disk that is full


FULL = """
import resource, sys
from pathlib import Path
from fgssl.cli import main
import fgssl.training.loop
real, room = fgssl.training.loop.save_state, int(sys.argv.pop(1))
def save(run, step, state):
    if step >= 5:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    real(run, step, state)
fgssl.training.loop.save_state = save
main()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="POSIX limits")
def test_a_disk_that_fills_up_stops_with_one_line_and_keeps_both_states(tmp_path: Path) -> None:
    options = ("pretrain", "--data", photos(), *TINY, "--save-every", "2", "--output", tmp_path / "run")
    done = run_python(FULL, 300_000, *options)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "cannot write" in error and "000000006.pt" in error and "free the disk" in error
    assert sorted(path.name for path in (tmp_path / "run" / "resume").iterdir()) == [
        f"{step:09d}.{kind}" for step in (2, 4) for kind in ("pt", "sha256")
    ]
    whole = stopped_run(tmp_path / "whole")
    assert [fgssl("pretrain", "--resume", run).code for run in (tmp_path / "run", whole)] == [0, 0]
    assert metrics(tmp_path / "run") == metrics(whole)
    assert_equal_encoders(tmp_path / "run", whole)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own; skipped where this user may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_file_system_keeps_both_states(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64m") as disk:
        run = disk / "run"
        with after_step(5, lambda: (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - 1_000_000))):
            error = fgssl("pretrain", "--data", photos(), *TINY, "--save-every", "2", "--output", run).error()
        assert "cannot write" in error
        assert sorted(path.stem for path in (run / "resume").glob("*.pt")) == ["000000002", "000000004"]
        (disk / "filler").unlink()
        assert fgssl("pretrain", "--resume", run).code == 0


# ---- one process a run


def test_a_second_process_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start_run(run)
    try:
        while process.poll() is None and not (run / "metrics.jsonl").exists():
            time.sleep(0.05)
        before = (run / "config.yaml").read_bytes()
        for options in (("--resume", run), ("--data", photos(), *SHORT, "--overwrite", "--output", run)):
            error = fgssl("pretrain", *options).error()
            assert f"is being trained by process {process.pid} on {socket.gethostname()}" in error
        assert (run / "config.yaml").read_bytes() == before and process.poll() is None
        os.kill(process.pid, signal.SIGKILL)  # and its lock blocks nobody
        process.communicate(timeout=60)
        assert (run / LOCK_FILE).exists()
        with hold_run(run):
            assert json.loads((run / LOCK_FILE).read_text())["pid"] == os.getpid()
        assert not (run / LOCK_FILE).exists()
    finally:
        process.kill()


def written_by(folder: Path, **owner: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / LOCK_FILE).write_text(json.dumps({"host": "elsewhere", "pid": 7, "born": "1", **owner}))
    return folder


def test_another_hosts_lock_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlock, "SILENT_SECONDS", 0.4)
    notes: list[str] = []
    with hold_run(written_by(tmp_path / "dead"), note=notes.append):
        pass
    assert len(notes) == 1 and "elsewhere" in notes[0]
    alive = written_by(tmp_path / "alive")
    with (
        mock.patch("time.sleep", side_effect=lambda _s: os.utime(alive / LOCK_FILE)),
        pytest.raises(FgsslError, match="process 7 on elsewhere"),
        hold_run(alive),
    ):
        pass
    assert (alive / LOCK_FILE).exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff"])
def test_a_lock_that_nobody_finished_writing_blocks_nobody(content: bytes, tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_bytes(content)
    with hold_run(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_without_kernel_locks_the_named_process_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlock, "_lock", lambda *_: False)
    host, parent = socket.gethostname(), os.getppid()
    with (
        pytest.raises(FgsslError, match=f"process {parent} on"),
        hold_run(written_by(tmp_path, host=host, pid=parent, born=runlock._born(parent))),
    ):
        pass
    for pid, born in ((parent, "0"), (2**22 + 1, "1")):  # the number is another process's by now, or nobody's
        with hold_run(written_by(tmp_path, host=host, pid=pid, born=born)):
            pass


# ---- other settings


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run of its own for each test, stopped after 3 of 6 steps."""
    return stopped_run(tmp_path / "run")


def test_settings_that_make_another_run_are_shown_and_refused(stopped: Path) -> None:
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    options = ("--lr", "0.5", "--set", "rationale.temperature=2", "--data", photos(), "--workers", "1")
    error = fgssl("pretrain", "--resume", stopped, *options).error()
    assert "optimizer.lr 0.001 -> 0.5" in error and "rationale.temperature 1 -> 2" in error
    assert "--allow-changes" in error and "workers" not in error and "data.source" not in error
    assert before == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}


def test_the_same_settings_given_again_are_no_change(stopped: Path) -> None:
    outcome = fgssl("pretrain", "--resume", stopped, "--data", photos(), *TINY)
    assert outcome.code == 0 and "changed for the rest" not in outcome.err


def test_allowed_changes_are_named_used_and_kept(stopped: Path) -> None:
    outcome = fgssl("pretrain", "--resume", stopped, "--lr", "0.5", "--save-every", "1", "--allow-changes")
    assert outcome.code == 0, outcome.err
    assert "changed for the rest of the run: optimizer.lr 0.001 -> 0.5, training.save_every 10m -> 1" in outcome.err
    assert load_config(stopped / "config.yaml").config.optimizer.lr == 0.5
    rates = [json.loads(line)["lr"] for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert rates[0] < 0.001 < rates[1]


def test_a_run_of_before_layer_wise_rates_goes_on_without_them(stopped: Path) -> None:
    path, added = stopped / "config.yaml", ("layer_decay", "freeze", "cached_views")
    old = [line for line in path.read_text().splitlines() if line.split(":")[0].strip() not in added]
    path.write_text("\n".join(old))
    saved = as_begun(load_config(path))
    assert saved.config.optimizer.layer_decay == 1.0 and saved.origins["backbone.drop_path"] == AS_BEGUN
    outcome = fgssl("pretrain", "--resume", stopped)
    assert outcome.code == 0 and "resuming after step 3" in outcome.err
    assert as_begun(load_config(path)).origins["backbone.drop_path"] != AS_BEGUN  # by now it says what it does


def test_a_run_of_before_batch_norm_could_rest_goes_on_with_the_batchs_statistics(stopped: Path) -> None:
    path = stopped / "config.yaml"
    old = [line for line in path.read_text().splitlines() if line.split(":")[0].strip() != "batch_norm"]
    path.write_text("\n".join([*old, ""]).replace("init: null", "init: somewhere"))
    saved = as_begun(load_config(path))
    assert saved.config.backbone.batch_norm == "batch" and saved.origins["backbone.batch_norm"] == AS_BEGUN


def test_a_state_that_fits_no_more_is_one_line(stopped: Path) -> None:
    options = ("--set", "rationale.projections=7", "--allow-changes")
    error = fgssl("pretrain", "--resume", stopped, *options).error()
    assert "does not fit this run" in error and "--init" in error


def test_a_preset_asks_for_all_its_settings() -> None:
    saved = load_config(sets=["rationale.preset=official"])
    changes = {change.key: change.after for change in changed(saved, load_config(sets=["rationale.preset=normalized"]))}
    assert changes["rationale.preset"] == "normalized" and changes["rationale.target"] == "probability"
    assert changes["rationale.weight"] == 1.0 and "rationale.sign" not in changes
    config = with_changes(saved, changed(saved, load_config(sets=["rationale.preset=normalized"])), allow=True, run="r")
    assert config.config.rationale == load_config(sets=["rationale.preset=normalized"]).config.rationale


def test_pictures_added_during_a_stop_are_noticed(tmp_path: Path) -> None:
    shutil.copytree(photos(), tmp_path / "photos")
    with after_step(3, lambda: os.kill(os.getpid(), signal.SIGINT)):
        fgssl("pretrain", "--data", tmp_path / "photos", *TINY, "--output", tmp_path / "run")
    picture = next((tmp_path / "photos" / "train").rglob("*.jpg"))
    shutil.copy(picture, picture.with_name("new.jpg"))
    error = fgssl("pretrain", "--resume", tmp_path / "run").error()
    assert "25 images, but 24 when the state was saved" in error
    outcome = fgssl("pretrain", "--resume", tmp_path / "run", "--allow-changes")
    assert outcome.code == 0 and "warning:" in outcome.err
