"""How to read a feature map out of a timm model, found by a trial run that costs no memory.

timm's models differ in what ``forward_features`` returns: a map with channels first (most CNNs), a map with channels
last (Swin), tokens (ViT), lists (CrossViT, CoaT) or the class token alone (PiT). The trial builds the model on the meta
device (shapes without numbers), so it takes a fraction of a second for the largest models, draws no random number, and
touches no BatchNorm statistic. Where a model cannot run there, the trial is repeated with real numbers.
"""

from __future__ import annotations

import functools
import json
from typing import Any, Literal, NamedTuple

import timm
import torch
from torch import Tensor, nn

from fgssl.backbones.names import BackboneSource
from fgssl.backbones.saved import SavedBytes
from fgssl.errors import FgsslError

Route = Literal["nchw", "nhwc", "intermediates"]


class MapRoute(NamedTuple):
    """How a model yields its last feature map.

    Attributes:
        kind: ``nchw`` and ``nhwc``: ``forward_features`` is the map, with channels second or last;
            ``intermediates``: the last one of ``forward_intermediates``.
        final_norm: Whether ``forward_intermediates`` can apply the model's last norm (not in hiera and sam2).
        prefix_tokens: Number of tokens before the patches that ``forward_intermediates`` can hand out.
        token_apart: The class token comes from ``forward_features`` alone, mostly by class attention after the last
            map (cait, convit, pit, volo, xcit).
    """

    kind: Route
    final_norm: bool = True
    prefix_tokens: int = 0
    token_apart: bool = False

    @property
    def has_class_token(self) -> bool:
        """Whether ``read_map_and_token`` works."""
        return self.prefix_tokens > 0 or self.token_apart


class BackbonePlan(NamedTuple):
    """What a trial run found out about a model at one image size.

    Attributes:
        model_args: Arguments for ``timm.create_model(name, **model_args)``; JSON-able.
        route: How the map is read.
        image_size: Side of the square input in pixels.
        channels: Channels of the map.
        map_size: Height and width of the map.
        parameters: Number of parameters.
        unused_parameters: Names of the parameters that get no gradient from the map.
        transformer: Whether it has layer norm or attention, as transformers and ConvNeXt do.
        saved_bytes: What a backward pass keeps of each image in float32, in bytes.
    """

    model_args: dict[str, Any]
    route: MapRoute
    image_size: int
    channels: int
    map_size: tuple[int, int]
    parameters: int
    unused_parameters: tuple[str, ...]
    transformer: bool
    saved_bytes: int


def read_map(model: nn.Module, images: Tensor, route: MapRoute) -> Tensor:
    """The last feature map of a timm model, with its gradient path intact.

    Args:
        model: A timm model.
        images: (N, 3, H, W).
        route: From ``find_route`` of the same architecture.

    Returns:
        Feature map (N, C, h, w).
    """
    if route.kind == "intermediates":
        return _intermediate(model, images, route.final_norm)
    features: Tensor = model.forward_features(images)  # type: ignore[operator]
    return features.permute(0, 3, 1, 2) if route.kind == "nhwc" else features  # (N, C, h, w)


def read_map_and_token(model: nn.Module, images: Tensor, route: MapRoute) -> tuple[Tensor, Tensor]:
    """The last feature map and the class token, in one pass, or in two where timm hands them out apart.

    Args:
        model: A timm model whose route has a class token.
        images: (N, 3, H, W).
        route: From ``find_route`` of the same architecture.

    Returns:
        Feature map (N, C, h, w) and class token (N, C).
    """
    if route.token_apart:
        return read_map(model, images, route), model.forward_features(images)[:, 0]  # type: ignore[operator]
    feature_map, prefix = _map_and_prefix(model, images, route.final_norm)
    return feature_map, prefix[:, 0]  # (N, P, C) -> (N, C): before distillation and register tokens


def _map_and_prefix(model: nn.Module, images: Tensor, norm: bool) -> tuple[Tensor, Tensor]:
    feature_map, prefix = model.forward_intermediates(  # type: ignore[operator]
        images, indices=1, norm=norm, output_fmt="NCHW", intermediates_only=True, return_prefix_tokens=True
    )[-1]
    return feature_map, prefix


def _intermediate(model: nn.Module, images: Tensor, norm: bool) -> Tensor:
    maps = model.forward_intermediates(  # type: ignore[operator]
        images, indices=1, norm=norm, output_fmt="NCHW", intermediates_only=True
    )
    last: Tensor = maps[-1]
    return last


