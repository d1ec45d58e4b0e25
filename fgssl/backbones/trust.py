"""What a checkpoint may say about its model: it is read by people who did not write it.

timm's `create_model` takes arguments that fetch files, open pickles or allocate whatever they say. A description from
a file may name a registered architecture, plain shape arguments within reason, and how pictures are normalised; nothing
else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from fgssl.errors import FgsslError

LARGEST_NUMBER = 65_536  # no width, depth or size of a real model is larger
LARGEST_IMAGE = 4096
# arguments of create_model that reach for files, networks or code
_REFUSED = re.compile(
    r"pretrained.*|model_name|checkpoint_path|cache_dir|scriptable|exportable|no_jit|features_only|feature_cfg"
    r"|kwargs_filter|state_dict|.*url|.*file|hf_hub_id|custom_load"
)
_ARCHITECTURE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")
_INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "nearest", "box", "hamming", "random")


def check_description(description: Mapping[str, Any]) -> None:
    """Refuse a description of a backbone that holds more than shapes and numbers.

    Raises:
        FgsslError: It does, or is no description; the line names the entry.
    """
    if not isinstance(description, Mapping):
        raise _refused("description", description)
    architecture, model_args = description.get("architecture"), description.get("model_args")
    if not isinstance(architecture, str) or not _ARCHITECTURE.fullmatch(architecture):
        raise _refused("architecture", architecture)  # a prefix such as hf-hub: would download
    if not isinstance(description.get("name"), str):
        raise _refused("name", description.get("name"))
    if not isinstance(model_args, Mapping):
        raise _refused("model_args", model_args)
    for key, value in model_args.items():
        if _REFUSED.fullmatch(str(key)) or not _is_plain(value):
            raise _refused(f"model_args.{key}", value)
    size = description.get("image_size")
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= LARGEST_IMAGE:
        raise _refused("image_size", size)
    _check_data(description.get("data_config"))


def _check_data(data: Any) -> None:
    if not isinstance(data, Mapping):
        raise _refused("data_config", data)
    for key in ("mean", "std"):
        values = data.get(key)
        if not isinstance(values, list) or len(values) != 3 or not all(_is_finite(value) for value in values):
            raise _refused(key, values)
    if min(data["std"]) <= 0:
        raise _refused("std", data["std"])
    if not _is_finite(data.get("crop_pct")) or not 0 < data["crop_pct"] <= 2:
        raise _refused("crop_pct", data.get("crop_pct"))
    if data.get("interpolation") not in _INTERPOLATIONS:
        raise _refused("interpolation", data.get("interpolation"))


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_plain(value: Any, depth: int = 0) -> bool:
    """None, booleans, short text, numbers within reason, and small lists and dicts of them."""
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, str):
        return len(value) <= 100 and value.isprintable() and not re.search(r"[/\\:]", value)
    if isinstance(value, (int, float)):
        return math.isfinite(value) and abs(value) <= LARGEST_NUMBER
    if depth > 3 or not isinstance(value, (list, Mapping)) or len(value) > 200:
        return False
    parts = [*value, *value.values()] if isinstance(value, Mapping) else value
    return all(_is_plain(part, depth + 1) for part in parts)


def _refused(key: str, value: Any) -> FgsslError:
    shown = f"a {type(value).__name__}" if isinstance(value, (list, Mapping)) else repr(value)[:60]
    return FgsslError(
        f"the checkpoint's {key[:60]} cannot be {shown}", "it is damaged, or made to do harm: use another"
    )
