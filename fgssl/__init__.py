"""fgssl: self-supervised representations of fine-grained images, and what they look at."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgssl.api import compare, embed, explain, load_encoder, open_images, pretrain, probe, retrieve

__version__ = "0.1.0"
__all__ = ["compare", "embed", "explain", "load_encoder", "open_images", "pretrain", "probe", "retrieve"]


def __getattr__(name: str) -> Any:
    """What is in `__all__`, imported with torch only when it is asked for (PEP 562)."""
    if name in __all__:
        return getattr(importlib.import_module("fgssl.api"), name)
    raise AttributeError(f"module 'fgssl' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
