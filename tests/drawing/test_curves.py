"""The learning curve: what is on it, and round numbers beside it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgssl.drawing import curve_sheet, curves


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.2, 7.9, [0, 2, 4, 6, 8]), (0, 1, [0, 0.25, 0.5, 0.75, 1]), (3, 3, [2.6, 2.8, 3.0, 3.2, 3.4]),
     (0, 0, [-1, -0.5, 0, 0.5, 1])],
)  # fmt: skip
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert curves.ticks(low, high) == pytest.approx(expected)


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_ticks_hold_every_value(low: float, room: float) -> None:
    found = curves.ticks(low, low + room)
    slack = 1e-6 * max(1.0, abs(low), room)
    assert 2 <= len(found) <= 8 and found[0] <= low + slack and found[-1] >= low + room - slack
    assert len(set(map(curves.shown, found))) > 1 or room < 1e-3 * abs(low)


def test_a_falling_line_goes_from_the_top_left_to_the_bottom_right() -> None:
    rows = [{"step": step, "loss": 10.0 - step} for step in range(11)]
    picture = np.asarray(curve_sheet(rows), np.int16)
    y, x = np.nonzero(np.abs(picture - np.array(curves.BLUE)).sum(2) < 40)
    left, right = x < np.quantile(x, 0.1), x > np.quantile(x, 0.9)
    assert y[left].mean() < y.mean() < y[right].mean()


def test_what_is_missing_is_left_out() -> None:
    assert curve_sheet([]) is None
    assert curve_sheet([{"step": 1, "loss": None, "lr": float("nan")}]) is None
    one = curve_sheet([{"step": 1, "loss": 2.0, "chance": 4.0}])
    more = curve_sheet([{"step": step, "loss": 2.0, "lr": 0.1, "fit": None, "effective_rank": 3.0} for step in (1, 2)])
    assert one is not None and more is not None and more.height > one.height