def find_route(model: nn.Module, images: Tensor) -> MapRoute:
    """Find out how a model yields its last feature map.

    ``forward_features`` is preferred where it is a map: in efficientnet, ghostnet, rexnet, hrnet and others
    ``forward_intermediates`` stops before the last convolution.

    Args:
        model: A timm model in eval mode.
        images: (N, 3, H, W) of the size it will be given.

    Returns:
        The route.

    Raises:
        Exception: Whatever the model raises for a size it cannot take.
    """
    with torch.no_grad():
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
            feature_map = _intermediate(model, images, True)
        except AssertionError:  # hiera and sam2 refuse norm=True
            feature_map = _intermediate(model, images, False)
            final_norm = False
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
        _, prefix = _map_and_prefix(model, images, final_norm)
        return int(prefix.shape[1]) if prefix.ndim == 3 else 0
    except (TypeError, ValueError, AttributeError):  # no such argument, or maps alone came back
        return 0


def try_size(
    source: BackboneSource, image_size: int, options: dict[str, Any], *, meta_only: bool = False
) -> BackbonePlan:
    """Build a model for one size and run it once.

    Args:
        source: The model, from ``resolve_source``.
        image_size: Side of the square input in pixels.
        options: Further arguments for ``timm.create_model`` (drop path, output stride).
        meta_only: Do not repeat a failed trial with real numbers.

    Returns:
        What the trial found.

    Raises:
        Exception: The model's own error if it cannot take the size or the options.
    """
    base = {**source.model_args, "num_classes": 0, **options}
    candidates = [{key: value for key, value in base.items() if key != "img_size"}]
    # resolved by timm: img_size is for models with a fixed input only
    if source.published.get("fixed_input_size") or "img_size" in source.model_args:
        candidates.insert(0, {**base, "img_size": image_size})
    errors: list[Exception] = []
    for device in ("meta",) if meta_only else ("meta", "cpu"):
        for model_args in candidates:
            try:
                return run_trial(source.architecture, model_args, image_size, device)
            except Exception as error:  # timm's models raise all kinds for a size or an option they cannot take
                errors.append(error)
    raise errors[-len(candidates)]


def run_trial(architecture: str, model_args: dict[str, Any], image_size: int, device: str) -> BackbonePlan:
    """Build a model on a device, read its map, and see which parameters the map's gradient reaches.

    Args:
        architecture: Name in timm's registry.
        model_args: Arguments for ``timm.create_model``.
        image_size: Side of the square input in pixels.
        device: ``meta`` (shapes only) or a real one.

    Returns:
        The plan.

    Raises:
        Exception: Whatever the model raises for a size or an argument it cannot take.
    """
    return _trial(architecture, json.dumps(model_args), image_size, device)


@functools.lru_cache(maxsize=64)  # a run builds its backbone, a rebuilt one and candidates of other sizes
def _trial(architecture: str, encoded_args: str, image_size: int, device_name: str) -> BackbonePlan:
    device = torch.device(device_name)
    model_args = json.loads(encoded_args)
    # the gradient is wanted even where the caller evaluates
    with (
        torch.enable_grad(),
        torch.random.fork_rng(devices=[]),
    ):  # the real model's initial weights must not depend on trials
        with device:
            model = timm.create_model(architecture, **model_args)
        if device.type == "meta" and any(isinstance(module, nn.RNNBase) for module in model.modules()):
            raise NotImplementedError("an LSTM on the meta device runs in Python, step by step: a real trial is faster")
        model.to(device).eval()  # buffers built from numpy arrays stay behind on the CPU
        route = find_route(model, torch.zeros(1, 3, image_size, image_size, device=device))
        # a few models keep constants as parameters that take no gradient (efficientvim)
        trainable = {key: value for key, value in model.named_parameters() if value.requires_grad}
        # train mode: some families cache attention biases in eval mode; two images: BatchNorm refuses one
        images = torch.zeros(2, 3, image_size, image_size, device=device)
        with SavedBytes(model) as saved:
            feature_map = read_map(model.train(), images, route)
        gradients = torch.autograd.grad(
            feature_map, list(trainable.values()), torch.ones_like(feature_map), allow_unused=True
        )
    unused = tuple(key for key, gradient in zip(trainable, gradients, strict=True) if gradient is None)
    _, channels, height, width = feature_map.shape
    count = sum(parameter.numel() for parameter in model.parameters())
    return BackbonePlan(
        model_args,
        route,
        image_size,
        channels,
        (height, width),
        count,
        unused,
        _is_transformer(model),
        saved.total // len(images),
    )


def _is_transformer(model: nn.Module) -> bool:
    return any(
        isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("Attention") for module in model.modules()
    )
