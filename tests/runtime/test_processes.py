"""One run in two processes: the same numbers as in one, and none left hanging when another dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from running import fgssl, photos
from safetensors.torch import load_file
from two_processes import OPTIONS, ROOT, launched, learned

from fgssl.runtime.machine import resolve_device
from fgssl.runtime.processes import launch, may_speak
from fgssl.runtime.reporting import Reporter
from fgssl.training.setup import time_limit

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_see_and_learn_what_one_does() -> None:
    folder = learned("mocov2")
    one, two = rows(folder / "alone"), rows(folder / "run")
    assert len(one) == len(two) == 20
    for name in ("loss", "fit", "target_entropy", "positive_similarity", "effective_rank"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-4, abs=1e-4), name
    first, second = (torch.load(folder / f"rank{rank}.pt") for rank in (0, 1))
    assert {"objective.queue", "objective.queue_pointer", "objective.key_projector.0.weight"} <= first.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.slow
def test_simclr_in_two_processes_learns_what_it_learns_in_one(tmp_path: Path) -> None:
    """Negatives of the other process, and their gradient: the same weights as from the whole batch in one process."""
    short = ("--objective", "simclr", "--max-steps", "6", "--set", "optimizer.name=sgd", "--lr", "0.1")
    assert fgssl("pretrain", "--data", photos(), *OPTIONS, *short, "--output", tmp_path / "alone").code == 0
    process = launched("pass", tmp_path / "run", *short)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    one, two = rows(tmp_path / "alone"), rows(tmp_path / "run")
    for name in ("loss", "chance", "fit", "positive_similarity"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-4, abs=1e-4), name
    ours, theirs = (load_file(tmp_path / run / "encoder.safetensors") for run in ("alone", "run"))
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n} {text}"
        )
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_process_that_dies_takes_the_other_down_with_one_line_that_names_it(tmp_path: Path) -> None:
    process = launched(
        "os.kill(os.getpid(), signal.SIGKILL) if (rank, step) == (1, 6) else None",
        tmp_path / "run",
        "--save-every",
        "2",
    )
    _, err = process.communicate(timeout=600)
    lines = [line for line in err.splitlines() if "error" in line or "problem:" in line]
    assert process.returncode == 1 and len(lines) == 1 and "Traceback" not in err, err
    assert "process 1 of 2 was killed by SIGKILL" in lines[0]
    assert sorted(path.stem for path in (tmp_path / "run" / "resume").glob("*.pt")) == ["000000002", "000000004"]
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


def test_nan_in_one_process_alone_stops_both_at_the_same_step(tmp_path: Path) -> None:
    act = "return output._replace(loss=output.loss * float('nan')) if (rank, step) == (1, 4) else None"
    process = launched(act, tmp_path / "run", "--save-every", "2")
    _, err = process.communicate(timeout=600)
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert process.returncode == 1 and len(errors) == 1 and "Traceback" not in err, err
    assert "problem: \n" in err  # the launcher adds nothing
    assert "not finite since step 4" in errors[0]
    assert sorted(path.stem for path in (tmp_path / "run" / "resume").glob("*.pt")) == ["000000002"]


# ---- the launcher itself, with processes that do nothing


def ends(tmp_path: Path, code: str) -> tuple[int, str]:
    return tuple(launch([sys.executable, "-c", f"import os, sys, time, signal\nrank = os.environ['RANK']\n{code}"], 2))


def test_the_launcher_tells_how_processes_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgssl.runtime.processes.GRACE_SECONDS", 0.5)
    assert ends(tmp_path, "pass") == (0, "")
    assert ends(tmp_path, "sys.exit(3) if rank == '1' else time.sleep(60)") == (
        1, "process 1 of 2 ended with code 3; the others were stopped",
    )  # fmt: skip
    says = "open(os.environ['FGSSL_SPOKEN'], 'x')\nsys.exit(1)"
    assert ends(tmp_path, f"if rank == '0':\n  {says.replace(chr(10), chr(10) + '  ')}\ntime.sleep(60)") == (1, "")


def test_signals_reach_every_process_once(tmp_path: Path) -> None:
    code = f"""
signal.signal(signal.SIGTERM, lambda *_: open({str(tmp_path)!r} + "/" + rank, "a").write("x") and None)
open({str(tmp_path)!r} + "/ready" + rank, "w").close()
time.sleep(1.5)
sys.exit(143)
"""
    words = [sys.executable, "-c", f"import os, sys, time, signal\nrank = os.environ['RANK']\n{code}"]
    outer = f"import sys\nfrom fgssl.runtime.processes import launch\nend = launch({words!r}, 2)\n"
    outer += "sys.exit(9 if end.problem else end.code)"
    process = subprocess.Popen([sys.executable, "-c", outer], env={**os.environ, "PYTHONPATH": str(ROOT)})
    while process.poll() is None and len(list(tmp_path.glob("ready*"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert [(tmp_path / name).read_text() for name in ("0", "1")] == ["x", "x"]


def test_a_second_ctrl_c_ends_processes_that_do_not_hear_it(tmp_path: Path) -> None:
    """As those do that wait in a collective for one that hangs."""
    code = f"""
signal.signal(signal.SIGINT, signal.SIG_IGN)
open({str(tmp_path)!r} + "/ready" + rank, "w").close()
time.sleep(120)
"""
    words = [sys.executable, "-c", f"import os, sys, time, signal\nrank = os.environ['RANK']\n{code}"]
    outer = "import sys, fgssl.runtime.processes as l\nl.GRACE_SECONDS = 0.3\n"
    outer += f"end = l.launch({words!r}, 2)\nsys.exit(9 if end.problem else end.code)"
    process = subprocess.Popen([sys.executable, "-c", outer], env={**os.environ, "PYTHONPATH": str(ROOT)})
    while process.poll() is None and len(list(tmp_path.glob("ready*"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):  # the first lets them save
        process.wait(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130


def test_only_the_first_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FGSSL_SPOKEN", raising=False)
    assert [may_speak(), may_speak()] == [True, True]  # alone there is nobody to leave it to
    monkeypatch.setenv("FGSSL_SPOKEN", str(tmp_path / "spoken"))
    assert [may_speak(), may_speak()] == [True, False]


def test_a_start_that_hangs_ends_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    said: list[str] = []
    reporter = mock.Mock(spec=Reporter, fatal=lambda problem, _remedy: said.append(problem))
    with mock.patch("os._exit") as ended, time_limit(reporter, 0.05):
        time.sleep(0.5)
    assert said == ["process 1 of 2: the others did not answer in 0.05 s"] and ended.call_args.args == (1,)
    with mock.patch("os._exit") as ended, time_limit(reporter, 0.2):
        pass
    time.sleep(0.4)
    assert not ended.called


def test_each_process_has_its_own_gpu_whatever_the_saved_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device("cuda:0") == torch.device("cuda", 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resolve_device("cuda:0") == resolve_device("cuda") == torch.device("cuda", 1)


def test_a_command_of_its_own_is_heard_and_told_of_signals() -> None:
    from fgssl.runtime.processes import run_command

    assert run_command([sys.executable, "-c", "print('x'); raise SystemExit(3)"]) == (3, "x\n")
    code = "import os, signal, time; os.kill(os.getppid(), signal.SIGUSR1); time.sleep(60)"
    assert run_command([sys.executable, "-c", code]).code == 128 + signal.SIGUSR1
