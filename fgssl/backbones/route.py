"""How to read a feature map out of a timm model.

timm's models differ in what ``forward_features`` returns: a map with channels first (most CNNs), a map with channels
last (Swin), tokens (ViT), lists (CrossViT, CoaT) or the class token alone (PiT).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fgssl.errors import FgsslError

Route = Literal["nchw", "nhwc", "intermediates"]


class MapRoute(NamedTuple):
    """How a model yields its last feature map.

    ``nchw`` and ``nhwc``: ``forward_features`` is the map; ``intermediates``: the last of ``forward_intermediates``.
    """

    kind: Route
    final_norm: bool = True  # whether ``forward_intermediates`` can apply the model's last norm (not hiera and sam2)
    prefix_tokens: int = 0  # that ``forward_intermediates`` can hand out before the patches
    token_apart: bool = False  # in ``forward_features`` alone: class attention (cait, pit, volo, xcit)

    @property
    def has_class_token(self) -> bool:
        """Whether ``read_map_and_token`` works."""
        return self.prefix_tokens > 0 or self.token_apart


def read_map(model: nn.Module, images: Tensor, route: MapRoute) -> Tensor:
    """The last feature map of a timm model, with its gradient path intact: (N, 3, H, W) -> (N, C, h, w)."""
    features: Tensor
    if route.kind == "intermediates":
        features = _intermediates(model, images, route.final_norm)[-1]
        return features
    features = model.forward_features(images)  # type: ignore[operator]
    return features.permute(0, 3, 1, 2) if route.kind == "nhwc" else features


def read_map_and_token(model: nn.Module, images: Tensor, route: MapRoute) -> tuple[Tensor, Tensor]:
    """The map (N, C, h, w) and the class token (N, C), in one pass, or in two where timm hands them out apart."""
    if route.token_apart:
        return read_map(model, images, route), model.forward_features(images)[:, 0]  # type: ignore[operator]
    feature_map, prefix = _intermediates(model, images, route.final_norm, return_prefix_tokens=True)[-1]
    return feature_map, prefix[:, 0]  # (N, P, C) -> (N, C): before distillation and register tokens


def _intermediates(model: nn.Module, images: Tensor, norm: bool, **options: bool) -> Any:
    return model.forward_intermediates(  # type: ignore[operator]
        images, indices=1, norm=norm, output_fmt="NCHW", intermediates_only=True, **options
    )


@torch.no_grad()
def find_route(model: nn.Module, images: Tensor) -> MapRoute:
    """Find out how a model in eval mode yields its last feature map of images (N, 3, H, W), or raise what it raises.

    ``forward_features`` is preferred where it is a map: in efficientnet, ghostnet, rexnet, hrnet and others
    ``forward_intermediates`` stops before the last convolution.
    """
    features = model.forward_features(images)  # type: ignore[operator]
    if isinstance(features, Tensor) and features.ndim == 4:
        width = model.num_features
        first, last = features.shape[1] == width, features.shape[3] == width
        if first and last:  # as many columns as channels: only the model knows
            first = getattr(model, "output_fmt", "NCHW") != "NHWC"
        if first or last:
            return MapRoute("nchw" if first else "nhwc")
    if not hasattr(model, "forward_intermediates"):
        raise FgsslError("this model has no spatial feature map", "choose another backbone")
    final_norm = True
    try:
        feature_map = _intermediates(model, images, True)[-1]
    except AssertionError:  # hiera and sam2 refuse norm=True
        feature_map, final_norm = _intermediates(model, images, False)[-1], False
    prefix = _prefix_tokens(model, images, final_norm)
    apart = prefix == 0 and _token_in_features(model, features, feature_map)
    return MapRoute("intermediates", final_norm, prefix, apart)


def _token_in_features(model: nn.Module, features: Any, feature_map: Tensor) -> bool:
    """Whether the first of the tokens that ``forward_features`` returns is a class token."""
    if not isinstance(getattr(model, "cls_token", None), Tensor):
        return False
    if not isinstance(features, Tensor) or features.ndim != 3 or features.shape[2] != feature_map.shape[1]:
        return False
    extra = features.shape[1] - feature_map[0, 0].numel()
    return extra in (1, 2) or features.shape[1] in (1, 2)  # with the patches or alone (pit), maybe distilled


def _prefix_tokens(model: nn.Module, images: Tensor, final_norm: bool) -> int:
    """How many prefix tokens ``forward_intermediates`` hands out; 0 where it cannot or the first is no class token."""
    if not getattr(model, "has_class_token", getattr(model, "cls_token", None) is not None):
        return 0
    try:
        _, prefix = _intermediates(model, images, final_norm, return_prefix_tokens=True)[-1]
        return int(prefix.shape[1]) if prefix.ndim == 3 else 0
    except (TypeError, ValueError, AttributeError):  # no such argument, or maps alone came back
        return 0
