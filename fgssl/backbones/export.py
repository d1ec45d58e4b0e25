"""Weights of a backbone on disk: written so that plain timm opens them, read back into an equal model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from fgssl.backbones.module import Backbone
from fgssl.errors import FgsslError
from fgssl.runtime.files import atomic_path

WEIGHTS_NAME = "model.safetensors"


def save_timm(backbone: Backbone, folder: str | os.PathLike[str]) -> Path:
    """Write a backbone as a folder that plain timm opens.

    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` (or with ``num_classes=200``) reads it, and so does
    ``hf-hub:owner/name`` after an upload. The files appear complete or not at all.

    Args:
        backbone: The backbone, on any device.
        folder: Folder for ``model.safetensors`` and ``config.json``; made with its parents, other files in it stay.

    Returns:
        The folder.

    Raises:
        FgsslError: The folder cannot be written.
    """
    folder = Path(folder)
    weights = independent_tensors(backbone.model.state_dict())
    data_config = backbone.description()["data_config"]
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
        save_config_for_hf(backbone.model, str(path), data_config=data_config)
    return folder


def independent_tensors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that safetensors accepts: on the CPU, contiguous, none sharing memory with another (as in CoaT)."""
    seen: set[int] = set()
    independent = {}
    for key, value in state_dict.items():
        tensor = value.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        independent[key] = tensor.clone() if address in seen or not whole else tensor
        seen.add(address)
    return independent


def load_strictly(model: nn.Module, state_dict: Mapping[str, Tensor], name: str) -> None:
    """Load weights that must fit a model exactly.

    Args:
        model: The timm model.
        state_dict: Its keys to weights.
        name: What to call the model in an error.

    Raises:
        FgsslError: Keys are missing, unexpected, or of other shapes.
    """
    reject_misfit(model.state_dict(), state_dict, name)
    model.load_state_dict(dict(state_dict))


def reject_misfit(wanted: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], name: str) -> None:
    """Raise FgsslError unless keys and shapes are exactly those that are wanted."""
    faults = shape_faults(wanted, state_dict)
    faults += [f"missing {some(wanted.keys() - state_dict.keys())}"] if wanted.keys() - state_dict.keys() else []
    faults += [f"unexpected {some(state_dict.keys() - wanted.keys())}"] if state_dict.keys() - wanted.keys() else []
    if faults:
        raise FgsslError(f"the weights do not fit {name}: {', '.join(faults)}", "the checkpoint is of another model")


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
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more
