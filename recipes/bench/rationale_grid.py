"""Which form of the rationale helps: a grid of settings over several seeds, trained, judged and put into one table.

    python recipes/bench/rationale_grid.py recipes/bench/rationale_final.yaml --output runs/grid --seeds 0,1,2
    python recipes/bench/rationale_grid.py GRID.yaml --data GROCERY --recipe RECIPE.yaml --set backbone.init=FILE ...
    python recipes/bench/rationale_grid.py GRID.yaml --output runs/grid --table        # tables of what is there

A cell is a variant with a seed; each runs in a process of its own and leaves a folder in OUTPUT/cells. Run the command
again and finished cells are skipped, a killed one goes on from its saved state, and other poolings are computed without
training. Judged on a part of the training split that pretraining does not see (`--select images`: a fifth of each
class; `classes`: a quarter of the classes; a pattern such as 'val_*': files so named); `--final` judges on the test
split. Always the last epoch. Writes results.jsonl (a line for each pooling or map of each cell), table.json and
table.md, which is printed too.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness
from rationale_bench.cells import evaluation_digest, finished, run_cell
from rationale_bench.evaluate import Judged
from rationale_bench.grid import INIT, Cell, Grid, Protocol, make_cell, read_grid
from rationale_bench.tables import markdown, summarise

from fgssl.cli.console import PlainReporter
from fgssl.errors import FgsslError
from fgssl.runtime.files import check_folder, write_text
from fgssl.runtime.processes import Interrupted


def parse() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__, "--threads")
    parser.add_argument("grid", type=Path, help="YAML file of variants and poolings")
    parser.add_argument("--output", "-o", type=Path, required=True, help="results folder")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--data", help="as in fgssl pretrain --data [the recipe's]")
    parser.add_argument("--recipe", type=Path, help="settings under the grid's")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="for all cells")
    parser.add_argument("--only", action="append", default=[], metavar="VARIANT", help="these variants alone")
    parser.add_argument("--select", default="images", help="held out of train: images, classes, or a file pattern")
    parser.add_argument("--final", action="store_true", help="train on all of train, judge on the test split")
    parser.add_argument("--probe", choices=("main", "all", "none"), default="main", help="linear probes to fit")
    parser.add_argument("--masks", type=int, default=200, help="images of the demo to compare maps with masks on")
    parser.add_argument("--table", action="store_true", help="train nothing: tables of the finished cells")
    parser.add_argument("--cell", help=argparse.SUPPRESS)  # VARIANT@SEED, in a process of its own
    return harness.begin(parser)


def main() -> int:
    """Run the cells and print the table."""
    arguments = parse()
    protocol = Protocol(arguments.recipe, arguments.data, tuple(arguments.sets), arguments.select, arguments.final)
    judged = Judged(arguments.probe, arguments.masks)
    root = arguments.output / "cells"
    grid = read_grid(arguments.grid)
    if arguments.cell:
        variant, _, seed = arguments.cell.rpartition("@")
        try:
            run_cell(make_cell(grid, protocol, variant, int(seed)), grid, protocol, root, judged, PlainReporter())
        except Interrupted as stop:
            return 128 + stop.signal_number
        return 0
    cells = all_cells(grid, protocol, arguments)
    check_folder(root)
    digest = evaluation_digest(grid, protocol, judged)
    waiting = [cell for cell in cells if finished(root / cell.name, digest) is None]
    print(f"{len(cells)} cells, {len(cells) - len(waiting)} finished before", file=sys.stderr)
    failed = 0 if arguments.table else sum(not run_apart(cell, root.parent / "logs") for cell in waiting)
    found = [finished(root / cell.name, digest) for cell in cells]
    report(arguments, grid, [result for result in found if result is not None], len(cells))
    return int(failed > 0)


def all_cells(grid: Grid, protocol: Protocol, arguments: argparse.Namespace) -> list[Cell]:
    """Every cell, seed by seed, so that an early look compares all variants on the same seeds."""
    unknown = set(arguments.only) - {INIT, *grid.variants}
    if unknown:
        raise FgsslError(f"no variant {', '.join(sorted(unknown))} in {arguments.grid}", "see its variants")
    names = [name for name in (INIT, *grid.variants) if not arguments.only or name in arguments.only]
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    return [make_cell(grid, protocol, name, seed) for seed in seeds for name in names]


def run_apart(cell: Cell, logs: Path) -> bool:
    """A cell in a process of its own, with its log; a signal lets it save its state. Whether it finished."""
    logs.mkdir(exist_ok=True)
    start = time.monotonic()
    with (logs / f"{cell.name}.log").open("ab") as log:
        command = [sys.executable, *sys.argv, "--cell", f"{cell.variant}@{cell.seed}"]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            print("stopped; the same command goes on", file=sys.stderr)
            raise
    state = "finished" if code == 0 else f"failed with code {code} (see {log.name})"
    print(f"{cell.name}: {state} after {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return code == 0


def report(arguments: argparse.Namespace, grid: Grid, results: list[dict[str, Any]], cells: int) -> None:
    """results.jsonl, table.json, table.md; the last one on stdout."""
    rows = [row for result in results for row in result["rows"]]
    tables = summarise(rows, grid.baseline)
    judge = "test split" if arguments.final else f"held-out {arguments.select} of the training split"
    source = arguments.data or "the recipe's data"
    notes = (
        f"{len(results)} of {cells} cells; {source}, judged on {judge}; last epoch. "
        f"rank-1 and mAP: queries of the slice in the gallery (what was trained on, or the other half of held-out "
        f"classes); LOO: leave-one-out within the queries. Baseline: `{grid.baseline}` with gap."
    )
    write_text(arguments.output / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_text(arguments.output / "table.json", json.dumps({"notes": notes, **tables}, indent=1) + "\n")
    text = markdown(tables, f"Grid {arguments.grid.stem}", notes)
    write_text(arguments.output / "table.md", text + "\n")
    print(text)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except FgsslError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
