"""Named sets of values, and what a data source brings along; whatever a user sets himself wins over them."""

from __future__ import annotations

from typing import Any

# A preset gives values for its section; whatever the user sets explicitly wins over it.
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
    # what the authors' code computes for MoCo (used by recipes/cub-resnet50-moco.yaml)
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
DATA_PROFILES: dict[str, dict[str, Any]] = {
    "demo": DEMO_PROFILE,
    "cars": {"views.preset": "mocov2"},
    "aircraft": {"views.preset": "mocov2"},
}
