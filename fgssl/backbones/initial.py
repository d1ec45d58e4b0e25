"""Weights of several origins, our files, timm's, other tools' checkpoints: loading them, and telling whose they are."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import safe_open
from torch import Tensor, nn

from fgssl.backbones.module import Backbone
from fgssl.backbones.names import LOCAL_PREFIX, SOURCE_PREFIXES, BackboneSource, first_line, resolve_source
from fgssl.backbones.weights import WEIGHTS_NAME, read_checkpoint, reject_numbers, shape_faults, some
from fgssl.errors import FgsslError
from fgssl.runtime.offline import WeightsError, WeightsOffline, hub_or_cache, is_offline

FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")
ENCODER_NAME = "encoder.safetensors"  # of a run folder; its metadata describe the backbone
# where a folder keeps its backbone: timm's and our export, our run folder, older hub models
FOLDER_FILES = (WEIGHTS_NAME, f"timm/{WEIGHTS_NAME}", ENCODER_NAME, "pytorch_model.bin")
# what timm's modules call the function that converts weights of other tools
CONVERTERS = ("checkpoint_filter_fn", "_filter_fn", "pretrained_filter_fn", "_filter_torchvision_pretrained")
# names of classifiers across timm and torchvision, and what masked pretraining leaves behind; a backbone has none
HEAD_PREFIXES = ("fc.", "head.", "head_dist.", "classifier.", "last_linear.", "heads.", "aux_head.", "mask_token")
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


class InitialWeights(NamedTuple):
    """What ``load_initial_weights`` did."""

    source: str  # file, folder or name that was read
    loaded: int  # tensors copied into the backbone
    missing: tuple[str, ...]  # keys of the backbone that the source lacks; they keep their initial values
    unexpected: tuple[str, ...]  # keys of the source that the backbone has no place for
    ignored_head: tuple[str, ...]  # keys of the source's classifier

    def describe(self) -> list[str]:
        """A line for each kind of key that did not find its place; empty where all did."""
        lacks = f"{self.source} lacks {len(self.missing)} weights, left as they were: {some(self.missing)}"
        has = f"{self.source} has {len(self.unexpected)} weights without a place: {some(self.unexpected)}"
        return [line for keys, line in ((self.missing, lacks), (self.unexpected, has)) if keys]


def load_initial_weights(backbone: Backbone, source: str | os.PathLike[str]) -> InitialWeights:
    """Start a backbone from weights of a file, a folder or timm.

    A common prefix of keys (``module.``, ``backbone.model.`` ...) is taken off, timm's own conversion of the family is
    applied where it makes more keys fit (position embeddings of other image sizes, original DINOv2, CLIP and
    torchvision files), float16 becomes the backbone's type, classifier weights are left out. The source is a
    ``.safetensors`` file, a plain state dict in ``.pth``/``.bin`` (no code in it is run), a run or another folder with
    one of these, or a name (``hf-hub:owner/model`` too) or tag of timm's weights; FgsslError where it is none of these,
    damaged, or does not fit in keys, shapes or finite numbers.
    """
    file, name = weights_file(source), str(source)
    if file is None:
        if not name.startswith(SOURCE_PREFIXES) and not timm.is_model(name.partition(".")[0]):
            name = f"{backbone.architecture.partition('.')[0]}.{name}"  # a bare tag is one of this architecture
        weights = create_model(resolve_source(name), backbone.model_args, pretrained=True).state_dict()
    else:
        weights = read_checkpoint(file)[0]
    wanted = backbone.model.state_dict()
    weights = best_fit(backbone.model, wanted, weights)
    if not weights.keys() & wanted.keys():
        remedy = f"keys like {some(wanted, 2)} are needed, is it a checkpoint of another architecture?"
        problem = f"no weight in {source} fits {backbone.name}: its keys look like {some(weights, 2)}"
        raise FgsslError(problem, remedy)
    faults = shape_faults(wanted, weights)
    if faults:
        raise FgsslError(f"weights in {source} do not fit {backbone.name}: {', '.join(faults)}", "use its architecture")
    fitting = {key: value for key, value in weights.items() if key in wanted}
    reject_numbers(wanted, fitting, file or source)
    backbone.model.load_state_dict(fitting, strict=False)
    # safetensors leaves out what shares memory with another tensor (coat); BatchNorm's step counter does not matter
    held = {wanted[key].data_ptr() for key in fitting}
    lacking = (key for key, value in wanted.items() if key not in fitting and value.data_ptr() not in held)
    missing = [key for key in lacking if not key.endswith("num_batches_tracked")]
    head, unexpected = without_place(backbone.model, wanted, weights)
    return InitialWeights(str(source), len(fitting), tuple(missing), unexpected, head)


def weights_file(source: str | os.PathLike[str]) -> Path | None:
    """The file that a path stands for, None for a name of timm's; FgsslError where there is none."""
    path = local_path(source)
    if path.is_dir():
        found = next((path / name for name in FOLDER_FILES if (path / name).is_file()), None)
        if found is None:
            raise FgsslError(f"folder {path} has no weights", f"it needs one of {', '.join(FOLDER_FILES)}")
        return found
    if path.is_file():
        return path
    text = str(source)
    if not text.startswith(SOURCE_PREFIXES) and (os.sep in text or path.suffix in FILE_SUFFIXES):
        raise FgsslError(f"no such file or folder: {source}", "give a file, a folder or a timm tag")
    return None


