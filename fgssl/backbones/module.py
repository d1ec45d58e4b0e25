"""A timm model whose forward pass returns its last feature map, what of it does not learn, and its faster ways."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fgssl.backbones.beside import Shape, bring_finer, unpacked
from fgssl.backbones.class_attention import class_attention, last_attention
from fgssl.backbones.lora import LoRA
from fgssl.backbones.plan import BackbonePlan, read_map, read_map_and_token
from fgssl.backbones.products import use_products
from fgssl.backbones.stages import Stages, earlier_stages, read_stages
from fgssl.errors import FgsslError

# levit and its kin keep biases computed in eval mode: stale after new weights, and part of an old graph
BIAS_CACHE = "attention_bias_cache"
NORM_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
# Timm's modules as measured: one that is on no list is trained in plain float32, contiguous.
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
    """A timm model of ``num_classes=0``, whose ``state_dict`` has timm's own keys, and what is known of it.

    Parameters that get no gradient from the map (unused heads, class attention) are frozen: with them, distributed
    training stops at its second step. `architecture` is timm's name, which rebuilds it without a network. `data` is how
    pictures are prepared: ``mean`` and ``std`` for images in [0, 1], ``interpolation``, and ``crop_pct``, the share
    that the centre crop keeps; attributes as well.
    """

    def __init__(
        self, model: nn.Module, plan: BackbonePlan, *, name: str, architecture: str, data: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.model, self.plan = model, plan
        self.name, self.architecture = name, architecture
        self.route, self.has_class_token = plan.route.kind, plan.route.has_class_token
        self.channels, self.map_size, self.image_size = plan.channels, plan.map_size, plan.image_size
        self.model_args, self.transformer = plan.model_args, plan.transformer
        self.frozen = False  # whether all of it keeps its weights
        self.lora: LoRA | None = None  # what is learned beside the weights, until it is added to them
        self.resting: frozenset[str] = frozenset()  # BatchNorm and dropout modules that work as in evaluation
        self.beside = Stages()  # whose maps the last one brings along
        data = data or timm.data.resolve_model_data_config(model)
        self.mean: tuple[float, ...] = tuple(data["mean"])
        self.std: tuple[float, ...] = tuple(data["std"])
        self.interpolation, self.crop_pct = str(data["interpolation"]), float(data["crop_pct"])
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
        """(N, 3, S, S), normalised with ``mean`` and ``std`` -> (N, C, H, W), contiguous in either memory format."""
        if self.beside.places:
            return self.forward_stages(images, 1)[0]
        prepared = self._prepare(images)
        return self._finished(self._read(lambda model: read_map(model, prepared, self.plan.route)))

    def forward_with_token(self, images: Tensor) -> MapAndToken:
        """The last feature map and the class token. Raises ValueError where there is none (``has_class_token``)."""
        if not self.has_class_token:
            raise ValueError(f"{self.name} has no class token")
        prepared = self._prepare(images)
        feature_map, token = self._read(lambda model: read_map_and_token(model, prepared, self.plan.route))
        return MapAndToken(self._finished(feature_map), token)

    @property
    def has_class_attention(self) -> bool:
        """Whether ``class_attention`` works: of plain vision transformers."""
        tokens = self.plan.route.prefix_tokens
        return tokens > 0 and self.route == "intermediates" and last_attention(self.model) is not None

    def class_attention(self, images: Tensor) -> Tensor:
        """Where the last block's class token looks: (N, H, W), summing to 1; see `fgssl.backbones.class_attention`."""
        tokens, size = self.plan.route.prefix_tokens, self.map_size
        seen = self._prepare(images)
        found: Tensor = self._read(lambda model: class_attention(model, seen, prefix_tokens=tokens, map_size=size))
        return found

    def forward_stages(self, images: Tensor, count: int) -> list[Tensor]:
        """The last feature map and those of the stages before it, `count` in all, each (N, C, h, w), in one pass."""
        stages = self.earlier.first(count - 1) if count > 1 else Stages()
        read = self.all_earlier.at((*stages.places, *self.beside.places)) if self.beside.places else stages
        prepared = self._prepare(images)
        found = self._read(lambda model: read_stages(model, prepared, self.plan.route, read))
        maps = [self._finished(each) for each in found]
        at = dict(zip(read.places, maps[1:], strict=True))
        bring_finer(maps[0], [at[place] for place in self.beside.places])
        return [maps[0], *(at[place] for place in stages.places)]

    def bring_along(self, count: int) -> None:
        """Let every last map bring those of so many earlier stages, each finer than the one before; FgsslError."""
        finer = self.all_earlier.finer(self.map_size) if count else Stages()
        if count > len(finer.places):
            problem = f"{self.name} has {len(finer.places)} earlier stages with finer maps to hand out, not {count}"
            raise FgsslError(problem, f"use rationale.stages {1 + len(finer.places)} or less, or another --backbone")
        self.beside = finer.first(count)

    @property
    def map_shapes(self) -> list[Shape]:
        """(C, H, W) of the last map, and of those it brings along."""
        beside = zip(self.beside.channels, self.beside.sizes, strict=True)
        return [(self.channels, *self.map_size), *((channels, *size) for channels, size in beside)]

    @property
    def seen_channels(self) -> int:
        """Of a branch that sees the last map and those it brings along."""
        return sum(shape[0] for shape in self.map_shapes)

    @property
    def kept_shape(self) -> Shape:
        """Of the maps of two views of an image: (2, C, H, W), or (2, F) `packed`."""
        first, *finer = self.map_shapes
        return (2, sum(math.prod(shape) for shape in (first, *finer))) if finer else (2, *first)

    def pooled_width(self, stages: int) -> int:
        """Numbers of an embedding of the last so many stages."""
        return self.earlier.first(stages - 1).width(self.channels) if stages > 1 else self.channels

    @property
    def stages(self) -> int:
        """How many there are to pool, the last map among them."""
        return 1 + len(self.earlier.places)

    @functools.cached_property
    def earlier(self) -> Stages:
        """The stages before the last map that are pooled beside it, where that is asked for."""
        return self.all_earlier.narrow(self.channels)

    @functools.cached_property
    def all_earlier(self) -> Stages:
        """The stages before the last map that can be read beside it; found by a trial of one image."""
        parameter, training = next(self.model.parameters()), self.training
        picture = torch.linspace(-1, 1, 3 * self.image_size**2).view(1, 3, self.image_size, -1).to(parameter)
        self.eval()
        found = earlier_stages(self.model, self._prepare(picture), self.plan.route)
        self.train(training)
        return found

    def checkpoint_gradients(self) -> None:
        """Keep few activations for the backward pass and compute the others again; FgsslError where not offered."""
        try:
            self.model.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AttributeError, AssertionError, NotImplementedError) as error:
            remedy = "use --accumulate, or leave out --checkpoint-gradients"
            raise FgsslError(f"{self.name} offers no gradient checkpointing", remedy) from error

    def train(self, mode: bool = True) -> Backbone:
        """Train mode, in which ``resting`` modules stay as in evaluation (whole layers would cache what changes)."""
        super().train(mode)
        for name in self.resting:
            self.model.get_submodule(name).eval()
        return self

    def channels_last_on(self, device: torch.device) -> bool:
        """Whether it computes in channels_last there; on MPS BatchNorm's backward pass dies of it (pytorch 188371)."""
        return self.channels_last and device.type != "mps"

    def description(self) -> dict[str, Any]:
        """What ``rebuild_backbone`` needs beside the weights; JSON-able."""
        told = {key: getattr(self, key) for key in ("name", "architecture", "model_args", "image_size")}
        data: dict[str, Any] = {"mean": list(self.mean), "std": list(self.std)}
        data |= {"interpolation": self.interpolation, "crop_pct": self.crop_pct}
        return copy.deepcopy({**told, "data_config": data})

    def _read(self, read: Callable[[nn.Module], Any]) -> Any:
        return read(self.model) if self.lora is None else self.lora.call(self.model, read)

    def _prepare(self, images: Tensor) -> Tensor:
        # images decoded as (H, W, 3) arrive in channels_last without anyone asking; fastvit's backward dies of it
        return images if self.channels_last_on(images.device) else images.contiguous()

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
    """Whether a timm model is known to be safe, and no slower, in the channels_last memory format on a CPU."""
    # with AVX-512, the backward pass of such a convolution writes beyond its memory (torch 2.14): fastvit, repvgg
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    overflows = any(c.kernel_size == (1, 1) and max(c.stride) > 1 and c.in_channels < 16 for c in convolutions)
    return _module_of(model) in CHANNELS_LAST_MODULES and not overflows


