"""A timm model whose forward pass returns its last feature map, and in which faster ways it is known good.

The lists of timm's modules are what was measured, not rules: a module that is on none is trained in plain float32,
contiguous.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from fgssl.backbones.plan import BackbonePlan, read_map, read_map_and_token
from fgssl.backbones.products import use_products
from fgssl.errors import FgsslError

# levit and its kin keep biases computed in eval mode: stale after new weights, and part of an old graph
BIAS_CACHE = "attention_bias_cache"
# whose training step was measured on a CPU as no slower, mostly 1.1 to 2 times faster, in channels_last
CHANNELS_LAST_MODULES = frozenset(
    (
        *("convnext", "densenet", "dla", "efficientnet", "ghostnet", "inception_next", "maxxvit", "mobilenetv3"),
        *("regnet", "repvit", "res2net", "resnet", "rexnet", "vgg"),
    )
)
# whose maps and GradCAM in bf16 point where those of float32 do, cosine 0.95 or more (recipes/bench/backbone_fast.py)
BF16_MODULES = frozenset(
    (
        *("beit", "byobnet", "cait", "coat", "convnext", "densenet", "edgenext", "efficientnet", "eva", "fastvit"),
        *("ghostnet", "hgnet", "levit", "mambaout", "maxxvit", "metaformer", "mobilenetv3", "nfnet", "pit"),
        *("regnet", "repvit", "resnet", "resnetv2", "sequencer", "starnet", "swin_transformer"),
        *("swin_transformer_v2", "tiny_vit", "vision_transformer", "vovnet", "xcit"),
    )
)
COMPILE_MODULES = BF16_MODULES  # that torch.compile traces to the same map and gradients (the same recipe)


class MapAndToken(NamedTuple):
    """A feature map (N, C, H, W) and the class token (N, C) of the same forward pass."""

    feature_map: Tensor
    class_token: Tensor


class Backbone(nn.Module):
    """A timm model, and what is known of it; what its trial run found are attributes, too.

    Parameters that get no gradient from the map (unused heads, class attention) are frozen: with them, distributed
    training stops at its second step.

    Args:
        model: The timm model, built with ``num_classes=0``; its ``state_dict`` has timm's own keys.
        plan: What the trial run found about it.
        name: The name it was asked for.
        architecture: timm's registered name, which rebuilds it without a network.
        data_config: How pictures are prepared, None for the model's own way: ``mean`` and ``std`` for images in [0, 1],
            ``interpolation``, and ``crop_pct``, the share that the centre crop keeps; attributes as well.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: BackbonePlan,
        *,
        name: str,
        architecture: str,
        data_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.plan = model, plan
        self.name, self.architecture = name, architecture
        self.route, self.has_class_token = plan.route.kind, plan.route.has_class_token
        self.channels, self.map_size, self.image_size = plan.channels, plan.map_size, plan.image_size
        self.model_args, self.transformer = plan.model_args, plan.transformer
        self.frozen = False  # whether all of it keeps its weights
        self.resting: frozenset[str] = frozenset()  # BatchNorm and dropout modules that work as in evaluation
        data = data_config or timm.data.resolve_model_data_config(model)
        self.mean: tuple[float, ...] = tuple(data["mean"])
        self.std: tuple[float, ...] = tuple(data["std"])
        self.interpolation: str = data["interpolation"]
        self.crop_pct: float = data["crop_pct"]
        self.channels_last = safe_in_channels_last(model)
        if self.channels_last:
            use_products(model)
        self.good_in_bf16 = _module_of(model) in BF16_MODULES
        self.good_compiled = _module_of(model) in COMPILE_MODULES
        self.unused_parameters = plan.unused_parameters
        for key in plan.unused_parameters:
            model.get_parameter(key).requires_grad_(False)
        self.parameters_total = sum(parameter.numel() for parameter in model.parameters())
        self.parameters_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self._caches_biases = any(BIAS_CACHE in vars(module) for module in model.modules())

    def forward(self, images: Tensor) -> Tensor:
        """The last feature map (N, C, H, W) of images (N, 3, S, S), contiguous in either memory format, differentiable.

        The images are normalised with ``mean`` and ``std``. Other sides work where the model allows.
        """
        return self._finished(read_map(self.model, self._prepare(images), self.plan.route))

    def forward_with_token(self, images: Tensor) -> MapAndToken:
        """The last feature map and the class token. Raises ValueError where there is none (``has_class_token``)."""
        if not self.has_class_token:
            raise ValueError(f"{self.name} has no class token")
        feature_map, token = read_map_and_token(self.model, self._prepare(images), self.plan.route)
        return MapAndToken(self._finished(feature_map), token)

    def checkpoint_gradients(self) -> None:
        """Keep only some activations for the backward pass and compute the others again; FgsslError where not offered.

        What is computed again updates BatchNorm's running statistics again: who trains must put them back.
        """
        try:
            self.model.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AttributeError, AssertionError, NotImplementedError) as error:
            raise FgsslError(
                f"{self.name} offers no gradient checkpointing", "use --accumulate, or leave out --checkpoint-gradients"
            ) from error

    def train(self, mode: bool = True) -> Backbone:
        """Train mode, in which ``resting`` modules stay as in evaluation (whole layers would cache what changes)."""
        super().train(mode)
        for name in self.resting:
            self.model.get_submodule(name).eval()
        return self

    def description(self) -> dict[str, Any]:
        """What ``rebuild_backbone`` needs beside the weights; JSON-able."""
        kept = {"interpolation": self.interpolation, "crop_pct": self.crop_pct}
        return {
            "name": self.name,
            "architecture": self.architecture,
            "model_args": copy.deepcopy(self.model_args),
            "image_size": self.image_size,
            "data_config": {"mean": list(self.mean), "std": list(self.std), **kept},
        }

    def _prepare(self, images: Tensor) -> Tensor:
        # images decoded as (H, W, 3) arrive in channels_last without anyone asking; fastvit's backward dies of it
        return images if self.channels_last else images.contiguous()

    def _finished(self, feature_map: Tensor) -> Tensor:
        if self._caches_biases and not self.training:
            for module in self.model.modules():
                if BIAS_CACHE in vars(module):
                    setattr(module, BIAS_CACHE, {})
        return feature_map if feature_map.is_contiguous(memory_format=torch.channels_last) else feature_map.contiguous()


def _module_of(model: nn.Module) -> str:
    """The timm module, such as ``vision_transformer``, that a model's class is defined in."""
    return type(model).__module__.rpartition(".")[2]


def safe_in_channels_last(model: nn.Module) -> bool:
    """Whether a timm model is known to be safe, and no slower, in the channels_last memory format on a CPU.

    On CPUs with AVX-512, the backward pass of a strided 1x1 convolution over fewer than 16 channels writes beyond its
    memory in that format (torch 2.14; found with a checking malloc). fastvit, mobileone and repvgg begin with one.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    overflows = any(c.kernel_size == (1, 1) and max(c.stride) > 1 and c.in_channels < 16 for c in convolutions)
    return _module_of(model) in CHANNELS_LAST_MODULES and not overflows
