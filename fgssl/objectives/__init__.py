"""Self-supervised objectives: two views in, a loss and feature maps out; a new one is a file in `methods/`."""

from __future__ import annotations

from collections.abc import Mapping

from fgssl import registry
from fgssl.objectives.base import Objective, ObjectiveOutput

OBJECTIVES: Mapping[str, type[Objective]] = registry.OBJECTIVES

__all__ = ["OBJECTIVES", "Objective", "ObjectiveOutput"]
