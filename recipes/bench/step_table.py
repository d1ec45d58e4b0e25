"""The whole training step against its floor, against more pictures, and beside other libraries, in one table.

    python recipes/bench/step_table.py --data ../shared/data/grocery --output step_table.json          # CPU: 4 minutes
    python recipes/bench/step_table.py --data ../shared/data/grocery --device cuda --backbone resnet50 \\
        --image-size 224 --batch-size 256 --output step_table.json
    python recipes/bench/step_table.py --quick                                                         # a try, demo set

All sides take turns in one process, a few steps each, so that other load on the machine meets all alike; medians over
the rounds are told, and ratios are medians of each round's ratio. Floor: forward and backward of the query backbone and
forward of the key backbone on tensors in place, same precision and memory format, timm's model as it is; beside it the
same with fgssl's way of small convolutions (`fgssl/backbones/products.py`). The whole step adds loading, views,
projector, loss, GradCAM and fit, queue, optimiser, momentum. Where lightly is installed its MoCo loop runs beside
(`lightly_loop.py`), and LightlyTrain after all others (`lightly_train_run.py`); where the source is a folder, a list of
ten times its pictures and one of a million are measured (`growth.py`). `--compile` adds a step by torch.compile and the
number of steps after which compiling has paid. Peak memory is that of a process that does nothing else. Table on
stderr, JSON on stdout.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightly_loop
import lightly_train_run
import torch
from growth import list_apart
from loading_speed import folder_batches, our_batches
from step_sides import (
    COMPILED,
    FEED,
    FLOOR,
    LIGHTLY,
    OWN_FLOOR,
    PLAIN,
    RATIONALE,
    TENFOLD,
    Side,
    lightly_workers,
    make_sides,
    picture_folder,
    plan_for,
)

from fgssl.runs.folder import versions
from fgssl.runtime.machine import available_cores, peak_memory, resolve_device

MILLION = 1_000_000
RATIOS = {
    "efficiency, plain": (FLOOR, PLAIN),
    "efficiency, rationale": (FLOOR, RATIONALE),
    "of fgssl's own floor, plain": (OWN_FLOOR, PLAIN),
    "of fgssl's own floor, rationale": (OWN_FLOOR, RATIONALE),
    "rationale on / off": (RATIONALE, PLAIN),
    "--compile, time a step": (COMPILED, RATIONALE),
    "10x pictures / 1x, time a step": (TENFOLD, RATIONALE),
    "times lightly's images/s, plain": (LIGHTLY, PLAIN),
    "times lightly's images/s, rationale": (LIGHTLY, RATIONALE),
}


def loading_per_core(folder: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Images per processor second of fgssl's feed and of ImageFolder with MoCo v2's transforms, one thread each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sizes = {"size": arguments.image_size, "batch": arguments.batch_size}
    feeds = {"fgssl": our_batches(folder, **sizes), "ImageFolder": folder_batches(folder, **sizes)}
    seconds: dict[str, list[float]] = {name: [] for name in feeds}
    for turn, name in itertools.product(range(1 + (2 if arguments.quick else 8)), feeds):
        start = time.process_time()
        next(feeds[name])
        if turn:
            seconds[name].append(time.process_time() - start)
    torch.set_num_threads(threads)
    return {name: arguments.batch_size / statistics.median(values) for name, values in seconds.items()}


def peak_alone(name: str, arguments: argparse.Namespace) -> float:
    """Gigabytes of a process that takes a few steps of one side."""
    command = [sys.executable, __file__, *arguments.given, "--alone", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def ratio(sides: dict[str, Side], above: str, below: str) -> float | None:
    """Median over the rounds of one side's time over another's."""
    if above not in sides or below not in sides:
        return None
    pairs = zip(sides[above].seconds, sides[below].seconds, strict=True)
    return statistics.median(one / other for one, other in pairs)


def break_even(sides: dict[str, Side]) -> float | None:
    """Steps after which --compile has paid for its compiling; infinite where a step is no quicker."""
    if COMPILED not in sides or (first := sides[COMPILED].first) is None:
        return None
    compiled, eager = (statistics.median(sides[name].seconds) for name in (COMPILED, RATIONALE))
    steps, seconds = first
    return max(0.0, seconds - steps * compiled) / (eager - compiled) if compiled < eager else math.inf


def hardware(device: torch.device) -> dict[str, Any]:
    """What it ran on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = "unknown processor"
    graphics = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"processor": name, "cores": available_cores(), "threads": torch.get_num_threads(), "gpu": graphics}


