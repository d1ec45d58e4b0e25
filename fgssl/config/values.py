"""One setting's value: read as its field's type, held to its range, shown in messages.

Kept by hand, as pydantic, OmegaConf and dacite are each more code around it: they neither say which setting was nearly
meant and what it takes, nor read `1e2` as a whole number, `no` as a word and `1.10` as a revision.
"""

from __future__ import annotations

import difflib
import math
import types
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fgssl.config.schema import PretrainConfig, Range, flatten
from fgssl.errors import SettingError

LARGEST_INTEGER = 2**63 - 1  # what torch takes as a seed or a size


def type_hints(cls: type, prefix: str = "") -> dict[str, Any]:
    """`section.key` -> type of every setting of a dataclass of sections."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        found |= type_hints(hint, f"{prefix}{name}.") if is_dataclass(hint) else {f"{prefix}{name}": hint}  # type: ignore[arg-type]
    return found


def ranges(config: PretrainConfig) -> dict[str, Range]:
    """`section.key` -> what its number may be, of an objective's own settings as well."""
    sections = {item.name: getattr(config, item.name) for item in fields(config)}
    return {
        f"{section}.{item.name}": item.metadata["range"]
        for section, value in sections.items()
        for item in fields(value)
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
        if value not in get_args(hint):
            near = difflib.get_close_matches(str(value)[:80].lower(), list(map(str, get_args(hint))), n=1)
            choices = f"choose one of {', '.join(map(str, get_args(hint)))}"
            remedy = f"did you mean '{near[0]}'? Otherwise {choices}" if near else choices
            raise SettingError(f"{key} cannot be {shown(value)}", remedy)
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        if hint is str:
            return str(value)
        number = _number(value, hint) if hint in (int, float) else None
        if number is not None:
            return number
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
        if kind is float:
            number = float(value)
            return number if math.isfinite(number) else None
        try:
            whole = int(value) if not isinstance(value, float) else None  # exact, where a float would round
        except ValueError:  # "1e3" is a whole number as well
            whole = None
        if whole is None:
            number = float(value)
            whole = int(number) if number.is_integer() else None
        return whole if whole is not None and abs(whole) <= LARGEST_INTEGER else None
    except (ValueError, OverflowError):
        return None


def shown(value: Any) -> str:
    """A value for a message: never long, and never the expansion of nested YAML aliases."""
    if isinstance(value, (dict, list, tuple, set)):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
