"""Cells from a recipe: with values laid over it, and for each seed. What `fgssl sweep` and `fgssl reproduce` share."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fgssl.config.resolve import Resolved, load_config
from fgssl.config.resumed import FREE
from fgssl.config.schema import flatten
from fgssl.data import default_split, load_images
from fgssl.errors import FgsslError, SettingError
from fgssl.experiments.cells import MEASURES, Cell
from fgssl.registry import OBJECTIVES
from fgssl.runs.folder import NAMES

NAME_LENGTH = 100  # of a cell, below what file systems take
OWN = ("training.seed", "training.evaluate")  # decided by the cell


class Row(NamedTuple):
    """A row of a table: one training over seeds, or weights as they are."""

    name: str
    recipe: Path | None  # None: the weights as they are
    sets: tuple[str, ...] = ()  # `section.key=value`, over the recipe
    pool: str | None = None
    published: Mapping[str, float] | None = None


def grid_rows(recipe: Path, grid: Sequence[str], sets: Sequence[str] = ()) -> list[Row]:
    """One row for each combination of values; `grid` holds `section.key=value,value,...`. Raises SettingError."""
    axes: list[list[str]] = []
    for axis in grid:
        key, equals, text = axis.partition("=")
        values = [value.strip() for value in text.split(",")]
        if not equals or "." not in key or not all(values) or len(set(values)) < len(values):
            raise SettingError(f"--grid {axis!r} is not section.key=value,value", "as in optimizer.lr=1e-3,3e-3")
        if key in (*OWN, *(other.partition("=")[0] for other, *_ in axes)):
            raise SettingError(f"--grid {key} is given twice or is the cells' own", "seeds come by --seeds")
        axes.append([f"{key}={value}" for value in values])
    rows = [Row(", ".join(chosen) or recipe.stem, recipe, (*sets, *chosen)) for chosen in itertools.product(*axes)]
    for row in rows:
        _resolve(row)
    return rows


def training_cells(row: Row, seeds: int, measures: Sequence[str], *, recipe_sets: Sequence[str] = ()) -> list[Cell]:
    """The cells of a row that trains: seeds from the recipe's own on. Raises FgsslError as the recipe.

    Args:
        row: With a recipe.
        seeds: How many.
        measures: Names in `MEASURES`.
        recipe_sets: `section.key=value` over the row's, which the name of the cell does not tell.
    """
    resolved = _resolve(row, recipe_sets)
    settings, data = given(resolved), resolved.config.data
    told = row.name if row.recipe is None else f"{row.recipe.stem}-{row.name}" if row.sets else row.recipe.stem
    first = resolved.config.training.seed
    train_split = (default_split(data, "train") if "search" in measures else None) or "train"
    cells = []
    for seed in range(first, first + seeds):
        own = ("training.evaluate=false", *row.sets, *recipe_sets, f"training.seed={seed}")
        options = tuple(word for pair in own for word in ("--set", pair))
        name = cell_name(f"{told}-seed{seed}")
        kept = {**settings, "training.seed": seed, "pool": row.pool}
        train = ("--recipe", str(row.recipe), *options)
        cells.append(Cell(name, row.name, seed, kept, train, (), tuple(measures), train_split, row.pool))
    return cells


def start_cell(
    row: Row, checkpoint: str, like: Resolved, measures: Sequence[str], *, image_size: int | None = None
) -> Cell:
    """The cell of weights as they are, on the data of a recipe's config and at its size unless one is given."""
    backbone, data = like.config.backbone, like.config.data
    pixels = image_size or backbone.image_size
    size = () if pixels is None else ("--image-size", str(pixels))
    name = () if checkpoint.startswith(NAMES) else ("--backbone", backbone.name)
    subject = (checkpoint, *name, *size, "--data", data.source)
    split = ("--split", data.test_split) if data.test_split else ()
    train_split = (default_split(data, "train") if "search" in measures else None) or "train"
    kept = {"checkpoint": checkpoint, "options": [*name, *size], "data": data.source, "pool": row.pool}
    label = cell_name(f"start-{row.name}")
    return Cell(label, row.name, None, kept, (), (*subject, *split), tuple(measures), train_split, row.pool)


def given(resolved: Resolved) -> dict[str, Any]:
    """What a recipe and what lies over it decide: every setting that is not left to its default, nor free to change."""
    flat = flatten(resolved.config)
    return {k: flat[k] for k, origin in resolved.origins.items() if origin != "default" and k not in (*FREE, *OWN)}


def _resolve(row: Row, more: Sequence[str] = ()) -> Resolved:
    return load_config(row.recipe, sets=(*row.sets, *more))


def cell_name(text: str) -> str:
    """A name for files; a short digest keeps apart what would be written alike."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._=-") else "-" for c in text)
    if name == text and len(name) <= NAME_LENGTH:
        return name
    return f"{name[:NAME_LENGTH].strip('-.')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def usual_measures(resolved: Resolved) -> tuple[str, ...]:
    """What can be measured on the data: retrieval and probes with labels, else the label-free signals."""
    data = resolved.config.data
    split = default_split(data, "train")
    if split is None or load_images(data, split, tell=False).labels is None:
        return ("signals",)
    return ("retrieve", "probe") if default_split(data, "test") is None else ("retrieve", "search", "probe")


def check_measures(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once. Raises SettingError for an unknown one."""
    for name in names:
        if name not in MEASURES:
            raise SettingError(f"no measure '{name}'", f"choose from {', '.join(MEASURES)}")
    return tuple(dict.fromkeys(names))


def forward_passes(resolved: Resolved, images: tuple[int, int], measures: Sequence[str]) -> tuple[float, float]:
    """(of a training, of its measures): forward passes of one picture, a backward pass counted as two.

    Args:
        resolved: The recipe's config.
        images: How many to train on and to test on.
        measures: Names in `MEASURES`.
    """
    config, (train, test) = resolved.config, images
    training, both = config.training, train + test
    seen = training.epochs * train
    if training.max_steps is not None and training.batch_size is not None:
        seen = min(seen, training.max_steps * training.batch_size)
    trains = OBJECTIVES[config.objective.name].step_forwards * seen
    if config.backbone.freeze == "backbone":  # its maps are kept
        trains = 2 * train * config.backbone.cached_views
    costs = {"retrieve": test, "search": both, "probe": both, "signals": 2 * test}
    costs["probe-sgd"] = round(100 * 1.7 * train) + test  # 100 epochs of all, half and a fifth of the pictures
    return float(trains), float(sum(costs[name] for name in measures))


def count_images(resolved: Resolved) -> tuple[int, int]:
    """How many pictures the data have to train on and to test on. Raises FgsslError where they cannot be opened."""
    data = resolved.config.data
    splits = [default_split(data, "train"), default_split(data, "test")]
    counts = [0 if split is None else len(load_images(data, split, tell=False)) for split in splits]
    if not counts[0]:
        raise FgsslError(f"'{data.source}' has no pictures to train on", "name a split by --set data.train_split=...")
    return counts[0], counts[1] or counts[0]
