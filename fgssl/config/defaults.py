"""What a run was not told: named sets of values, and those derived from the rest, each with its reason.

What an objective needs is in its own file. Whatever a user sets himself wins over all of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fgssl.config.schema import optional_settings
from fgssl.registry import OBJECTIVES

VIEW_PRESETS: dict[str, dict[str, Any]] = {
    # the default, for classes that colour helps to tell apart: hue and saturation stay
    "colour": {},
    "mocov2": {"saturation": 0.4, "hue": 0.1, "grayscale": 0.2},
    # colour says little: what is left is shape and texture
    "shape": {"jitter": 1.0, "saturation": 0.8, "hue": 0.5, "grayscale": 0.4},
    "geometric": {"jitter": 0.0, "saturation": 0.4, "hue": 0.1, "grayscale": 0.0, "blur": 0.0},
}
RATIONALE_PRESETS: dict[str, dict[str, Any]] = {
    # the default (docs/results.md): the objective pools by the map, a sum of projections fitted to what lowers it
    "pooled": {"sign": "lower", "fit": "regression", "combine": "linear", "train_pool": "rationale"},
    # one distribution per image, detached, mean per image: the dataclass's values
    "normalized": {},
    # what the authors' code computes for MoCo (used by recipes/paper/*-mocov2-official.yaml)
    "official": {
        "sign": "raise",
        "target": "softmax",
        "axis": "row",
        "temperature": 1.0,
        "prediction_temperature": 1.0,
        "detach_target": False,
        "stop_gradient": False,
        "normalization": "batch",
        "branch_norm": "batch",
        "combine": "max",
        "reduction": "sum",
        "weight": 0.01,
        "fit": "kl",
        "train_pool": "gap",
        "pool": "mean",
    },
}
# What a run on the built-in demo set uses unless told otherwise: minutes on two cores, offline. timm's smallest ResNet
# takes enough steps in that time; a coat tells no bird's kind, hence views without colour; crops keep the small parts.
DEMO_PROFILE: dict[str, Any] = {
    "backbone.name": "test_resnet",
    "backbone.pretrained": False,
    "backbone.image_size": 96,
    "backbone.output_stride": 16,
    "views.preset": "shape",
    "views.crop_min": 0.4,
    "training.epochs": 16,
}
# The defaults that a data source brings along. Paint tells no model of a car or aircraft.
PAINTED = {"views.preset": "mocov2"}
DATA_PROFILES: dict[str, dict[str, Any]] = {"demo": DEMO_PROFILE, "cars": PAINTED, "aircraft": PAINTED}


class Draft:
    """A run's settings, `section.key` to value and to where it came from, while what is open (None) is filled in."""

    def __init__(self, values: dict[str, Any], origins: dict[str, str]) -> None:
        self.values, self.origins = dict(values), dict(origins)

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def derive(self, key: str, value: Any, reason: str) -> None:
        """Fill in a value that is still open."""
        if self.values[key] is None:
            self.decide(key, value, reason)

    def decide(self, key: str, value: Any, reason: str) -> None:
        """Give a value whatever stood there."""
        self.values[key], self.origins[key] = value, f"derived: {reason}"


class RunFacts(NamedTuple):
    """What the defaults of an objective depend on."""

    channels: int  # of the backbone's map
    images: int  # in the training split
    total_steps: int
    started: bool  # from trained weights


class Recommended(NamedTuple):
    """An optimiser and its settings."""

    name: str
    lr: float  # for the batch below; proportional to the batch
    batch: int
    weight_decay: float
    warmup: float  # share of the run, at most 10 epochs
    reason: str = "paper"


def derive_views(draft: Draft, preset: str, crop_min: float, reason: str) -> None:
    """Give an objective the views that it needs, where nobody asked for a preset of others."""

    def asked(key: str) -> bool:
        origin = draft.origins.get(f"views.{key}", "default")
        return not (origin.endswith("default") or origin.startswith("preset "))

    if asked("preset"):
        return
    values = {"preset": preset, **VIEW_PRESETS[preset]}
    if draft.origins.get("views.crop_min") == "default":  # some data have small parts
        values["crop_min"] = crop_min
    for key, value in values.items():
        if not asked(key):
            draft.decide(f"views.{key}", value, reason)


def derive_objective(draft: Draft, run: RunFacts) -> None:
    """Fill in what the objective needs, or raise FgsslError; what it has no use for is said to be so."""
    name = draft["objective.name"]
    objective = OBJECTIVES[name]
    objective.derive(draft, run)
    if (plugin := OBJECTIVES.origin(name)) is not None:
        draft.decide("objective.plugin", plugin, "where the objective came from")
    for key in optional_settings():
        if key not in objective.uses:
            draft.derive(f"objective.{key}", None, f"{name} has none")
