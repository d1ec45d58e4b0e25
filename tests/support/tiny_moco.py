"""MoCo on a backbone of a few weights, and random views for it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgssl.config.schema import ObjectiveConfig
from fgssl.objectives.methods.mocov2 import MoCo

BATCH, QUEUE, DIM, CHANNELS = 6, 10, 8, 5  # the queue is no multiple of the batch


class TinyBackbone(nn.Module):
    """Convolution, BatchNorm, dropout, convolution: (N, 3, S, S) -> (N, 5, S / 2, S / 2)."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.channels = CHANNELS
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Conv2d(6, CHANNELS, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.dropout(torch.relu(self.norm(self.stem(images)))))


def build(*, dropout: float = 0.0, **changes) -> MoCo:
    settings = {"projector_hidden": 7, "projector_dim": DIM, "momentum": 0.9, "queue_size": QUEUE}
    settings |= {"key_norm": "running", "temperature": 0.2} | changes
    torch.manual_seed(0)
    return MoCo(TinyBackbone(dropout), dataclasses.replace(ObjectiveConfig(), **settings)).train()


def views(seed: int = 0, count: int = BATCH) -> tuple[Tensor, Tensor]:
    both = torch.randn(2, count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return both[0], both[1]


def unit(*shape: int, seed: int = 0) -> Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def step(model: MoCo, seed: int, index: Tensor | None = None):
    """One training step's forward pass on random views of images `index`."""
    return model(views(seed), torch.arange(BATCH) + 100 * seed if index is None else index)
