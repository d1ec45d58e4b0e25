"""Weights of a backbone on disk: written so that plain timm opens them, read without running code from them."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn
from torch.nn import functional

from fgssl.backbones.module import Backbone
from fgssl.backbones.names import first_line
from fgssl.errors import FgsslError
from fgssl.runtime.files import atomic_path

WEIGHTS_NAME = "model.safetensors"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# what torch.compile, FSDP and checkpointed modules leave in the middle of names
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# how training tools nest the weights in a pickled checkpoint
NESTED_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")
# where training tools note the architecture, in a checkpoint or in the metadata of safetensors
ARCHITECTURE_KEYS = ("arch", "architecture", "model_name")


def save_timm(backbone: Backbone, folder: str | os.PathLike[str], *, head: nn.Linear | None = None) -> Path:
    """Write a backbone, complete or not at all, as a folder that plain timm opens; other files in it stay.

    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads it, and so does ``hf-hub:owner/name`` after an
    upload. A `head` (C -> C) of the mean over the map becomes timm's classifier where timm's ``model(x)`` then is what
    it gives, as in most CNNs; elsewhere the folder holds the backbone alone.
    """
    folder = Path(folder)
    model = backbone.model if head is None else _with_head(backbone, head)
    # own copies: safetensors refuses tensors that share memory (coat)
    found = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    weights = {key: value.clone(memory_format=torch.contiguous_format) for key, value in found.items()}
    # the evaluation view in timm's words, whatever the published weights were tested with
    data_config = backbone.description()["data_config"] | {"crop_mode": "center"}
    data_config["crop_pct"] = min(1.0, data_config["crop_pct"])
    if data_config["interpolation"] not in ("bilinear", "bicubic", "lanczos", "nearest"):
        data_config["interpolation"] = "bicubic"
    # crossvit is built for one size and rescales what it is given: timm insists on the size it was built for
    published: dict[str, Any] = getattr(backbone.model, "pretrained_cfg", {})
    if "img_size" in backbone.model_args or not published.get("fixed_input_size"):
        data_config["input_size"] = (3, backbone.image_size, backbone.image_size)
    with atomic_path(folder / WEIGHTS_NAME) as path:
        try:
            save_file(weights, path, metadata={"format": "pt"})
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(str(error)) from error
    # last: a folder with this file is complete
    with atomic_path(folder / "config.json") as path:
        save_config_for_hf(model, str(path), data_config=data_config)
        config = json.loads(path.read_text(encoding="utf-8"))
        config.get("model_args", {}).pop("num_classes", None)  # told beside them: transformers would pass it twice
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


@torch.no_grad()
def _with_head(backbone: Backbone, head: nn.Linear) -> nn.Module:
    """A copy of the timm model whose classifier is the head; the model as it is where that is another function."""
    copied = copy.deepcopy(backbone).cpu().eval()
    model = copied.model
    images = torch.rand(2, 3, backbone.image_size, backbone.image_size, generator=torch.Generator().manual_seed(0))
    expected = functional.linear(copied(images).float().mean((2, 3)), head.weight.cpu(), head.bias.cpu())
    try:
        model.reset_classifier(head.out_features)  # type: ignore[operator]
        classifier = model.get_classifier()  # type: ignore[operator]
        classifier.load_state_dict(head.state_dict())
        found = model.eval()(images)
        same = torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    except (AttributeError, TypeError, RuntimeError, ValueError, AssertionError, NotImplementedError):
        same = False
    return model if same else backbone.model


def read_checkpoint(path: Path, *, shapes_only: bool = False) -> tuple[dict[str, Tensor], str | None]:
    """Weights of ``.safetensors`` or a plain pickle, nested or not, and timm's name of the model, where it is noted."""
    content, notes = _read_safetensors(path, shapes_only) if path.suffix == ".safetensors" else _read_pickle(path)
    weights = {_WRAPPERS.sub("", str(key)): value for key, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise FgsslError(f"{path} holds no weights", "a state dict (keys to tensors) is needed")
    noted = (notes.get(key) for key in ARCHITECTURE_KEYS)
    named = next((name for name in noted if isinstance(name, str) and timm.is_model(name)), None)
    return weights, named


def _read_safetensors(path: Path, shapes_only: bool) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            keys, notes = list(file.keys()), file.metadata() or {}
            if shapes_only:
                return {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in keys}, notes
            return {key: file.get_tensor(key) for key in keys}, notes
    except (SafetensorError, OSError) as error:
        raise FgsslError(f"{path} cannot be read ({first_line(error)})", "is it complete?") from error


def _read_pickle(path: Path) -> tuple[Mapping[Any, Any], Mapping[Any, Any]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        problem = f"{path} is not a plain state dict: reading it would run code stored in it"
        raise FgsslError(problem, "save its weights alone, best as .safetensors") from error
    except Exception as error:  # on damaged bytes torch's reader raises nearly anything
        raise FgsslError(f"{path} cannot be read ({first_line(error)})", "is it complete?") from error
    if not isinstance(content, dict):
        return {}, {}
    nested = (content[key] for key in NESTED_KEYS if isinstance(content.get(key), dict))
    return next(nested, content), content


def reject_misfit(wanted: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], name: str) -> None:
    """Raise FgsslError unless keys and shapes are exactly those that are wanted."""
    keys = {"missing": wanted.keys() - state_dict.keys(), "unexpected": state_dict.keys() - wanted.keys()}
    faults = [*shape_faults(wanted, state_dict), *(f"{kind} {some(found)}" for kind, found in keys.items() if found)]
    if faults:
        raise FgsslError(f"the weights do not fit {name}: {', '.join(faults)}", "the checkpoint is of another model")


def reject_numbers(wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: object) -> None:
    """Raise FgsslError, naming the source and the tensor, where weights for a model are quantised or not finite."""
    for key, value in weights.items():
        if wanted[key].is_floating_point() and value.dtype not in FLOATS:
            kind = str(value.dtype).removeprefix("torch.")
            raise FgsslError(f"{key} in {source} is quantised ({kind})", "use weights of 16 or 32 bits")
    reject_not_finite(weights, source)


def reject_not_finite(weights: Mapping[str, Tensor], source: object) -> None:
    """Raise FgsslError, naming the source and the tensor, where weights hold NaN or an infinite number."""
    broken = [key for key, value in weights.items() if value.dtype in FLOATS and not value.isfinite().all()]
    if broken:
        remedy = "the file is damaged or its training diverged, use another copy"
        raise FgsslError(f"weights in {source} are not finite: {some(broken)}", remedy)


def shape_faults(wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Which weights have another shape than the model wants: the first three, and how many more."""
    faults = [
        f"{key} is {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in weights and weights[key].shape != value.shape
    ]
    return [*faults[:3], f"{len(faults) - 3} more shapes"] if len(faults) > 3 else faults


def some(keys: Iterable[str], limit: int = 4) -> str:
    """The first few keys, and how many more."""
    keys = sorted(keys)
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")
