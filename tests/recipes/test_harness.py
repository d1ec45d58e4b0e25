"""What the benchmarks share: turns, ratios, processes apart, sweeps that go on; and that the docs name each one."""

from __future__ import annotations

import os
import re
import runpy
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "bench"))

import harness

ROOT = Path(__file__).parents[2]


def test_the_docs_name_every_benchmark_that_is_listed_and_no_other() -> None:
    listed = runpy.run_path(str(ROOT / "recipes" / "bench" / "__main__.py"))["listed"]()
    assert all(listed.values())
    named = set(
        re.findall(r"(?<!tests/training/)\b\w+\.py", (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"))
    )
    files = {path.name for path in (ROOT / "recipes" / "bench").glob("[!_]*.py")}
    assert named == files and listed.keys() <= files


def test_all_sides_take_turns_and_warm_rounds_do_not_count() -> None:
    order: list[str] = []
    clock = iter(range(100))

    def count(call) -> float:
        call()
        return float(next(clock))

    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    assert harness.in_turns(calls, 2, warm=1, clock=count) == {"a": [2, 4], "b": [3, 5]}
    assert order == ["a", "b"] * 3


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    assert harness.ratio([2, 30, 8], [1, 10, 8]) == 2  # of 2, 3 and 1; the medians' ratio were 8 / 8


def fail() -> None:
    raise ValueError("no\nsuch thing")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
@pytest.mark.parametrize(("call", "arguments", "problem"), [
    (fail, (), "ValueError: no such thing"), (os._exit, (3,), "exit status 3"), (time.sleep, (60,), "no result in 0.2"),
])  # fmt: skip
def test_what_happens_apart_is_told_in_a_line(call, arguments, problem) -> None:
    assert harness.apart(divmod, 7, 2, start="fork") == (3, 1)
    with pytest.raises(RuntimeError, match=problem):
        harness.apart(call, *arguments, start="fork", timeout=0.2 if call is time.sleep else 60)


def test_a_sweep_goes_on_where_it_was_and_tries_failures_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def check(name: str) -> dict[str, str]:
        asked.append(name)
        if name == "b" and asked.count("b") == 1:
            raise RuntimeError("died")
        return {"name": name}

    first = harness.sweep("ab", check, tmp_path / "t.md")
    assert first["b"] == {"module": "b", "error": "died"}
    again = harness.sweep("abc", check, tmp_path / "t.md")
    assert asked == ["a", "b", "b", "c"] and [row["name"] for row in again.values()] == ["a", "b", "c"]
