"""Backbones from a name, from weights of any origin, or from a checkpoint of ours.

A checkpoint is read by people who did not write it, and timm's `create_model` takes arguments that fetch files, open
pickles or allocate whatever they say: a description may name plain shapes within reason, and nothing else.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor

from fgssl.backbones.initial import config_folder, create_model, load_initial_weights, origin_of, unknown_origin
from fgssl.backbones.module import Backbone
from fgssl.backbones.names import LOCAL_PREFIX, resolve_source
from fgssl.backbones.plan import BackbonePlan, also_smaller, plan_backbone, run_trial
from fgssl.backbones.weights import reject_misfit, reject_numbers, some
from fgssl.errors import FgsslError

LARGEST_NUMBER = 65_536  # no width, depth or size of a real model is larger
LARGEST_IMAGE = 4096
# arguments of create_model that reach for files, networks or code
_REFUSED = re.compile(
    r"pretrained.*|model_name|checkpoint_path|cache_dir|scriptable|exportable|no_jit|features_only|feature_cfg"
    r"|kwargs_filter|state_dict|.*url|.*file|hf_hub_id|custom_load"
)
_ARCHITECTURE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")  # a prefix such as hf-hub: would download
_INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "nearest", "box", "hamming", "random")


def build_backbone(
    name: str,
    *,
    pretrained: bool = False,
    image_size: int | None = None,
    output_stride: int | None = None,
    drop_path: float | None = None,
    local_size: int | None = None,
) -> Backbone:
    """Build any timm model as a backbone, in train mode, on the CPU, in float32.

    Args:
        name: A timm name, with a tag or without (``resnet50.a1_in1k``), ``hf-hub:owner/model`` or ``local-dir:FOLDER``.
        pretrained: Load the published weights.
        image_size: Side of the square input in pixels; None for the model's own.
        output_stride: Input pixels a cell of the map, where the model offers the choice (ResNet, RegNet, EfficientNet).
        drop_path: Probability of dropping a residual branch in training (stochastic depth).
        local_size: Side of smaller inputs that it must take as well.

    FgsslError where the name is unknown, size or options are not taken, the map is below 2x2, or weights are not had.
    """
    source = resolve_source(name)
    plan = plan_backbone(source, image_size, output_stride, drop_path)
    plan = plan if local_size is None else also_smaller(source, plan, local_size)
    model = create_model(source, plan.model_args, pretrained=pretrained)
    return Backbone(model, plan, name=name, architecture=source.architecture)


def survey_backbone(
    name: str, *, image_size: int | None = None, output_stride: int | None = None, drop_path: float | None = None
) -> BackbonePlan:
    """What ``build_backbone`` with the same arguments would build, without building it or looking for weights."""
    return plan_backbone(resolve_source(name), image_size, output_stride, drop_path)


def open_weights(source: str | os.PathLike[str], *, name: str | None = None, image_size: int | None = None) -> Backbone:
    """A backbone with all its weights from a file or folder that ``load_initial_weights`` reads, with or without head.

    Its name and image size are found out where not given; FgsslError where nothing tells, or weights are missing.
    """
    if name is None:
        folder, origin = config_folder(source), origin_of(source)
        if origin is None:
            raise unknown_origin(source)
        # by its folder, where it has timm's config.json: that tells how pictures are normalised, too
        name = origin.architecture if folder is None else f"{LOCAL_PREFIX}{folder}"
        image_size = image_size or origin.image_size
    backbone = build_backbone(name, image_size=image_size)
    loaded = load_initial_weights(backbone, source)
    missing = [key for key in loaded.missing if key not in backbone.unused_parameters]
    if missing:
        raise FgsslError(f"{source} lacks {len(missing)} weights of {backbone.name}: {some(missing)}", "use its model")
    return backbone


def rebuild_backbone(description: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Backbone:
    """Build a backbone again from ``Backbone.description`` and its model's weights, without a network, in train mode.

    FgsslError where the description holds more than shapes and numbers, or keys or shapes are not the architecture's.
    """
    _check_description(description)
    architecture, model_args = description["architecture"], dict(description["model_args"])
    size, name = int(description["image_size"]), description["name"]
    resolve_source(architecture)
    try:  # refuses weights that do not fit before a model of whatever size a file claims takes memory
        with torch.device("meta"):
            wanted = timm.create_model(architecture, **model_args).state_dict()
        reject_misfit(wanted, state_dict, name)
        plan = run_trial(architecture, model_args, size, "meta")
    except FgsslError:
        raise
    except Exception:  # a few models need real numbers
        plan = run_trial(architecture, model_args, size, "cpu")
    model = timm.create_model(architecture, **model_args)
    reject_misfit(model.state_dict(), state_dict, name)
    reject_numbers(model.state_dict(), state_dict, name)
    model.load_state_dict(dict(state_dict))
    return Backbone(model, plan, name=name, architecture=architecture, data=description["data_config"])


def _check_description(description: Mapping[str, Any]) -> None:
    _require("description", description, isinstance(description, Mapping))
    keys = ("architecture", "model_args", "image_size", "data_config")
    architecture, model_args, size, data = (description.get(key) for key in keys)
    _require("architecture", architecture, isinstance(architecture, str) and _ARCHITECTURE.fullmatch(architecture))
    _require("name", description.get("name"), isinstance(description.get("name"), str))
    _require("model_args", model_args, isinstance(model_args, Mapping))
    for key, value in (model_args or {}).items():
        _require(f"model_args.{key}", value, not _REFUSED.fullmatch(str(key)) and _is_plain(value))
    _require("image_size", size, _is_number(size, int) and size in range(1, LARGEST_IMAGE + 1))
    _require("data_config", data, isinstance(data, Mapping))
    values: dict[str, Any] = dict(data or {})
    for key, three, least in (("mean", values.get("mean"), -math.inf), ("std", values.get("std"), 0.0)):
        fits = isinstance(three, list) and len(three) == 3 and all(_is_number(n) and n > least for n in three)
        _require(key, three, fits)
    share: Any = values.get("crop_pct")
    _require("crop_pct", share, _is_number(share) and 0 < share <= 2)
    _require("interpolation", values.get("interpolation"), values.get("interpolation") in _INTERPOLATIONS)


def _is_number(value: Any, kinds: Any = (int, float)) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def _is_plain(value: Any, depth: int = 0) -> bool:
    """None, booleans, short text, numbers within reason, and small lists and dicts of them."""
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, str):
        return len(value) <= 100 and value.isprintable() and not re.search(r"[/\\:]", value)
    if isinstance(value, (int, float)):
        return math.isfinite(value) and abs(value) <= LARGEST_NUMBER
    if depth > 3 or not isinstance(value, (list, Mapping)) or len(value) > 200:
        return False
    parts = [*value, *value.values()] if isinstance(value, Mapping) else value
    return all(_is_plain(part, depth + 1) for part in parts)


def _require(key: str, value: Any, fits: object) -> None:
    if not fits:
        shown = f"a {type(value).__name__}" if isinstance(value, (list, Mapping)) else repr(value)[:60]
        problem = f"the checkpoint's {key[:60]} cannot be {shown}"
        raise FgsslError(problem, "it is damaged, or made to do harm: use another")
