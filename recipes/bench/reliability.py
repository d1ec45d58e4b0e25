"""The figures of docs/resume.md: runs killed and resumed, in two processes, and watched for leaks.

    python recipes/bench/reliability.py --parts kills,processes,leaks --output reliability.json
    python recipes/bench/reliability.py --parts leaks --steps 2000 --workers 2

kills      kill -9 at random moments of one run until it is finished; weights and metrics against a run left alone
processes  20 steps in one and in two processes: the largest difference of the loss
leaks      memory of the main process and of its loaders over 2,000 steps (Linux)

For the kills one process loads torch; every attempt is a fork of it that runs the command line as a user's process
would, and is killed by SIGKILL. The first fall while it decodes and evaluates, most while it trains and saves (every
step does), the last while it writes its results; the moment within is random. Table on stderr, JSON on stdout; exit
code 1 where a killed run differs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
from PIL import Image

COMMON = (
    "--no-pretrained", "--mixed-precision", "no", "--device", "cpu", "--quiet", "--image-size", "64",
)  # fmt: skip
KILLED = (
    *COMMON, "--backbone", "mobilenetv3_small_050", "--batch-size", "8", "--workers", "0", "--save-every", "1",
    "--set", "training.log_every=2", "--set", "backbone.drop_path=0.2",
)  # fmt: skip
# what a run imports, so that no attempt has to
LOADED = ("fgssl.cli.pretrain", "fgssl.training.pretrain", "torch._dynamo")
CLOCK = ("images_per_second", "wait_share", "seconds_left", "peak_memory_gb")  # measured: all that may differ


def make_photos(folder: Path, count: int, *, size: int = 400) -> Path:
    """Noise pictures in class folders, large enough that decoding takes a while."""
    rng = np.random.default_rng(0)
    for index in range(count):
        place = folder / ("test" if index % 4 == 3 else "train") / f"class{index % 3}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(place / f"{index:03d}.jpg")
    return folder


def attempt(arguments: list[str], *, cache: Path, log: Path, ready: Callable[[], bool], delay: float) -> int | None:
    """Run a command in a fork; kill it so long after it is ready. Its exit code, None where it was killed."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ["FGSSL_CACHE"] = str(cache)
        sys.argv = ["fgssl", *arguments]
        code = 1
        try:
            from fgssl.cli import main

            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    until = None
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if until is None and ready():
            until = time.monotonic() + delay
        if until is not None and time.monotonic() >= until:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
        time.sleep(0.001)


def phase(run: Path, cache: Path) -> str:
    """What a killed process was at, by what it left."""
    if (run / "encoder.safetensors").exists():
        return "writing results"
    if any((run / "resume").glob(".0*")):
        return "saving"
    if (run / "metrics.jsonl").exists():
        return "training"
    return "building the cache" if any(cache.glob("decoded/.building-*")) else "evaluating"


def moment(share: float, run: Path, cache: Path, rng: random.Random) -> tuple[Callable[[], bool], float]:
    """When to kill, by how many of the kills are done: what to wait for, and how many seconds longer."""
    if share < 0.3:
        for path in cache.glob("decoded/*"):  # both splits are decoded anew
            path.unlink(missing_ok=True)
    if share < 0.15:
        return lambda: any(cache.glob("decoded/.building-*")), rng.uniform(0, 0.1)
    if share < 0.3:
        return lambda: any(cache.glob("decoded/*.pixels")), rng.uniform(0, 0.2)
    if share < 0.8:
        before = _newest(run)
        return lambda: _newest(run) != before, rng.uniform(0, 0.2)
    return lambda: (run / "encoder.safetensors").exists(), rng.uniform(0.05, 0.5)


def _newest(run: Path) -> str:
    return max((path.name for path in (run / "resume").glob("0*.pt")), default="")


def never() -> bool:
    """Left alone."""
    return False


