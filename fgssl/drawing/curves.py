"""The learning curve of a run: how its numbers went, step by step, each on a chart of its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from fgssl.drawing.sheets import GREY, HAIRLINE, INK, QUIET, WHITE, Colour, Key, Panel, sheet
from fgssl.drawing.text import font, line_height, text_width

Row = Mapping[str, float | None]  # a line of metrics.jsonl
BLUE: Colour = (26, 92, 178)
ORANGE: Colour = (214, 112, 18)
SIZE, PAD, DOT = (460, 250), 14, 2  # of a chart, drawn at the double and reduced
FINER = 2
TICKS = 4


class Chart(NamedTuple):
    """One chart: keys of the rows, with what each is called; those named in `levels` are drawn grey and dashed."""

    title: str
    lines: tuple[tuple[str, str], ...]
    levels: tuple[tuple[str, str], ...] = ()


CHARTS = (
    Chart("Loss", (("loss", "loss"),), (("chance", "chance"),)),
    Chart("Fit of the rationale", (("fit", "fit"),)),
    Chart("Entropy of the GradCAM target, 1 is uniform", (("target_entropy", "target entropy"),)),
    Chart("Effective rank: 1 is collapse", (("effective_rank", "of the last batch"),
                                            ("sample_effective_rank", "of 256 training images"))),
    Chart("Same neighbours from another view", (("sample_neighbour_overlap", "same neighbours"),),
          (("start_neighbour_overlap", "start"), ("sample_neighbour_chance", "chance"))),
    Chart("Learning rate", (("lr", "rate"),)),
)  # fmt: skip


def curve_sheet(rows: Sequence[Row], *, title: str = "Learning curve") -> Image.Image | None:
    """Loss beside chance, fit, entropy, effective rank, neighbours and rate over the steps; None without a number.

    Args:
        rows: Lines of metrics.jsonl, each with its `step`; what is None or not finite is a gap.
        title: The heading.
    """
    drawn = [panel for chart in CHARTS if (panel := _panel(chart, rows)) is not None]
    if not drawn:
        return None
    grid: list[list[Panel | None]] = [[*drawn[first : first + 2]] for first in range(0, len(drawn), 2)]
    words = "Each point is a line of metrics.jsonl, over the steps; grey and dashed: what to compare with"
    return sheet(grid, title=title, legend=[Key(None, words)], panel_size=SIZE[1], panel_width=SIZE[0])


def _points(rows: Sequence[Row], key: str) -> list[tuple[float, float]]:
    found = [(row.get("step"), row.get(key)) for row in rows]
    return [(step, value) for step, value in found if step is not None and value is not None and math.isfinite(value)]


def _panel(chart: Chart, rows: Sequence[Row]) -> Panel | None:
    lines = [(name, points) for key, name in chart.lines if (points := _points(rows, key))]
    if not lines:
        return None
    levels = [(name, points) for key, name in chart.levels if (points := _points(rows, key))]
    size = (SIZE[0] * FINER, SIZE[1] * FINER)
    picture = Image.new("RGB", size, WHITE)
    frame = _Frame(picture, [point for _, points in (*lines, *levels) for point in points])
    frame.axes(chart.title)
    for name, points in levels:
        frame.line(points, GREY, dashed=True)
        frame.name_line(name, points[-1][1])
    for (_, points), colour in zip(lines, (BLUE, ORANGE), strict=False):
        frame.line(points, colour)
    if len(lines) > 1:
        frame.names([(name, colour) for (name, _), colour in zip(lines, (BLUE, ORANGE), strict=False)])
    return Panel(picture)


class _Frame:
    """Where the numbers of a chart are on its picture."""

    def __init__(self, picture: Image.Image, points: Sequence[tuple[float, float]]) -> None:
        self.draw, (self.width, self.height) = ImageDraw.Draw(picture), picture.size
        self.face, self.bold = font(12 * FINER), font(14 * FINER)
        steps, values = zip(*points, strict=True)
        self.ticks = ticks(min(values), max(values))
        self.first, self.last = min(steps), max(max(steps), min(steps) + 1)
        self.low, self.high = self.ticks[0], self.ticks[-1]
        row = line_height(self.face)
        self.left = PAD * FINER + max(text_width(shown(tick), self.face) for tick in self.ticks) + 6 * FINER
        self.right, self.top = self.width - PAD * FINER, PAD * FINER + line_height(self.bold) + row + 4 * FINER
        self.bottom = self.height - PAD * FINER - row - 2 * FINER

    def place(self, step: float, value: float) -> tuple[float, float]:
        across = (step - self.first) / (self.last - self.first)
        up = (value - self.low) / (self.high - self.low)
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def axes(self, title: str) -> None:
        self.draw.text((PAD * FINER, PAD * FINER), title, fill=INK, font=self.bold)
        for tick in self.ticks:
            _, height = self.place(self.first, tick)
            self.draw.line((self.left, height, self.right, height), fill=HAIRLINE, width=FINER)
            at = (self.left - 6 * FINER - text_width(shown(tick), self.face), height - line_height(self.face) / 2)
            self.draw.text(at, shown(tick), fill=QUIET, font=self.face)
        below = self.bottom + 3 * FINER
        self.draw.text((self.left, below), f"step {self.first:,.0f}", fill=QUIET, font=self.face)
        end = f"{self.last:,.0f}"
        self.draw.text((self.right - text_width(end, self.face), below), end, fill=QUIET, font=self.face)

    def line(self, points: Sequence[tuple[float, float]], colour: Colour, *, dashed: bool = False) -> None:
        places = [self.place(*point) for point in points]
        if dashed and len(places) == 1:
            places = [(self.left, places[0][1]), (self.right, places[0][1])]
        if dashed:
            self._dashes(places, colour)
        elif len(places) > 1:
            self.draw.line(places, fill=colour, width=2 * FINER, joint="curve")
        for x, y in places if not dashed and len(places) <= 60 else ():
            reach = DOT * FINER
            self.draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)

    def _dashes(self, places: Sequence[tuple[float, float]], colour: Colour) -> None:
        """Of a fixed length along the line, however its points lie."""
        dash, gone = 6 * FINER, 0.0
        for (x, y), (right, below) in itertools.pairwise(places):
            length = math.hypot(right - x, below - y)
            parts = max(1, math.ceil(length / 2))
            for part in range(parts):
                if int((gone + length * part / parts) // dash) % 2 == 0:
                    ends = [
                        (x + (right - x) * share / parts, y + (below - y) * share / parts) for share in (part, part + 1)
                    ]
                    self.draw.line(ends, fill=colour, width=FINER)
            gone += length

    def name_line(self, name: str, value: float) -> None:
        """A level's name above its right end."""
        _, height = self.place(self.last, value)
        at = (self.right - text_width(name, self.face), height - line_height(self.face))
        self.draw.text(at, name, fill=QUIET, font=self.face)

    def names(self, entries: Sequence[tuple[str, Colour]]) -> None:
        x, y = float(PAD * FINER), PAD * FINER + line_height(self.bold)
        for name, colour in entries:
            self.draw.line((x, y + line_height(self.face) / 2, x + 16 * FINER, y + line_height(self.face) / 2),
                           fill=colour, width=2 * FINER)  # fmt: skip
            self.draw.text((x + 20 * FINER, y), name, fill=QUIET, font=self.face)
            x += 34 * FINER + text_width(name, self.face)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, a few, from at or below `low` to at or above `high`, evenly apart."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):  # of one value: around it
        room = abs(low) / 10 or 1.0
        low, high = low - room, high + room
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(power * part for part in (1, 2, 2.5, 5, 10) if power * part >= rough * (1 - 1e-9))
    first, last = math.floor(low / apart + 1e-9), math.ceil(high / apart - 1e-9)
    return [apart * place for place in range(first, last + 1)]


def shown(value: float) -> str:
    """A number in few digits."""
    return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.1e}"
