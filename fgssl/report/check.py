"""The page of `fgssl data check`: the verdict, splits and classes in numbers, and the files worth looking at."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from fgssl.check import Report
from fgssl.data.decoding import decode_image
from fgssl.errors import UnreadableImage
from fgssl.report.page import page
from fgssl.report.pictures import address
from fgssl.report.sections import Picture, Section, facts, file_name, gallery, table

GROUPS, IN_GROUP, SIDE = 12, 6, 136  # copies that are drawn, and the side of a picture in pixels


def check_page(report: Report) -> str:
    """The report as a page; copies are drawn where their files are here."""
    told = f"{report.source} is {report.verdict}."
    sections = [
        facts("Summary", {split.name: split.images for split in report.splits}, told=told),
        table("Findings", ("level", "what"), [[each.level, each.text] for each in report.findings]),
        _splits(report),
    ]
    if report.classes:
        sections.append(_classes(report))
    unreadable = [[row["split"], row["image"], row["reason"]] for row in report.unreadable]
    leaks = [[row["image"], row["original"], row["kind"]] for row in report.leaks]
    conflicts = [
        [" = ".join(f"{each['image']} ({each['class']})" for each in group)] for group in report.label_conflicts
    ]
    for title, columns, rows in (
        ("Unreadable files", ("split", "file", "why"), unreadable),
        ("In two splits", ("file", "original", "kind"), leaks),
        ("Equal files under different classes", ("files",), conflicts),
        ("Passed over", ("file and why",), [[line] for line in report.passed_over]),
    ):
        if rows:
            sections.append(table(title, columns, rows, told=f"{len(rows):,} in all."))
    near = sorted(report.near_duplicates, key=len, reverse=True)
    sections += [*_copies("Exact copies", report.exact_duplicates), *_copies("Near copies", near)]
    return page("Data check", sections, subtitle=report.source)


def _splits(report: Report) -> Section:
    rows = [
        [split.name, split.images, split.unreadable, split.classes,
         *(round(value) for side in (split.width, split.height) for value in side.values()),
         " ".join(f"{name}: {count}" for name, count in split.formats.items())]
        for split in report.splits
    ]  # fmt: skip
    sizes = (f"{what} {side}" for side in ("width", "height") for what in ("least", "median", "largest"))
    return table("Splits", ("split", "pictures", "unreadable", "classes", *sizes, "formats"), rows)


def _classes(report: Report) -> Section:
    counts = {name: [each.get(split.name) for split in report.splits] for name, each in report.classes.items()}
    rows = [[name, *each] for name, each in sorted(counts.items(), key=lambda item: -sum(n or 0 for n in item[1]))]
    return table("Classes, the largest first", ("class", *(split.name for split in report.splits)), rows)


def _copies(title: str, groups: list[list[str]]) -> list[Section]:
    if not groups:
        return []
    drawn = [[Picture(_address(name), file_name(name)) for name in group[:IN_GROUP]] for group in groups[:GROUPS]]
    rows = [["; ".join(group[:IN_GROUP]), len(group)] for group in groups]
    told = f"{len(groups):,} groups; drawn are the first {len(drawn)}."
    return [gallery(title, drawn, told=told), table(f"{title}, the files", ("files", "in the group"), rows)]


def _address(name: str) -> str | None:
    """A picture of a file; None where the name is none, as in a data set."""
    try:
        picture: Image.Image | None = decode_image(Path(name), SIDE)
    except UnreadableImage:
        return None
    return None if picture is None else address(picture, side=SIDE)
