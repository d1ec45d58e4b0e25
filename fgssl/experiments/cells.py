"""A cell of an experiment: a training with its seed, or weights as they are, and what is measured of it.

It is the verbs that a user would type: `fgssl pretrain`, then `retrieve` or `probe` with `--json`. What they said is
kept in OUTPUT/NAME.json as soon as it is known: a cell that has its numbers is not run again, and one that was cut
short goes on where it was, its training by `--resume`.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fgssl.errors import FgsslError
from fgssl.runs.folder import CONFIG_FILE, ENCODER_FILE, SUMMARY_FILE, versions
from fgssl.runs.lock import hold_run, is_held
from fgssl.runtime.files import write_text

LOCKS = "locks"  # folder of the cells that are being run
Verb = Callable[[Sequence[str]], str]  # the words after `fgssl` -> what it wrote to stdout


class VerbFailed(Exception):
    """A verb ended with another exit code than 0; it has told why."""

    def __init__(self, words: Sequence[str], code: int) -> None:
        super().__init__(f"fgssl {words[0]} ended with code {code}")
        self.code = code


class Measure(NamedTuple):
    """A verb that measures an encoder, and where its JSON document has the numbers."""

    words: tuple[str, ...]
    columns: Mapping[str, tuple[str | int, ...]]  # of the table -> the keys down to the number
    folder: str = ""  # option that names a folder of its own, where it needs one


MEASURES: dict[str, Measure] = {
    # what `--protocol paper` measures; but that takes no --split, which a recipe may name
    "retrieve": Measure(("retrieve",), {"rank-1": ("rank1",), "rank-5": ("rank5",), "mAP": ("mAP",)}),
    # without the help of pictures taken in one go
    "search": Measure(
        ("retrieve", "--gallery-split", "{train}"), {"rank-1 in train": ("rank1",), "mAP in train": ("mAP",)}
    ),
    "probe": Measure(("probe",), {"probe": ("results", 0, "top1")}),
    "probe-sgd": Measure(
        ("probe", "--protocol", "paper"),
        {f"probe {share} %": ("results", place, "top1") for place, share in enumerate((100, 50, 20))},
        "--output",
    ),
    # where there are no labels
    "signals": Measure(
        ("embed", "--stats"),
        {name: ("stats", name) for name in ("effective_rank", "uniformity", "alignment", "neighbour_overlap")},
    ),
}


class Cell(NamedTuple):
    """One training, or the weights as they are, and what is measured."""

    name: str  # of its run folder, and with .json of its numbers
    row: str  # of the table
    seed: int | None  # None where nothing is drawn
    settings: Mapping[str, Any]  # what makes it another cell, as JSON keeps it
    train: tuple[str, ...]  # options of `fgssl pretrain`; none for weights as they are
    subject: tuple[str, ...]  # CHECKPOINT and options of weights as they are
    measures: tuple[str, ...]  # names in `MEASURES`
    train_split: str = "train"
    pool: str | None = None  # None: the encoder's own
    halves: tuple[tuple[str, ...], tuple[str, ...]] | None = None  # options to stop it with, and to go on with
    shorter: tuple[str, ...] = ()  # options of the linear probe in a rehearsal


class Result(NamedTuple):
    """What is known of a cell."""

    cell: Cell
    numbers: Mapping[str, float]
    minutes: float
    problem: str = ""  # why it has no numbers, or not all

    @property
    def finished(self) -> bool:
        """Whether every number is there."""
        return columns(self.cell.measures) <= self.numbers.keys()


def columns(measures: Sequence[str]) -> set[str]:
    """The columns that these measures fill."""
    return {column for name in measures for column in MEASURES[name].columns}


def kept(cell: Cell, output: Path) -> dict[str, Any]:
    """What OUTPUT/NAME.json says of a cell; empty where it was not begun. FgsslError where that is another one."""
    path = output / f"{cell.name}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        before, now = found["settings"], json.loads(json.dumps(dict(cell.settings)))
        found["measured"].values(), found["minutes"].values()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FgsslError(f"'{path}' holds no numbers of a cell", "move it away, or choose another --output") from error
    other = next((key for key in sorted({*before, *now}) if before.get(key) != now.get(key)), None)
    if other is not None:
        was, is_now = (side.get(other, "left to its default") for side in (before, now))
        problem = f"'{path}' was measured with other settings: {other} was {was} and is {is_now}"
        raise FgsslError(problem, "choose another --output, or move that cell away")
    return dict(found)


def result_of(cell: Cell, output: Path, problem: str = "") -> Result:
    """What is known of a cell by now; FgsslError as `kept`."""
    found = kept(cell, output)
    numbers = {column: value for part in found.get("measured", {}).values() for column, value in part.items()}
    return Result(cell, numbers, sum(found.get("minutes", {}).values()), problem)


def run_cell(cell: Cell, output: Path, fgssl: Verb) -> Result:
    """Do what is left of a cell.

    Args:
        cell: What to train and measure.
        output: The experiment's folder, which exists.
        fgssl: Runs a verb; raises VerbFailed.

    Raises FgsslError where another experiment's cell lies there, and whatever `fgssl` raises.
    """
    if result_of(cell, output).finished:
        return result_of(cell, output)
    place = output / LOCKS / cell.name
    if is_held(place) or is_held(output / cell.name):
        return result_of(cell, output, "another process is at it")
    try:
        with hold_run(place):
            _do_what_is_left(cell, output, fgssl)
    finally:
        with contextlib.suppress(OSError):
            place.rmdir()
            place.parent.rmdir()
    return result_of(cell, output)


def _do_what_is_left(cell: Cell, output: Path, fgssl: Verb) -> None:
    found = kept(cell, output) or {
        "row": cell.row, "seed": cell.seed, "settings": dict(cell.settings), "measured": {}, "minutes": {},
        "versions": versions(),
    }  # fmt: skip
    _keep(cell, output, found)
    if cell.train:
        _train(cell, output, found, fgssl)
    for name in cell.measures:
        if MEASURES[name].columns.keys() - found["measured"].get(name, {}).keys():
            _measure(cell, output, name, found, fgssl)


def _keep(cell: Cell, output: Path, found: Mapping[str, Any]) -> None:
    write_text(output / f"{cell.name}.json", json.dumps(found, indent=2) + "\n")


def _train(cell: Cell, output: Path, found: dict[str, Any], fgssl: Verb) -> None:
    run = output / cell.name
    if (run / SUMMARY_FILE).is_file() and (run / ENCODER_FILE).is_file() and cell.halves is None:
        return
    begun, last = (run / CONFIG_FILE).is_file(), cell.halves[1] if cell.halves else ()
    first = cell.halves[0] if cell.halves else ()
    start = time.monotonic()
    try:
        if not begun:
            fgssl(("pretrain", *cell.train, *first, "--output", str(run), "--json"))
        if begun or cell.halves:
            fgssl(("pretrain", "--resume", str(run), *last, "--json"))
    finally:
        minutes = found["minutes"]
        minutes["pretrain"] = minutes.get("pretrain", 0.0) + (time.monotonic() - start) / 60
        _keep(cell, output, found)


def _measure(cell: Cell, output: Path, name: str, found: dict[str, Any], fgssl: Verb) -> None:
    measure, start = MEASURES[name], time.monotonic()
    words = [word.replace("{train}", cell.train_split) for word in measure.words]
    subject = cell.subject or (str(output / cell.name),)
    pool = () if cell.pool is None else ("--pool", cell.pool)
    own = (measure.folder, str(output / f"{cell.name}.{name}")) if measure.folder else ()
    shorter = cell.shorter if name == "probe-sgd" else ()
    document = json.loads(fgssl((words[0], *subject, *words[1:], *pool, *own, *shorter, "--json")))
    values: dict[str, float] = {}
    for column, keys in measure.columns.items():
        value = document
        for key in keys:
            value = value[key]
        values[column] = float(value)
    found["measured"][name] = values
    found["minutes"][name] = (time.monotonic() - start) / 60
    _keep(cell, output, found)