class GivenMap(nn.Module):
    """A backbone whose input is already the feature map (N, C, H, W), which takes a gradient; without parameters.

    With `shapes` (C, H, W), of it and of the finer maps that it brings along, the input is `packed` of them all.
    """

    def __init__(self, channels: int, shapes: Sequence[Shape] = ()) -> None:
        super().__init__()
        self.channels, self.shapes = channels, tuple(shapes)

    def forward(self, feature_map: Tensor) -> Tensor:
        """The map, asking for a gradient where gradients are on."""
        last, *finer = unpacked(feature_map, self.shapes) if len(self.shapes) > 1 else (feature_map,)
        return bring_finer(last.detach().requires_grad_(torch.is_grad_enabled()), finer)


def layer_groups(model: nn.Module) -> list[list[str]]:
    """Names of the parameters that learn, by timm's layer groups: stem, then stages or blocks; empty without groups."""
    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        return []
    groups = [names for _, names in sorted(group_parameters(model, matcher(coarse=True)).items())]
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    return [list(names) for names in groups if learning.intersection(names)]


def freeze_backbone(backbone: Backbone, groups: int | None = None) -> None:
    """Stop the first so many of `layer_groups` (None: all) from learning, with BatchNorm and dropout, in place."""
    names = [name for name, _ in backbone.model.named_parameters()]
    if groups is not None:
        known = layer_groups(backbone.model)
        if groups >= len(known):  # all of them would be the whole backbone
            remedy = f"use 1 to {len(known) - 1}, or backbone for all" if len(known) > 1 else "use none or backbone"
            raise FgsslError(f"--freeze {groups}: {backbone.name} has {len(known)} layer groups", remedy)
        names = [name for group in known[:groups] for name in group]
    for name in names:
        backbone.model.get_parameter(name).requires_grad_(False)
    backbone.frozen = groups is None
    backbone.resting = frozenset(_resting(backbone.model, set(names)))
    backbone.parameters_trained = sum(p.numel() for p in backbone.model.parameters() if p.requires_grad)
    backbone.train(backbone.training)


