"""A grid of settings: named variants on a base recipe, over several seeds, each pair of them a cell."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fgssl.config.resolve import Resolved, load_config
from fgssl.config.resumed import FREE
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
        branches: Name to settings of further branches, which never train the backbone, so that many share a training.
        carriers: Variants that fit the further branches beside their own.
        train_maps: Variants whose objective pools by a map that is nobody's rationale (see `controls.TRAIN_POOLS`).
        poolings: Name to settings (rationale.pool...) of further ways to pool with every branch, without training.
    """

    base: tuple[str, ...]
    baseline: str
    variants: dict[str, tuple[str, ...]]
    branches: dict[str, tuple[str, ...]]
    carriers: frozenset[str]
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
    branches: dict[str, RationaleConfig]
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
        variants = {str(name): _variant(value) for name, value in tree["variants"].items()}
        pools = {name: pool for name, (_, _, pool) in variants.items() if pool is not None}
        grid = Grid(
            base=_settings(tree.get("base")),
            baseline=str(tree.get("baseline", next(iter(variants)))),
            variants={name: sets for name, (sets, _, _) in variants.items()},
            branches={str(name): _settings(sets) for name, sets in (tree.get("branches") or {}).items()},
            carriers=frozenset(name for name, (_, carries, _) in variants.items() if carries),
            train_maps=pools,
            poolings={str(name): _settings(sets) for name, sets in (tree.get("poolings") or {}).items()},
        )
    except (OSError, yaml.YAMLError, KeyError, AttributeError, TypeError, ValueError, StopIteration) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FgsslError(f"'{path}' is not a grid: {reason}", "see recipes/bench/rationale_grid.yaml") from error
    if grid.baseline not in grid.variants or INIT in grid.variants:
        raise FgsslError(
            f"'{path}': the baseline '{grid.baseline}' must be a variant, and none be called '{INIT}'", "rename them"
        )
    return grid


def _variant(value: Any) -> tuple[tuple[str, ...], bool, str | None]:
    if not isinstance(value, dict):
        return _settings(value), False, None
    pool = value.get("train_map")
    if pool not in (None, *TRAIN_POOLS):
        raise ValueError(f"train_map {pool!r} is none of {', '.join(TRAIN_POOLS)}")
    return _settings(value.get("set")), bool(value.get("branches", False)), pool


def _settings(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{value!r} is not a list of section.key=value")
    return tuple(value)


def make_cell(grid: Grid, protocol: Protocol, variant: str, seed: int) -> Cell:
    """A variant (or INIT: the baseline untrained) with a seed. Raises FgsslError for settings that cannot be."""
    sets = (*grid.base, *grid.variants[grid.baseline if variant == INIT else variant], *protocol.sets)
    resolved = _resolve(protocol, seed, sets)
    carried = grid.branches if variant in grid.carriers else {}
    branches = {
        name: dataclasses.replace(
            _resolve(protocol, seed, (*sets, "rationale.enabled=true", *own)).config.rationale,
            stop_gradient=True,
            detach_target=True,
        )
        for name, own in carried.items()
    }
    learned = {key: value for key, value in flatten(resolved.config).items() if key not in FREE}
    described = [
        variant == INIT,
        learned,
        {name: dataclasses.asdict(config) for name, config in branches.items()},
        "final" if protocol.final else protocol.select,
    ]
    train_map = None if variant == INIT else grid.train_maps.get(variant)
    described += [] if train_map is None else [train_map]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return Cell(variant, seed, resolved, branches, train_map, digest)


def _resolve(protocol: Protocol, seed: int, sets: tuple[str, ...]) -> Resolved:
    flags = {
        "data.source": protocol.data,
        "training.seed": seed,
        "training.evaluate": False,
        "training.signals_every": 0,
        "training.save_every": "60s",
        "training.keep_states": True,  # until the cell has its results
    }
    return load_config(protocol.recipe, flags=flags, sets=sets)


def pooling_config(config: RationaleConfig, sets: tuple[str, ...]) -> RationaleConfig:
    """A branch's config with other pooling. Raises FgsslError for a setting that pooling does not read."""
    wanted = load_config(sets=sets).config.rationale
    names = [pair.partition("=")[0].strip().removeprefix("rationale.") for pair in sets]
    for name in names:
        if not name.startswith("pool"):
            raise FgsslError(f"a pooling sets rationale.{name}", "set rationale.pool... alone; else make it a variant")
    return dataclasses.replace(config, **{name: getattr(wanted, name) for name in names})
