"""A run in two processes, started by a launcher of its own, with something done after each step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from running import photos

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


def command(act: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", PROGRAM + f"    {act}\nmain()", *map(str, arguments)]


def launched(act: str, output: Path, *more: str) -> subprocess.Popen[str]:
    """A launcher of two processes as a process of its own; what it says goes to stderr."""
    words = command(act, "pretrain", "--data", photos(), *OPTIONS, *more, "--output", output)
    code = f"import sys\nfrom fgssl.runtime.processes import launch\nend = launch({words!r}, 2)\n"
    code += "print('problem:', end.problem, file=sys.stderr)\nsys.exit(end.code)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment)
