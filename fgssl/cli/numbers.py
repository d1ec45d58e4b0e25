"""Lists of numbers given as one option: 1.0,0.5,0.2"""

from __future__ import annotations

import typer


def fractions(text: str, option: str) -> tuple[float, ...]:
    """Numbers above 0, up to 1, each once. Raises BadParameter (wrong usage)."""
    values = tuple(_numbers(text, option))
    if not all(0 < value <= 1 for value in values):
        raise typer.BadParameter(f"'{text}': each is above 0 and at most 1 (0.2 for 20 %)", param_hint=option)
    return values


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers from 1, each once. Raises BadParameter (wrong usage)."""
    values = tuple(_numbers(text, option))
    if not all(value >= 1 and value == int(value) for value in values):
        raise typer.BadParameter(f"'{text}': each is a whole number from 1", param_hint=option)
    return tuple(map(int, values))


def _numbers(text: str, option: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not numbers with commas between", param_hint=option) from None
    if len(set(values)) != len(values):
        raise typer.BadParameter(f"'{text}' names a number twice", param_hint=option)
    return values
