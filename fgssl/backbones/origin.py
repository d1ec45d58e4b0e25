"""Which architecture weights belong to: as their file or folder says, else by the names and shapes of its tensors."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from safetensors import safe_open
from torch import Tensor

from fgssl.backbones.initial import ENCODER_NAME, FOLDER_FILES, best_fit, local_path, weights_file, without_place
from fgssl.backbones.names import LOCAL_PREFIX, SOURCE_PREFIXES, resolve_source
from fgssl.backbones.weights import read_checkpoint
from fgssl.errors import FgsslError

# The first convolution of common architectures -> those that begin with it. Only these are built, without numbers, and
# compared tensor by tensor: a fraction of a second each.
COMMON: dict[tuple[str, tuple[int, ...]], str] = {
    ("conv1.weight", (64, 3, 7, 7)): "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d wide_resnet50_2",
    ("conv1.0.weight", (32, 3, 3, 3)): "resnet50d resnet18d resnet26d resnet101d",
    ("features.conv0.weight", (64, 3, 7, 7)): "densenet121 densenet169 densenet201",
    ("conv_stem.weight", (16, 3, 3, 3)): "mobilenetv3_large_100 mobilenetv3_small_100",
    ("conv_stem.weight", (32, 3, 3, 3)): "efficientnet_b0 efficientnet_b1 efficientnet_b2 mobilenetv2_100",
    ("conv_stem.weight", (40, 3, 3, 3)): "efficientnet_b3",
    ("stem.0.weight", (40, 3, 4, 4)): "convnext_atto convnextv2_atto",
    ("stem.0.weight", (96, 3, 4, 4)): "convnext_tiny convnext_small convnextv2_tiny",
    ("stem.0.weight", (128, 3, 4, 4)): "convnext_base convnextv2_base",
    ("patch_embed.proj.weight", (96, 3, 4, 4)): "swin_tiny_patch4_window7_224 swin_small_patch4_window7_224",
    ("patch_embed.proj.weight", (128, 3, 4, 4)): "swin_base_patch4_window7_224",
    ("patch_embed.proj.weight", (192, 3, 16, 16)): "vit_tiny_patch16_224 deit_tiny_distilled_patch16_224",
    ("patch_embed.proj.weight", (384, 3, 16, 16)): "vit_small_patch16_224 deit_small_distilled_patch16_224",
    ("patch_embed.proj.weight", (768, 3, 16, 16)): "vit_base_patch16_224 deit_base_distilled_patch16_224",
    ("patch_embed.proj.weight", (1024, 3, 16, 16)): "vit_large_patch16_224",
    ("patch_embed.proj.weight", (768, 3, 32, 32)): "vit_base_patch32_224",
    ("patch_embed.proj.weight", (384, 3, 14, 14)): "vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2",
    ("patch_embed.proj.weight", (768, 3, 14, 14)): "vit_base_patch14_dinov2 vit_base_patch14_reg4_dinov2",
    ("patch_embed.proj.weight", (1024, 3, 14, 14)): "vit_large_patch14_dinov2 vit_large_patch14_reg4_dinov2",
}


class Origin(NamedTuple):
    """What is known of the model that weights come from; `image_size` is None where nothing tells."""

    architecture: str
    image_size: int | None


def origin_of(source: str | os.PathLike[str]) -> Origin | None:
    """The architecture and image size of weights (see ``load_initial_weights`` for what may be given), or None.

    A run, an encoder file, timm's folder or name say it themselves, other files by their keys and shapes. FgsslError
    where a name under ``hf-hub:`` cannot be resolved, or the file is damaged.
    """
    text, path = str(source), local_path(source)
    for file in (path / ENCODER_NAME, path):
        if file.is_file() and file.suffix == ".safetensors":
            with contextlib.suppress(Exception), safe_open(file, framework="pt") as opened:  # not ours, or damaged
                described = json.loads((opened.metadata() or {})["fgssl"])["backbone"]
                return Origin(str(described["architecture"]), int(described["image_size"]))
    folder = config_folder(source)
    if folder is not None:
        resolved = resolve_source(f"{LOCAL_PREFIX}{folder}")
        return Origin(resolved.architecture, resolved.own_size)
    if path.exists():
        found = weights_file(source)
        return None if found is None else _recognised(*read_checkpoint(found, shapes_only=True))
    if text.startswith(SOURCE_PREFIXES) or timm.is_model(text.partition(".")[0]):
        resolved = resolve_source(text)
        return Origin(resolved.architecture, resolved.own_size if text.startswith(SOURCE_PREFIXES) else None)
    return None


def config_folder(source: str | os.PathLike[str]) -> Path | None:
    """The folder with a config.json of timm that describes weights: the source itself, or the one it lies in."""
    path = local_path(source)
    for folder in (path.parent if path.is_file() and path.name in FOLDER_FILES else path, path / "timm"):
        if (folder / "config.json").is_file():
            with contextlib.suppress(FgsslError):  # another tool's, say
                resolve_source(f"{LOCAL_PREFIX}{folder}")
                return folder
    return None


def unknown_origin(source: str | os.PathLike[str]) -> FgsslError:
    """The error for weights whose architecture nothing tells."""
    return FgsslError(f"{source} does not tell its architecture", "name it with --backbone (fgssl backbones lists all)")


def _recognised(weights: dict[str, Tensor], architecture: str | None) -> Origin | None:
    if architecture is not None:
        return Origin(architecture, None)
    weights = {key: torch.empty(value.shape, device="meta") for key, value in weights.items()}
    for (first, shape), names in COMMON.items():
        if any(key == first or key.endswith(f".{first}") for key, value in weights.items() if value.shape == shape):
            found = next((name for name in names.split() if _is_of(name, weights)), None)
            if found is not None:
                return Origin(found, None)
    return None


def _is_of(name: str, weights: dict[str, Tensor]) -> bool:
    """Whether every tensor of a model is there in its shape, and nothing else but a classifier."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    wanted: Mapping[str, Tensor] = model.state_dict()
    found = best_fit(model, wanted, weights)
    fits = all(key in found and found[key].shape == value.shape for key, value in wanted.items() if value.ndim)
    return fits and not without_place(model, wanted, found)[1]
