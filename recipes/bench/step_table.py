"""The whole training step against its floor, against more pictures, and beside other libraries, in one table.

    python recipes/bench/step_table.py --data GROCERY --output step_table.json          # CPU: 5 minutes
    python recipes/bench/step_table.py --data GROCERY --device cuda --backbone resnet50 \\
        --image-size 224 --batch-size 256 --output step_table.json
    python recipes/bench/step_table.py --quick                                                         # a try, demo set

All sides take turns in one process, a few steps each, so that other load on the machine meets all alike; medians over
the rounds are told, and ratios are medians of each round's ratio. Floor: forward and backward of the query backbone and
forward of the key backbone on tensors in place, same precision and memory format, timm's model as it is; beside it the
same with fgssl's way of small convolutions (`fgssl/backbones/products.py`). The whole step adds loading, views,
projector, loss, GradCAM and fit, queue, optimiser, momentum. Where
lightly is installed its MoCo loop runs beside, and LightlyTrain after all others (`other_libraries.py`); where the
source is a folder, a list of ten times its pictures and one of a million are measured. `--compile` adds a step by
torch.compile. Peak memory is that of a process that does nothing else. Table on stderr, JSON on stdout.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import other_libraries
import torch
from step_sides import (
    COMPILED,
    FEED,
    FLOOR,
    LIGHTLY,
    OWN_FLOOR,
    PLAIN,
    RATIONALE,
    TENFOLD,
    folder_batches,
    list_pictures,
    make_sides,
    our_side,
    picture_folder,
    plan_for,
)

from fgssl.runtime.machine import peak_memory, resolve_device

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


def loading_per_core(pictures: str, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Images per processor second of fgssl's feed and of ImageFolder with MoCo v2's transforms, one thread each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plan = plan_for(arguments, **{"training.workers": 0, "training.device": "cpu"})
    theirs = folder_batches(pictures, arguments)
    feeds = {"fgssl": our_side(plan, folder, only_loading=True).step, "ImageFolder": lambda: next(theirs)}
    seconds = harness.in_turns(feeds, 2 if arguments.quick else 8, clock=harness.processor_seconds)
    torch.set_num_threads(threads)
    return {name: arguments.batch_size / statistics.median(values) for name, values in seconds.items()}


def peak_alone(name: str, arguments: argparse.Namespace) -> float:
    """Gigabytes of a process that takes a few steps of one side and does nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        (side,) = make_sides(arguments, Path(folder), [], only=name).values()
        side.block(3)
        return peak_memory(side.device)


def measure(arguments: argparse.Namespace, notes: list[str]) -> dict[str, Any]:
    """All numbers."""
    rounds, block = (2, 2) if arguments.quick else (arguments.rounds, arguments.block)
    with tempfile.TemporaryDirectory() as folder:
        sides = make_sides(arguments, Path(folder), notes)
        for number, side in itertools.product(range(rounds + 1), sides.values()):
            side.block(block, counted=number > 0)
        del side
        rows: dict[str, dict[str, Any]] = {
            name: {
                "images_per_second": arguments.batch_size / statistics.median(side.seconds),
                "seconds": side.seconds,
                "wait_share": None if name in (FLOOR, OWN_FLOOR, FEED) else statistics.median(side.waits),
            }
            for name, side in sides.items()
        }
        pairs = {name: pair for name, pair in RATIOS.items() if set(pair) <= sides.keys()}
        ratios = {name: harness.ratio(*(sides[side].seconds for side in pair)) for name, pair in pairs.items()}
        found: dict[str, Any] = {"rows": rows, "ratios": ratios}
        sides.clear()
        pictures = picture_folder(plan_for(arguments))
        if pictures is not None:
            speeds = found["loading_images_per_second_per_core"] = loading_per_core(pictures, arguments, Path(folder))
            ratios["loading per core, times ImageFolder"] = speeds["fgssl"] / speeds["ImageFolder"]
            counts = (10_000,) if arguments.quick else (MILLION // 10, MILLION)
            found["listing"] = [harness.apart(list_pictures, pictures, count) for count in counts]
    for name, row in rows.items():
        alone = name in (FLOOR, PLAIN, RATIONALE, LIGHTLY)
        row["peak_gb"] = harness.apart(peak_alone, name, arguments) if alone else None
    if pictures is not None and not arguments.quick:
        measure_lightly_train(found, pictures, arguments, notes)
    return found


def measure_lightly_train(
    found: dict[str, Any], pictures: str, arguments: argparse.Namespace, notes: list[str]
) -> None:
    """LightlyTrain's row: not in turns with the others but after them, as it has a process of its own."""
    if (why := other_libraries.missing("lightly-train")) is not None:
        notes.append(f"not measured: {why}")
        return
    row = other_libraries.lightly_train(pictures, arguments)
    if "failed" in row:
        notes.append(f"not measured: LightlyTrain: {row['failed']}")
        return
    found["rows"][f"LightlyTrain SimCLR, {row['precision']}"] = {**row, "peak_gb": None}
    found["ratios"]["times LightlyTrain's images/s"] = (
        found["rows"][RATIONALE]["images_per_second"] / row["images_per_second"]
    )


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The table for people."""
    yield f"{'':32}{'images/s':>10}{'waiting':>10}{'peak GB':>10}"
    for name, row in found["rows"].items():
        waiting = "" if row["wait_share"] is None else f"{row['wait_share']:.1%}"
        peak = "" if row["peak_gb"] is None else f"{row['peak_gb']:.2f}"
        yield f"{name:32}{row['images_per_second']:10.1f}{waiting:>10}{peak:>10}"
    for name, value in found["ratios"].items():
        yield f"{name:42}{value:10.3f}"
    for name, value in found.get("loading_images_per_second_per_core", {}).items():
        yield f"{'loading per core, ' + name:42}{value:10.1f} images/s, two views each"
    for row in found.get("listing", ()):
        yield f"{row['pictures']:,} pictures listed: {row['seconds']:.1f} s, {row['megabytes']:.0f} MB held"
    yield from found["notes"]


def main() -> None:
    """Print the table and the JSON."""
    parser = harness.parser(__doc__, *harness.SHARED)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block", type=int, default=4, help="timed steps of a side in a row")
    parser.add_argument("--lightly-workers", type=int, help="of lightly's loader [all cores, at most 8]")
    parser.add_argument("--compile", action="store_true", help="also a step by torch.compile")
    parser.add_argument("--quick", action="store_true", help="two rounds of two steps, short lists")
    arguments = harness.begin(parser)
    notes: list[str] = []
    start = time.perf_counter()
    found = measure(arguments, notes)
    found["notes"] = [*notes, f"took {time.perf_counter() - start:.0f} s"]
    device = resolve_device(arguments.device)
    harness.report(arguments, found, lines(found), device=device, libraries=other_libraries.installed())


if __name__ == "__main__":
    main()
