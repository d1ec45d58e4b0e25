"""Which sizes and options a timm model takes and what it then yields, found by a trial run that costs no memory.

The trial builds the model on the meta device (shapes without numbers), so it takes a fraction of a second for the
largest models, draws no random number, and touches no BatchNorm statistic. Where a model cannot run there, the trial is
repeated with real numbers.
"""

from __future__ import annotations

import functools
import json
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from fgssl.backbones.memory import SavedBytes
from fgssl.backbones.names import BackboneSource, first_line
from fgssl.backbones.route import MapRoute, find_route, read_map
from fgssl.errors import FgsslError

MINIMUM_MAP_SIDE = 2  # a 1x1 map says nothing about where the evidence is


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


def plan_backbone(
    source: BackboneSource,
    image_size: int | None = None,
    *,
    output_stride: int | None = None,
    drop_path: float | None = None,
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
    if output_stride is not None and plan.map_size != (-(-size // output_stride),) * 2:
        raise FgsslError(
            f"{source.name} does not offer output stride {output_stride}: "
            f"its map of {size} px images is {plan.map_size[0]}x{plan.map_size[1]}",
            "leave the output stride out",
        )
    if min(plan.map_size) < MINIMUM_MAP_SIDE:
        raise _map_too_small(source, plan, options)
    return plan


def _explain(source: BackboneSource, size: int, options: dict[str, Any], error: Exception) -> FgsslError:
    """Which of size and options a model refused."""
    for key, value in options.items():
        rest = {other: kept for other, kept in options.items() if other != key}
        try:
            _try_size(source, size, rest)
        except Exception:  # the size or another option is to blame
            continue
        return FgsslError(f"{source.name} does not take {key.replace('_', ' ')} {value}", "leave it out")
    own = source.own_size
    near = [side for side in _nearest_sizes(source, size) if side != own]
    also = f"; near {size} it takes {' and '.join(map(str, near))}" if near else ""
    reason = f" ({first_line(error)})" if str(error) else ""  # a bare assertion tells nobody anything
    return FgsslError(f"{source.name} cannot take {size} px images{reason}", f"its own size is {own} px{also}")


def _nearest_sizes(source: BackboneSource, size: int) -> list[int]:
    """The nearest smaller and larger sizes that work, searched among multiples of 32."""
    sides = [side for side in range(32, 2 * max(size, source.own_size) + 1, 32) if side != size]
    smaller, larger = [side for side in reversed(sides) if side < size], [side for side in sides if side > size]
    found = (next((side for side in sides[:8] if _works(source, side, {})), None) for sides in (smaller, larger))
    return [side for side in found if side is not None]


def _map_too_small(source: BackboneSource, plan: BackbonePlan, options: dict[str, Any]) -> FgsslError:
    height, width = plan.map_size
    larger = range(16 * (plan.image_size // 16 + 1), 4 * max(plan.image_size, 64), 16)
    works = next((side for side in larger if _works(source, side, options)), source.own_size)
    fails = plan.image_size
    while works - fails > 1:  # a pixel may decide: a stride of 32 makes a 1x1 map of 32 px and a 2x2 map of 33 px
        middle = (works + fails) // 2
        works, fails = (middle, fails) if _works(source, middle, options) else (works, middle)
    return FgsslError(
        f"{source.name} makes a {height}x{width} map of {plan.image_size} px images, at least 2x2 is needed",
        f"the smallest image size that works is {works} px",
    )


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
    _, channels, height, width = feature_map.shape
    return BackbonePlan(
        model_args,
        route,
        image_size,
        channels,
        (height, width),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        unused_parameters=tuple(key for key, slope in zip(trainable, gradients, strict=True) if slope is None),
        transformer=any(
            isinstance(part, nn.LayerNorm) or type(part).__name__.endswith("Attention") for part in model.modules()
        ),
        saved_bytes=saved.total // len(images),
    )
