"""LightlyTrain on the same pictures, as its command runs it; used by step_table.py, where lightly-train is installed.

It has no MoCo, and its nearest, DenseCL, does not start beside lightly 1.6 (0.18.0). So SimCLR: two views as well, but
gradients through both, which is half more work for the backbone than a query and a key. Its own transforms, loader,
precision and optimiser. It trains in a process of its own and tells the seconds of its steps.

    python recipes/bench/lightly_train_run.py ../shared/data/grocery/train         # images a second, alone
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

METHOD = "simclr"
WARM = 5  # steps that do not count: the loader starts, memory is taken
RUN = "import json, sys, lightly_train; lightly_train.pretrain(**json.loads(sys.argv[1]))"


def missing() -> str | None:
    """Why it cannot be measured here, or None."""
    if importlib.util.find_spec("lightly_train") is None:
        return "LightlyTrain is not installed (pip install lightly-train)"
    return None


def version() -> dict[str, str]:
    """Its version, where it is installed."""
    return {} if missing() else {"lightly-train": metadata.version("lightly-train")}


def measure(
    folder: str, *, backbone: str, size: int, batch: int, workers: int, device: str, steps: int = 20
) -> dict[str, Any]:
    """Images a second and share of time waiting, medians over the steps, and its precision; or `failed`, why not."""
    with tempfile.TemporaryDirectory() as output:
        arguments = {
            "out": output, "overwrite": True, "data": folder, "model": f"timm/{backbone}", "method": METHOD,
            "model_args": {"pretrained": False}, "epochs": 10_000, "batch_size": batch, "num_workers": workers,
            "accelerator": "gpu" if device.startswith("cuda") else device, "devices": 1,
            "transform_args": {"image_size": [size, size]}, "loggers": {"jsonl": {}, "tensorboard": None},
            "trainer_args": {"max_steps": WARM + steps, "log_every_n_steps": 1},
        }  # fmt: skip
        done = subprocess.run([sys.executable, "-c", RUN, json.dumps(arguments)], capture_output=True, text=True)
        log = Path(output, "metrics.jsonl")
        if done.returncode or not log.exists():
            return {"failed": (done.stderr.strip().splitlines() or ["no reason given"])[-1]}
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        settings = Path(output, "train.log").read_text()
    rows = [row for row in rows if "profiling/batch_time" in row and row["step"] >= WARM]
    waits = [row.get("profiling/data_time", 0.0) for row in rows]
    seconds = [row["profiling/batch_time"] + wait for row, wait in zip(rows, waits, strict=True)]
    precision = settings.rpartition("Using precision '")[2].partition("'")[0]
    return {
        "images_per_second": batch / statistics.median(seconds),
        "seconds": seconds,
        "wait_share": statistics.median(waits) / statistics.median(seconds),
        "precision": precision,
    }


def main() -> None:
    """Alone, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if (why := missing()) is not None:
        sys.exit(why)
    sizes = {"backbone": given.backbone, "size": given.image_size, "batch": given.batch_size}
    print(json.dumps(measure(given.folder, **sizes, workers=given.workers, device=given.device)))


if __name__ == "__main__":
    main()
