"""Self-supervised objectives. A new one is a file here, a line in OBJECTIVES, its config and a recipe."""

from __future__ import annotations

from fgssl.objectives.base import Objective, ObjectiveOutput
from fgssl.objectives.byol import BYOL
from fgssl.objectives.moco import MoCo
from fgssl.objectives.simclr import SimCLR
from fgssl.objectives.simsiam import SimSiam

OBJECTIVES: dict[str, type[Objective]] = {"mocov2": MoCo, "byol": BYOL, "simsiam": SimSiam, "simclr": SimCLR}

__all__ = ["BYOL", "OBJECTIVES", "MoCo", "Objective", "ObjectiveOutput", "SimCLR", "SimSiam"]
