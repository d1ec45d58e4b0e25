"""An experiment from what a user asks for to its table: a sweep over a recipe, or a table of a folder of recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fgssl.config.resolve import Resolved, load_config
from fgssl.config.schema import BackboneConfig
from fgssl.experiments import plan
from fgssl.experiments.cells import Cell, Result, Verb, result_of
from fgssl.experiments.reproduce import Chosen, config_of, table_cells
from fgssl.experiments.run import run_cells
from fgssl.experiments.summary import Summary, summarise
from fgssl.experiments.tablefile import Table
from fgssl.experiments.tables import write_tables


class Estimate(NamedTuple):
    """What is left of a row."""

    row: str
    cells: int
    left: int  # cells without all their numbers
    hours: float  # of those


class Experiment(NamedTuple):
    """What is to be run, where, and what its table says beside the numbers."""

    title: str
    cells: tuple[Cell, ...]
    output: Path
    passes: Mapping[str, float]  # row -> forward passes of one of its cells, a backward pass counted as two
    backbone: BackboneConfig  # whose rate tells the hours
    device: str | None = None
    published: Mapping[str, Mapping[str, float]] | None = None
    notes: tuple[str, ...] = ()

    def known(self) -> list[Result]:
        """What is known of each cell by now. Raises FgsslError where the folder holds another experiment's."""
        return [result_of(cell, self.output) for cell in self.cells]

    def hours_left(self) -> list[Estimate]:
        """One estimate a row, at the rate of the finished cells, or at one measured now."""
        from fgssl.experiments.cost import forward_rate

        results = self.known()
        done = [result for result in results if result.finished and result.minutes > 0]
        if done:
            rate = sum(self.passes[r.cell.row] for r in done) / sum(60 * r.minutes for r in done)
        else:
            rate = forward_rate(self.backbone.name, image_size=self.backbone.image_size, device=self.device)
        found = []
        for row in dict.fromkeys(cell.row for cell in self.cells):
            own = [result for result in results if result.cell.row == row]
            left = sum(not result.finished for result in own)
            found.append(Estimate(row, len(own), left, left * self.passes[row] / rate / 3600))
        return found

    def run(self, fgssl: Verb, note: Callable[[str], None]) -> tuple[Summary, list[Result]]:
        """Run what is left, as `run_cells`, and write the table beside the cells."""
        results = run_cells(self.cells, self.output, fgssl, note)
        summary = summarise(results, title=self.title, published=self.published, notes=self.notes)
        write_tables(summary, self.output)
        return summary, results


def sweep(
    recipe: Path,
    output: Path,
    *,
    grid: Sequence[str] = (),
    seeds: int = 3,
    sets: Sequence[str] = (),
    measures: Sequence[str] | None = None,
) -> Experiment:
    """A recipe with all combinations of values, each over several seeds.

    Args:
        recipe: YAML file of settings.
        output: Folder of the cells and the table.
        grid: `section.key=value,value` strings.
        seeds: How many, from the recipe's own on.
        sets: `section.key=value` over the recipe.
        measures: Names in `fgssl.experiments.cells.MEASURES`; None takes what the data have labels for.

    Raises FgsslError: recipe, grid or data are wrong, before anything is run.
    """
    rows = plan.grid_rows(recipe, grid, sets)
    configs = {row.name: load_config(row.recipe, sets=row.sets) for row in rows}
    first = configs[rows[0].name]
    asked = plan.usual_measures(first) if measures is None else plan.check_measures(measures)
    cells = [cell for row in rows for cell in plan.training_cells(row, seeds, asked)]
    images = plan.count_images(first)
    passes = {name: sum(plan.forward_passes(config, images, asked)) for name, config in configs.items()}
    return _experiment(f"Sweep of {recipe}", sorted(cells, key=lambda cell: cell.seed or 0), output, passes, first)


def reproduction(table: Table, chosen: Chosen, output: Path) -> Experiment:
    """A table of a folder of recipes. Raises FgsslError as `table_cells`; data that the user names are opened."""
    cells, first = table_cells(table, chosen), config_of(table, chosen)
    images = table.images if chosen.data is None else plan.count_images(first)
    passes: dict[str, float] = {}
    for row in table.rows:
        config = config_of(table, chosen, row=row if row.recipe else None)
        trains, measured = plan.forward_passes(config, images, table.measures)
        passes[row.name] = measured + (trains if row.recipe else 0.0)
    made = _experiment(table.title, cells, output, passes, first)
    return made._replace(published=table.published, notes=table.notes)


def _experiment(
    title: str, cells: Sequence[Cell], output: Path, passes: Mapping[str, float], first: Resolved
) -> Experiment:
    return Experiment(title, tuple(cells), output, passes, first.config.backbone, first.config.training.device)
