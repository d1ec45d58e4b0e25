"""Self-supervised objectives. A new one is a file here, a line in OBJECTIVES, its config and a recipe."""

from __future__ import annotations

from fgssl.objectives.base import Objective, ObjectiveOutput
from fgssl.objectives.moco import MoCo

OBJECTIVES: dict[str, type[Objective]] = {"mocov2": MoCo}

__all__ = ["OBJECTIVES", "MoCo", "Objective", "ObjectiveOutput"]
