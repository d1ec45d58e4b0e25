"""Any timm model as images -> feature map (N, C, H, W).

    backbone = build_backbone("resnet18", image_size=96)
    feature_map = backbone(images)                       # (N, 3, 96, 96) -> (N, 512, 3, 3)

The embedding is pooled from this map, not by timm's own head: in ViT, DeiT, Swin and EVA that leaves it no gradient.
"""

from __future__ import annotations

from fgssl.backbones.beside import bring_finer, finer_maps, packed
from fgssl.backbones.build import build_backbone, open_weights, rebuild_backbone, survey_backbone
from fgssl.backbones.initial import InitialWeights, load_initial_weights, origin_of, unknown_origin, weights_file
from fgssl.backbones.module import (
    Backbone,
    GivenMap,
    adapt_lora,
    adapt_norms,
    freeze_backbone,
    layer_groups,
    merge_lora,
    rest_batch_norm,
)
from fgssl.backbones.names import BackboneRow, list_backbones, suggest_backbones
from fgssl.backbones.plan import batch_that_fits, training_bytes
from fgssl.backbones.weights import save_timm

__all__ = [
    "Backbone",
    "BackboneRow",
    "GivenMap",
    "InitialWeights",
    "adapt_lora",
    "adapt_norms",
    "batch_that_fits",
    "bring_finer",
    "build_backbone",
    "finer_maps",
    "freeze_backbone",
    "layer_groups",
    "list_backbones",
    "load_initial_weights",
    "merge_lora",
    "open_weights",
    "origin_of",
    "packed",
    "rebuild_backbone",
    "rest_batch_norm",
    "save_timm",
    "suggest_backbones",
    "survey_backbone",
    "training_bytes",
    "unknown_origin",
    "weights_file",
]
