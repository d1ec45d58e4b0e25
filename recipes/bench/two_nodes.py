"""Two machines of two processes each, rehearsed on one: torchrun's rendezvous on loopback, a cache for each machine.

    python recipes/bench/two_nodes.py --output two_nodes.json

What docs/processes.md tells for several machines, on drawn pictures in tar shards read in local order: training against
one process alone; training that is stopped in four processes and goes on in one; embeddings and retrieval against one
process. The backbone has no BatchNorm, whose statistics are of a process's share. Table on stderr, JSON on stdout; exit
code 1 where anything differs by more than rounding.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
from PIL import Image
from safetensors.numpy import load_file

NODES, PROCESSES = 2, 2
TRAIN = (
    "--backbone", "convnext_zepto_rms", "--no-pretrained", "--image-size", "64", "--batch-size", "8", "--workers", "1",
    "--device", "cpu", "--mixed-precision", "no", "--epochs", "100", "--quiet", "--save-every", "4",
    "--set", "training.evaluate=false", "--set", "training.log_every=1", "--set", "training.shuffle=local",
    "--set", "rationale.branch_norm=none",
)  # fmt: skip
LOSS_ROUNDING, FEATURE_ROUNDING = 1e-3, 1e-5


def make_shards(folder: Path, *, size: int = 64) -> Path:
    """Tars of noise pictures whose tint is their class."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name in (*(f"train-{shard:06d}" for shard in range(4)), "test-000000"):
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for number in range(12):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                pixels[..., number % 3] |= 192
                stream = io.BytesIO()
                Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(stream, "JPEG")
                for ending, content in (("jpg", stream.getvalue()), ("cls", b"%d" % (number % 3))):
                    member = tarfile.TarInfo(f"{name}-{number:04d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def start(work: Path, *arguments: str, together: bool) -> list[subprocess.Popen[bytes]]:
    """`fgssl` alone, or under a launcher for each machine."""
    command, nodes = [sys.executable, "-m", "fgssl", *arguments], ["alone"]
    if together:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            place = f"127.0.0.1:{probe.getsockname()[1]}"
        torchrun = ["torch.distributed.run", f"--nnodes={NODES}", f"--nproc_per_node={PROCESSES}"]
        torchrun += ["--rdzv_backend=c10d", f"--rdzv_endpoint={place}", "-m", "fgssl", *arguments]
        command, nodes = [sys.executable, "-m", *torchrun], ["first", "second"]
    threads = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **threads, "FGSSL_CACHE": str(work / f"cache-{node}")},
            stdout=(work / f"{node}.out").open("wb"),
            stderr=(work / f"{node}.log").open("ab"),
        )
        for node in nodes
    ]


def run(work: Path, *arguments: str, together: bool = False) -> str:
    """What it answers, on whichever machine the first process was. SystemExit where it fails."""
    started = start(work, *arguments, together=together)
    codes = [each.wait() for each in started]
    nodes = ["first", "second"] if together else ["alone"]
    if any(codes):
        logs = "\n".join((work / f"{node}.log").read_text()[-1500:] for node in nodes)
        raise SystemExit(f"fgssl {' '.join(arguments)} ended with {codes}\n{logs}")
    return "".join((work / f"{node}.out").read_text() for node in nodes)


def losses(folder: Path) -> dict[int, float]:
    """The loss of every step that was logged."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines)}


def furthest(one: dict[int, float], other: dict[int, float]) -> float:
    """The largest difference of the loss; infinite where a step is missing."""
    return max(abs(one[step] - other[step]) for step in one) if one.keys() == other.keys() else float("inf")


def stopped_half_way(work: Path, folder: Path, *arguments: str) -> int:
    """A run of four processes that both launchers are told to stop, and the step that it reached."""
    started = start(work, *arguments, together=True)
    while not list(folder.glob("resume/*.sha256")) and started[0].poll() is None:
        time.sleep(0.05)
    for each in started:
        each.send_signal(signal.SIGTERM)
    for each in started:
        each.wait()
    return max(losses(folder), default=0)


def main() -> int:
    """Rehearse and compare."""
    parser = harness.parser(__doc__, "--output")
    parser.add_argument("--steps", type=int, default=24, help="of training")
    options = harness.begin(parser)
    found: dict[str, Any] = {"steps": options.steps, "machines": NODES, "processes_each": PROCESSES}
    with tempfile.TemporaryDirectory() as folder:
        work, begin = Path(folder), time.perf_counter()
        train = ["pretrain", "--data", str(make_shards(work / "shards")), *TRAIN, "--max-steps", str(options.steps)]
        one, four, half = (work / name for name in ("one", "four", "half"))
        run(work, *train, "--output", str(one))
        run(work, *train, "--output", str(four), together=True)
        found["loss_difference"] = furthest(losses(one), losses(four))
        found["stopped_after"] = stopped_half_way(work, half, *train, "--output", str(half))
        run(work, "pretrain", "--resume", str(half), "--quiet")
        found["loss_difference_resumed_in_one"] = furthest(losses(one), losses(half))
        for name, together in (("features-one", False), ("features-four", True)):
            words = ("--device", "cpu", "--batch-size", "2", "--cache", "off", "--output", str(work / name), "--quiet")
            run(work, "embed", str(one), *words, together=together)
        alone, shared = (load_file(work / f"features-{name}")["features"] for name in ("one", "four"))
        found["feature_difference"] = float(np.abs(alone - shared).max()) if alone.shape == shared.shape else 9.0
        words = ("retrieve", str(one), "--device", "cpu", "--cache", "off", "--json", "--quiet")
        first, second = (json.loads(run(work, *words, together=together)) for together in (False, True))
        found["retrieval_equal"] = all(abs(first[name] - second[name]) < 0.01 for name in ("rank1", "rank5", "mAP"))
        found["caches"] = [len(list(work.glob(f"cache-{node}/decoded/*"))) for node in ("first", "second")]
        found["seconds"] = round(time.perf_counter() - begin)
    harness.report(options, found, table(found))
    near = max(found["loss_difference"], found["loss_difference_resumed_in_one"]) < LOSS_ROUNDING
    return int(not (near and found["feature_difference"] < FEATURE_ROUNDING and found["retrieval_equal"]))


def table(found: dict[str, Any]) -> list[str]:
    """As docs/processes.md shows it."""
    steps, after = found["steps"], found["stopped_after"]
    rows = [
        (f"{steps} steps, loss", f"{found['loss_difference']:.1e} at most"),
        (f"stopped after {after}, on in one process", f"{found['loss_difference_resumed_in_one']:.1e} at most"),
        ("`embed`, features", f"{found['feature_difference']:.1e} at most"),
        ("`retrieve`, rank-1, rank-5, mAP", "equal" if found["retrieval_equal"] else "DIFFERENT"),
    ]
    return harness.markdown(("two machines of two processes", "apart from one process"), rows)


if __name__ == "__main__":
    sys.exit(main())
