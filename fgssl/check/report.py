"""The report on a source: every split in numbers, every picture that cannot be read, copies, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fgssl.check.copies import Place, find_copies
from fgssl.check.sweep import SplitFacts, sweep
from fgssl.check.verdict import Finding, SplitSummary, judge
from fgssl.config.schema import DataConfig
from fgssl.data import available_splits, default_split, load_images
from fgssl.data.images import ImageSet

Progress = Callable[[str, int, int], None]  # task, done, total
ELONGATED = 4.0  # long side over short side above which a random crop sees a small part only


@dataclass(frozen=True)
class Report:
    """What a data set holds.

    Attributes:
        source: As the user wrote it.
        splits: In order: the training split first, the test split second, others after.
        classes: Name -> pictures in each split, in the order of `splits`; empty without labels.
        unreadable: (split, picture, reason).
        skipped: "path: reason" of what the listing passed over; the first hundred of each split.
        exact: Groups of equal files.
        near: Groups of near copies.
        leaks: (picture, its split, original, its split, "exact" or "near").
        conflicts: Groups of equal files under different classes, as (picture, class).
        findings: What follows, most serious first.
    """

    source: str
    splits: tuple[SplitSummary, ...]
    classes: dict[str, tuple[int, ...]]
    unreadable: tuple[tuple[str, str, str], ...]
    skipped: tuple[str, ...]
    exact: tuple[tuple[str, ...], ...]
    near: tuple[tuple[str, ...], ...]
    leaks: tuple[tuple[str, str, str, str, str], ...]
    conflicts: tuple[tuple[tuple[str, str], ...], ...]
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Literal["healthy", "usable", "unusable"]:
        """ "unusable" where training would refuse it, "usable" where there are warnings, else "healthy"."""
        levels = {finding.level for finding in self.findings}
        return "unusable" if "problem" in levels else "usable" if "warning" in levels else "healthy"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = [split.name for split in self.splits]
        return {
            "source": self.source,
            "verdict": self.verdict,
            "findings": [finding._asdict() for finding in self.findings],
            "splits": [split.to_dict() for split in self.splits],
            "classes": {name: dict(zip(names, counts, strict=True)) for name, counts in self.classes.items()},
            "unreadable": [dict(zip(("split", "image", "reason"), row, strict=True)) for row in self.unreadable],
            "passed_over": list(self.skipped),
            "exact_duplicates": [list(group) for group in self.exact],
            "near_duplicates": [list(group) for group in self.near],
            "leaks": [
                dict(zip(("image", "split", "original", "original_split", "kind"), row, strict=True))
                for row in self.leaks
            ],
            "label_conflicts": [[{"image": i, "class": c} for i, c in group] for group in self.conflicts],
        }


def check_source(
    data: DataConfig,
    *,
    splits: Sequence[str] = (),
    image_size: int = 224,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Look at every picture of a source.

    Args:
        data: The source.
        splits: Only these (default: all it has).
        image_size: Side of the training views: smaller pictures are counted.
        workers: Processes that decode (default: all cores).
        progress: Called with (task, done, total).

    Raises:
        FgsslError: The source cannot be opened, or a split of it does not exist.
    """

    def steps(task: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(task, done, total)

    names = splits or _in_order(data)
    found = [load_images(data, name, tell=False) for name in names]
    facts = [sweep(images, workers=workers, progress=steps(f"reading {images.split}")) for images in found]
    copies = find_copies(facts, steps("comparing"))
    summaries = tuple(_summary(part, image_size) for part in facts)
    classes = _classes(facts)
    return Report(
        source=data.source,
        splits=summaries,
        classes=classes,
        unreadable=tuple(
            (part.images.split, name, problem.removeprefix(f"unreadable image {name}: "))
            for part in facts
            for index, problem in part.reasons.items()
            for name in (part.images.identifier(index),)
        ),
        skipped=tuple(line for images in found for line in images.skipped),
        exact=_named(facts, copies.exact),
        near=_named(facts, copies.near),
        leaks=tuple(
            (
                _name(facts, leak.copy),
                found[leak.copy.split].split,
                _name(facts, leak.original),
                found[leak.original.split].split,
                "exact" if leak.exact else "near",
            )
            for leak in copies.leaks
        ),
        conflicts=tuple(
            tuple((_name(facts, place), _class(facts, place)) for place in group) for group in copies.conflicts
        ),
        findings=judge(summaries, classes, copies, image_size=image_size, remarks=_remarks(found)),
    )


def _remarks(found: Sequence[ImageSet]) -> list[Finding]:
    """What the source was taken for, and why splits have no labels."""
    remarks = dict.fromkeys(remark for images in found for remark in images.remarks)
    reasons = [f"{images.split} has no labels: {images.unlabelled}" for images in found if images.unlabelled]
    return [*(Finding(level, text) for level, text in remarks), *(Finding("note", reason) for reason in reasons)]


def _in_order(data: DataConfig) -> list[str]:
    """All splits, the training split first and the test split second: leaks are told from that side."""
    known = available_splits(data)
    chosen = [default_split(data, "train"), default_split(data, "test")]
    return sorted(known, key=lambda name: chosen.index(name) if name in chosen else len(chosen))


def _summary(facts: SplitFacts, image_size: int) -> SplitSummary:
    images, sizes = facts.images, facts.sizes[facts.readable]
    short, long = sizes.min(1), sizes.max(1)
    return SplitSummary(
        name=images.split,
        images=len(images),
        unreadable=len(facts.reasons),
        classes=None if images.labels is None else len(np.unique(images.labels)),
        width=_spread(sizes[:, 0]),
        height=_spread(sizes[:, 1]),
        aspect=_spread(sizes[:, 0] / np.maximum(sizes[:, 1], 1)),
        modes=dict(facts.modes.most_common()),
        formats=dict(facts.formats.most_common()),
        animated=facts.animated,
        smaller=int((short < image_size).sum()),
        elongated=int((long > ELONGATED * short).sum()),
        shortest_side=int(np.median(short)) if len(short) else 0,
    )


def _spread(values: NDArray[Any]) -> tuple[float, float, float]:
    """Least, median and largest; zeros where there are none."""
    if not len(values):
        return (0.0, 0.0, 0.0)
    return (float(values.min()), float(np.median(values)), float(values.max()))


def _classes(facts: Sequence[SplitFacts]) -> dict[str, tuple[int, ...]]:
    labelled = [part.images for part in facts if part.images.labels is not None and part.images.class_names]
    if not labelled:
        return {}
    names = labelled[0].class_names or ()
    counts = [
        np.zeros(len(names), np.int64)
        if part.images.labels is None
        else np.bincount(part.images.labels, minlength=len(names))
        for part in facts
    ]
    return {name: tuple(int(count[place]) for count in counts) for place, name in enumerate(names)}


def _named(facts: Sequence[SplitFacts], groups: Sequence[Sequence[Place]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(_name(facts, place) for place in group) for group in groups)


def _name(facts: Sequence[SplitFacts], place: Place) -> str:
    return facts[place.split].images.identifier(place.index)


def _class(facts: Sequence[SplitFacts], place: Place) -> str:
    images = facts[place.split].images
    if images.labels is None or images.class_names is None:
        return "-"
    return images.class_names[int(images.labels[place.index])]
