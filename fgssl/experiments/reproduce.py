"""A table of a folder of recipes as cells: with the user's data and weights, or as a rehearsal on drawn archives.

A rehearsal proves that every row starts, trains, goes on from a saved state and is measured, in seconds a row: the same
recipes on timm's smallest network at 32 px, stopped after two steps and resumed for two more.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from fgssl.config.resolve import Resolved, load_config
from fgssl.errors import FgsslError, SettingError
from fgssl.experiments.cells import Cell
from fgssl.experiments.plan import Row, start_cell, training_cells
from fgssl.experiments.tablefile import Table

TINY = "test_resnet"  # timm's own, of 0.4 million weights
PICTURE_SIZE, CLASSES, IMAGES = 48, 4, 6  # of a drawn archive, the images a class and split
REHEARSED = (
    f"backbone.name={TINY}", "backbone.image_size=32", "backbone.output_stride=8", "training.batch_size=8",
    "training.workers=0", "training.mixed_precision=no", "training.log_every=1",
)  # fmt: skip
START_SIZE = 64  # of weights as they are, which keep their network's own stride and need a map of 2x2
HALVES = (
    ("--max-steps", "2", "--set", "training.keep_states=true"),
    ("--max-steps", "4", "--allow-changes", "--set", "training.keep_states=false"),
)


class Chosen(NamedTuple):
    """What the user decides about a table."""

    data: str | None = None  # in place of the table's
    weights: str | None = None  # likewise
    seeds: int | None = None
    sets: tuple[str, ...] = ()
    only: tuple[str, ...] = ()  # patterns of names of rows, or of their recipes

    def wants(self, row: Row) -> bool:
        """Whether a row is to be run."""
        names = (row.name, "" if row.recipe is None else row.recipe.stem)
        return not self.only or any(fnmatch(name, pattern) for name in names for pattern in self.only)


def table_cells(table: Table, chosen: Chosen, *, rehearsal: bool = False) -> list[Cell]:
    """Every cell of a table, seed by seed, so that an early look has all rows on the same seeds.

    Raises FgsslError: data or weights are missing, a recipe is wrong, no row is wanted.
    """
    rows = [row for row in table.rows if chosen.wants(row)]
    if not rows:
        raise FgsslError(f"no row of the table {table.name} is meant by --only", f"its rows: {_names(table)}")
    sets, weights = laid_over(table, chosen, rehearsal=rehearsal), chosen.weights or table.weights
    found: list[Cell] = []
    for row in rows:
        if row.recipe is None:
            assert weights is not None  # or `laid_over` has refused
            like, size = config_of(table, chosen, rehearsal=rehearsal), START_SIZE if rehearsal else None
            found.append(start_cell(row, weights, like, table.measures, image_size=size))
        else:
            found += training_cells(row, chosen.seeds or table.seeds, table.measures, recipe_sets=sets)
    if rehearsal:
        found = [cell._replace(shorter=("--epochs", "1"), halves=HALVES if cell.train else None) for cell in found]
    return sorted(found, key=lambda cell: -1 if cell.seed is None else cell.seed)


def laid_over(table: Table, chosen: Chosen, *, rehearsal: bool = False) -> tuple[str, ...]:
    """What lies over every recipe of a table. Raises SettingError where data or weights are still to be named."""
    data, weights = chosen.data or table.data, chosen.weights or table.weights
    if data is None:
        raise SettingError(f"the table {table.name} has no data of its own", f"give --data {table.name}=FOLDER")
    if weights is None:
        raise SettingError(f"the table {table.name} has no weights of its own", "give --weights FILE")
    start = () if chosen.weights is None else ("backbone.pretrained=", f"backbone.init={chosen.weights}")
    return (f"data.source={data}", *start, *(REHEARSED if rehearsal else ()), *chosen.sets)


def config_of(table: Table, chosen: Chosen, *, row: Row | None = None, rehearsal: bool = False) -> Resolved:
    """The config of a row, or of the first row that trains. Raises FgsslError where there is none."""
    asked = row or next((row for row in table.rows if row.recipe is not None), None)
    if asked is None:
        raise FgsslError(f"the table {table.name} has no recipe", "give one of its rows a recipe")
    return load_config(asked.recipe, sets=(*asked.sets, *laid_over(table, chosen, rehearsal=rehearsal)))


def rehearse(table: Table, folder: Path, *, only: Sequence[str] = (), sets: Sequence[str] = ()) -> list[Cell]:
    """Draw data and weights for a table into a folder; its cells as a rehearsal. Raises FgsslError as `table_cells`."""
    import torch

    from fgssl.backbones import build_backbone, save_timm
    from fgssl.data.archives.rehearsal import draw_archive

    layout = table.layout or "cub"
    pictures, weights = folder / f"drawn-{layout}", folder / "random-weights"
    if not pictures.exists():
        draw_archive(layout, pictures, classes=CLASSES, images=IMAGES, size=PICTURE_SIZE)
    if not weights.exists():
        torch.manual_seed(0)
        save_timm(build_backbone(TINY, image_size=START_SIZE), weights)
    chosen = Chosen(f"{layout}:{pictures}", str(weights), 1, tuple(sets), tuple(only))
    return table_cells(table, chosen, rehearsal=True)


def _names(table: Table) -> str:
    return ", ".join(row.name for row in table.rows)
