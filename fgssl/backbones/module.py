"""A timm model whose forward pass returns its last feature map."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from fgssl.backbones.fast import BF16_MODULES, COMPILE_MODULES, module_of, safe_in_channels_last
from fgssl.backbones.plan import BackbonePlan
from fgssl.backbones.products import use_products
from fgssl.backbones.route import read_map, read_map_and_token
from fgssl.errors import FgsslError

# levit and its kin keep biases computed in eval mode: stale after new weights, and part of an old graph
BIAS_CACHE = "attention_bias_cache"


class MapAndToken(NamedTuple):
    """A feature map (N, C, H, W) and the class token (N, C) of the same forward pass."""

    feature_map: Tensor
    class_token: Tensor


class Backbone(nn.Module):
    """A timm model, and what is known of it.

    Parameters that get no gradient from the map (unused heads, class attention) are frozen: with them, distributed
    training stops at its second step.

    Args:
        model: The timm model, built with ``num_classes=0``; its ``state_dict`` has timm's own keys.
        plan: What the trial run found about it; its facts are attributes here, too.
        name: The name it was asked for.
        architecture: timm's registered name, which rebuilds it without a network.
        data_config: How pictures are prepared, None for the model's own way: ``mean`` and ``std`` for images in [0, 1],
            ``interpolation``, and ``crop_pct``, the share that the centre crop keeps; attributes as well.

    Attributes:
        channels_last: Whether the channels_last memory format is known to be safe and faster on a CPU.
        good_in_bf16: Whether bf16 autocast is known to be good; ``good_compiled`` likewise of torch.compile.
        frozen: Whether all of it keeps its weights (see ``freeze_backbone``).
        resting: Names of BatchNorm and dropout modules that work as in evaluation: of frozen layers, or all BatchNorm.
        has_class_token: Whether ``forward_with_token`` is available.
        parameters_total: Number of parameters; ``parameters_trained`` leaves out the frozen ones.
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
        self.route = plan.route.kind
        self.channels = plan.channels
        self.map_size = plan.map_size
        self.image_size = plan.image_size
        self.model_args = plan.model_args
        self.has_class_token = plan.route.has_class_token
        self.transformer = plan.transformer
        self.frozen = False
        self.resting: frozenset[str] = frozenset()
        data = data_config or timm.data.resolve_model_data_config(model)
        self.mean: tuple[float, ...] = tuple(data["mean"])
        self.std: tuple[float, ...] = tuple(data["std"])
        self.interpolation: str = data["interpolation"]
        self.crop_pct: float = data["crop_pct"]
        self.channels_last = safe_in_channels_last(model)
        if self.channels_last:
            use_products(model)
        self.good_in_bf16 = module_of(model) in BF16_MODULES
        self.good_compiled = module_of(model) in COMPILE_MODULES
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
        feature_map = read_map(self.model, self._prepare(images), self.plan.route)
        self._forget_biases()
        return _dense(feature_map)

    def forward_with_token(self, images: Tensor) -> MapAndToken:
        """The last feature map and the class token. Raises ValueError where there is none (``has_class_token``)."""
        if not self.has_class_token:
            raise ValueError(f"{self.name} has no class token")
        feature_map, token = read_map_and_token(self.model, self._prepare(images), self.plan.route)
        self._forget_biases()
        return MapAndToken(_dense(feature_map), token)

    def checkpoint_gradients(self) -> None:
        """Keep only some activations for the backward pass and compute the others again: less memory, more time.

        What is computed again updates BatchNorm's running statistics again: who trains must put them back. Raises
        FgsslError where the model does not offer it.
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

    def _forget_biases(self) -> None:
        if self._caches_biases and not self.training:
            for module in self.model.modules():
                if BIAS_CACHE in vars(module):
                    setattr(module, BIAS_CACHE, {})

    def _prepare(self, images: Tensor) -> Tensor:
        # images decoded as (H, W, 3) arrive in channels_last without anyone asking; fastvit's backward dies of it
        return images if self.channels_last else images.contiguous()


def _dense(feature_map: Tensor) -> Tensor:
    if feature_map.is_contiguous(memory_format=torch.channels_last):
        return feature_map
    return feature_map.contiguous()
