"""Rows of all cells -> means, spreads and paired differences over the seeds, as Markdown and as JSON."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from harness import markdown as markdown_table

POOLING = ("rank1", "mAP", "loo_rank1", "loo_mAP", "probe")
MAPS = ("object_ratio", "parts_ratio", "object_pointing", "parts_pointing", "entropy")
COST = ("ms_per_step", "images_per_second", "seconds", "loss", "target_entropy")
TITLES = {
    "rank1": "rank-1", "loo_rank1": "LOO rank-1", "loo_mAP": "LOO mAP", "object_ratio": "object / uniform",
    "parts_ratio": "parts / uniform", "object_pointing": "object hit", "parts_pointing": "parts hit",
    "images_per_second": "images/s", "ms_per_step": "ms/step", "target_entropy": "target entropy",
}  # fmt: skip
Row = dict[str, Any]


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, standard deviation (None for one value) and count."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": deviation, "n": len(values)}


def summarise(rows: Iterable[Row], baseline: str) -> dict[str, list[Row]]:
    """Tables by kind: one entry for each variant and pooling (or map), over the seeds.

    Pooling entries carry `versus_gap` and `versus_centre`: the differences to the baseline variant's gap pooling and
    to its centre prior with the same seed, over the seeds that both have.
    """
    rows = list(rows)
    tables: dict[str, list[Row]] = {}
    for kind, columns in (("pooling", POOLING), ("map", MAPS), ("cost", COST)):
        groups: dict[tuple[str, str], dict[int, Row]] = {}
        for row in rows:
            if row["kind"] == kind:
                key = (row["variant"], row.get("pooling") or row.get("map") or "")
                groups.setdefault(key, {})[row["seed"]] = row
        tables[kind] = [
            {"variant": variant, "name": name, **_differences(by_seed, None, columns)}
            for (variant, name), by_seed in groups.items()
        ]
        if kind == "pooling":
            for name, control in (("versus_gap", "gap"), ("versus_centre", "centre prior")):
                against = groups.get((baseline, control), {})
                for entry, by_seed in zip(tables[kind], groups.values(), strict=True):
                    entry[name] = _differences(by_seed, against, columns)
    return tables


def _differences(by_seed: dict[int, Row], against: dict[int, Row] | None, columns: Sequence[str]) -> Row:
    """Spread of each column over the seeds, or of its differences to another entry's with the same seed."""
    found: dict[str, list[float]] = {}
    for seed, column in itertools.product(sorted(by_seed), columns):
        value, other = by_seed[seed].get(column), 0.0 if against is None else against.get(seed, {}).get(column)
        if value is not None and other is not None:
            found.setdefault(column, []).append(value - other)
    return {column: spread(values) for column, values in found.items()}


def markdown(tables: dict[str, list[Row]], title: str, notes: str) -> str:
    """The tables for people."""
    cells = [value for entries in tables.values() for entry in entries for value in entry.values()]
    seeds = sorted({value["n"] for value in cells if isinstance(value, dict) and "n" in value})
    counted = f"Mean ± standard deviation over seeds (n = {', '.join(map(str, seeds)) or 0}); differences are paired."
    text = [f"# {title}", "", notes, "", counted, ""]
    compared = [("versus_gap", column) for column in ("rank1", "mAP", "probe")] + [("versus_centre", "rank1")]
    against = {"versus_gap": "baseline gap", "versus_centre": "baseline centre prior"}
    for kind, names, columns, heading in (
        ("pooling", ("variant", "pooling"), POOLING, "Retrieval and probe (percent)"),
        ("map", ("variant", "map"), MAPS,
         "Maps against the masks (energy relative to the uniform map; pointing game; relative entropy)"),
        ("cost", ("variant",), COST, "Cost (medians of the log: only cells trained on an idle machine compare)"),
    ):  # fmt: skip
        if not tables[kind]:
            continue
        pairs = compared if kind == "pooling" else []
        head = [*names, *[TITLES.get(c, c) for c in columns]]
        head += [f"Δ {TITLES.get(c, c)} to {against[control]}" for control, c in pairs]
        rows = [
            [entry["variant"], entry["name"]][: len(names)]
            + [_shown(entry.get(column), digits=3 if kind == "map" else 2) for column in columns]
            + [_shown(entry[control].get(column), signed=True) for control, column in pairs]
            for entry in tables[kind]
        ]
        text += [f"## {heading}", "", *markdown_table(head, rows), ""]
    return "\n".join(text)


def _shown(value: dict[str, Any] | None, *, signed: bool = False, digits: int = 2) -> str:
    if value is None:
        return "-"
    mean = f"{value['mean']:+.{digits}f}" if signed else f"{value['mean']:.{digits}f}"
    return mean if value["sd"] is None else f"{mean} ± {value['sd']:.{digits}f}"
