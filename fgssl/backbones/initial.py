"""Weights to start from, or to look at, of several origins: our files, timm's, other tools' checkpoints."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
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


class InitialWeights(NamedTuple):
    """What ``load_initial_weights`` did."""

    source: str  # file, folder or name that was read
    loaded: int  # tensors copied into the backbone
    missing: tuple[str, ...]  # keys of the backbone that the source lacks; they keep their initial values
    unexpected: tuple[str, ...]  # keys of the source that the backbone has no place for
    ignored_head: tuple[str, ...]  # keys of the source's classifier

    def describe(self) -> list[str]:
        """A line for each kind of key that did not find its place; empty where all did."""
        lines = []
        if self.missing:
            lines.append(f"{self.source} lacks {len(self.missing)} weights, left as they were: {some(self.missing)}")
        if self.unexpected:
            lines.append(f"{self.source} has {len(self.unexpected)} weights without a place: {some(self.unexpected)}")
        return lines


def load_initial_weights(backbone: Backbone, source: str | os.PathLike[str]) -> InitialWeights:
    """Start a backbone from weights of a file, a folder or timm.

    Keys in timm's style are expected; a common prefix (``module.``, ``backbone.model.`` ...) is taken off, timm's own
    conversion of the family is applied where it makes more keys fit (position embeddings of other image sizes, original
    DINOv2, CLIP and torchvision files), float16 becomes the backbone's type, classifier weights are left out.

    Args:
        backbone: Its weights change in place.
        source: A ``.safetensors`` file, a plain state dict in ``.pth``/``.bin`` (read without running code from it),
            a run or another folder with one of these, or a name (``hf-hub:owner/model`` too) or tag of timm's weights.
            FgsslError where it is none of these, damaged, or does not fit in keys, shapes or finite numbers.
    """
    file = weights_file(source)
    weights = _published_weights(backbone, str(source)) if file is None else read_checkpoint(file).weights
    wanted = backbone.model.state_dict()
    weights = best_fit(backbone.model, wanted, weights)
    if not weights.keys() & wanted.keys():
        raise FgsslError(
            f"no weight in {source} fits {backbone.name}: its keys look like {some(weights, 2)}",
            f"keys like {some(wanted, 2)} are needed, is it a checkpoint of another architecture?",
        )
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


def _published_weights(backbone: Backbone, name: str) -> dict[str, Tensor]:
    if not name.startswith(SOURCE_PREFIXES) and not timm.is_model(name.partition(".")[0]):
        name = f"{backbone.architecture.partition('.')[0]}.{name}"  # a bare tag is one of this architecture
    return dict(create_model(resolve_source(name), backbone.model_args, pretrained=True).state_dict())


def create_model(source: BackboneSource, model_args: Mapping[str, Any], *, pretrained: bool) -> nn.Module:
    """timm's model; WeightsError where its published weights cannot be had, mostly for want of a network."""
    name = source.name
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
            raise WeightsError(
                f"the pretrained weights of {name} cannot be loaded ({first_line(error).rstrip(' .')})", remedy
            ) from error
        raise WeightsOffline(
            f"the pretrained weights of {name} are not on this machine and the model hub cannot be reached (offline)",
            f"run once with a network (or HF_ENDPOINT set to a mirror), which keeps them, {remedy}",
        ) from error


def best_fit(model: nn.Module, wanted: Mapping[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the prefix and in the form that fit the most keys of the model."""
    best, best_fits = weights, _fits(wanted, weights)
    module = inspect.getmodule(type(model))
    converter = next((getattr(module, name) for name in CONVERTERS if hasattr(module, name)), None)
    for prefix in _prefixes(weights):
        stripped = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
        forms = [stripped]
        if converter is not None and best_fits < len(wanted):
            with contextlib.suppress(Exception):  # raised for a file of another origin, which then stays as it is
                forms.append(dict(converter(dict(stripped), model)))
        for form in forms:
            fits = _fits(wanted, form)
            if fits > best_fits:
                best, best_fits = form, fits
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
