"""Any timm model as images -> feature map (N, C, H, W).

    backbone = build_backbone("resnet18", image_size=96)
    feature_map = backbone(images)                       # (N, 3, 96, 96) -> (N, 512, 3, 3)

The embedding is pooled from this map, never by timm's own head: in ViT, DeiT, Swin and EVA that head leaves the map
without a gradient, and GradCAM needs one. The mean over the map equals timm's ``model(x)`` in about 6 of 10 families.
"""

from __future__ import annotations

from fgssl.backbone.build import build_backbone, rebuild_backbone
from fgssl.backbone.export import save_timm
from fgssl.backbone.initial import InitialWeights, load_initial_weights
from fgssl.backbone.module import Backbone, MapAndToken
from fgssl.backbone.names import BackboneRow, list_backbones, suggest_backbones

__all__ = [
    "Backbone",
    "BackboneRow",
    "InitialWeights",
    "MapAndToken",
    "build_backbone",
    "list_backbones",
    "load_initial_weights",
    "rebuild_backbone",
    "save_timm",
    "suggest_backbones",
]
