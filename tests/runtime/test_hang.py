"""A process that neither gets on nor dies: the others end, and one of them names it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from torch.distributed import TCPStore
from two_processes import launched

from fgssl.runtime.reporting import HangDetector, Heartbeat, Reporter, StepReport, diagnose

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")


# ---- who it is


def heartbeats(*moves: int, places: tuple[str, ...] = ()) -> dict[int, Heartbeat]:
    names = places or ("computing a step",) * len(moves)
    return {rank: Heartbeat(5, count, 0, names[rank]) for rank, count in enumerate(moves)}


@pytest.mark.parametrize(("silent", "moves", "ranks", "words"), [
    ({2}, (7, 7, 7, 7), [2], "process 2 of 4 did not answer for 60 s"),
    ({1, 3}, (7, 7, 7, 6), [1, 3], "processes 1, 3 of 4 did not answer"),  # behind, but that is not why
    (set(), (8, 8, 7, 8), [2], "process 2 of 4 was computing a step for 60 s"),
    (set(), (8, 7, 8, 7), [1, 3], "processes 1, 3 of 4 was"),
    (set(), (8, 8, 8, 8), [], "no process got on for 60 s, each computing a step"),
    ({0, 2, 3}, (7, 7, 7, 7), [0], "process 0 of 4 did not answer"),  # it keeps the store: the others may be well
    ({1, 2, 3}, (7, 7, 7, 7), [1, 2, 3], "processes 1, 2, 3 of 4"),
])  # fmt: skip
def test_the_process_that_hangs_is_named(
    silent: set[int], moves: tuple[int, ...], ranks: list[int], words: str
) -> None:
    found, problem = diagnose(silent, heartbeats(*moves), 60.0)
    assert found == ranks and problem.startswith(words)


def test_it_is_told_where_it_hangs() -> None:
    places = ("computing a step", "waiting for pictures")
    assert "process 1 of 2 was waiting for pictures for 3 s" in diagnose(set(), heartbeats(4, 3, places=places), 3.0)[1]


# ---- patience, with two detectors in this process


class Ended(SystemExit):
    """In place of the end of the process."""


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`pair(limit)`: two detectors that meet through a store, and what they have said so far."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    said: list[str] = []
    reporter = mock.Mock(spec=Reporter, fatal=lambda problem, _remedy: said.append(problem))

    def build(limit: float) -> tuple[HangDetector, HangDetector, list[str]]:
        return HangDetector(0, 2, limit, reporter), HangDetector(1, 2, limit, reporter), said

    def end(_code: int) -> None:
        raise Ended

    monkeypatch.setattr("os._exit", end)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    yield build


def wait_until(condition: Any, seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(condition())


def test_one_that_works_keeps_all_waiting_in_peace_until_it_stops(pair: Any) -> None:
    first, second, said = pair(1.0)
    with first.running(), second.running():
        second.at("waiting for process 0")  # say, while the first evaluates: three times the limit
        for _ in range(60):
            time.sleep(0.05)
            first.beat()
        assert said == []
        assert wait_until(lambda: said)
    assert said == ["process 0 of 2 was starting for 1 s, and the others waited"]  # said by the other, and once


def test_nobody_is_judged_before_all_have_met_or_after_the_end(pair: Any) -> None:
    first, _, said = pair(0.3)
    with first.running():
        time.sleep(1.2)  # the second is still loading its libraries, of which `time_limit` takes care
    third, fourth, _ = pair(0.3)
    with third.running(), fourth.running():
        wait_until(lambda: len(third.seen) == len(fourth.seen) == 2)
    time.sleep(0.6)
    assert said == []


def test_alone_nothing_is_started() -> None:
    before = threading.active_count()
    with HangDetector(0, 1, 60.0, Reporter()).running():
        assert threading.active_count() == before
    with HangDetector(0, 2, 0.0, Reporter()).running():  # 0s: never
        assert threading.active_count() == before


def test_everything_said_is_handed_on_and_progress_counts() -> None:
    inner = mock.Mock(spec=Reporter)
    detector = HangDetector(0, 1, 60.0, inner)
    reporter: Reporter = detector
    report = StepReport(*range(len(StepReport._fields)))
    calls = {"note": ("a",), "warn": ("b",), "fatal": ("c", "d"), "progress": ("e", 1, 2), "step": (report,)}
    for name, arguments in {**calls, "planned": ({}, {})}.items():
        getattr(reporter, name)(*arguments)
        getattr(inner, name).assert_called_once_with(*arguments)
    assert detector.own.beats == 4
    assert {n for n in vars(Reporter) if not n.startswith("_")} == {*calls, "planned"}  # a new one is handed on, too


# ---- real processes


@pytest.mark.parametrize(("act", "named"), [
    ("os.kill(os.getpid(), signal.SIGSTOP) if (rank, step) == (1, 6) else None", "process 1 of 2 did not answer"),
    pytest.param(
        "os.kill(os.getpid(), signal.SIGSTOP) if (rank, step) == (0, 6) else None", "process 0 of 2 did not answer",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "time.sleep(900) if (rank, step) == (1, 6) else None", "process 1 of 2 was computing a step",
        marks=pytest.mark.slow,
    ),
])  # fmt: skip
def test_a_process_that_hangs_ends_the_run_with_one_line_that_names_it(act: str, named: str, tmp_path: Path) -> None:
    process = launched(act, tmp_path / "run", "--save-every", "2", "--set", "training.stall_limit=3s")
    _, err = process.communicate(timeout=300)
    lines = [line for line in err.splitlines() if line not in ("", "problem: ")]
    assert process.returncode == 1 and len(lines) == 1, err
    assert named in lines[0] and "--resume" in lines[0] and "stall_limit" in lines[0]
    assert sorted(path.stem for path in (tmp_path / "run" / "resume").glob("*.pt")) == ["000000002", "000000004"]
