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
_ARCHITECTURE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")  # a prefix such as hf-hub: would download
_INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "nearest", "box", "hamming", "random")


def check_description(description: Mapping[str, Any]) -> None:
    """Refuse a description of a backbone that holds more than shapes and numbers.

    Raises:
        FgsslError: It does, or is no description; the line names the entry.
    """
    _require("description", description, isinstance(description, Mapping))
    architecture, model_args, size, data = (
        description.get(key) for key in ("architecture", "model_args", "image_size", "data_config")
    )
    named = isinstance(architecture, str) and _ARCHITECTURE.fullmatch(architecture) is not None
    _require("architecture", architecture, named)
    _require("name", description.get("name"), isinstance(description.get("name"), str))
    _require("model_args", model_args, isinstance(model_args, Mapping))
    for key, value in (model_args or {}).items():
        _require(f"model_args.{key}", value, not _REFUSED.fullmatch(str(key)) and _is_plain(value))
    _require("image_size", size, _is_number(size, int) and size in range(1, LARGEST_IMAGE + 1))
    _require("data_config", data, isinstance(data, Mapping))
    values: dict[str, Any] = dict(data or {})
    for key, least in (("mean", -math.inf), ("std", 0.0)):
        three = values.get(key)
        fits = isinstance(three, list) and len(three) == 3 and all(_is_number(n) and n > least for n in three)
        _require(key, three, fits)
    share: Any = values.get("crop_pct")
    _require("crop_pct", share, _is_number(share) and 0 < share <= 2)
    _require("interpolation", values.get("interpolation"), values.get("interpolation") in _INTERPOLATIONS)


def _is_number(value: Any, kinds: Any = (int, float)) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


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


def _require(key: str, value: Any, fits: bool) -> None:
    if not fits:
        shown = f"a {type(value).__name__}" if isinstance(value, (list, Mapping)) else repr(value)[:60]
        raise FgsslError(
            f"the checkpoint's {key[:60]} cannot be {shown}", "it is damaged, or made to do harm: use another"
        )
