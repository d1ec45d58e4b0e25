"""fgssl sweep, fgssl reproduce, fgssl runs: many runs, as one table and as a list."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Collection, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option

from fgssl.cli import options
from fgssl.cli.console import print_json, print_table, say, tell
from fgssl.cli.options import Text
from fgssl.cli.pretrain import RUNS
from fgssl.errors import FgsslError
from fgssl.registry import loaded_files
from fgssl.runtime.processes import run_command

if TYPE_CHECKING:
    from fgssl.experiments.cells import Result, Verb
    from fgssl.experiments.experiment import Estimate, Experiment
    from fgssl.experiments.tablefile import Table
    from fgssl.runs.listing import RunEntry

_GRID = "Values of a setting, as in optimizer.lr=1e-3,3e-3. Repeat it for all combinations."
_SETS = "A setting of every run, over the recipe. Repeatable."
_MEASURE = """What is measured, with commas between: retrieve (leave-one-out), search (test pictures in the training
split), probe, probe-sgd (the paper's), signals (no labels needed). [retrieve, search and probe, or signals]"""
_FOLDER = "Folder of recipes with a tables.yaml, such as recipes/paper."
_TABLES = "Tables of the folder, with commas between. [all]"
_DATA = "Data in place of a table's own: SOURCE, or NAME=SOURCE for each of several tables."
_WEIGHTS = "Weights that every row starts from, as in pretrain --init. [the table's]"
_ONLY = "Rows, or their recipes, by name; * stands for anything. Repeatable."
_REHEARSE = "Run every row for a few steps at 32 px on drawn archives: does it start, train, resume, evaluate?"
_KEEP = "Folder for the runs, their numbers and the table, which goes on there. [runs/...]"
_PLAN = "Print what would be run and how long it takes, and stop."
_HOURS = "hours: forward passes at the rate of this machine, measured now, or of the runs that are finished"
Sets = Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help=_SETS)]
Output = Annotated[Path | None, Option("--output", "-o", help=_KEEP)]
DryRun = Annotated[bool, Option("--dry-run", help=_PLAN)]