def local_path(source: str | os.PathLike[str]) -> Path:
    """The path that a source would be, with ``local-dir:`` or without."""
    return Path(str(source).removeprefix(LOCAL_PREFIX)).expanduser()


def create_model(source: BackboneSource, model_args: Mapping[str, Any], *, pretrained: bool) -> nn.Module:
    """timm's model; WeightsError where its published weights cannot be had, mostly for want of a network."""
    name, weights = source.name, f"the pretrained weights of {source.name}"
    if pretrained and not source.has_weights:
        raise WeightsError(f"{name} has no published weights", "train it from scratch with --no-pretrained")
    try:
        with hub_or_cache():
            model: nn.Module = timm.create_model(name, pretrained=pretrained, **model_args)
            return model
    except Exception as error:  # a trial run built it before, so what fails now are the weights
        if not pretrained:
            raise
        remedy = "start from a local file or folder with --init, or from scratch with --no-pretrained"
        if not is_offline(error):
            raise WeightsError(f"{weights} cannot be loaded ({first_line(error)})", remedy) from error
        problem = f"{weights} are not on this machine and the model hub cannot be reached (offline)"
        remedy = f"run once with a network (or HF_ENDPOINT set to a mirror), which keeps them, {remedy}"
        raise WeightsOffline(problem, remedy) from error


def best_fit(model: nn.Module, wanted: Mapping[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the prefix and in the form that fit the most keys of the model."""
    best, best_fits = weights, _fits(wanted, weights)
    module = inspect.getmodule(type(model))
    converter = next((getattr(module, name) for name in CONVERTERS if hasattr(module, name)), None)
    for prefix in _prefixes(weights):
        forms = [{key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}]
        if converter is not None and best_fits < len(wanted):
            with contextlib.suppress(Exception):  # raised for a file of another origin, which then stays as it is
                forms.append(dict(converter(dict(forms[0]), model)))
        for form in forms:
            if _fits(wanted, form) > best_fits:
                best, best_fits = form, _fits(wanted, form)
    return best


def without_place(
    model: nn.Module, wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keys that the model does not want: those of a classifier, and the others."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    names = (names,) if isinstance(names, str) else names
    prefixes = (*HEAD_PREFIXES, *(f"{name}." for name in names))
    extra = [key for key in weights if key not in wanted]
    head = tuple(key for key in extra if key.startswith(prefixes))
    return head, tuple(key for key in extra if not key.startswith(prefixes))


def _prefixes(weights: Iterable[str]) -> list[str]:
    """Every beginning of keys up to four dots deep, the empty one first."""
    found = {""}
    for key in weights:
        parts = key.split(".")
        found.update(".".join(parts[:depth]) + "." for depth in range(1, min(len(parts), 5)))
    # numbered beginnings are parts of a network, not wrappers
    return sorted((prefix for prefix in found if not any(part.isdigit() for part in prefix.split("."))), key=len)


def _fits(wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> int:
    return sum(key in weights and weights[key].shape == value.shape for key, value in wanted.items())


class Origin(NamedTuple):
    """What is known of the model that weights come from; `image_size` is None where nothing tells."""

    architecture: str
    image_size: int | None


def origin_of(source: str | os.PathLike[str]) -> Origin | None:
    """Architecture and image size of what ``load_initial_weights`` takes, as it says or by keys and shapes, or None."""
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
    if path.exists() and (found := weights_file(source)) is not None:
        return _recognised(*read_checkpoint(found, shapes_only=True))
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
        if any(f".{key}".endswith(f".{first}") for key, value in weights.items() if value.shape == shape):
            for name in names.split():
                if _is_of(name, weights):
                    return Origin(name, None)
    return None


def _is_of(name: str, weights: dict[str, Tensor]) -> bool:
    """Whether every tensor of a model is there in its shape, and nothing else but a classifier."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    wanted = model.state_dict()
    found = best_fit(model, wanted, weights)
    fits = all(key in found and found[key].shape == value.shape for key, value in wanted.items() if value.ndim)
    return fits and not without_place(model, wanted, found)[1]
