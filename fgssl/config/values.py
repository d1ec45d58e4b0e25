"""One setting's value: read as its field's type, held to its range, shown in messages.

By hand, as pydantic, OmegaConf and dacite neither say which setting was nearly meant and what it takes, nor read `1e2`
as a whole number, `no` as a word and `1.10` as a revision.
"""

from __future__ import annotations

import difflib
import math
import re
import types
from dataclasses import fields, is_dataclass
from decimal import Decimal
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from fgssl.config.schema import PretrainConfig, Range, flatten
from fgssl.errors import SettingError

LARGEST_INTEGER = 2**63 - 1  # what torch takes as a seed or a size
_INTERVAL = re.compile(r"(\d+(?:\.\d+)?)\s*(|s|m|min|h)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}


class Interval(NamedTuple):
    """How often something happens, in steps or in time."""

    steps: int | None
    seconds: float | None

    def over(self, steps: int, seconds: float) -> bool:
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


def parse_bytes(text: str) -> int:
    """Bytes of "2G", "512M", "1.5GiB" or a plain number; units are powers of 1024. Raises FgsslError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, re.IGNORECASE)
    size = int(float(found[1]) * 1024 ** " kmgt".index(found[2].lower() or " ")) if found else 0
    if size < 1:
        raise SettingError(f"'{text}' is not an amount of memory", "write it as 512M or 2G")
    return size


def type_hints(cls: type, prefix: str = "") -> dict[str, Any]:
    """`section.key` -> type of every setting of a dataclass of sections."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        found |= type_hints(hint, f"{prefix}{name}.") if is_dataclass(hint) else {f"{prefix}{name}": hint}  # type: ignore[arg-type]
    return found


def ranges(config: PretrainConfig) -> dict[str, Range]:
    """`section.key` -> what its number may be, of an objective's own settings as well."""
    return {
        f"{section.name}.{item.name}": item.metadata["range"]
        for section in fields(config)
        for item in fields(getattr(config, section.name))
        if item.metadata["range"] is not None
    }


def coerce(key: str, value: Any, hint: Any, within: Range | None = None) -> Any:
    """The value as the field's type, or one line saying what the field takes."""
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        hint = next(h for h in get_args(hint) if h is not type(None))
    if get_origin(hint) is Literal:
        value = "no" if value is False and "no" in get_args(hint) else value  # YAML reads a bare `no` as false
        if value in get_args(hint):
            return value
        names = [str(name) for name in get_args(hint)]
        near = difflib.get_close_matches(str(value)[:80].lower(), names, n=1)
        choices = f"choose one of {', '.join(names)}"
        remedy = f"did you mean '{near[0]}'? Otherwise {choices}" if near else choices
        raise SettingError(f"{key} cannot be {shown(value)}", remedy)
    if hint is bool and isinstance(value, bool):
        return value
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        found = str(value) if hint is str else _number(value, hint) if hint in (int, float) else None
        if found is not None:
            return found
    quotes = ", in quotes" if hint is str and isinstance(value, bool) else ""
    words = "" if within is None else f": {'a whole number' if hint is int else 'a number'}, {within.words}"
    raise SettingError(f"{key} cannot be {shown(value)}", f"it takes a value of type {hint.__name__}{quotes}{words}")


def require_ranges(config: PretrainConfig) -> None:
    """Raises SettingError for the first number outside its range."""
    flat = flatten(config)
    for key, within in ranges(config).items():
        if flat[key] is not None and not within.holds(flat[key]):
            raise SettingError(f"{key} is {flat[key]}", f"it must be {within.words}")


def _number(value: str | int | float, kind: type) -> int | float | None:
    """The value as an int or float; None where it is none, not finite, or beyond 64 bits."""
    try:
        exact = Decimal(str(value))  # a float would round large whole numbers
        if kind is float:
            return float(exact) if math.isfinite(float(exact)) else None
        return int(exact) if abs(exact) <= LARGEST_INTEGER and exact == exact.to_integral_value() else None
    except (ValueError, ArithmeticError):
        return None


def shown(value: Any) -> str:
    """A value for a message: never long, and never the expansion of nested YAML aliases."""
    if isinstance(value, (dict, list, tuple, set)):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
