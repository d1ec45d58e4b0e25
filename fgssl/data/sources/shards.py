"""Tells folders of tables from folders of images, by file names alone."""

from __future__ import annotations

import os
import re

_SPLIT_NAME = re.compile(r"^(train|training|test|testing|val|valid|validation|dev)(?![a-z])", re.IGNORECASE)


def parquet_files(folder: str) -> list[str]:
    """Parquet files in a folder and in the folders directly below it, sorted."""
    found = []
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if path == folder else []
        found += [os.path.join(path, name) for name in sorted(files) if name.lower().endswith(".parquet")]
    return found


def shards_by_split(path: str) -> dict[str, list[str]]:
    """The parquet files of each split.

    Args:
        path: A parquet file ("all", whatever its name), or a folder of shards.

    Returns:
        Split name -> files. A shard's split is what its name, or its folder's, begins with; "all" where neither does.
    """
    if os.path.isfile(path):
        return {"all": [path]}
    splits: dict[str, list[str]] = {}
    for file in parquet_files(path):
        steps = os.path.relpath(file, path).split(os.sep)
        match = next((found for step in reversed(steps) if (found := _SPLIT_NAME.match(step))), None)
        splits.setdefault(match[1].lower() if match else "all", []).append(file)
    return splits


def is_saved_table(folder: str) -> bool:
    """Whether `save_to_disk` of the `datasets` library wrote a folder."""
    if os.path.isfile(os.path.join(folder, "dataset_dict.json")):
        return True
    return all(os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_info.json"))
