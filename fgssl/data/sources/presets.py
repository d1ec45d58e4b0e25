"""Data sets with a name of their own: an entry in `presets.yaml` each, nothing else to change to add one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from fgssl import registry


@dataclass(frozen=True)
class DatasetPreset:
    """A data set under a short name; a plugin registers its own in `fgssl.registry.DATASETS`."""

    name: str  # what the user writes after `--data`
    hub_id: str  # "owner/name", or the absolute path of a folder or file
    train_split: str
    test_split: str
    image_column: str | None  # None finds it by type, as the next
    label_column: str | None
    classes: int
    citation: str
    note: str  # sizes used in papers, licence on the card, what to watch for
    others: Sequence[str] = ()  # more ids of the same data and splits, tried in order where the first is not to be had
    counts: Mapping[str, int] = field(default_factory=dict)  # published images of a split


DRAWN = ("demo", "demo:wild")
PRESETS: Mapping[str, DatasetPreset] = registry.DATASETS
for _name, _fields in yaml.safe_load(Path(__file__).with_name("presets.yaml").read_text(encoding="utf-8")).items():
    registry.DATASETS.register(_name)(DatasetPreset(_name, **_fields))
"""Every preset by its name. Those of `DRAWN` are not among them: they are drawn by code, not loaded from the hub."""
