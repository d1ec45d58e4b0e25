"""Where images come from: presets, hub data sets, folders, lists, parquet and the drawn demo set.

A few functions cover every source; what they need is imported when they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fgssl.data.sources.listing import split_of
from fgssl.data.sources.open import open_source
from fgssl.data.sources.presets import PRESETS, DatasetPreset
from fgssl.errors import FgsslError
from fgssl.runtime.reporting import remark

if TYPE_CHECKING:
    from fgssl.config.schema import DataConfig
    from fgssl.data.images import ImageSet

__all__ = ["PRESETS", "DatasetPreset", "available_splits", "default_split", "load_images", "no_split"]

_NAMES = {"train": ("train", "training"), "test": ("test", "testing", "validation", "val", "valid", "dev")}


def load_images(data: DataConfig, split: str, *, tell: bool = True) -> ImageSet:
    """Opens one split of a source; class ids mean the same in every split of it.

    Args:
        data: Where the images are.
        split: A split of the source, or several joined by "+" ("train+validation").
        tell: Tell the listener the images' remarks, which are what the source was taken for and what was left out.

    Raises:
        FgsslError: No such source or split, no image in it, or the hub cannot give it; one line with the remedy.
    """
    from fgssl.data.images import Concatenated

    source = open_source(data)
    known = source.splits
    names = [split] if split in known else split.split("+")
    by_lower = {name.lower(): name for name in reversed(known)}
    for name in names:
        if name.lower() not in by_lower:
            raise FgsslError(f"{data.source} has no split {name!r}", f"its splits are: {', '.join(known)}")
    parts = [source.load(name if name in known else by_lower[name.lower()]) for name in names]
    images = parts[0] if len(parts) == 1 else Concatenated(parts)
    for level, text in images.remarks if tell else ():
        remark(level, text)
    return images


def available_splits(data: DataConfig) -> tuple[str, ...]:
    """Names of the splits of a source; ("all",) where it has none. Raises FgsslError as `load_images`."""
    return open_source(data).splits


def default_split(data: DataConfig, role: Literal["train", "test"]) -> str | None:
    """The split to train on, or to evaluate on, where the user names none; None where there is none for that role.

    In this order: what `data` says; the preset's; train or training, respectively test or testing, then a validation
    split; "all" for training where the source has no splits. Raises FgsslError as `load_images`.
    """
    asked = data.train_split if role == "train" else data.test_split
    if asked is not None:
        return asked
    if data.source in PRESETS:
        preset = PRESETS[data.source]
        return preset.train_split if role == "train" else preset.test_split
    known = sorted(available_splits(data), key=len)  # "train" before "train2"
    found = [split for name in _NAMES[role] for split in known if split_of(split) == name]
    if found:
        return found[0]
    # a single split of another name ("all", "full", "images") is all there is to train on; a lone test split is not
    alone = len(known) == 1 and split_of(known[0]) not in _NAMES["test"]
    return known[0] if role == "train" and alone else None


def no_split(data: DataConfig, role: str, *, option: str) -> FgsslError:
    """The one line for a source without a split for training or test, and why; `option` names one."""
    source = open_source(data)
    why = "".join(f" ({text})" for _, text in source.remarks)
    problem = f"'{data.source}' has no {role} split{why}"
    return FgsslError(problem, f"name one with {option}: {', '.join(source.splits)}")