def kills(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run killed so many times against one left alone."""
    for room in LOADED:  # here, once: an attempt is a fork
        importlib.import_module(room)
    photos, whole, run = make_photos(work / "photos", 48), work / "whole", work / "killed"
    steps = str(options.steps or 2 * options.kills)
    begin = ["pretrain", "--data", str(photos), *KILLED, "--max-steps", steps, "--epochs", steps]
    log = work / "log"
    assert attempt([*begin, "--output", str(whole)], cache=work / "c1", log=log, ready=never, delay=0) == 0
    rng, found, cache, code = random.Random(options.seed), Counter[str](), work / "c2", None
    while code is None:
        count = sum(found.values())
        ready, delay = (never, 0.0) if count >= options.kills else moment(count / options.kills, run, cache, rng)
        resumable = (run / "config.yaml").exists()
        command = ["pretrain", "--resume", str(run), "--quiet"] if resumable else [*begin, "--output", str(run)]
        code = attempt(command, cache=cache, log=log, ready=ready, delay=delay)
        if code is None:
            found[phase(run, cache)] += 1
    if code != 0:
        raise SystemExit(f"a resumed run failed with {code}: {log.read_text()[-2000:]}")
    files = ("encoder.safetensors", "timm/model.safetensors", "overview.png", "views.png", "config.yaml")
    equal = all((whole / name).read_bytes() == (run / name).read_bytes() for name in files)
    first, second = (json.loads((folder / "summary.json").read_text())["retrieval"] for folder in (whole, run))
    ours, theirs = (
        [{k: v for k, v in row.items() if k not in CLOCK} for row in logged(folder)] for folder in (run, whole)
    )
    return {
        "kills": dict(found),  # phase of the run -> processes killed in it
        "weights_equal": equal and first == second,  # bit for bit, encoder file and what the summary says of retrieval
        "metrics_equal": ours == theirs,  # every line but the measured times
        "steps": [row["step"] for row in ours],
    }


def logged(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def processes(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The same run in one and in two processes, with a backbone without BatchNorm."""
    photos = make_photos(work / "photos", 48, size=64)
    settings = ["--set", "training.evaluate=false", "--set", "training.log_every=1", "--workers", "0"]
    settings += ["--set", "rationale.branch_norm=none"]
    losses = []
    for count in ("1", "2"):
        words = ["--backbone", "convnext_zepto_rms", "--batch-size", "8", "--max-steps", "20"]
        words += ["--epochs", "20", "--data", str(photos), "--processes", count, "--output", str(work / count)]
        command = [sys.executable, "-m", "fgssl", "pretrain", *COMMON, *settings, *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        losses.append([line["loss"] for line in logged(work / count)])
    return {"steps": len(losses[0]), "largest_difference": max(abs(a - b) for a, b in zip(*losses, strict=True))}


def leaks(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Memory that is no file's (RssAnon, MB) after a tenth of the steps and at the end."""
    photos, steps = make_photos(work / "photos", 320, size=64), options.steps or 2000
    words = ["--backbone", "mobilenetv3_small_050", "--batch-size", "16", "--data", str(photos)]
    words += ["--max-steps", str(steps), "--epochs", str(steps), "--workers", str(options.workers)]
    words += [
        "--set",
        "training.evaluate=false",
        "--save-every",
        str(max(1, steps // 10)),
        "--set",
        "training.log_every=10",
    ]
    # often: the first signals take memory that later ones take again, and belong to the warm-up
    words += ["--set", f"training.signals_every={max(1, steps // 40)}"]
    run = work / "run"
    command = [sys.executable, "-m", "fgssl", "pretrain", *COMMON, *words, "--output", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    samples: list[tuple[int, float, float]] = []  # step, main process, largest loader
    while process.poll() is None:
        memory = {pid: _anonymous(pid) for pid in (process.pid, *_children(process.pid))}
        loaders = [value for pid, value in memory.items() if pid != process.pid]
        samples.append((last_step(run), memory[process.pid], max(loaders, default=0.0)))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit("the run of the leak test failed")
    warm = [s for s in samples if steps // 10 <= s[0] <= steps // 5]
    late = [s for s in samples if steps * 8 // 10 <= s[0]]
    found = {"steps": steps, "workers": options.workers}
    for name, column in (("main", 1), ("loader", 2)):
        found[f"{name}_mb_warm"] = round(statistics.median([s[column] for s in warm]), 1)
        found[f"{name}_mb_end"] = round(statistics.median([s[column] for s in late]), 1)
    return found


def _anonymous(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:")), 0.0)


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def last_step(run: Path) -> int:
    """The last step that is logged so far."""
    try:
        return int(logged(run)[-1]["step"])
    except (OSError, ValueError, IndexError):
        return 0


PARTS = {"kills": kills, "processes": processes, "leaks": leaks}


def table(results: dict[str, Any]) -> list[str]:
    """The results as docs/resume.md shows them."""
    rows = []
    if "kills" in results:
        r = results["kills"]
        where = ", ".join(f"{count} {phase}" for phase, count in sorted(r["kills"].items()))
        same = "equal bit for bit" if r["weights_equal"] and r["metrics_equal"] else "DIFFERENT"
        rows.append(("kill -9, then `--resume`", f"{sum(r['kills'].values())} kills ({where}): weights and log {same}"))
    if "processes" in results:
        r = results["processes"]
        difference = f"loss differs by {r['largest_difference']:.1e} at most"
        rows.append((f"one and two processes, {r['steps']} steps", difference))
    if "leaks" in results:
        r = results["leaks"]
        main, loader = (f"{r[f'{n}_mb_warm']:.0f} to {r[f'{n}_mb_end']:.0f} MB" for n in ("main", "loader"))
        rows.append((f"memory over {r['steps']:,} steps, warm to end", f"main process {main}, loader {loader}"))
    return harness.markdown(("what", "measured"), rows)


def main() -> int:
    """Run the parts and print them."""
    parser = harness.parser(__doc__, "--output")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, help="of a run [leaks: 2,000; kills: twice the kills]")
    parser.add_argument("--workers", type=int, default=1, help="of the run that may leak")
    parser.add_argument("--seed", type=int, default=0, help="of the moments to kill at")
    options = harness.begin(parser)
    results = {}
    for part in options.parts.split(","):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["FGSSL_CACHE"] = str(Path(folder, "cache"))
            results[part] = PARTS[part](Path(folder), options)
    harness.report(options, results, table(results))
    found = results.get("kills", {"weights_equal": True, "metrics_equal": True})
    return int(not (found["weights_equal"] and found["metrics_equal"]))


if __name__ == "__main__":
    sys.exit(main())
