"""The page of `fgssl probe`: accuracy, classes from worst to best, what was taken for what, a map of the test split."""

from __future__ import annotations

from typing import Any

from fgssl.data.images import ImageSet
from fgssl.evaluation.embed import Embeddings
from fgssl.evaluation.probing.run import ProbeReport, Source
from fgssl.evaluation.probing.splits import ProbeSplits
from fgssl.evaluation.subject import Subject
from fgssl.report.page import page
from fgssl.report.sections import Section, facts, table
from fgssl.report.split import (
    Mistake,
    SplitView,
    from_files,
    map_section,
    mistake_sections,
    mistakes_of,
    reader,
    unreadable_section,
)

_NAMES = {"fraction": "share of labels", "labels": "labels", "shots": "shots", "ways": "ways", "tries": "tries",
          "top1": "top-1", "top1_low": "from", "top1_high": "to", "top5": "top-5",
          "mean_per_class": "mean per class"}  # fmt: skip


def probe_page(document: dict[str, Any], found: tuple[ProbeReport, Source, ProbeSplits] | None) -> str:
    """The page of a probe from its document; a few-shot one has no classifier of which there is more to show."""
    sections: list[Section] = [*_summary(document)]
    if found is not None:
        report, source, splits = found
        test, train = (_view(source, *side) for side in ((splits.test, report.test), (splits.train, report.train)))
        told = f"Of the first classifier, in {len(report.test.identifiers):,} test pictures."
        sections += [
            *mistake_sections(test, train, _mistakes(report), told=told, other="one of the class it was taken for"),
            _classes(report),
            map_section(test, title="Map of the test pictures"),
            *unreadable_section([fault.reason for fault in (*report.train.faults, *report.test.faults)]),
        ]
    return page("Probe", sections, subtitle=f"{document['checkpoint']} on {document['data']}")


def _summary(document: dict[str, Any]) -> list[Section]:
    rows = document["results"]
    keys = [key for key in _NAMES if key in rows[0]]
    known = {key: document.get(key) for key in ("checkpoint", "data", "pool", "seed", "test_images")}
    values = {key.replace("_", " "): value for key, value in known.items() if value is not None}
    cells = [[row[key] for key in keys] for row in rows]
    told = "In percent; from and to are the 95 % interval of top-1."
    return [
        facts("Summary", values, told=document["protocol"]),
        table("Accuracy", [_NAMES[key] for key in keys], cells, told=told),
    ]


def _mistakes(report: ProbeReport) -> list[Mistake]:
    """Of the first classifier; the other picture is a train one of the class that was predicted."""
    names, one = report.class_names, dict[int, int]()
    for row, label in enumerate(report.train.known_labels.tolist()):
        one.setdefault(label, row)
    given = report.shares[0].results[0].predictions.tolist()
    return mistakes_of(
        (names[label], names[taken], row, one.get(taken, 0))
        for row, (label, taken) in enumerate(zip(report.test.known_labels.tolist(), given, strict=True))
    )


def _classes(report: ProbeReport) -> Section:
    names, counts = report.class_names, report.test.known_labels.bincount(minlength=len(report.class_names)).tolist()
    accuracy = report.shares[0].per_class().tolist()
    rows = [[*each] for each in zip(names, counts, accuracy, strict=True) if each[1]]
    rows.sort(key=lambda row: row[2])
    return table("Classes, the worst first", ("class", "test pictures", "top-1"), rows)


def _view(source: Source, images: ImageSet, found: Embeddings) -> SplitView:
    if not isinstance(source, Subject):
        return from_files(found, source.pool)
    return reader(source.encoder, images, found, source.pool, source.cache)