def sweep(
    recipe: Annotated[Path, Argument(metavar="RECIPE", help="YAML file of settings; a run's config.yaml is one.")],
    grid: Annotated[list[str] | None, Option("--grid", metavar="KEY=VALUE,...", help=_GRID)] = None,
    seeds: Annotated[int, Option(help="Runs of each combination, from the recipe's seed on.", min=1)] = 3,
    data: Annotated[Text, Option(metavar="SOURCE", help="Data source, over the recipe.")] = None,
    sets: Sets = None,
    measure: Annotated[Text, Option(metavar="NAME,...", help=_MEASURE)] = None,
    output: Output = None,
    dry_run: DryRun = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a recipe with several values and seeds, one after another, into one table. The same command goes on."""
    from fgssl.experiments import experiment

    options.check_paths(data=data)
    own = (*(sets or ()), *(() if data is None else (f"data.source={data}",)))
    made = experiment.sweep(
        recipe, output or RUNS / f"sweep-{recipe.stem}", grid=grid or (), seeds=seeds, sets=own,
        measures=measure.split(",") if measure else None,
    )  # fmt: skip
    _run(made, dry_run=dry_run, json_output=json_output, quiet=quiet)


def reproduce(
    folder: Annotated[Path, Argument(metavar="FOLDER", help=_FOLDER)],
    table: Annotated[Text, Option(metavar="NAME,...", help=_TABLES)] = None,
    data: Annotated[list[str] | None, Option(metavar="[NAME=]SOURCE...", help=_DATA)] = None,
    weights: Annotated[Text, Option(metavar="FILE|RUN|NAME", help=_WEIGHTS)] = None,
    seeds: Annotated[int | None, Option(help="Runs of each row. [the table's]", min=1)] = None,
    only: Annotated[list[str] | None, Option("--only", metavar="PATTERN", help=_ONLY)] = None,
    sets: Sets = None,
    output: Output = None,
    rehearsal: Annotated[bool, Option("--rehearse", help=_REHEARSE)] = False,
    dry_run: DryRun = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Run the rows of a published table over several seeds, and print it beside the published numbers."""
    from fgssl.experiments.tablefile import read_tables

    tables = read_tables(folder)
    names = list(tables) if table is None else table.split(",")
    for name in names:
        if name not in tables:
            raise BadParameter(f"'{name}' is not one of {', '.join(tables)}", param_hint="--table")
    if rehearsal:
        if refused := options.given_flags(
            {"data": data, "weights": weights, "seeds": seeds, "dry_run": dry_run or None}
        ):
            raise BadParameter("a rehearsal draws its own data and weights, for one seed", param_hint=" ".join(refused))
        wanted = [tables[name] for name in names]
        _rehearse(wanted, output, only=only or (), sets=sets or (), json_output=json_output, quiet=quiet)
        return
    from fgssl.experiments.experiment import reproduction
    from fgssl.experiments.reproduce import Chosen

    sources, made = _sources(data or (), names, tables), []
    for name in names:
        options.check_paths(data=sources.get(name))
        chosen = Chosen(sources.get(name), weights, seeds, tuple(sets or ()), tuple(only or ()))
        made.append(reproduction(tables[name], chosen, (output or RUNS / folder.resolve().name) / name))
    for each in made:
        _run(each, dry_run=dry_run, json_output=json_output, quiet=quiet)


def _sources(given: Sequence[str], names: Sequence[str], tables: Collection[str]) -> dict[str, str]:
    """Table -> data source; tables that are not asked for may be named."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not (equals and name in tables):
            if len(names) > 1:
                raise BadParameter(f"'{text}': write NAME=SOURCE, of {', '.join(names)}", param_hint="--data")
            name, source = names[0], text
        found[name] = source
    return found


def _run(made: Experiment, *, dry_run: bool, json_output: bool, quiet: bool) -> None:
    """The plan, the cells that are left, and their table."""
    from fgssl.experiments.tables import WRITERS, head, rows

    if dry_run:
        estimates = made.hours_left()
        if json_output:
            print_json({"output": str(made.output), "rows": [estimate._asdict() for estimate in estimates]})
            return
        lines = [(e.row, e.cells, e.left, f"{e.hours:.2f}") for e in estimates]
        print_table(("row", "runs", "left", "hours"), lines, title=_plan_words(made.title, estimates))
        say(_HOURS)
        return
    if not quiet and not all(result.finished for result in made.known()):
        tell(_plan_words(made.title, made.hours_left()))
    summary, results = made.run(_apart(quiet=quiet), tell)
    if json_output:
        print_json(summary.to_dict())
    else:
        title = f"{summary.title}: mean ± standard deviation over the seeds (percent)"
        print_table(head(summary), rows(summary), title=title)
        for note in (*summary.notes, f"also as {', '.join(WRITERS)} in {made.output}"):
            say(note)
    _refuse_gaps(results)


def _plan_words(title: str, estimates: Sequence[Estimate]) -> str:
    hours = sum(estimate.hours for estimate in estimates)
    left, cells = (sum(getattr(estimate, key) for estimate in estimates) for key in ("left", "cells"))
    told = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    return f"{title}: {left} of {cells} runs are left, about {told} on this machine"


def _refuse_gaps(results: Sequence[Result]) -> None:
    """Raises FgsslError where a cell has no numbers."""
    gaps = [result for result in results if not result.finished]
    if gaps:
        why = "; ".join(dict.fromkeys(f"{gap.cell.name}: {gap.problem}" for gap in gaps[:3]))
        more = f" and {len(gaps) - 3} more" if len(gaps) > 3 else ""
        raise FgsslError(
            f"{len(gaps)} of {len(results)} runs have no numbers ({why}{more})", "the same command tries again"
        )


def _rehearse(tables: Sequence[Table], output: Path | None, *, json_output: bool, quiet: bool, **asked: Any) -> None:
    from fgssl.experiments.reproduce import rehearse
    from fgssl.experiments.run import run_cells

    results: list[tuple[Table, Result]] = []
    with contextlib.ExitStack() as stack:
        made = output or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fgssl-rehearsal-")))
        for table in tables:
            cells = rehearse(table, made, **asked)
            told = run_cells(cells, made / table.name, _within, (lambda text: None) if quiet else tell)
            results += [(table, result) for result in told]
    rows = [
        (table.name, each.cell.row, "weights as they are" if not each.cell.train else "trained, resumed",
         "measured" if each.finished else each.problem, 60 * each.minutes) for table, each in results
    ]  # fmt: skip
    columns = ("table", "row", "training", "numbers", "seconds")
    if json_output:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        print_table(columns, rows, title=f"Rehearsal of {len(rows)} rows (its numbers mean nothing)", text=range(4))
    _refuse_gaps([result for _, result in results])


def _apart(*, quiet: bool) -> Verb:
    """Runs a verb in a process of its own, which takes its memory with it when it ends."""
    from fgssl.experiments.cells import VerbFailed

    def run(words: Sequence[str]) -> str:
        plugins = [word for file in loaded_files for word in ("--plugin", str(file))]
        more = [*plugins, *(["--quiet"] if quiet else [])]
        ended = run_command([sys.executable, "-m", "fgssl", *words, *more])
        if ended.code:
            raise VerbFailed(words, ended.code)
        return ended.output

    return run


def _within(words: Sequence[str]) -> str:
    """Runs a verb in this process: seconds less where there are many of a few steps each."""
    from fgssl.cli import answered
    from fgssl.experiments.cells import VerbFailed

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = answered([*words, "--quiet"])
    if code:
        raise VerbFailed(words, code)
    return output.getvalue()


def runs(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="Folder whose runs are listed, however deep.")] = RUNS,
    json_output: options.Json = False,
) -> None:
    """List runs. Their data, backbone, state, rank-1 and age, the newest first."""
    from fgssl.runs.listing import list_runs

    found = list_runs(folder)
    if json_output:
        print_json([
            {**entry._asdict(), "folder": str(entry.folder), "age_seconds": round(entry.age, 1),
             "changed": datetime.fromtimestamp(entry.changed, timezone.utc).isoformat(timespec="seconds")}
            for entry in found
        ])  # fmt: skip
        return
    if not found:
        say(f"no runs in {folder}")
        return
    rows = [
        (entry.folder.relative_to(folder) if entry.folder != folder else folder, Path(entry.data or "-").name,
         entry.backbone, f"{entry.objective or '-'}{' + rationale' if entry.rationale else ''}", _status(entry),
         entry.rank1, _age(entry.age)) for entry in found
    ]  # fmt: skip
    print_table(("run", "data", "backbone", "objective", "status", "rank-1", "age"), rows, text=range(5))


def _status(entry: RunEntry) -> str:
    steps = (
        f" at {entry.step}/{entry.total_steps}" if entry.total_steps else f" at step {entry.step}" if entry.step else ""
    )
    return str(entry.status) + (steps if entry.status != "finished" else "")


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
