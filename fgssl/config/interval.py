"""How often something happens: every 200 steps, or every 90s, 10m, 2h."""

from __future__ import annotations

import re
from typing import NamedTuple

_INTERVAL = re.compile(r"(\d+(?:\.\d+)?)\s*(|s|m|min|h)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}


class Interval(NamedTuple):
    """How often something happens, in steps or in time."""

    steps: int | None
    seconds: float | None

    def over(self, steps: int, seconds: float) -> bool:
        """Whether it is time again after so many steps and seconds."""
        return steps >= self.steps if self.steps is not None else seconds > (self.seconds or 0)


def interval(text: str) -> Interval | None:
    """`200` steps, or `90s`, `10m`, `2h`; None for what is neither. `10.0`, as old runs wrote it, is minutes."""
    match = _INTERVAL.fullmatch(text.strip())
    if match is None:
        return None
    number, unit = match.groups()
    if not unit and number.isdecimal():
        return Interval(max(1, int(number)), None)
    return Interval(None, float(number) * _SECONDS[unit or "m"])
