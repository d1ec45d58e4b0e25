"""The report on a source: every split in numbers, every picture that cannot be read, copies, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgssl.check.copies import Place, find_copies
from fgssl.check.pictures import SplitFacts, sweep
from fgssl.check.regions import region_findings
from fgssl.check.verdict import Finding, SplitSummary, judge
from fgssl.config.schema import DataConfig
from fgssl.data import available_splits, default_split, load_images

ELONGATED = 4.0  # long side over short side above which a random crop sees a small part only


@dataclass(frozen=True)
class Report:
    """What a data set holds, in plain values."""

    source: str  # as the user wrote it
    verdict: str  # "unusable" where training would refuse it, "usable" where there are warnings, else "healthy"
    findings: tuple[Finding, ...]  # most serious first
    splits: tuple[SplitSummary, ...]  # the training split first, the test split second, others after
    classes: dict[str, dict[str, int]]  # name -> split -> pictures; empty without labels
    unreadable: list[dict[str, str]]  # split, image, reason
    passed_over: list[str]  # "path: reason" of what the listing left out; the first hundred of each split
    exact_duplicates: list[list[str]]  # groups of equal files
    near_duplicates: list[list[str]]
    leaks: list[dict[str, str]]  # image, split, original, original_split, kind: "exact" or "near"
    label_conflicts: list[list[dict[str, str]]]  # groups of equal files under different classes: image, class

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_source(
    data: DataConfig,
    *,
    splits: Sequence[str] = (),
    image_size: int = 224,
    workers: int | None = None,
    progress: Callable[[str, int, int], None] = lambda task, done, total: None,
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
    found = [load_images(data, name, tell=False) for name in splits or _in_order(data)]
    facts = [sweep(images, workers=workers, progress=partial(progress, f"reading {images.split}")) for images in found]
    copies = find_copies(facts, partial(progress, "comparing"))
    summaries = tuple(_summary(part, image_size) for part in facts)
    classes = _classes(facts)
    remarks = [Finding(*remark) for remark in dict.fromkeys(remark for images in found for remark in images.remarks)]
    remarks += [Finding("note", f"{each.split} has no labels: {each.unlabelled}") for each in found if each.unlabelled]
    remarks += [finding for part in facts for finding in region_findings(part)]
    findings = judge(summaries, classes, copies, image_size=image_size, remarks=remarks)
    levels = {finding.level for finding in findings}

    def name(place: Place) -> str:
        return found[place.split].identifier(place.picture)

    def class_of(place: Place) -> str:
        labels, names = found[place.split].labels, found[place.split].class_names
        return "-" if labels is None or names is None else names[int(labels[place.picture])]

    return Report(
        source=data.source,
        verdict="unusable" if "problem" in levels else "usable" if "warning" in levels else "healthy",
        findings=findings,
        splits=summaries,
        classes=classes,
        unreadable=[
            {"split": images.split, "image": image, "reason": problem.removeprefix(f"unreadable image {image}: ")}
            for images, part in zip(found, facts, strict=True)
            for image, problem in ((images.identifier(index), problem) for index, problem in part.reasons.items())
        ],
        passed_over=[line for images in found for line in images.skipped],
        exact_duplicates=[[*map(name, group)] for group in copies.exact],
        near_duplicates=[[*map(name, group)] for group in copies.near],
        leaks=[
            {
                "image": name(copy), "split": found[copy.split].split,
                "original": name(original), "original_split": found[original.split].split,
                "kind": "exact" if exact else "near",
            }
            for copy, original, exact in copies.leaks
        ],
        label_conflicts=[[{"image": name(p), "class": class_of(p)} for p in group] for group in copies.conflicts],
    )  # fmt: skip


def _in_order(data: DataConfig) -> list[str]:
    """All splits, the training split first and the test split second: leaks are told from that side."""
    chosen = [default_split(data, "train"), default_split(data, "test")]
    return sorted(available_splits(data), key=lambda name: chosen.index(name) if name in chosen else len(chosen))


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


def _spread(values: NDArray[Any]) -> dict[str, float]:
    values = values if len(values) else np.zeros(1)
    return {"min": float(values.min()), "median": float(np.median(values)), "max": float(values.max())}


def _classes(facts: Sequence[SplitFacts]) -> dict[str, dict[str, int]]:
    names = next((part.images.class_names for part in facts if part.images.class_names), ())
    counts = {
        part.images.split: np.bincount([] if (known := part.images.labels) is None else known, minlength=len(names))
        for part in facts
    }
    return {name: {split: int(count[n]) for split, count in counts.items()} for n, name in enumerate(names)}
