"""Backbones from a name or from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor

from fgssl.backbones.export import load_strictly, reject_misfit
from fgssl.backbones.initial import no_published_weights, weights_unavailable
from fgssl.backbones.module import Backbone
from fgssl.backbones.names import resolve_source
from fgssl.backbones.plan import plan_backbone
from fgssl.backbones.trial import BackbonePlan, run_trial
from fgssl.backbones.trust import check_description
from fgssl.runtime.offline import hub_or_cache


def build_backbone(
    name: str,
    *,
    pretrained: bool = False,
    image_size: int | None = None,
    output_stride: int | None = None,
    drop_path: float | None = None,
) -> Backbone:
    """Build any timm model as a backbone.

    Args:
        name: A timm name, with a tag or without (``resnet50.a1_in1k``), ``hf-hub:owner/model`` or ``local-dir:FOLDER``.
        pretrained: Load the published weights.
        image_size: Side of the square input in pixels; None for the model's own.
        output_stride: Input pixels a cell of the map, where the model offers the choice (ResNet, RegNet, EfficientNet).
        drop_path: Probability of dropping a residual branch in training (stochastic depth).

    Returns:
        The backbone in train mode, on the CPU, in float32.

    Raises:
        FgsslError: The name is unknown, the model cannot take the size or the options, its map would be smaller than
            2x2, or its weights cannot be had.
    """
    with hub_or_cache():
        source = resolve_source(name)
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
    """What ``build_backbone`` with the same arguments would build, without building it.

    Raises:
        FgsslError: As ``build_backbone``, but for weights.
    """
    with hub_or_cache():
        source = resolve_source(name)
    return plan_backbone(source, image_size, output_stride=output_stride, drop_path=drop_path)


def rebuild_backbone(description: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Backbone:
    """Build a backbone from a checkpoint, without a network.

    Args:
        description: From ``Backbone.description``.
        state_dict: timm's keys to weights, from ``backbone.model.state_dict()``.

    Returns:
        The backbone in train mode.

    Raises:
        FgsslError: This timm does not know the architecture, or keys are missing, unexpected or of other shapes.
    """
    check_description(description)
    architecture, model_args = description["architecture"], dict(description["model_args"])
    size = int(description["image_size"])
    resolve_source(architecture)
    _check_shapes(architecture, model_args, state_dict, description["name"])
    try:
        plan = run_trial(architecture, model_args, size, "meta")
    except Exception:  # a few models need real numbers
        plan = run_trial(architecture, model_args, size, "cpu")
    model = timm.create_model(architecture, **model_args)
    load_strictly(model, state_dict, description["name"])
    return Backbone(
        model, plan, name=description["name"], architecture=architecture, data_config=description["data_config"]
    )


def _check_shapes(architecture: str, model_args: dict[str, Any], state_dict: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights that do not fit before a model of whatever size a file claims takes memory."""
    try:
        with torch.device("meta"):
            wanted = timm.create_model(architecture, **model_args).state_dict()
    except Exception:  # a few models cannot be built without numbers; what is wrong with a file shows again below
        return
    reject_misfit(wanted, state_dict, name)
