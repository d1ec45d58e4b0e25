"""What the numbers of a data set mean for training and evaluation, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from fgssl.check.copies import Copies

MAX_UNREADABLE = 0.1  # of a split, as in training
IMBALANCE = 10  # largest over smallest class of the first split


@dataclass(frozen=True)
class SplitSummary:
    """One split in numbers; sizes in pixels as (least, median, largest)."""

    name: str
    images: int
    unreadable: int
    classes: int | None  # None without labels
    width: tuple[float, float, float]
    height: tuple[float, float, float]
    aspect: tuple[float, float, float]  # width over height
    modes: dict[str, int]
    formats: dict[str, int]
    animated: int
    smaller: int  # short side below the training views'
    elongated: int
    shortest_side: int  # median short side

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        spread = ("min", "median", "max")
        values = asdict(self)
        return values | {key: dict(zip(spread, values[key], strict=True)) for key in ("width", "height", "aspect")}


class Finding(NamedTuple):
    """One thing worth knowing."""

    level: Literal["problem", "warning", "note"]
    text: str


def judge(
    splits: Sequence[SplitSummary],
    classes: dict[str, tuple[int, ...]],
    copies: Copies,
    *,
    image_size: int,
    remarks: Sequence[Finding] = (),
) -> tuple[Finding, ...]:
    """Findings, most serious first.

    Args:
        splits: The training split first.
        classes: Name -> pictures in each split.
        copies: Of all splits.
        image_size: Side of the training views.
        remarks: What is known already.
    """
    found = [
        *_problems(splits),
        *_copies(splits, copies),
        *_balance(splits, classes),
        *_pictures(splits, image_size),
        *remarks,
    ]
    order = ("problem", "warning", "note")
    return tuple(sorted(found, key=lambda finding: order.index(finding.level)))


def _problems(splits: Sequence[SplitSummary]) -> list[Finding]:
    found = []
    for split in splits:
        if split.unreadable > MAX_UNREADABLE * split.images:
            text = f"{split.unreadable} of {split.images} pictures of {split.name} cannot be read: more than a tenth"
            found.append(Finding("problem", f"{text}, which stops a run; replace or remove them"))
        elif split.unreadable:
            text = (
                f"{_count(split.unreadable, 'picture')} of {split.name} cannot be read: a run replaces them by others"
            )
            found.append(Finding("warning", text))
    if splits[0].images - splits[0].unreadable < 2:
        found.append(Finding("problem", f"{splits[0].name} has fewer than 2 pictures to train on"))
    return found


def _copies(splits: Sequence[SplitSummary], copies: Copies) -> list[Finding]:
    found = []
    for number, split in enumerate(splits):
        for earlier, other in enumerate(splits[:number]):
            leaks = [x for x in copies.leaks if x.copy.split == number and x.original.split == earlier]
            exact = sum(leak.exact for leak in leaks)
            if leaks:
                text = f"{len(leaks)} of {split.images} pictures of {split.name} are in {other.name} as well"
                text += f" ({exact} exact copies, {len(leaks) - exact} near): scores of one against the other are"
                found.append(Finding("warning", f"{text} too good; take them out of {other.name}"))
    extra = sum(len(group) - 1 for group in copies.exact)
    if extra:
        text = f"{_count(extra, 'exact copy')} of other pictures ({_count(len(copies.exact), 'group')})"
        found.append(Finding("warning", f"{text}: they count double in training, and are trivial to retrieve"))
    if copies.conflicts:
        text = f"equal files under different classes ({_count(len(copies.conflicts), 'group')})"
        found.append(Finding("warning", f"{text}: scores cannot be right for them; decide for one class"))
    found += _bursts(splits, copies)
    return found


def _bursts(splits: Sequence[SplitSummary], copies: Copies) -> list[Finding]:
    """Near copies within one split: harmless for training, but they flatter leave-one-out retrieval."""
    found = []
    for number, split in enumerate(splits):
        groups = [inside for group in copies.near if len(inside := [p for p in group if p.split == number]) > 1]
        pictures = sum(map(len, groups))
        if not groups:
            continue
        share = pictures / split.images
        text = f"{pictures} pictures of {split.name} ({100 * share:.1f} %) are near copies of each other"
        text += f" ({_count(len(groups), 'group')}, the largest of {max(map(len, groups))}): bursts, or edited copies"
        if len(splits) > 1 and number:
            text += f"; leave-one-out in {split.name} rewards them: report --gallery-split {splits[0].name} beside it"
        found.append(Finding("warning" if share > 0.05 else "note", text))
    return found


def _balance(splits: Sequence[SplitSummary], classes: dict[str, tuple[int, ...]]) -> list[Finding]:
    if not classes:
        return [Finding("note", "no labels: pretrain, embed and visualize work; probe and retrieve need them")]
    found = []
    for number, split in enumerate(splits):
        counts = {name: row[number] for name, row in classes.items()}
        present = {name: count for name, count in counts.items() if count}
        if split.classes is None:
            found.append(Finding("note", f"{split.name} has no labels: probe and retrieve cannot score on it"))
            continue
        lone = [name for name, count in present.items() if count == 1]
        if lone:
            text = f"{_count(len(lone), 'class')} of {split.name} with a single picture ({_some(lone)})"
            found.append(Finding("warning", f"{text}: not a query of leave-one-out"))
        least, most = min(present, key=lambda n: present[n]), max(present, key=lambda n: present[n])
        if present[most] > IMBALANCE * present[least]:
            text = f"classes of {split.name} differ in size: {present[least]} ({least}) to {present[most]} ({most})"
            found.append(Finding("warning", f"{text}; look at the macro and per-class scores"))
        absent = [name for name, count in counts.items() if not count]
        if absent:
            text = f"{split.name} has no picture of {_count(len(absent), 'class')} ({_some(absent)})"
            found.append(Finding("warning", text))
    return found


def _pictures(splits: Sequence[SplitSummary], image_size: int) -> list[Finding]:
    found = []
    for split in splits:
        readable = max(1, split.images - split.unreadable)
        if split.smaller:
            text = f"{_pictures_of(split, split.smaller)} smaller than {image_size} px, to be enlarged"
            text += f"; --image-size {_suggested(split.shortest_side)} fits them"
            found.append(Finding("warning" if split.smaller > readable / 2 else "note", text))
        if split.elongated:
            text = f"{_pictures_of(split, split.elongated)} longer than 4:1: a crop sees a small part"
            found.append(Finding("note", text))
        if split.animated:
            text = f"{_pictures_of(split, split.animated)} animated: the first frame is used"
            found.append(Finding("note", text))
    return found


def _suggested(side: int) -> int:
    """The median short side, rounded down to what strides divide."""
    return max(32, side // 32 * 32)


def _count(number: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


def _pictures_of(split: SplitSummary, number: int) -> str:
    return f"{_count(number, 'picture')} of {split.name} {'is' if number == 1 else 'are'}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
