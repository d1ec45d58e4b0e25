"""Maps, poolings and second looks that a rationale has to beat, all of the same encoder."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fgssl import rationale
from fgssl.config.schema import RationaleConfig
from fgssl.encoder import RATIONALE_WEIGHT, Encoder
from fgssl.objectives.queue import info_nce
from fgssl.rationale import RationaleHead, attention_map, cut_windows, gradcam, pool_places, window_centres

LARGER = 2**0.5  # side of the larger picture: it costs what two looks do
MapOf = Callable[[Tensor, Tensor], Tensor]  # feature map (N, C, H, W) and images (N, 3, S, S) -> (N, H, W), sum 1


def uniform(feature_map: Tensor, images: Tensor) -> Tensor:
    """Every place alike."""
    return _share(torch.ones_like(feature_map[:, 0], dtype=torch.float32))


def centre_prior(feature_map: Tensor, images: Tensor) -> Tensor:
    """A Gaussian around the middle, the same for every image."""
    height, width = feature_map.shape[2:]
    return rationale.centre_prior(height, width, device=feature_map.device).expand(len(feature_map), -1, -1)


def feature_norm(feature_map: Tensor, images: Tensor) -> Tensor:
    """The length of the feature at each place."""
    return _share(feature_map.float().norm(dim=1))


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
            return _share(gradcam(loss * len(images), leaf, sign=self.sign).detach())


def loss_gradcams(encoder: Encoder) -> dict[str, MapOf]:
    """Both signs of the loss's GradCAM, where the encoder has keys."""
    signs = ("raise", "lower") if encoder.keys is not None and len(encoder.keys) else ()
    return {f"GradCAM {sign}": LossGradCam(encoder, sign) for sign in signs}


def random_branch(channels: int, example: Tensor, seed: int) -> RationaleHead:
    """A branch that nobody fitted, its BatchNorm set to the statistics of an example feature map."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 + seed)
        head = RationaleHead(channels, RationaleConfig()).to(example.device)
    head.norm.momentum = 1.0  # type: ignore[assignment]
    with torch.no_grad():
        head.train()(example)
    return head.eval()


class BranchMap:
    """The test-time map of a branch."""

    def __init__(self, head: RationaleHead) -> None:
        self.head = head

    def __call__(self, feature_map: Tensor, images: Tensor) -> Tensor:
        return attention_map(self.head, feature_map)


def pool_by(feature_map: Tensor, weights: Tensor | None, config: RationaleConfig | None = None) -> Tensor:
    """l2-normalised embedding (N, C), by the config's way to pool."""
    pooled = pool_places(feature_map, weights, pool="mean" if config is None else config.pool)
    return functional.normalize(pooled, dim=1)


GEM = RationaleConfig(pool="gem")


def _share(maps: Tensor) -> Tensor:
    total = maps.sum((1, 2), keepdim=True)
    flat = torch.full_like(maps, 1 / maps[0].numel())
    return torch.where(total > 1e-30, maps / total.clamp(min=1e-30), flat)


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
