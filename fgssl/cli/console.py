"""How things look on a terminal, and how they read in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fgssl.runtime.processes import may_speak
from fgssl.runtime.reporting import Reporter, StepReport, listen
from fgssl.runtime.text import json_text, shown

err = Console(stderr=True, highlight=False)
out = Console(highlight=False)
pipe = Console(width=10_000, color_system=None)  # nobody looks at its width, so no cell may be cut off or folded
PLAIN_SECONDS = 5.0  # between progress lines where there is no terminal
Rows = Iterable[Sequence[Any]]


def process_rank() -> int:
    """This process's number among those a launcher such as torchrun started; 0 speaks for all."""
    return int(os.environ.get("RANK", "0"))


def say(text: str, *, style: str = "") -> None:
    """One line of results on stdout; of several processes the first speaks for all, whose results are the same."""
    if process_rank() == 0:
        out.print(Text(shown(text), style), soft_wrap=True)


def tell(text: str, *, kind: str = "", style: str = "") -> None:
    """One line on stderr, as in "KIND: text"."""
    err.print(Text.assemble((f"{kind}: " if kind else "", style), shown(text)), soft_wrap=True)


def print_error(problem: str, remedy: str = "") -> None:
    """The one line that a failed command ends with."""
    tell(f"{problem}; {remedy}" if remedy else problem, kind="error", style="bold red")


def _echo(text: str) -> None:
    """Lines of results that hold nothing foreign as it came."""
    if process_rank() == 0:
        sys.stdout.write(f"{text}\n")


def print_json(value: Any, *, lines: bool = False) -> None:
    """A result as JSON, on stdout; one of many `lines` on a line of its own."""
    _echo(json_text(value, indent=None if lines else 2))


def print_table(
    columns: Sequence[str], rows: Rows, *, title: str = "", text: Collection[int] = (0,), markdown: bool = False
) -> None:
    """A table on stdout: ruled on a terminal, aligned text in a pipe; numbers with two decimals, to the right.

    `text` says which columns are text and not numbers; -1 is the last.
    """
    cells = [[cell(value) for value in row] for row in rows]
    texts = [place in text or place - len(columns) in text for place in range(len(columns))]
    if markdown:
        lines = [columns, ["---" if left else "---:" for left in texts], *cells]
        marked = [" | ".join(shown(word).replace("|", "\\|") for word in line) for line in lines]
        _echo("\n".join([f"**{shown(title)}**", "", *(f"| {line} |" for line in marked), ""]))
        return
    if title:  # not the table's own, which would wrap at the width of the table
        say(title, style="bold")
    terminal = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=not terminal)
    for column, left in zip(columns, texts, strict=True):
        table.add_column(Text(shown(column)), justify="left" if left else "right", overflow="fold")
    for line in cells:
        table.add_row(*map(Text, line))
    if terminal and process_rank() == 0:
        out.print(table)
    elif not terminal:
        with pipe.capture() as page:
            pipe.print(table)
        _echo("\n".join(line.rstrip() for line in page.get().splitlines()))


def cell(value: Any) -> str:
    """A value as people read it in a table."""
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else shown(str(value))


def _duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _step_line(report: StepReport) -> str:
    chance = "" if report.chance is None else f" (chance {report.chance:.2f})"
    rationale = ""
    if report.fit is not None and report.target_entropy is not None:
        rationale = f"fit {report.fit:.4f}  target entropy {report.target_entropy:.3f}  "
    return (
        f"epoch {report.epoch}/{report.epochs}  step {report.step}/{report.total_steps}  "
        f"loss {report.loss:.3f}{chance}  {rationale}rank {report.effective_rank:.1f} std {report.feature_std:.2f}  "
        f"{report.images_per_second:.0f} images/s  waiting {100 * report.wait_share:.0f} %  "
        f"{_duration(report.seconds_left)} left"
    )


