"""The list of runs: finished, running and stopped ones, damaged files, and what lies deeper."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from running import fgssl, finished_run

from fgssl.errors import FgsslError
from fgssl.runs.listing import list_runs
from fgssl.runs.lock import hold_run, is_held


def test_runs_are_listed_with_their_state(tmp_path: Path) -> None:
    run, _ = finished_run()
    for name in ("done", "cut", "deep/er", "bad"):
        shutil.copytree(run, tmp_path / name)
    for name in ("summary.json", "encoder.safetensors"):
        (tmp_path / "cut" / name).unlink()
    for name in ("summary.json", "metrics.jsonl"):
        (tmp_path / "bad" / name).write_bytes(b'{"steps"\xff')
    (tmp_path / "not a run").mkdir()
    os.utime(tmp_path / "done" / "config.yaml", (2**31, 2**31))  # the newest
    found = {str(entry.folder.relative_to(tmp_path)): entry for entry in list_runs(tmp_path)}
    assert next(iter(found)) == "done" and set(found) == {"done", "cut", "deep/er", "bad"}
    rows = json.loads((run / "summary.json").read_text())["retrieval"]
    (own,) = (row["rank1"] for row in rows if (row["encoder"], row["pool"]) == ("trained", "zoom"))
    done, cut, bad = found["done"], found["cut"], found["bad"]
    assert (done.status, done.step, done.rank1, done.objective) == ("finished", 6, own, "mocov2")
    assert (cut.status, cut.step, cut.total_steps, cut.rank1) == ("stopped", 6, 6, None)
    assert (bad.status, bad.step, bad.rank1) == ("stopped", 0, None)
    with hold_run(tmp_path / "cut"):
        assert {entry.folder.name: entry.status for entry in list_runs(tmp_path)}["cut"] == "running"
        document = fgssl("runs", tmp_path, "--json").json()
        assert {Path(entry["folder"]).name: entry["status"] for entry in document}["cut"] == "running"
    said = fgssl("runs", tmp_path)
    assert said.code == 0 and "finished" in said.out, said.out
    assert "stopped at 6/6" in said.out, said.out
    with pytest.raises(FgsslError, match="no folder"):
        list_runs(tmp_path / "nothing")


def test_a_lock_is_believed_while_its_owner_lives(tmp_path: Path) -> None:
    lock = tmp_path / "run.lock"
    assert not is_held(tmp_path)
    with hold_run(tmp_path):
        kept = lock.read_text()
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    lock.write_text(json.dumps({**json.loads(kept), "born": "0"}))  # another process has the number now
    assert not is_held(tmp_path)
    lock.write_text(json.dumps({"host": f"not-{socket.gethostname()}", "pid": 1, "born": "1"}))
    assert is_held(tmp_path)
    os.utime(lock, (0, 0))
    assert not is_held(tmp_path)
    for text in ("", "[]", "{}", "\xff"):
        lock.write_text(text)
        assert not is_held(tmp_path)
