"""The cells of an experiment, one after another, until all have their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fgssl.errors import FgsslError
from fgssl.experiments.cells import Cell, Result, Verb, VerbFailed, kept, result_of, run_cell
from fgssl.runtime.files import check_folder

STOPPED = (130, 143, 138, 129)  # exit codes of what was stopped by a signal


class Stopped(Exception):
    """A signal stopped a cell, whose state is saved."""

    def __init__(self, code: int) -> None:
        super().__init__("stopped; the same command goes on")
        self.signal_number = code - 128


def run_cells(cells: Sequence[Cell], output: Path, fgssl: Verb, note: Callable[[str], None]) -> list[Result]:
    """Run what is left of every cell; one that fails is told, and the next begins.

    Args:
        cells: In the order in which they are wanted.
        output: Folder of the experiment, made where it is missing.
        fgssl: Runs a verb; raises VerbFailed.
        note: Told which cell begins, and how it ended.

    Raises:
        FgsslError: the folder cannot be written, or holds cells of another experiment; Stopped: by a signal.
    """
    check_folder(output)
    for cell in cells:
        kept(cell, output)  # another experiment's, before anything is run
    results, before = [], {cell.name: result_of(cell, output) for cell in cells}
    for place, cell in enumerate(cells, 1):
        told = f"{place} of {len(cells)}: {cell.name}"
        if not before[cell.name].finished:
            note(told)
        try:
            result = run_cell(cell, output, fgssl)
        except VerbFailed as failure:
            if failure.code in STOPPED:
                raise Stopped(failure.code) from None
            result = result_of(cell, output, str(failure))
        except FgsslError as error:  # such as a full disk, or another process that was quicker
            result = Result(cell, {}, 0.0, str(error))
        if result.problem:
            note(f"{told}: {result.problem}")
        results.append(result)
    return results
