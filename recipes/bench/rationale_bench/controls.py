"""Maps, poolings and second looks that a rationale has to beat, all of the same encoder."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fgssl.config.schema import RationaleConfig
from fgssl.encoder import RATIONALE_WEIGHT, Encoder
from fgssl.evaluation.maps import MapOf, centre_prior, feature_norm, share
from fgssl.objectives.queue import info_nce
from fgssl.rationale import cut_windows, gradcam, pool_places, window_centres

LARGER = 2**0.5  # side of the larger picture: it costs what two looks do


def _weighted(map_of: MapOf) -> Callable[[Tensor], Tensor]:
    def pool(feature_map: Tensor) -> Tensor:
        return pool_places(feature_map, map_of(feature_map.detach(), feature_map))

    return pool


# What an objective may pool by in training, where a rationale would: (N, C, H, W) -> (N, C)
TRAIN_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "centre prior": _weighted(centre_prior),
    "feature norm": _weighted(feature_norm),
    "generalised mean": functools.partial(pool_places, pool="gem"),
}


class LossGradCam:
    """GradCAM of the contrastive loss, as `Encoder.loss_gradcam` has it, of both signs from one more forward pass."""

    def __init__(self, encoder: Encoder, sign: str) -> None:
        self.encoder, self.sign = encoder, sign

    def __call__(self, feature_map: Tensor, images: Tensor) -> Tensor:
        encoder = self.encoder
        assert encoder.keys is not None and encoder.config is not None
        with torch.no_grad():
            positive = encoder.projected(encoder.backbone(encoder.normalize(images.flip(-1))))
        with torch.enable_grad():
            leaf = feature_map.detach().clone().requires_grad_()
            temperature = encoder.config.objective.temperature or 0.2
            loss, _ = info_nce(encoder.projected(leaf), positive, encoder.keys, temperature=temperature)
            return share(gradcam(loss * len(images), leaf, sign=self.sign).detach())


def loss_gradcams(encoder: Encoder) -> dict[str, MapOf]:
    """Both signs of the loss's GradCAM, where the encoder has keys."""
    signs = ("raise", "lower") if encoder.keys is not None and len(encoder.keys) else ()
    return {f"GradCAM {sign}": LossGradCam(encoder, sign) for sign in signs}


def pool_by(feature_map: Tensor, weights: Tensor | None, config: RationaleConfig | None = None) -> Tensor:
    """l2-normalised embedding (N, C), by the config's way to pool."""
    pooled = pool_places(feature_map, weights, pool="mean" if config is None else config.pool)
    return functional.normalize(pooled, dim=1)


GEM = RationaleConfig(pool="gem")


def looks(encoder: Encoder, images: Tensor) -> dict[str, Tensor]:
    """Second looks at (N, 3, Z, Z) uint8 put side by side, by the name of the row; `zoom` is `--pool zoom`."""
    half = encoder.config is not None and encoder.config.training.mixed_precision == "bf16"
    with torch.autocast(encoder.device.type, torch.bfloat16, enabled=half):
        seen = _seen(encoder, images)
    rows = {"gap + middle window": ["gap", "middle"], "middle window": ["middle"]}
    if "rationale" in seen:
        rows["zoom"] = ["gap", "rationale", "window"]
        rows["zoom, middle window"] = ["gap", "rationale", "middle"]
        rows["gap + window"] = ["gap", "window"]
        rows["gap + window + rationale, alike"] = ["gap", "window", "rationale, whole weight"]
    else:
        rows["larger picture"] = ["larger"]
    return {name: functional.normalize(torch.cat([seen[part] for part in parts], 1)) for name, parts in rows.items()}


def _seen(encoder: Encoder, images: Tensor) -> dict[str, Tensor]:
    """Features of what is seen in the whole picture and in windows of it, each (N, C) of unit length."""
    size = encoder.backbone.image_size

    def resized(side: int) -> Tensor:
        return functional.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)

    whole = encoder.maps(resized(size))
    middle = window_centres(torch.ones_like(whole[0][:, 0]), size / encoder.view_size("zoom"))
    seen = {"gap": encoder.pool(whole, "gap")}
    seen["middle"] = encoder.pool(encoder.maps(cut_windows(images, middle, size)), "gap")
    if encoder.rationale is None:
        side = 8 * round(LARGER * size / 8)
        seen["larger"] = encoder.pool(encoder.maps(resized(side)), "gap")
    else:
        seen["rationale, whole weight"] = encoder.pool(whole, "rationale")
        seen["rationale"] = RATIONALE_WEIGHT * seen["rationale, whole weight"]
        centres = encoder.window_centres(whole[0])
        seen["window"] = encoder.pool(encoder.maps(cut_windows(images, centres, size)), "gap")
    return seen
