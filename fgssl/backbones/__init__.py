"""Any timm model as images -> feature map (N, C, H, W).

    backbone = build_backbone("resnet18", image_size=96)
    feature_map = backbone(images)                       # (N, 3, 96, 96) -> (N, 512, 3, 3)

The embedding is pooled from this map, never by timm's own head: in ViT, DeiT, Swin and EVA that head leaves the map
without a gradient, and GradCAM needs one. The mean over the map equals timm's ``model(x)`` in about 6 of 10 families.
"""

from __future__ import annotations

from fgssl.backbones.build import build_backbone, rebuild_backbone, survey_backbone
from fgssl.backbones.export import save_timm
from fgssl.backbones.footprint import batch_that_fits, training_bytes
from fgssl.backbones.freeze import freeze_backbone, layer_groups
from fgssl.backbones.given_map import GivenMap
from fgssl.backbones.initial import InitialWeights, Origin, load_initial_weights, origin_of
from fgssl.backbones.module import Backbone, MapAndToken
from fgssl.backbones.names import BackboneRow, list_backbones, suggest_backbones

__all__ = [
    "Backbone",
    "BackboneRow",
    "GivenMap",
    "InitialWeights",
    "MapAndToken",
    "Origin",
    "batch_that_fits",
    "build_backbone",
    "freeze_backbone",
    "layer_groups",
    "list_backbones",
    "load_initial_weights",
    "origin_of",
    "rebuild_backbone",
    "save_timm",
    "suggest_backbones",
    "survey_backbone",
    "training_bytes",
]
