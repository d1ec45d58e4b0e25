"""The page of `fgssl compare`: all encoders and poolings in one table, and which differences are beyond chance."""

from __future__ import annotations

from collections.abc import Sequence

from fgssl.evaluation.bootstrap import Comparison
from fgssl.evaluation.compare import ComparisonTable, Row
from fgssl.report.page import page
from fgssl.report.sections import Section, facts, table


def compare_page(compared: ComparisonTable, differences: Sequence[tuple[Row, Row, str, Comparison]]) -> str:
    """The table, its differences as `fgssl.evaluation.compare.differences` has them, and what the columns are."""
    sizes = {"train images": compared.train_images, "test images": compared.test_images}
    values = list(compared.rows[0].values)
    rows = [[row.encoder, row.pool, row.width, *(row.values[name] for name in values)] for row in compared.rows]
    told = "In percent. A click on a title sorts." + (
        f" No row of a start: {compared.no_start}." if compared.no_start else ""
    )
    sections = [
        facts("Summary", {"data": compared.data, **sizes}, told=compared.protocol),
        table("Encoders", ("encoder", "pool", "width", *values), rows, told=told),
        _differences(differences),
        table("The columns", ("name", "what it is"), list(compared.definitions.items())),
    ]
    return page("Encoders compared", sections, subtitle=f"on {compared.data}")


def _differences(found: Sequence[tuple[Row, Row, str, Comparison]]) -> Section:
    cells = [
        [row.name, other.name, metric, each.difference, each.low, each.high, "yes" if each.p < 0.05 else "no"]
        for row, other, metric, each in found
    ]
    told = "Points that the first is ahead of the second on the same pictures: paired bootstrap, 95 % interval."
    columns = ("encoder", "against", "metric", "difference", "from", "to", "beyond chance")
    return table("Differences", columns, cells, told=told)