def measure(arguments: argparse.Namespace, notes: list[str]) -> dict[str, Any]:
    """All numbers."""
    rounds, block = (2, 2) if arguments.quick else (arguments.rounds, arguments.block)
    with tempfile.TemporaryDirectory() as folder:
        sides = make_sides(arguments, Path(folder), notes)
        for number, side in itertools.product(range(rounds + 1), sides.values()):
            side.block(block, counted=number > 0)
        del side
    rows = {
        name: {
            "images_per_second": arguments.batch_size / statistics.median(side.seconds),
            "seconds": side.seconds,
            "wait_share": None if name in (FLOOR, OWN_FLOOR, FEED) else statistics.median(side.waits),
        }
        for name, side in sides.items()
    }
    ratios = {name: ratio(sides, *pair) for name, pair in RATIOS.items()}
    found: dict[str, Any] = {"rows": rows, "ratios": {k: v for k, v in ratios.items() if v is not None}}
    if (steps := break_even(sides)) is not None:
        told = "never: a step is no quicker" if math.isinf(steps) else f"after {steps:.0f} steps"
        notes.append(f"--compile pays for its compiling {told}")
    sides.clear()
    pictures = picture_folder(plan_for(arguments))
    if pictures is not None:
        speeds = loading_per_core(pictures, arguments)
        found["loading_images_per_second_per_core"] = speeds
        found["ratios"]["loading per core, times ImageFolder"] = speeds["fgssl"] / speeds["ImageFolder"]
        found["listing"] = [
            list_apart(pictures, n) for n in ((10_000,) if arguments.quick else (MILLION // 10, MILLION))
        ]
    for name in list(rows):
        rows[name]["peak_gb"] = peak_alone(name, arguments) if name in (FLOOR, PLAIN, RATIONALE, LIGHTLY) else None
    measure_lightly_train(found, pictures, arguments, notes)
    return found


def measure_lightly_train(
    found: dict[str, Any], pictures: str | None, arguments: argparse.Namespace, notes: list[str]
) -> None:
    """LightlyTrain's row: not in turns with the others but after them, as it has a process of its own."""
    if pictures is None or arguments.quick:
        return
    if (why := lightly_train_run.missing()) is not None:
        notes.append(f"not measured: {why}")
        return
    row = lightly_train_run.measure(
        pictures, backbone=arguments.backbone, size=arguments.image_size, batch=arguments.batch_size,
        workers=lightly_workers(arguments), device=str(resolve_device(arguments.device)),
    )  # fmt: skip
    if "failed" in row:
        notes.append(f"not measured: LightlyTrain: {row['failed']}")
        return
    found["rows"][f"LightlyTrain SimCLR, {row['precision']}"] = {**row, "peak_gb": None}
    ours = found["rows"][RATIONALE]["images_per_second"]
    found["ratios"]["times LightlyTrain's images/s"] = ours / row["images_per_second"]


def print_table(result: dict[str, Any]) -> None:
    """For people, on stderr."""

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    machine, settings = result["machine"], result["settings"]
    say(", ".join(f"{key} {value}" for key, value in machine.items() if value is not None))
    say(", ".join(f"{key} {value}" for key, value in result["versions"].items()))
    say(", ".join(f"{key} {value}" for key, value in settings.items() if value is not None) + "\n")
    say(f"{'':32}{'images/s':>10}{'waiting':>10}{'peak GB':>10}")
    for name, row in result["rows"].items():
        waiting = "" if row["wait_share"] is None else f"{row['wait_share']:.1%}"
        peak = "" if row["peak_gb"] is None else f"{row['peak_gb']:.2f}"
        say(f"{name:32}{row['images_per_second']:10.1f}{waiting:>10}{peak:>10}")
    for name, value in result["ratios"].items():
        say(f"{name:42}{value:10.3f}")
    for name, value in result.get("loading_images_per_second_per_core", {}).items():
        say(f"{'loading per core, ' + name:42}{value:10.1f} images/s, two views each")
    for row in result.get("listing", ()):
        say(f"{row['pictures']:,} pictures listed: {row['seconds']:.1f} s, {row['megabytes']:.0f} MB held")
    for note in result["notes"]:
        say(note)


def read_arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--device")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block", type=int, default=4, help="timed steps of a side in a row")
    parser.add_argument("--lightly-workers", type=int, help="of lightly's loader [all cores, at most 8]")
    parser.add_argument("--compile", action="store_true", help="also a step by torch.compile, and when it pays")
    parser.add_argument("--quick", action="store_true", help="two rounds of two steps, short lists")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.given = sys.argv[1:]
    return arguments


def main() -> None:
    """Print the table and the JSON."""
    arguments = read_arguments()
    device = resolve_device(arguments.device)
    if arguments.alone is not None:  # a process of its own, asked for by `peak_alone`
        with tempfile.TemporaryDirectory() as folder:
            (side,) = make_sides(arguments, Path(folder), [], only=arguments.alone).values()
            side.block(3)
            print(peak_memory(device))
        return
    notes: list[str] = []
    start = time.perf_counter()
    found = measure(arguments, notes)
    result = {
        "settings": {
            name: value for name, value in vars(arguments).items() if name not in ("given", "alone", "output")
        },
        "machine": hardware(device),
        "versions": {**versions(), **lightly_loop.version(), **lightly_train_run.version()},
        **found,
        "notes": [*notes, f"took {time.perf_counter() - start:.0f} s"],
    }
    print_table(result)
    text = json.dumps(result, indent=2)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
