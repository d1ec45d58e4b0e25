"""A run in two processes, started by a launcher of its own, with something done after each step; and several runs one
after the other in two processes that are started once, as to load their libraries takes longest."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from running import fgssl, photos, shared

ROOT = Path(__file__).parents[2]
# no BatchNorm anywhere: its statistics are those of a process's share
OPTIONS = (
    "--backbone", "convnext_zepto_rms", "--no-pretrained", "--image-size", "64", "--batch-size", "8", "--workers", "0",
    "--mixed-precision", "no", "--device", "cpu", "--max-steps", "20", "--epochs", "20", "--quiet",
    "--set", "training.log_every=1", "--set", "training.evaluate=false", "--set", "rationale.branch_norm=none",
    "--set", "training.signals_every=0",
)  # fmt: skip
# what each process does, beside what the command line does: `act(rank, step)` is called after each step
PROGRAM = """
import os, signal, sys, time, torch
from fgssl.cli import main
from fgssl.training.log import LogWindow
from fgssl.training.loop import Trainer
rank = int(os.environ["RANK"])
add, train = LogWindow.add, Trainer.train
def after(self, step, output, **times):
    output = act(step, output) or output
    add(self, step, output, **times)
def keep(self, *arguments):
    done = train(self, *arguments)
    torch.save(self.model.state_dict(), self.setup.output.parent / f"rank{rank}.pt")
    return done
LogWindow.add, Trainer.train = after, keep
def act(step, output):
"""


SEVERAL = """    pass
import json
for cache, words in json.loads(sys.argv[1]):
    os.environ["FGSSL_CACHE"], sys.argv = cache, ["fgssl", *words]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""
# the runs of `learned`
RUNS = {
    "mocov2": (),
    # three steps an epoch: the first without the backbone, the second with its scales and biases
    "adapted": ("--objective", "simclr", "--max-steps", "6", "--set", "optimizer.name=sgd", "--lr", "0.1",
                "--set", "training.head_epochs=1", "--set", "backbone.adapt=norm"),
}  # fmt: skip


def launched(act: str, output: Path, *more: str) -> subprocess.Popen[str]:
    """A launcher of two processes as a process of its own; what it says goes to stderr."""
    words = ["pretrain", "--data", photos(), *OPTIONS, *more, "--output", output]
    return _launcher(PROGRAM + f"    {act}\nmain()", words)


def in_two(folder: Path, runs: Mapping[str, tuple[str, ...]]) -> None:
    """Each run in two processes and in this one: NAME/run and NAME/alone, caches beside them, and NAME/rankN.pt."""
    told = []
    for name, more in runs.items():
        place = folder / name
        place.mkdir(parents=True)
        words = ["pretrain", "--data", str(photos()), *OPTIONS, *more, "--output"]
        with mock.patch.dict(os.environ, FGSSL_CACHE=str(place / "alone-cache")):
            outcome = fgssl(*words, place / "alone")
        assert outcome.code == 0, outcome.err
        told.append((str(place / "cache"), [*words, str(place / "run")]))
    process = _launcher(PROGRAM + SEVERAL, [json.dumps(told)])
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err


@functools.cache
def learned(name: str) -> Path:
    """One of `RUNS` as `in_two` leaves it, made once for all tests."""
    return shared("in two", lambda folder: in_two(folder, RUNS)) / name


def _launcher(program: str, arguments: list[object]) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", program, *map(str, arguments)]
    code = f"import sys\nfrom fgssl.runtime.processes import launch\nend = launch({words!r}, 2)\n"
    code += "print('problem:', end.problem, file=sys.stderr)\nsys.exit(end.code)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment)
