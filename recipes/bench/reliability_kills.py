"""Kill -9 at random moments of one run until it is finished, and compare it with a run that nobody touched.

    python recipes/bench/reliability_kills.py --kills 20

One process loads torch; every attempt is a fork of it that runs the command line as a user's process would, and is
killed by SIGKILL. The first fall while it decodes and evaluates, most while it trains and saves (every step does), the
last while it writes its results; the moment within is random.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

OPTIONS = (
    "--backbone", "mobilenetv3_small_050", "--no-pretrained", "--image-size", "64", "--batch-size", "8",
    "--mixed-precision", "no", "--device", "cpu", "--workers", "0", "--save-every", "1", "--quiet",
    "--set", "training.log_every=2", "--set", "backbone.drop_path=0.2",
)  # fmt: skip
# what a run imports, so that no attempt has to
LOADED = ("fgssl.cli.pretrain", "fgssl.training.pretrain", "torch._dynamo")
CLOCK = ("images_per_second", "wait_share", "seconds_left", "peak_memory_gb")  # measured: all that may differ


class Outcome(NamedTuple):
    """What the kills came to."""

    kills: dict[str, int]  # phase of the run -> processes killed in it
    weights_equal: bool  # bit for bit, encoder file and what the summary says of retrieval
    metrics_equal: bool  # every line but the measured times
    steps: list[int]  # of metrics.jsonl


def make_photos(folder: Path, count: int, *, size: int = 400) -> Path:
    """Noise pictures in class folders, large enough that decoding takes a while."""
    import numpy as np
    from PIL import Image

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


def never() -> bool:
    """Left alone."""
    return False


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


def kill_and_compare(work: Path, *, kills: int, steps: int, seed: int) -> Outcome:
    """One run killed so many times against one left alone."""

    for room in LOADED:  # here, once: an attempt is a fork
        importlib.import_module(room)
    photos, whole, run = make_photos(work / "photos", 48), work / "whole", work / "killed"
    begin = ["pretrain", "--data", str(photos), *OPTIONS, "--max-steps", str(steps), "--epochs", str(steps)]
    log = work / "log"
    assert attempt([*begin, "--output", str(whole)], cache=work / "c1", log=log, ready=never, delay=0) == 0
    rng, found, cache, code = random.Random(seed), Counter[str](), work / "c2", None
    while code is None:
        count = sum(found.values())
        ready, delay = (never, 0.0) if count >= kills else moment(count / kills, run, cache, rng)
        resumable = (run / "config.yaml").exists()
        command = ["pretrain", "--resume", str(run), "--quiet"] if resumable else [*begin, "--output", str(run)]
        code = attempt(command, cache=cache, log=log, ready=ready, delay=delay)
        if code is None:
            found[phase(run, cache)] += 1
    if code != 0:
        raise SystemExit(f"a resumed run failed with {code}: {log.read_text()[-2000:]}")
    return Outcome(dict(found), *_compare(whole, run))


def _compare(whole: Path, run: Path) -> tuple[bool, bool, list[int]]:
    files = ("encoder.safetensors", "timm/model.safetensors", "overview.png", "views.png", "config.yaml")
    equal = all((whole / name).read_bytes() == (run / name).read_bytes() for name in files)
    first, second = (json.loads((folder / "summary.json").read_text())["retrieval"] for folder in (whole, run))
    ours, theirs = _metrics(run), _metrics(whole)
    return equal and first == second, ours == theirs, [row["step"] for row in ours]


def _metrics(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def main() -> None:
    """Print the outcome as JSON; exit code 1 where a run differs."""
    parser = argparse.ArgumentParser(description="Kill -9 at random moments; the run must not notice.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = kill_and_compare(Path(folder), kills=options.kills, steps=options.steps, seed=options.seed)
    print(json.dumps(found._asdict()))
    sys.exit(0 if found.weights_equal and found.metrics_equal else 1)


if __name__ == "__main__":
    main()
