"""Data sets with a name of their own: one entry each, nothing else to change to add one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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


_ENTRIES = (
    DatasetPreset(
        "cub", "bentrevett/caltech-ucsd-birds-200-2011", "train", "test", "image", "label", 200,
        "Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, 2011",
        "5,994 train and 5,794 test images, as in papers; no licence on the card",
    ),
    DatasetPreset(
        "cars", "tanganke/stanford_cars", "train", "test", "image", "label", 196,
        "Krause et al., 3D Object Representations for Fine-Grained Categorization, 2013",
        "8,144 train and 8,041 test images, as in papers; no licence on the card",
    ),
    DatasetPreset(
        "aircraft", "mteb/FGVCAircraft", "train", "test", "image", "variant", 100,
        "Maji et al., Fine-Grained Visual Classification of Aircraft, 2013",
        "3,334 train and 3,333 test images of 100 variants; papers train on 6,667 (train and validation together: "
        "write --train-split train+validation where the data set has that split); licence not specified on the card",
    ),
    DatasetPreset(
        "pets", "timm/oxford-iiit-pet", "train", "test", "image", "label", 37,
        "Parkhi et al., Cats and Dogs, 2012",
        "3,680 train and 3,669 test images, as in papers; CC BY-SA 4.0",
    ),
    DatasetPreset(
        "flowers", "dpdl-benchmark/oxford_flowers102", "train", "test", "image", "label", 102,
        "Nilsback and Zisserman, Automated Flower Classification over a Large Number of Classes, 2008",
        "1,020 train, 1,020 validation and 6,149 test images; some papers train on train+validation; no licence on "
        "the card",
    ),
    DatasetPreset(
        "dogs", "maurice-fp/stanford-dogs", "train", "test", "image", "label", 120,
        "Khosla et al., Novel Dataset for Fine-Grained Image Categorization, 2011",
        "12,000 train and 8,580 test images, as in papers; its images are part of ImageNet, so ImageNet weights have "
        "seen them; licence unknown",
    ),
    DatasetPreset(
        "food", "ethz/food101", "train", "validation", "image", "label", 101,
        "Bossard et al., Food-101: Mining Discriminative Components with Random Forests, 2014",
        "75,750 train and 25,250 test images (the hub calls the test split validation); licence unknown",
    ),
)  # fmt: skip

PRESETS: Mapping[str, DatasetPreset] = registry.DATASETS
for _entry in _ENTRIES:
    registry.DATASETS.register(_entry.name)(_entry)
"""Every preset by its name. `demo` is not among them: it is drawn by code, not loaded from the hub."""
