"""How to read a feature map out of a timm model, and which sizes and options it takes, by a trial run without memory.

timm's ``forward_features`` returns a map with channels first (most CNNs) or last (Swin), tokens (ViT), lists (CrossViT,
CoaT) or the class token alone (PiT). The trial builds the model on the meta device (shapes without numbers), in a
fraction of a second. Where a model cannot run there, it is repeated with real numbers.
"""

from __future__ import annotations

import functools
import json
from typing import Any, Literal, NamedTuple

import timm
import torch
from torch import Tensor, nn

from fgssl.backbones.memory import SavedBytes
from fgssl.backbones.names import BackboneSource, first_line
from fgssl.errors import FgsslError

MINIMUM_MAP_SIDE = 2  # a 1x1 map says nothing about where the evidence is
WEIGHT_COPIES, PASSING_SHARE, FLOAT_BYTES = 5, 0.25, 4
PROCESS_BYTES = 600_000_000  # Python and torch themselves


class MapRoute(NamedTuple):
    """How a model yields its last feature map: from ``forward_features``, or the last of ``forward_intermediates``."""

    kind: Literal["nchw", "nhwc", "intermediates"]
    final_norm: bool = True  # whether ``forward_intermediates`` can apply the model's last norm (not hiera and sam2)
    prefix_tokens: int = 0  # that ``forward_intermediates`` can hand out before the patches
    token_apart: bool = False  # in ``forward_features`` alone: class attention (cait, pit, volo, xcit)

    @property
    def has_class_token(self) -> bool:
        """Whether ``read_map_and_token`` works."""
        return self.prefix_tokens > 0 or self.token_apart


class BackbonePlan(NamedTuple):
    """What a trial run found out about a model at one image size."""

    model_args: dict[str, Any]  # for ``timm.create_model(architecture, **model_args)``; JSON-able
    route: MapRoute
    image_size: int  # side of the square input in pixels
    channels: int  # of the map
    map_size: tuple[int, int]  # height and width
    parameters: int
    unused_parameters: tuple[str, ...]  # get no gradient from the map
    transformer: bool  # has layer norm or attention, as transformers and ConvNeXt do, which SGD trains poorly
    saved_bytes: int  # that a backward pass keeps of each image in float32


def training_bytes(plan: BackbonePlan, batch_size: int) -> int:
    """Estimated memory in bytes of training in float32 on one process with so many images a step.

    The weights five times (two encoders, the gradients, AdamW's two averages) and, of every image, what the backward
    pass reads again, a quarter of it once more for the key encoder's pass and what a layer needs while it works.
    """
    views = 2 * 3 * plan.image_size**2 * FLOAT_BYTES
    image = (1 + PASSING_SHARE) * plan.saved_bytes + views
    return round(PROCESS_BYTES + WEIGHT_COPIES * FLOAT_BYTES * plan.parameters + batch_size * image)


def batch_that_fits(plan: BackbonePlan, memory: int) -> int:
    """The largest power of two, at most 4096, that is a batch size fitting in `memory` bytes; 0 where not even 2 is."""
    batches = (2**power for power in range(12, 0, -1))
    return next((batch for batch in batches if training_bytes(plan, batch) <= memory), 0)