class PlainReporter(Reporter):
    """Lines on stderr, not too many of them; without notes or warnings where another process says the same."""

    def __init__(self, *, notes: bool = True, warnings: bool = True) -> None:
        self.notes, self.warnings = notes, warnings
        self._last = time.monotonic()
        self._begun: tuple[str, float, int] | None = None  # task, when it was first heard of, what was done by then
        self._spoke = False  # of this task

    def note(self, text: str) -> None:
        if self.notes:
            tell(text)

    def warn(self, text: str) -> None:
        if self.warnings:
            tell(text, kind="warning", style="yellow")

    def fatal(self, problem: str, remedy: str) -> None:
        if may_speak():
            print_error(problem, remedy)

    def progress(self, task: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self._begun is None or self._begun[0] != task or done < self._begun[2]:
            self._begun, self._spoke = (task, now, done), False
        _, start, first = self._begun
        if total is not None and done >= total:
            if self._spoke:  # or its last word would be that it is not done
                self.note(f"{task}: {done}/{total}")
            self._begun = None
        elif self._due():
            self._spoke = True
            left = _duration((now - start) / (done - first) * (total - done)) if total and done > first else ""
            self.note(f"{task}: {done}{f'/{total}' if total else ' so far'}{f', {left} left' if left else ''}")

    def step(self, report: StepReport) -> None:
        if self._due() or report.step == report.total_steps:
            self.note(_step_line(report))

    def planned(self, description: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        settings = {key: item["value"] for key, item in description.items()}
        height, width = facts["map_size"]
        rationale = settings["rationale.preset"] if settings["rationale.enabled"] else "off"
        start = "pretrained" if settings["backbone.pretrained"] else settings["backbone.init"] or "from scratch"
        self.note(
            f"{settings['backbone.name']} ({start}) on {settings['data.source']}: {facts['train_images']} images, "
            f"{settings['backbone.image_size']} px, map {height}x{width}, {settings['objective.name']}, "
            f"rationale {rationale}, {facts['total_steps']} steps of {settings['training.batch_size']}, "
            f"{settings['training.device']}, precision {settings['training.mixed_precision']}"
        )

    def close(self) -> None:
        listen(None)

    def _due(self) -> bool:
        due = time.monotonic() - self._last >= PLAIN_SECONDS
        self._last = time.monotonic() if due else self._last
        return due


class _Bar(Progress):
    """A progress bar below a text of its own, which wraps where the terminal is narrow."""

    text = Text()

    def get_renderables(self) -> Iterable[RenderableType]:
        return [*([self.text] if self.text else []), *super().get_renderables()]


class LiveReporter(PlainReporter):
    """A bar for the task at hand, and the numbers above it while training."""

    def __init__(self) -> None:
        super().__init__()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        self._bar = _Bar(*columns, TimeRemainingColumn(), console=err, transient=True)
        self._bar.start()

    def progress(self, task: str, done: int, total: int | None) -> None:
        if [known.description for known in self._bar.tasks] != [shown(task)]:
            self._drop()
            self._bar.add_task(shown(task), total=total)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        if total is not None and done >= total:
            self._drop()

    def step(self, report: StepReport) -> None:
        self._bar.text = Text(_step_line(report))
        self.progress("training", report.step, report.total_steps)
        if report.step == report.total_steps:
            self._bar.text = Text()
            self.note(_step_line(report))

    def close(self) -> None:
        super().close()
        self._bar.stop()

    def _drop(self) -> None:
        for number in self._bar.task_ids:
            self._bar.remove_task(number)


@contextmanager
def reporting(*, quiet: bool = False, warn: bool = True) -> Iterator[PlainReporter]:
    """The reporter for this terminal, log file or silence (`quiet`: warnings only), until the block ends.

    Of several processes the first speaks; the others still `warn`, unless all know the same.
    """
    first = process_rank() == 0
    # FORCE_COLOR, as CI sets it, makes rich take a log for a terminal: colours are asked for there, no moving bar
    terminal = err.is_terminal and not err.is_dumb_terminal and (err.file.isatty() or "FORCE_COLOR" not in os.environ)
    plain = PlainReporter(notes=first and not quiet, warnings=first or warn)
    reporter = LiveReporter() if first and not quiet and terminal else plain
    listen(reporter)
    try:
        yield reporter
    finally:
        reporter.close()
