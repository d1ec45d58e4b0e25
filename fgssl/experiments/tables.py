"""A summary as text, Markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fgssl.experiments.summary import Line, Summary
from fgssl.runtime.files import write_text
from fgssl.runtime.text import csv_text, json_text, shown

NOT_PUBLISHED = "not published"
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
          **{sign: f"\\{sign}" for sign in "&%$#_{}"}}  # fmt: skip


def head(summary: Summary) -> tuple[str, ...]:
    """The titles of the columns."""
    return ("", "seeds", *summary.columns)


def rows(summary: Summary, *, sign: str = "±") -> list[tuple[str, ...]]:
    """The cells as people read them: each row, and below it what was published where the table has such a side."""
    found = []
    for line in summary.lines:
        numbers = [line.numbers.get(column) for column in summary.columns]
        cells = ["-" if number is None else number.in_words(sign) for number in numbers]
        found.append((line.name, _seeds(line), *cells))
        if line.published is not None:
            beside = [f"{line.published[c]:g}" if c in line.published else NOT_PUBLISHED for c in summary.columns]
            found.append(("  published", "", *beside))
    return found


def _seeds(line: Line) -> str:
    return str(line.finished) if line.finished == line.cells else f"{line.finished} of {line.cells}"


def markdown(summary: Summary) -> str:
    """A table in Markdown, with its notes."""
    lines = [head(summary), ("---", *("---:" for _ in head(summary)[1:])), *rows(summary)]
    table = [f"| {' | '.join(shown(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines]
    return "\n".join([f"**{shown(summary.title)}**", "", *table, "", *map(shown, summary.notes), ""])


def csv(summary: Summary) -> str:
    """A line a row and column: mean, deviation, 95 % interval, number of seeds, and what was published."""
    table: list[Sequence[object]] = [("row", "column", "mean", "deviation", "low", "high", "seeds", "published")]
    for line in summary.lines:
        for column in summary.columns:
            number = tuple(line.numbers[column]) if column in line.numbers else ("", "", "", "", 0)
            table.append((line.name, column, *number, (line.published or {}).get(column, "")))
    return csv_text(table)


def latex(summary: Summary) -> str:
    """A tabular for the package booktabs."""

    def safe(text: str) -> str:
        return "".join(_LATEX.get(sign, sign) for sign in shown(text).strip())

    def line(cells: Sequence[str]) -> str:
        words = [safe(cell).replace("±", r"$\pm$") for cell in cells]
        return f"{' & '.join(words)} \\\\"

    titles = head(summary)
    body = [line(cells) for cells in rows(summary)]
    notes = [f"% {shown(note)}" for note in (summary.title, *summary.notes)]
    return "\n".join([
        *notes, f"\\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}", r"\toprule", line(titles), r"\midrule",
        *body, r"\bottomrule", r"\end{tabular}", "",
    ])  # fmt: skip


WRITERS: dict[str, Callable[[Summary], str]] = {
    "table.md": markdown,
    "table.csv": csv,
    "table.tex": latex,
    "table.json": lambda summary: json_text(summary.to_dict()) + "\n",
}


def write_tables(summary: Summary, output: Path) -> list[Path]:
    """Write the table in every form; their paths."""
    for name, form in WRITERS.items():
        write_text(output / name, form(summary))
    return [output / name for name in WRITERS]
