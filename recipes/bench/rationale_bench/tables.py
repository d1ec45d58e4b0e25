"""Rows of all cells -> means, spreads and paired differences over the seeds, as Markdown and as JSON."""

from __future__ import annotations

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
            {"variant": key[0], "name": key[1], **_columns(by_seed, columns)} for key, by_seed in groups.items()
        ]
        if kind == "pooling":
            for name, control in (("versus_gap", "gap"), ("versus_centre", "centre prior")):
                against = groups.get((baseline, control), {})
                for entry, by_seed in zip(tables[kind], groups.values(), strict=True):
                    entry[name] = _differences(by_seed, against, columns)
    return tables


def _columns(by_seed: dict[int, Row], columns: Sequence[str]) -> Row:
    found = {column: [row[column] for row in by_seed.values() if row.get(column) is not None] for column in columns}
    return {column: spread(values) for column, values in found.items() if values}


def _differences(by_seed: dict[int, Row], against: dict[int, Row], columns: Sequence[str]) -> Row:
    pairs = [(by_seed[seed], against[seed]) for seed in sorted(by_seed.keys() & against.keys())]
    found = {c: [a[c] - b[c] for a, b in pairs if a.get(c) is not None and b.get(c) is not None] for c in columns}
    return {column: spread(values) for column, values in found.items() if values}


def markdown(tables: dict[str, list[Row]], title: str, notes: str) -> str:
    """The tables for people."""
    text = [f"# {title}", "", notes, ""]
    seeds = sorted({entry[c]["n"] for entries in tables.values() for entry in entries for c in entry if _is(entry, c)})
    text += [
        f"Mean ± standard deviation over seeds (n = {', '.join(map(str, seeds)) or 0}); differences are paired.",
        "",
    ]
    if tables["pooling"]:
        text += ["## Retrieval and probe (percent)", ""]
        titles = [TITLES.get(c, c) for c in POOLING]
        paired = [f"Δ {TITLES.get(c, c)} to baseline gap" for c in ("rank1", "mAP", "probe")]
        head = ["variant", "pooling", *titles, *paired, "Δ rank-1 to baseline centre prior"]
        lines = [
            [entry["variant"], entry["name"]]
            + [_shown(entry.get(column)) for column in POOLING]
            + [_shown(entry["versus_gap"].get(column), signed=True) for column in ("rank1", "mAP", "probe")]
            + [_shown(entry["versus_centre"].get("rank1"), signed=True)]
            for entry in tables["pooling"]
        ]
        text += [*markdown_table(head, lines), ""]
    for kind, columns, heading in (
        ("map", MAPS, "Maps against the masks (energy relative to the uniform map; pointing game; relative entropy)"),
        ("cost", COST, "Cost (medians of the log: only cells trained on an idle machine compare)"),
    ):
        if tables[kind]:
            digits = 3 if kind == "map" else 2
            rows = [
                [entry["variant"], *([entry["name"]] if kind == "map" else [])]
                + [_shown(entry.get(column), digits=digits) for column in columns]
                for entry in tables[kind]
            ]
            head = ["variant", *(["map"] if kind == "map" else []), *[TITLES.get(c, c) for c in columns]]
            text += [f"## {heading}", "", *markdown_table(head, rows), ""]
    return "\n".join(text)


def _is(entry: Row, column: str) -> bool:
    return isinstance(entry[column], dict) and "n" in entry[column]


def _shown(value: dict[str, Any] | None, *, signed: bool = False, digits: int = 2) -> str:
    if value is None:
        return "-"
    mean = f"{value['mean']:+.{digits}f}" if signed else f"{value['mean']:.{digits}f}"
    return mean if value["sd"] is None else f"{mean} ± {value['sd']:.{digits}f}"
