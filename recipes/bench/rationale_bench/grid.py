"""A grid of settings: named variants on a base recipe, over several seeds, each pair of them a cell."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fgssl.config.resolve import FREE, Resolved, load_config
from fgssl.config.schema import RationaleConfig, flatten
from fgssl.errors import FgsslError
from rationale_bench.controls import TRAIN_POOLS

INIT = "init"  # the variant that is not trained


@dataclass(frozen=True)
class Grid:
    """What the YAML file says.

    Attributes:
        base: Settings of every variant.
        baseline: The variant that others are compared with, by its gap pooling.
        variants: Name to settings.
        train_maps: Variants whose objective pools by a map that is nobody's rationale (see `controls.TRAIN_POOLS`).
        poolings: Name to settings (rationale.pool...) of further ways to pool with the map, without training.
    """

    base: tuple[str, ...]
    baseline: str
    variants: dict[str, tuple[str, ...]]
    train_maps: dict[str, str]
    poolings: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Protocol:
    """What is common to all cells.

    Attributes:
        recipe: YAML file under the grid's settings, or None.
        data: Source, as in `fgssl pretrain --data`; None for the recipe's.
        sets: Settings over those of the grid.
        select: Which part of the training split judges: "images", "classes" or a file pattern.
        final: Judge on the test split instead.
    """

    recipe: Path | None
    data: str | None
    sets: tuple[str, ...]
    select: str
    final: bool


@dataclass(frozen=True)
class Cell:
    """One training (none for the init): a variant with a seed."""

    variant: str
    seed: int
    resolved: Resolved
    train_map: str | None
    digest: str

    @property
    def name(self) -> str:
        """Folder of the cell; other settings have another one."""
        return f"{self.variant}-seed{self.seed}-{self.digest[:8]}"


def read_grid(path: Path) -> Grid:
    """The grid of a YAML file. Raises FgsslError where it is not one."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        trees = {
            str(name): value if isinstance(value, dict) else {"set": value} for name, value in tree["variants"].items()
        }
        grid = Grid(
            base=_settings(tree.get("base")),
            baseline=str(tree.get("baseline", next(iter(trees)))),
            variants={name: _settings(value.get("set")) for name, value in trees.items()},
            train_maps={name: value["train_map"] for name, value in trees.items() if "train_map" in value},
            poolings={str(name): _settings(sets) for name, sets in (tree.get("poolings") or {}).items()},
        )
        unknown = set(grid.train_maps.values()) - set(TRAIN_POOLS)
        if unknown:
            raise ValueError(f"train_map {unknown.pop()!r} is none of {', '.join(TRAIN_POOLS)}")
    except (OSError, yaml.YAMLError, KeyError, AttributeError, TypeError, ValueError, StopIteration) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FgsslError(f"'{path}' is not a grid: {reason}", "see recipes/bench/rationale_final.yaml") from error
    if grid.baseline not in grid.variants or INIT in grid.variants:
        raise FgsslError(
            f"'{path}': the baseline '{grid.baseline}' must be a variant, and none be called '{INIT}'", "rename them"
        )
    return grid


def _settings(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{value!r} is not a list of section.key=value")
    return tuple(value)


def make_cell(grid: Grid, protocol: Protocol, variant: str, seed: int) -> Cell:
    """A variant (or INIT: the baseline untrained) with a seed. Raises FgsslError for settings that cannot be."""
    flags = {
        "data.source": protocol.data, "training.seed": seed, "training.evaluate": False, "training.signals_every": 0,
        "training.save_every": "60s", "training.keep_states": True,  # until the cell has its results
    }  # fmt: skip
    sets = (*grid.base, *grid.variants[grid.baseline if variant == INIT else variant], *protocol.sets)
    resolved = load_config(protocol.recipe, flags=flags, sets=sets)
    learned = {key: value for key, value in flatten(resolved.config).items() if key not in FREE}
    train_map = grid.train_maps.get(variant)
    described = [variant == INIT, learned, "final" if protocol.final else protocol.select, train_map]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return Cell(variant, seed, resolved, train_map, digest)


def pooling_config(config: RationaleConfig, sets: tuple[str, ...]) -> RationaleConfig:
    """A branch's config with other pooling. Raises FgsslError for a setting that pooling does not read."""
    wanted = load_config(sets=sets).config.rationale
    names = [pair.partition("=")[0].strip().removeprefix("rationale.") for pair in sets]
    for name in names:
        if not name.startswith("pool"):
            raise FgsslError(f"a pooling sets rationale.{name}", "set rationale.pool... alone; else make it a variant")
    return dataclasses.replace(config, **{name: getattr(wanted, name) for name in names})
