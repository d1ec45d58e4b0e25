"""MoCo v2 with the common rationale in a loop of one's own: plain PyTorch on fgssl's parts.

    python recipes/own_loop.py own.safetensors --data demo --steps 200
    fgssl retrieve own.safetensors --data demo

Everything that `fgssl pretrain` adds (a cache, resuming, derived settings, reports) is left
out, so that each line of the method (Chen et al. 2020; Shu et al., CVPR 2023, section 3) can be changed.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional

import fgssl
from fgssl.backbones import build_backbone
from fgssl.config.schema import DataConfig, ObjectiveConfig, PretrainConfig, ViewsConfig
from fgssl.encoder import Encoder
from fgssl.objectives import OBJECTIVES
from fgssl.rationale import RationaleHead, fit_rationale
from fgssl.runs.encoder_file import save_encoder
from fgssl.views import DRAWS, draw_views, make_views

TEMPERATURE, MOMENTUM, QUEUE = 0.2, 0.99, 512


def two_views(pictures: Sequence[Image], config: ViewsConfig, size: int, random: np.random.Generator) -> Tensor:
    """Two random views of each picture: (2, N, 3, S, S) uint8."""
    pixels = [np.asarray(picture) for picture in pictures] * 2
    heights, widths = np.array([array.shape[:2] for array in pixels]).T
    numbers = random.random((len(pixels), DRAWS))
    drawn = draw_views(numbers, config, heights=heights, widths=widths, size=size)
    return make_views(pixels, drawn, size).unflatten(0, (2, -1))


def project(feature_map: Tensor, projector: nn.Module) -> Tensor:
    """(N, C, H, W) -> (N, D) l2-normalised."""
    return functional.normalize(projector(feature_map.mean((2, 3))), dim=1)


def train(data: str, *, steps: int, batch: int = 32, backbone: str = "test_resnet", size: int = 64) -> Encoder:
    """An encoder, as `fgssl pretrain` leaves it: backbone, rationale, and what GradCAM of the loss needs."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    images = fgssl.open_images(data, "train")
    objective = ObjectiveConfig(projector_dim=128, temperature=TEMPERATURE)
    config = PretrainConfig(data=DataConfig(source=data), objective=objective)

    model = build_backbone(backbone, image_size=size)
    head = RationaleHead(model.channels, config.rationale)
    projector = OBJECTIVES["mocov2"].build_projector(model.channels, objective)  # two linear layers
    encoder = Encoder(model, head, projector=projector, config=config)
    key_model, key_projector = copy.deepcopy(model), copy.deepcopy(projector)
    queue = functional.normalize(torch.randn(QUEUE, 128), dim=1)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3, weight_decay=1e-2)

    for step in range(steps):
        rows = random.choice(len(images), batch, replace=False)
        views = two_views([images.load(int(row)) for row in rows], config.views, size, random)
        first, second = (encoder.normalize(view) for view in views)
        feature_map = model(first)  # (N, C, H, W)
        query = project(feature_map, projector)
        with torch.no_grad():
            for follower, learner in ((key_model, model), (key_projector, projector)):
                for old, new in zip(follower.parameters(), learner.parameters(), strict=True):
                    old.lerp_(new, 1 - MOMENTUM)
            key = project(key_model(second), key_projector)
        scores = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], 1)
        loss = functional.cross_entropy(scores / TEMPERATURE, torch.zeros(batch, dtype=torch.long))
        fitted = fit_rationale(head, loss, feature_map)  # GradCAM of the loss, and how far the branch is from it
        optimizer.zero_grad()
        (loss + fitted.loss).backward()
        optimizer.step()
        queue = torch.cat([key, queue])[:QUEUE]
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}, fit {fitted.loss.item():.3f}")
    encoder.keys = queue
    return encoder.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args()
    save_encoder(asked.output, train(asked.data, steps=asked.steps))
