"""Maps over pictures: those that an encoder has of its own, and those that it has to beat.

A map is made for the run of pictures it comes with, and of a picture depends on that picture alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fgssl import rationale
from fgssl.config.schema import RationaleConfig
from fgssl.encoder import Encoder
from fgssl.rationale import RationaleHead

MapOf = Callable[[Tensor, Tensor], Tensor]  # feature map (N, C, H, W) and images (N, 3, S, S) -> (N, H, W), sum 1


def uniform(feature_map: Tensor, images: Tensor) -> Tensor:
    """Every place alike."""
    return share(torch.ones_like(feature_map[:, 0], dtype=torch.float32))


def centre_prior(feature_map: Tensor, images: Tensor) -> Tensor:
    """A Gaussian around the middle, the same for every image."""
    height, width = feature_map.shape[2:]
    return rationale.centre_prior(height, width, device=feature_map.device).expand(len(feature_map), -1, -1)


def feature_norm(feature_map: Tensor, images: Tensor) -> Tensor:
    """The length of the feature at each place."""
    return share(feature_map.float().norm(dim=1))


def random_branch(channels: int, example: Tensor, seed: int) -> RationaleHead:
    """A branch that nobody fitted, its BatchNorm set to the statistics of an example feature map (N, C, H, W)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 + seed)
        head = RationaleHead(channels, RationaleConfig()).to(example.device)
    head.norm.momentum = 1.0  # type: ignore[assignment]
    with torch.no_grad():
        head.train()(example)
    return head.eval()


def control_maps(encoder: Encoder, images: Tensor, *, seed: int = 0) -> dict[str, MapOf]:
    """What knows nothing of the loss, the class token's attention where there is one.

    (N, 3, S, S) uint8 are an example for the branch that nobody fitted.
    """
    with torch.no_grad():
        example = encoder.backbone(encoder.normalize(images))
    unfitted = random_branch(encoder.backbone.channels, example, seed)
    found: dict[str, MapOf] = {
        "uniform": uniform,
        "centre prior": centre_prior,
        "feature norm": feature_norm,
        "random branch": lambda feature_map, images: encoder.attention(feature_map, unfitted),
    }
    if encoder.backbone.has_class_attention:
        found["class token"] = lambda feature_map, images: encoder.class_attention(images)
    return found


def own_maps(encoder: Encoder) -> dict[str, MapOf]:
    """The fitted rationale, the map that finds the window on trained weights, and GradCAM of the loss, as there are."""
    found: dict[str, MapOf] = {}
    if encoder.rationale is not None:
        found["rationale"] = lambda feature_map, images: encoder.attention(feature_map)
    if (finder := encoder.finder) is not None:
        found["common direction"] = lambda feature_map, images: share(finder(feature_map))
    if encoder.has_loss_gradcam:
        found["GradCAM"] = lambda feature_map, images: share(encoder.loss_gradcam(images))
    return found


def share(maps: Tensor) -> Tensor:
    """(N, H, W), not negative, scaled to sum 1; uniform where there is nothing."""
    total = maps.sum((1, 2), keepdim=True)
    flat = torch.full_like(maps, 1 / maps[0].numel())
    return torch.where(total > 1e-30, maps / total.clamp(min=1e-30), flat)
