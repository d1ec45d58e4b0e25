"""A grid of settings: named variants over several seeds, each pair a cell; and what cells train and are judged on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from fgssl.config.resolve import Resolved, load_config
from fgssl.config.resumed import FREE
from fgssl.config.schema import DataConfig, RationaleConfig, flatten
from fgssl.data import default_split, load_images
from fgssl.data.images import ImageSet, Masks, Subset
from fgssl.errors import FgsslError
from fgssl.evaluation.probing.splits import stratified_split
from rationale_bench.controls import TRAIN_POOLS

INIT = "init"  # the variant that is not trained
HELD_IMAGES, HELD_CLASSES = 0.2, 0.25
SLICE_SEED = 0  # the same slice for every cell


@dataclass(frozen=True)
class Grid:
    """What the YAML file says."""

    base: tuple[str, ...]  # settings of every variant
    baseline: str  # the variant that others are compared with, by its gap pooling
    variants: dict[str, tuple[str, ...]]  # name to settings
    train_maps: dict[str, str]  # variants whose objective pools by a map that is nobody's rationale (`TRAIN_POOLS`)
    poolings: dict[str, tuple[str, ...]]  # name to settings (rationale.pool...): ways to pool, without training


@dataclass(frozen=True)
class Protocol:
    """What is common to all cells."""

    recipe: Path | None  # YAML file under the grid's settings
    data: str | None  # as in `fgssl pretrain --data`; None for the recipe's
    sets: tuple[str, ...]  # settings over those of the grid
    select: str  # which part of the training split judges, as in `open_slice`
    final: bool  # judge on the test split instead


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


class Slice(NamedTuple):
    """Images of a cell."""

    train: ImageSet  # what pretraining sees
    gallery: ImageSet  # what is searched, and what the probe learns from
    queries: ImageSet  # what searches, and what the probe is tested on; also leave-one-out within itself
    masks: Callable[[int], Masks | None] | None  # of a query by its place, where the set has any


def open_slice(data: DataConfig, select: str, *, final: bool = False) -> Slice:
    """The data with a part of the training split held out, or (`final`) with the test split.

    "images" holds out a fifth of each class's images; "classes" a quarter of the classes, whose images are halved into
    gallery and queries; anything else is a pattern, and images whose file name fits it are held out. A random fifth
    flatters where photographs were taken in bursts.
    """
    whole = load_images(data, default_split(data, "train") or "train")
    if whole.labels is None:
        raise FgsslError(f"{data.source} has no labels", "the bench compares by them: use class folders")
    if final:
        split = default_split(data, "test")
        if split is None:
            raise FgsslError(f"{data.source} has no test split", "leave out --final")
        test = load_images(data, split)
        return Slice(whole, whole, test, _masks(test, np.arange(len(test))))
    labels = torch.from_numpy(whole.labels)
    if select == "images":
        kept, held = (rows.numpy() for rows in stratified_split(labels, HELD_IMAGES, seed=SLICE_SEED))
        train = Subset(whole, kept)
        return Slice(train, train, Subset(whole, held), _masks(whole, held))
    if select != "classes":
        held = np.array([fnmatch(PurePath(whole.identifier(row)).name, select) for row in range(len(whole))])
        if held.all() or not held.any():
            raise FgsslError(f"--select '{select}' fits {held.sum()} of {len(held)} file names", "give another pattern")
        train = Subset(whole, np.flatnonzero(~held))
        return Slice(train, train, Subset(whole, np.flatnonzero(held)), _masks(whole, np.flatnonzero(held)))
    classes = np.random.default_rng(SLICE_SEED).permutation(np.unique(whole.labels))
    unseen = np.isin(whole.labels, classes[: max(2, round(HELD_CLASSES * len(classes)))])
    rows = np.flatnonzero(unseen)
    gallery, queries = (rows[half.numpy()] for half in stratified_split(labels[rows], 0.5, seed=SLICE_SEED))
    train = Subset(whole, np.flatnonzero(~unseen))
    return Slice(train, Subset(whole, gallery), Subset(whole, queries), _masks(whole, queries))


def _masks(images: ImageSet, rows: np.ndarray) -> Callable[[int], Masks | None] | None:
    if not len(rows) or images.masks(int(rows[0])) is None:
        return None
    return lambda place: images.masks(int(rows[place]))
