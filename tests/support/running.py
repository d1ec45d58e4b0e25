"""The command line inside the test's own process, and a few tiny runs made once and shared by the tests of all
xdist workers."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from filelock import FileLock
from pictures import make_picture

from fgssl.cli import main

BACKBONE = "mobilenetv3_small_050"
# drop_path makes every step draw random numbers, as dropout would; a window of 2 steps is cut by a stop after step 3
TINY = (
    "--backbone", BACKBONE, "--no-pretrained", "--image-size", "64", "--batch-size", "8", "--max-steps", "6",
    "--workers", "0", "--mixed-precision", "no", "--device", "cpu", "--set", "training.log_every=2",
    "--set", "backbone.drop_path=0.2", "--set", "training.evaluate=false",
)  # fmt: skip
EVALUATED = (*TINY, "--set", "training.evaluate=true")  # with retrieval and overview.png, which take longest
SHORT = (*TINY, "--max-steps", "2")


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one JSON document on stdout; NaN, which JSON has not, is refused."""

        def refuse(text: str) -> Any:
            raise ValueError(f"{text} is not JSON")

        return json.loads(self.out, parse_constant=refuse)

    def error(self, code: int = 1) -> str:
        """The text of the single error line, which must be all there is beside notes; checks the exit code."""
        assert self.code == code, (self.code, self.out, self.err)
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1 and self.err.splitlines()[-1] == lines[0], self.err
        return lines[0]


def fgssl(*arguments: str | Path, cwd: Path | None = None) -> Outcome:
    """Run a command line as the console script would."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", ["fgssl", *map(str, arguments)]))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        if cwd is not None:
            former = os.getcwd()
            stack.callback(os.chdir, former)
            os.chdir(cwd)
        stack.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # main() sets its own
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else (0 if end.code is None else 1)
    return Outcome(code, out.getvalue(), err.getvalue())


def make_photos(folder: Path, count: int, *, classes: int = 3, seed: int = 0) -> Path:
    """Class folders of small PNG and JPEG pictures; no class folders where `classes` is 0."""
    for index in range(count):
        place = folder / f"class {index % classes}" if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        picture = make_picture(seed + index, 40 + index % 9, 48 - index % 7)
        picture.save(place / f"{index:02d}.{'png' if index % 2 else 'jpg'}")
    return folder


def workplace() -> Path:
    """A folder for the whole session and all its processes, with a space and a bird in its name, as users have them."""
    return Path(os.environ["FGSSL_TEST_WORKPLACE"])


def shared(name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name` of the workplace, filled by `make` the first time that any process of the session asks.

    Nobody may change it: tests that write into a run copy it first.
    """
    folder, done = workplace() / name, workplace() / f"{name}.done"
    with FileLock(workplace() / f"{name}.lock"):
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@functools.cache
def photos() -> Path:
    """24 training and 12 test pictures in 3 classes."""

    def make(folder: Path) -> None:
        make_photos(folder / "train", 24)
        make_photos(folder / "test", 12, seed=100)

    return shared("photos", make)


@functools.cache
def flat_photos() -> Path:
    """12 pictures without labels."""
    return shared("flat", lambda folder: make_photos(folder, 12, classes=0, seed=200))


@functools.cache
def finished_run() -> tuple[Path, Outcome]:
    """A whole run of 6 steps on `photos()`, with its output."""
    said = workplace() / "run.json"

    def make(run: Path) -> None:
        outcome = fgssl("pretrain", "--data", photos(), *EVALUATED, "--output", run)
        assert outcome.code == 0, outcome.err
        said.write_text(json.dumps(outcome))

    run = shared("run", make)
    return run, Outcome(*json.loads(said.read_text()))


@functools.cache
def plain_run() -> Path:
    """A run of 2 steps without rationale on `flat_photos()`."""

    def make(run: Path) -> None:
        options = ("--max-steps", "2", "--no-rationale", "--output", run)
        outcome = fgssl("pretrain", "--data", flat_photos(), *EVALUATED, *options)
        assert outcome.code == 0, outcome.err

    return shared("plain", make)


@functools.cache
def weights() -> Path:
    """The backbone of `finished_run()` as a plain state dict, which tells neither architecture nor size."""

    def make(folder: Path) -> None:
        folder.mkdir()
        shutil.copy(finished_run()[0] / "timm" / "model.safetensors", folder / "w.safetensors")

    return shared("weights", make) / "w.safetensors"


@functools.cache
def trained_run() -> Path:
    """A run of 2 steps from `weights()`."""

    def make(run: Path) -> None:
        options = (
            *(option for option in SHORT if option != "--no-pretrained"),
            "--init",
            weights(),
            "--set",
            "training.choose=false",
        )
        outcome = fgssl("pretrain", "--data", photos(), *options, "--init", weights(), "--output", run)
        assert outcome.code == 0, outcome.err

    return shared("from weights", make)
