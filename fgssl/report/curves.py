"""Learning curves: small plots side by side over the steps of a run, each with what its values are read against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fgssl.report.pictures import spread
from fgssl.report.sections import Section, render

MOST_POINTS = 400  # of a line: a screen shows no more


class Line(NamedTuple):
    """Values by step."""

    name: str
    steps: Sequence[int]
    values: Sequence[float | None]  # None where there was none


class Panel(NamedTuple):
    """One plot."""

    title: str
    lines: Sequence[Line]
    levels: Mapping[str, float]  # dashed, by name: chance, the value before the first step
    meaning: str = ""  # what is good


def curves(title: str, panels: Sequence[Panel], *, told: str = "") -> Section:
    """Panels with at least one value; each line at 400 steps at most. The numbers stand in a table below, too."""
    known = [panel._replace(lines=[line for line in panel.lines if _has_values(line)]) for panel in panels]
    shown = [panel for panel in known if panel.lines]
    content = []
    for panel in shown:
        points = [
            {"step": int(line.steps[place]), "value": line.values[place], "line": line.name}
            for line in panel.lines
            for place in spread(len(line.steps), MOST_POINTS)
            if line.values[place] is not None
        ]
        levels = [{"name": name, "value": value} for name, value in panel.levels.items()]
        content.append({"title": panel.title, "points": points, "levels": levels})
    body = render("curves.html", panels=shown, content=content, told=told, numbers=_numbers(shown))
    return Section(title, body, ("curves",))


def _has_values(line: Line) -> bool:
    return any(value is not None for value in line.values)


def _numbers(panels: Sequence[Panel]) -> tuple[list[str], list[list[float | None]]]:
    """Columns and rows of the table: at most twenty steps, the first and the last among them."""
    lines = [(panel.title, line) for panel in panels for line in panel.lines]
    named = [(f"{title}, {line.name}" if line.name else title, line) for title, line in lines]
    steps = sorted({step for _, line in named for step in line.steps})
    lookups = [dict(zip(line.steps, line.values, strict=True)) for _, line in named]
    chosen = [steps[place] for place in spread(len(steps), 20)]
    return ["step", *(name for name, _ in named)], [[step, *(known.get(step) for known in lookups)] for step in chosen]
