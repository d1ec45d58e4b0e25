"""How things look on a terminal, and how they read in a log file."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer
from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fgssl.runtime.launch import may_speak
from fgssl.runtime.progress_events import listen
from fgssl.runtime.reporting import Reporter, StepReport
from fgssl.runtime.text import shown


class SafeConsole(Console):
    """A console on which a name from a file or a data set cannot steer the terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's, with control characters of strings as escapes."""
        super().print(*(harmless(o) if isinstance(o, str) else o for o in objects), **options)


def harmless(text: str) -> str:
    """Text without characters that a terminal obeys; lines stay lines."""
    return text if text.isprintable() else "\n".join(map(shown, text.split("\n")))


# emoji=False: a file named :bird:.jpg keeps its name
err = SafeConsole(stderr=True, highlight=False, emoji=False)
out = SafeConsole(highlight=False, emoji=False, quiet=int(os.environ.get("RANK", "0")) > 0)
PLAIN_SECONDS = 5.0  # between progress lines where there is no terminal


def print_error(problem: str, remedy: str) -> None:
    """One line: what is wrong, and what to do."""
    text = " ".join(f"{problem}; {remedy}".split("\n") if remedy else problem.split("\n"))
    err.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)


def print_json(value: Any) -> None:
    """A JSON document on stdout."""
    echo(json.dumps(value, indent=2))


def echo(text: str) -> None:
    """Text on stdout; of several processes the first speaks for all, whose results are the same."""
    if process_rank() == 0:
        typer.echo(text)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None, text_columns: int = 1
) -> None:
    """A table on stdout: lines on a terminal, aligned text in a pipe; numbers with two decimals, to the right."""
    terminal = sys.stdout.isatty()
    if title:  # not the table's own, which would wrap at the width of the table
        out.print(title, markup=False, soft_wrap=True, style="bold")
    table = Table(
        box=box.HEAVY_HEAD if terminal else None,
    )
    for place, column in enumerate(columns):
        table.add_column(escape(harmless(column)), justify="left" if place < text_columns else "right", overflow="fold")
    for row in rows:
        table.add_row(*[escape(cell(value)) for value in row])
    # a pipe gets the whole width: no cell may be cut off or folded because nobody looks
    if terminal and process_rank() == 0:
        Console(highlight=False, emoji=False).print(table)
    elif not terminal:
        echo("\n".join(line.rstrip() for line in as_lines(table)))


def as_lines(table: Table) -> list[str]:
    """A table as lines of plain text, as wide as it needs."""
    plain = Console(file=io.StringIO(), highlight=False, emoji=False, width=10_000, color_system=None)
    with plain.capture() as captured:
        plain.print(table)
    return captured.get().splitlines()


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}"
    return harmless(str(value))


def duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def step_line(report: StepReport) -> str:
    """One line about a training run."""
    parts = [
        f"epoch {report.epoch}/{report.epochs}",
        f"step {report.step}/{report.total_steps}",
        f"loss {report.loss:.3f}" + ("" if report.chance is None else f" (chance {report.chance:.2f})"),
    ]
    if report.fit is not None and report.target_entropy is not None:
        parts += [f"fit {report.fit:.4f}", f"target entropy {report.target_entropy:.3f}"]
    parts += [
        f"rank {report.effective_rank:.1f} std {report.feature_std:.2f}",
        f"{report.images_per_second:.0f} images/s",
        f"waiting {100 * report.wait_share:.0f} %",
        f"{duration(report.seconds_left)} left",
    ]
    return "  ".join(parts)


