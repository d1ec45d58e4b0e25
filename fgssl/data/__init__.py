"""Where images come from: presets, hub data sets, published archives, folders, lists, parquet and the drawn demo set.

A few functions cover every source; what they need is imported when they are called.
"""

from fgssl.data.archives.names import absolute, parse_named
from fgssl.data.sources.open import (
    FIRST_CLASSES,
    LAST_CLASSES,
    available_splits,
    default_split,
    load_images,
    no_split,
)
from fgssl.data.sources.presets import DRAWN, PRESETS, DatasetPreset

__all__ = [
    "DRAWN", "FIRST_CLASSES", "LAST_CLASSES", "PRESETS", "DatasetPreset", "absolute", "available_splits",
    "default_split", "load_images", "no_split", "parse_named",
]  # fmt: skip
