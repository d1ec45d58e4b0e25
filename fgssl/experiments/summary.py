"""Means, deviations and intervals over the seeds of a row, beside what others published."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fgssl.experiments.cells import MEASURES, Result

# Two-sided 95 % quantiles of Student's t by degrees of freedom (any statistics book); beyond, `_quantile` is exact
# enough to all digits shown.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class Spread(NamedTuple):
    """A number over seeds."""

    mean: float
    deviation: float | None  # None of one value
    low: float | None  # 95 % interval of the mean
    high: float | None
    seeds: int

    def in_words(self, sign: str = "±") -> str:
        """As a table has it: 71.3 ± 0.4; two decimals for small numbers."""
        digits = 1 if abs(self.mean) >= 10 else 2
        more = "" if self.deviation is None else f" {sign} {self.deviation:.{digits}f}"
        return f"{self.mean:.{digits}f}{more}"


class Line(NamedTuple):
    """A row of the table."""

    name: str
    cells: int  # how many are planned
    finished: int
    numbers: Mapping[str, Spread]
    published: Mapping[str, float] | None  # None where the table has no published side


class Summary(NamedTuple):
    """The table of an experiment."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        lines = [
            {**line._asdict(), "numbers": {name: spread._asdict() for name, spread in line.numbers.items()}}
            for line in self.lines
        ]
        return {"title": self.title, "columns": list(self.columns), "rows": lines, "notes": list(self.notes)}


def spread(values: Sequence[float]) -> Spread:
    """Mean, sample deviation and Student's 95 % interval of the mean; the last ones None of one value."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Spread(mean, None, None, None, count)
    deviation = statistics.stdev(values)
    reach = _quantile(count - 1) * deviation / math.sqrt(count)
    return Spread(mean, deviation, mean - reach, mean + reach, count)


def _quantile(freedom: int) -> float:
    """Of Student's t, two-sided 95 %; above 10 by the expansion of Abramowitz and Stegun, 26.7.5."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z, n = statistics.NormalDist().inv_cdf(0.975), freedom
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / n + second / n**2 + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 / n**3


def summarise(
    results: Sequence[Result],
    *,
    title: str,
    published: Mapping[str, Mapping[str, float]] | None = None,
    notes: Sequence[str] = (),
) -> Summary:
    """One line a row, in the order in which rows first come.

    Args:
        results: Of the cells, finished or not.
        title: Of the table.
        published: Row -> column -> number; None where there is nothing to compare with.
        notes: Lines below the table.
    """
    names = dict.fromkeys(name for result in results for name in result.cell.measures)
    lines = []
    for row in dict.fromkeys(result.cell.row for result in results):
        own = [result for result in results if result.cell.row == row]
        found: dict[str, list[float]] = {}
        for result in own:
            for column, value in result.numbers.items():
                found.setdefault(column, []).append(value)
        numbers = {column: spread(values) for column, values in found.items()}
        finished = sum(result.finished for result in own)
        beside = None if published is None else published.get(row, {})
        lines.append(Line(row, len(own), finished, numbers, beside))
    return Summary(title, tuple(c for name in names for c in MEASURES[name].columns), tuple(lines), tuple(notes))