class PlainReporter(Reporter):
    """Lines on stderr, not too many of them."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._begun: tuple[str, float, int] | None = None  # task, when it was first heard of, what was done by then
        self._spoke = False  # of this task

    def note(self, text: str) -> None:
        err.print(escape(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        err.print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=True)

    def fatal(self, problem: str, remedy: str) -> None:
        if may_speak():
            print_error(problem, remedy)

    def progress(self, task: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self._begun is None or self._begun[0] != task or done < self._begun[2]:
            self._begun, self._spoke = (task, now, done), False
        if total is not None and done >= total:
            if self._spoke:  # or its last word would be that it is not done
                self.note(f"{task}: {done}/{total}")
            self._begun, self._spoke = None, False
        elif self._due():
            self._spoke = True
            _, start, first = self._begun
            if total is None:
                self.note(f"{task}: {done} so far")
                return
            left = f", {duration((now - start) / (done - first) * (total - done))} left" if done > first else ""
            self.note(f"{task}: {done}/{total}{left}")

    def step(self, report: StepReport) -> None:
        if self._due() or report.step == report.total_steps:
            self.note(step_line(report))

    def planned(self, description: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        self.note(plan_line(description, facts))

    def close(self) -> None:
        """Nothing is left on the screen, and nothing more is heard."""
        listen(None)

    def _due(self) -> bool:
        now = time.monotonic()
        due = now - self._last >= PLAIN_SECONDS
        if due:
            self._last = now
        return due


class QuietReporter(PlainReporter):
    """Warnings only."""

    def note(self, text: str) -> None:
        """Not of interest."""


class _Bar(Progress):
    """A progress bar below a text of its own, which wraps where the terminal is narrow."""

    text = Text()

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.text:
            yield self.text
        yield from super().get_renderables()


class LiveReporter(PlainReporter):
    """A bar for the task at hand, and the numbers above it while training."""

    def __init__(self) -> None:
        super().__init__()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._bar = _Bar(*columns, console=err, transient=True)
        self._bar.start()
        self._task: tuple[str, Any] | None = None

    def note(self, text: str) -> None:
        self._bar.console.print(escape(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        self._bar.console.print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=True)

    def progress(self, task: str, done: int, total: int | None) -> None:
        self._show(task, done, total)
        if total is not None and done >= total:
            self._drop()

    def step(self, report: StepReport) -> None:
        self._bar.text = Text(step_line(report))
        self._show("training", report.step, report.total_steps)
        if report.step == report.total_steps:
            self._drop()
            self._bar.text = Text()
            self.note(step_line(report))

    def close(self) -> None:
        super().close()
        self._bar.stop()

    def _show(self, task: str, done: int, total: int | None) -> None:
        if self._task is None or self._task[0] != task:
            self._drop()
            self._task = (task, self._bar.add_task(task, total=total))
        self._bar.update(self._task[1], completed=done, total=total)

    def _drop(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task[1])
            self._task = None


def process_rank() -> int:
    """This process's number among those a launcher such as torchrun started; 0 speaks for all."""
    return int(os.environ.get("RANK", "0"))


class SilentReporter(PlainReporter):
    """Nothing: another process says the same."""

    def note(self, text: str) -> None:
        """Said elsewhere."""

    def warn(self, text: str) -> None:
        """Said elsewhere."""


def evaluation_reporter() -> PlainReporter:
    """The reporter of a verb that evaluates, whose processes all know the whole: the first alone speaks."""
    return SilentReporter() if process_rank() > 0 else make_reporter(quiet=False)


def make_reporter(*, quiet: bool) -> PlainReporter:
    """The reporter for this terminal, log file or silence; only the first of several processes speaks."""
    if quiet or process_rank() > 0:
        reporter: PlainReporter = QuietReporter()
    else:
        reporter = LiveReporter() if err.is_terminal and not err.is_dumb_terminal else PlainReporter()
    listen(
        reporter.progress, remarks=lambda level, text: (reporter.warn if level == "warning" else reporter.note)(text)
    )
    return reporter


def plan_line(description: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """What is about to run, in one line."""

    def value(key: str) -> Any:
        return description[key]["value"]

    height, width = facts["map_size"]
    rationale = value("rationale.preset") if value("rationale.enabled") else "off"
    start = "pretrained" if value("backbone.pretrained") else value("backbone.init") or "from scratch"
    return (
        f"{value('backbone.name')} ({start}) on {value('data.source')}: {facts['train_images']} images, "
        f"{value('backbone.image_size')} px, map {height}x{width}, {value('objective.name')}, rationale {rationale}, "
        f"{facts['total_steps']} steps of {value('training.batch_size')}, {value('training.device')}, "
        f"precision {value('training.mixed_precision')}"
    )
