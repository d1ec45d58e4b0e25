"""What the numbers of a data set mean for training and evaluation, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fgssl.check.copies import Copies

MAX_UNREADABLE = 0.1  # of a split, as in training
IMBALANCE = 10  # largest over smallest class of the first split
Level = Literal["problem", "warning", "note"]


@dataclass(frozen=True)
class SplitSummary:
    """One split in numbers; sizes in pixels as min, median, max."""

    name: str
    images: int
    unreadable: int
    classes: int | None  # None without labels
    width: dict[str, float]
    height: dict[str, float]
    aspect: dict[str, float]  # width over height
    modes: dict[str, int]
    formats: dict[str, int]
    animated: int
    smaller: int  # short side below the training views'
    elongated: int
    shortest_side: int  # median short side


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing."""

    level: Level
    text: str


def judge(
    splits: Sequence[SplitSummary],
    classes: Mapping[str, Mapping[str, int]],
    copies: Copies,
    *,
    image_size: int,
    remarks: Sequence[Finding],
) -> tuple[Finding, ...]:
    """Findings and remarks, most serious first, on splits (the training split first) and classes as in a report."""
    found = [
        *_unreadable(splits),
        *_copies(splits, copies),
        *_bursts(splits, copies),
        *_balance(splits, classes),
        *_pictures(splits, image_size),
        *remarks,
    ]
    return tuple(sorted(found, key=lambda finding: get_args(Level).index(finding.level)))


def _unreadable(splits: Sequence[SplitSummary]) -> Iterator[Finding]:
    for split in splits:
        if split.unreadable > MAX_UNREADABLE * split.images:
            text = f"{split.unreadable} of {split.images} pictures of {split.name} cannot be read: more than a tenth"
            yield Finding("problem", f"{text}, which stops a run; replace or remove them")
        elif split.unreadable:
            text = f"{_count(split.unreadable, 'picture')} of {split.name} cannot be read"
            yield Finding("warning", f"{text}: a run replaces them by others")
    if splits[0].images - splits[0].unreadable < 2:
        yield Finding("problem", f"{splits[0].name} has fewer than 2 pictures to train on")


def _copies(splits: Sequence[SplitSummary], copies: Copies) -> Iterator[Finding]:
    for number, split in enumerate(splits):
        for earlier, other in enumerate(splits[:number]):
            exact = [leak.exact for leak in copies.leaks if (leak.copy.split, leak.original.split) == (number, earlier)]
            if exact:
                text = f"{len(exact)} of {split.images} pictures of {split.name} are in {other.name} as well"
                text += f" ({sum(exact)} exact copies, {len(exact) - sum(exact)} near): scores of one against the other"
                yield Finding("warning", f"{text} are too good; take them out of {other.name}")
    if copies.exact:
        extra = sum(len(group) - 1 for group in copies.exact)
        text = f"{_count(extra, 'exact copy')} of other pictures ({_count(len(copies.exact), 'group')})"
        yield Finding("warning", f"{text}: they count double in training, and are trivial to retrieve")
    if copies.conflicts:
        text = f"equal files under different classes ({_count(len(copies.conflicts), 'group')})"
        yield Finding("warning", f"{text}: scores cannot be right for them; decide for one class")


def _bursts(splits: Sequence[SplitSummary], copies: Copies) -> Iterator[Finding]:
    """Near copies within one split: harmless for training, but they flatter leave-one-out retrieval."""
    for number, split in enumerate(splits):
        sizes = [size for group in copies.near if (size := sum(place.split == number for place in group)) > 1]
        if not sizes:
            continue
        share = sum(sizes) / split.images
        text = f"{sum(sizes)} pictures of {split.name} ({100 * share:.1f} %) are near copies of each other"
        text += f" ({_count(len(sizes), 'group')}, the largest of {max(sizes)}): bursts, or edited copies"
        if number:
            text += f"; leave-one-out in {split.name} rewards them: report --gallery-split {splits[0].name} beside it"
        yield Finding("warning" if share > 0.05 else "note", text)


def _balance(splits: Sequence[SplitSummary], classes: Mapping[str, Mapping[str, int]]) -> Iterator[Finding]:
    if not classes:
        able = "pretrain, embed, explore, visualize and retrieve --query work"
        yield Finding("note", f"no labels: {able}; probe and scores of retrieve need them")
        return
    for split in splits:
        if split.classes is None:
            yield Finding("note", f"{split.name} has no labels: probe and retrieve cannot score on it")
            continue
        counts = {name: row[split.name] for name, row in classes.items()}
        lone, absent = ([name for name, count in counts.items() if count == few] for few in (1, 0))
        if lone:
            text = f"{_count(len(lone), 'class')} of {split.name} with a single picture ({_some(lone)})"
            yield Finding("warning", f"{text}: not a query of leave-one-out")
        present = [name for name, count in counts.items() if count]
        least, most = min(present, key=counts.__getitem__), max(present, key=counts.__getitem__)
        if counts[most] > IMBALANCE * counts[least]:
            text = f"classes of {split.name} differ in size: {counts[least]} ({least}) to {counts[most]} ({most})"
            yield Finding("warning", f"{text}; look at the macro and per-class scores")
        if absent:
            text = f"{split.name} has no picture of {_count(len(absent), 'class')} ({_some(absent)})"
            yield Finding("warning", text)


def _pictures(splits: Sequence[SplitSummary], image_size: int) -> Iterator[Finding]:
    for split in splits:
        few = split.smaller <= max(1, split.images - split.unreadable) / 2
        side = max(32, split.shortest_side // 32 * 32)  # rounded down to what strides divide
        small: Level = "note" if few else "warning"
        small_words = f"smaller than {image_size} px, to be enlarged; --image-size {side} fits them"
        for number, what, level in (
            (split.smaller, small_words, small),
            (split.elongated, "longer than 4:1: a crop sees a small part", "note"),
            (split.animated, "animated: the first frame is used", "note"),
        ):
            if number:
                are = "is" if number == 1 else "are"
                yield Finding(level, f"{_count(number, 'picture')} of {split.name} {are} {what}")


def _count(number: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