def read_map(model: nn.Module, images: Tensor, route: MapRoute) -> Tensor:
    """The last feature map of a timm model, with its gradient path intact: (N, 3, H, W) -> (N, C, h, w)."""
    if route.kind == "intermediates":
        features: Tensor = _intermediates(model, images, route.final_norm)[-1]
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
def _find_route(model: nn.Module, images: Tensor) -> MapRoute:
    """How a model in eval mode yields its last feature map of images (N, 3, H, W); raises what the model raises.

    By ``forward_features`` where it is a map: ``forward_intermediates`` may stop before the last convolution (hrnet).
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


def plan_backbone(
    source: BackboneSource, image_size: int | None, output_stride: int | None, drop_path: float | None
) -> BackbonePlan:
    """Find out how to build a model and read its map (arguments and errors as ``build_backbone``'s)."""
    wanted = {"output_stride": output_stride, "drop_path_rate": drop_path}
    options = {key: value for key, value in wanted.items() if value is not None}
    size = source.own_size if image_size is None else image_size
    if size < 1:
        raise FgsslError(f"image size {size} is not a size", f"the own size of {source.name} is {source.own_size} px")
    try:
        plan = _try_size(source, size, options)
    except FgsslError:
        raise
    except Exception as error:  # timm's models raise all kinds
        raise _explain(source, size, options, error) from error
    height, width = plan.map_size
    if output_stride is not None and plan.map_size != (-(-size // output_stride),) * 2:
        problem = f"{source.name} does not offer output stride {output_stride}"
        raise FgsslError(f"{problem}: its map of {size} px images is {height}x{width}", "leave the output stride out")
    if min(plan.map_size) < MINIMUM_MAP_SIDE:
        problem = f"{source.name} makes a {height}x{width} map of {size} px images, at least 2x2 is needed"
        smallest = _smallest_size(source, size, options)
        raise FgsslError(problem, f"the smallest image size that works is {smallest} px")
    return plan


def also_smaller(source: BackboneSource, plan: BackbonePlan, size: int) -> BackbonePlan:
    """The plan of a model that takes a second size as well: as it is, or by timm's option for position embeddings."""
    for device in ("meta", "cpu"):
        for more in ({}, {"dynamic_img_size": True}):
            model_args = {**plan.model_args, **more}
            try:
                run_trial(source.architecture, model_args, size, device)
                return run_trial(source.architecture, model_args, plan.image_size, device) if more else plan
            except Exception:  # timm's models raise all kinds for a size or an option they cannot take
                continue
    problem = f"{source.name} takes pictures of {plan.image_size} px, but no local views of {size} px beside them"
    raise FgsslError(problem, "try another views.local_size, or go without them (--set views.local_count=0)")


def _explain(source: BackboneSource, size: int, options: dict[str, Any], error: Exception) -> FgsslError:
    """Which of size and options a model refused."""
    for key, value in options.items():
        try:
            _try_size(source, size, {other: kept for other, kept in options.items() if other != key})
        except Exception:  # the size or another option is to blame
            continue
        return FgsslError(f"{source.name} does not take {key.replace('_', ' ')} {value}", "leave it out")
    own = source.own_size
    # the nearest smaller and larger sizes that work, among multiples of 32
    smaller, larger = range((size - 1) // 32 * 32, 0, -32), range(32 * (size // 32 + 1), 2 * max(size, own) + 1, 32)
    found = (next((side for side in sides[:8] if _works(source, side, {})), own) for sides in (smaller, larger))
    near = [side for side in found if side != own]
    also = f"; near {size} it takes {' and '.join(map(str, near))}" if near else ""
    reason = f" ({first_line(error)})" if str(error) else ""  # a bare assertion tells nobody anything
    return FgsslError(f"{source.name} cannot take {size} px images{reason}", f"its own size is {own} px{also}")


def _smallest_size(source: BackboneSource, fails: int, options: dict[str, Any]) -> int:
    """The smallest larger size with a map that is large enough: a pixel may decide (32 px make 1x1, 33 px 2x2)."""
    larger = range(16 * (fails // 16 + 1), 4 * max(fails, 64), 16)
    works = next((side for side in larger if _works(source, side, options)), source.own_size)
    while works - fails > 1:
        middle = (works + fails) // 2
        works, fails = (middle, fails) if _works(source, middle, options) else (works, middle)
    return works


def _works(source: BackboneSource, size: int, options: dict[str, Any]) -> bool:
    try:
        return min(_try_size(source, size, options, devices=("meta",)).map_size) >= MINIMUM_MAP_SIDE
    except Exception:  # any error means that this size is not one of them
        return False


def _try_size(
    source: BackboneSource, size: int, options: dict[str, Any], *, devices: tuple[str, ...] = ("meta", "cpu")
) -> BackbonePlan:
    """The trial on the first device that can do it; raises the model's own error where it takes no such size."""
    base = {**source.model_args, "num_classes": 0, **options}
    candidates = [{key: value for key, value in base.items() if key != "img_size"}]
    # resolved by timm: img_size is for models with a fixed input only
    if source.published.get("fixed_input_size") or "img_size" in source.model_args:
        candidates.insert(0, {**base, "img_size": size})
    errors: list[Exception] = []
    for device in devices:
        for model_args in candidates:
            try:
                return run_trial(source.architecture, model_args, size, device)
            except Exception as error:  # timm's models raise all kinds for a size or an option they cannot take
                errors.append(error)
    raise errors[-len(candidates)]


def run_trial(architecture: str, model_args: dict[str, Any], image_size: int, device: str) -> BackbonePlan:
    """Build a model on a device (``meta``: shapes only) and read its map; raises whatever the model raises."""
    return _trial(architecture, json.dumps(model_args), image_size, device)


@functools.lru_cache(maxsize=64)  # a run builds its backbone, a rebuilt one and candidates of other sizes
def _trial(architecture: str, encoded_args: str, image_size: int, device_name: str) -> BackbonePlan:
    device, model_args = torch.device(device_name), json.loads(encoded_args)
    # the gradient is wanted even where the caller evaluates; real initial weights must not depend on trials
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        with device:
            model = timm.create_model(architecture, **model_args)
        if device.type == "meta" and any(isinstance(module, nn.RNNBase) for module in model.modules()):
            raise NotImplementedError("an LSTM on the meta device runs in Python, step by step: a real trial is faster")
        model.to(device).eval()  # buffers built from numpy arrays stay behind on the CPU
        route = _find_route(model, torch.zeros(1, 3, image_size, image_size, device=device))
        # a few models keep constants as parameters that take no gradient (efficientvim)
        trainable = {key: value for key, value in model.named_parameters() if value.requires_grad}
        # train mode: some families cache attention biases in eval mode; two images: BatchNorm refuses one
        images = torch.zeros(2, 3, image_size, image_size, device=device)
        with SavedBytes(model) as saved:
            feature_map = read_map(model.train(), images, route)
        ones = torch.ones_like(feature_map)
        gradients = torch.autograd.grad(feature_map, list(trainable.values()), ones, allow_unused=True)
    _, channels, height, width = feature_map.shape
    parameters = sum(parameter.numel() for parameter in model.parameters())
    unused = tuple(key for key, slope in zip(trainable, gradients, strict=True) if slope is None)
    transformer = any(
        isinstance(part, nn.LayerNorm) or type(part).__name__.endswith("Attention") for part in model.modules()
    )
    size, kept = (height, width), saved.total // len(images)
    return BackbonePlan(model_args, route, image_size, channels, size, parameters, unused, transformer, kept)
