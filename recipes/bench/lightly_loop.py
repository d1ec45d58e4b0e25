"""MoCo v2 as lightly's tutorial builds it, for comparison; used by step_table.py, where lightly is installed.

Their blocks, their transforms, their data set and the usual DataLoader, in float32: what somebody gets who follows the
documentation. Backbone (timm), image size, batch size and pictures are those of the other side of the comparison.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import timm
import torch

MEMORY_BANK = 4096  # keys, as in the tutorial
MOMENTUM = 0.996


def missing() -> str | None:
    """Why lightly cannot be measured here, or None."""
    if importlib.util.find_spec("lightly") is None:
        return "lightly is not installed (pip install lightly)"
    return None


def version() -> dict[str, str]:
    """lightly's version, where it is installed."""
    return {} if missing() else {"lightly": metadata.version("lightly")}


class LightlyLoop:
    """One step of lightly's MoCo at a time.

    Args:
        folder: Pictures, in class folders or not.
        backbone: A timm model with random weights.
        size: Side of the views in pixels.
        batch: Pictures a step.
        workers: Of the loader.
        device: Where to compute.
    """

    def __init__(
        self, folder: str, *, backbone: str, size: int, batch: int, workers: int, device: torch.device
    ) -> None:
        from lightly.data import LightlyDataset
        from lightly.loss import NTXentLoss
        from lightly.models.modules import MoCoProjectionHead
        from lightly.models.utils import deactivate_requires_grad
        from lightly.transforms import MoCoV2Transform

        self.device = device
        self.backbone = timm.create_model(backbone, pretrained=False, num_classes=0).to(device).train()
        width = self.backbone.num_features
        self.head = MoCoProjectionHead(width, width, 128).to(device).train()
        self.key_backbone, self.key_head = copy.deepcopy(self.backbone), copy.deepcopy(self.head)
        deactivate_requires_grad(self.key_backbone)
        deactivate_requires_grad(self.key_head)
        self.criterion = NTXentLoss(memory_bank_size=(MEMORY_BANK, 128)).to(device)
        trained = [*self.backbone.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.SGD(trained, lr=0.06)
        self.loader = torch.utils.data.DataLoader(
            LightlyDataset(folder, transform=MoCoV2Transform(input_size=size)),
            batch_size=batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
        )

    def batches(self) -> Iterator[Any]:
        """Epochs without end; the loader's processes go when the iterator does."""
        while True:
            yield from self.loader

    def step(self, batch: Any) -> None:
        """Momentum update, two forwards, loss, backward, optimiser."""
        from lightly.models.utils import update_momentum

        (query_view, key_view), *_ = batch
        update_momentum(self.backbone, self.key_backbone, m=MOMENTUM)
        update_momentum(self.head, self.key_head, m=MOMENTUM)
        query = self.head(self.backbone(query_view.to(self.device)).flatten(start_dim=1))
        with torch.no_grad():
            key = self.key_head(self.key_backbone(key_view.to(self.device)).flatten(start_dim=1))
        self.criterion(query, key.detach()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
