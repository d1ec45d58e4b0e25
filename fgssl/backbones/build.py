"""Backbones from a name, from weights of any origin, or from a checkpoint of ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor

from fgssl.backbones.initial import load_initial_weights, no_published_weights, weights_unavailable
from fgssl.backbones.module import Backbone
from fgssl.backbones.names import LOCAL_PREFIX, BackboneSource, resolve_source
from fgssl.backbones.origin import config_folder, origin_of, unknown_origin
from fgssl.backbones.plan import BackbonePlan, plan_backbone, run_trial
from fgssl.backbones.trust import check_description
from fgssl.backbones.weights import load_strictly, reject_misfit, some
from fgssl.errors import FgsslError
from fgssl.runtime.offline import hub_or_cache


def build_backbone(
    name: str,
    *,
    pretrained: bool = False,
    image_size: int | None = None,
    output_stride: int | None = None,
    drop_path: float | None = None,
) -> Backbone:
    """Build any timm model as a backbone, in train mode, on the CPU, in float32.

    Args:
        name: A timm name, with a tag or without (``resnet50.a1_in1k``), ``hf-hub:owner/model`` or ``local-dir:FOLDER``.
        pretrained: Load the published weights.
        image_size: Side of the square input in pixels; None for the model's own.
        output_stride: Input pixels a cell of the map, where the model offers the choice (ResNet, RegNet, EfficientNet).
        drop_path: Probability of dropping a residual branch in training (stochastic depth).

    Raises:
        FgsslError: The name is unknown, the model cannot take the size or the options, its map would be smaller than
            2x2, or its weights cannot be had.
    """
    source = _source(name)
    if pretrained and not source.has_weights:
        raise no_published_weights(name)
    plan = plan_backbone(source, image_size, output_stride=output_stride, drop_path=drop_path)
    try:
        with hub_or_cache():
            model = timm.create_model(name, pretrained=pretrained, **plan.model_args)
    except Exception as error:  # the trial run built it, so what fails now are the weights
        if not pretrained:
            raise
        raise weights_unavailable(name, error) from error
    return Backbone(model, plan, name=name, architecture=source.architecture)


def survey_backbone(
    name: str, *, image_size: int | None = None, output_stride: int | None = None, drop_path: float | None = None
) -> BackbonePlan:
    """What ``build_backbone`` with the same arguments would build, without building it or looking for weights."""
    return plan_backbone(_source(name), image_size, output_stride=output_stride, drop_path=drop_path)


def _source(name: str) -> BackboneSource:
    with hub_or_cache():
        return resolve_source(name)


def open_weights(source: str | os.PathLike[str], *, name: str | None = None, image_size: int | None = None) -> Backbone:
    """A backbone with all its weights from a file or folder that ``load_initial_weights`` reads, with or without head.

    The name and the image size are found out (``origin_of``) where they are not given; FgsslError where nothing tells,
    or where a weight is missing, of another shape, or no number.
    """
    folder = config_folder(source)
    origin = origin_of(source) if name is None else None
    if name is None and origin is None:
        raise unknown_origin(source)
    if origin is not None:
        # by its folder, where it has timm's config.json: that tells how pictures are normalised, too
        name = origin.architecture if folder is None else f"{LOCAL_PREFIX}{folder}"
        image_size = image_size or origin.image_size
    backbone = build_backbone(str(name), image_size=image_size)
    loaded = load_initial_weights(backbone, source)
    missing = [key for key in loaded.missing if key not in backbone.unused_parameters]
    if missing:
        raise FgsslError(f"{source} lacks {len(missing)} weights of {backbone.name}: {some(missing)}", "use its model")
    return backbone


def rebuild_backbone(description: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Backbone:
    """Build a backbone again from ``Backbone.description`` and its model's weights, without a network, in train mode.

    FgsslError where this timm does not know the architecture, or keys are missing, unexpected or of other shapes.
    """
    check_description(description)
    architecture, model_args = description["architecture"], dict(description["model_args"])
    size, name = int(description["image_size"]), description["name"]
    resolve_source(architecture)
    _check_shapes(architecture, model_args, state_dict, name)
    try:
        plan = run_trial(architecture, model_args, size, "meta")
    except Exception:  # a few models need real numbers
        plan = run_trial(architecture, model_args, size, "cpu")
    model = timm.create_model(architecture, **model_args)
    load_strictly(model, state_dict, name)
    return Backbone(model, plan, name=name, architecture=architecture, data_config=description["data_config"])


def _check_shapes(architecture: str, model_args: dict[str, Any], state_dict: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights that do not fit before a model of whatever size a file claims takes memory."""
    try:
        with torch.device("meta"):
            wanted = timm.create_model(architecture, **model_args).state_dict()
    except Exception:  # a few models cannot be built without numbers; what is wrong with a file shows again below
        return
    reject_misfit(wanted, state_dict, name)
