"""Means and intervals against scipy, and the table's four forms."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from scipy import stats

from fgssl.experiments import tables
from fgssl.experiments.cells import Cell, Result
from fgssl.experiments.summary import Summary, spread, summarise


@pytest.mark.parametrize("count", [2, 3, 5, 11, 12, 30, 200])
def test_a_spread_is_scipys(count: int) -> None:
    values = [50 + (7 * n % 13) / 3 for n in range(count)]
    found = spread(values)
    low, high = stats.t.interval(0.95, count - 1, stats.tmean(values), stats.sem(values))
    assert found.mean == pytest.approx(stats.tmean(values)) and found.deviation == pytest.approx(stats.tstd(values))
    assert (found.low, found.high) == pytest.approx((low, high), rel=2e-4)


def test_one_value_has_no_deviation() -> None:
    assert spread([3.0]) == (3.0, None, None, None, 1)
    assert spread([3.0]).in_words() == "3.00" and spread([71.0, 72.0]).in_words() == "71.5 ± 0.7"


def result(row: str, seed: int, *values: float) -> Result:
    cell = Cell(f"{row}{seed}", row, seed, {}, ("x",), (), ("retrieve",))
    return Result(cell, dict(zip(("rank-1", "rank-5", "mAP"), values, strict=False)), 1.0)


def summary(published: bool = True) -> Summary:
    results = [result("50% & a_b", 0, 50, 80, 20), result("plain", 0, 40, 70, 10), result("50% & a_b", 1, 52, 84, 21)]
    results.append(result("plain", 1, 42))
    beside = {"plain": {"mAP": 12.5}} if published else None
    return summarise(results, title="T", published=beside, notes=["a note"])


def test_rows_stand_in_their_order_beside_what_was_published() -> None:
    assert tables.rows(summary()) == [
        ("50% & a_b", "2", "51.0 ± 1.4", "82.0 ± 2.8", "20.5 ± 0.7"),
        ("  published", "", *["not published"] * 3),
        ("plain", "1 of 2", "41.0 ± 1.4", "70.0", "10.0"),
        ("  published", "", "not published", "not published", "12.5"),
    ]
    assert len(tables.rows(summary(published=False))) == 2


def test_every_form_has_the_numbers(tmp_path: Path) -> None:
    tables.write_tables(summary(), tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    (one,) = (row for row in rows if row["row"] == "plain" and row["column"] == "rank-1")
    assert float(one["mean"]) == 41 and one["seeds"] == "2" and one["published"] == ""
    assert "| plain | 1 of 2 | 41.0 ± 1.4 | 70.0 | 10.0 |" in (tmp_path / "table.md").read_text()
    text = (tmp_path / "table.tex").read_text()
    assert r"50\% \& a\_b & 2 & 51.0 $\pm$ 1.4" in text and text.count(r"\\") == 5
    document = json.loads((tmp_path / "table.json").read_text())
    assert document["rows"][0]["numbers"]["rank-1"]["mean"] == 51