def adapt_norms(backbone: Backbone) -> None:
    """Let scales of norms, and biases, learn alone, in place; what was frozen before stays frozen."""
    norms = {
        parameter
        for part in backbone.model.modules()
        if isinstance(part, _BatchNorm) or "norm" in type(part).__name__.lower()
        for parameter in part.parameters(recurse=False)
    }
    for name, parameter in backbone.model.named_parameters():
        if parameter not in norms and not name.endswith("bias"):
            parameter.requires_grad_(False)
    backbone.parameters_trained = sum(p.numel() for p in backbone.model.parameters() if p.requires_grad)
    if not backbone.parameters_trained:
        raise FgsslError(f"{backbone.name} has no norms or biases to adapt", "use backbone.adapt all")


def adapt_lora(backbone: Backbone, rank: int, *, seed: int) -> None:
    """Let low-rank adapters alone learn, beside weights that keep their values, in place; what was frozen has none."""
    adapters = LoRA(backbone.model, rank, seed=seed)
    if not adapters.names:
        problem = f"{backbone.name} has no weights that rank {rank} is small for"
        raise FgsslError(problem, "lower backbone.lora_rank, or use backbone.adapt norm or all")
    backbone.model.requires_grad_(False)
    backbone.lora = adapters
    backbone.parameters_trained = sum(parameter.numel() for parameter in adapters.parameters())


@torch.no_grad()
def merge_lora(backbone: Backbone) -> None:
    """Add what the adapters learned to the weights, in place, and leave the adapters out."""
    if backbone.lora is not None:
        for name, value in backbone.lora.weights(backbone.model).items():
            backbone.model.get_parameter(name).copy_(value)
        backbone.lora = None


def rest_batch_norm(backbone: Backbone) -> None:
    """Let BatchNorm normalise by its running statistics in training, too: a small batch's ruin trained features."""
    backbone.resting |= {name for name, part in backbone.model.named_modules() if isinstance(part, _BatchNorm)}
    backbone.train(backbone.training)


def _resting(model: nn.Module, frozen: set[str]) -> Iterator[str]:
    """BatchNorm and dropout whose surroundings, the smallest that have parameters, are frozen as a whole."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) or "drop" in type(module).__name__.lower():
            place = name
            while not (inside := [key for key, _ in model.get_submodule(place).named_parameters(place)]) and place:
                place = place.rpartition(".")[0]
            if inside and frozen.issuperset(inside):
                yield name


def norm_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Running statistics, on the CPU: what differs between processes that see different images."""
    return {name: value.cpu() for name, value in model.named_buffers() if name.endswith(NORM_BUFFERS)}


@contextlib.contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Running statistics as they were before the block: a forward computed again would count its images twice."""
    kept = [(value, value.clone()) for name, value in model.named_buffers() if name.endswith(NORM_BUFFERS)]
    yield
    for value, before in kept:
        value.copy_(before)
