"""The rationale at test time: its map as weights of the places (section 3.3), and the window it points to (ours).

Fine-grained classes differ in details that a whole picture shows too small, so `--pool zoom` embeds a window beside it.
The window has the side of the smallest crop the encoder was trained on, so that it has seen things at this scale. Its
middle is the mean place of the rationale's map times a fixed Gaussian around the picture's centre: objects stand there
more often than not, and where the map says little, or there is none, the window stays in the middle. The mean place is
continuous in the map, and the window is cut between pixels, so that rounding never moves it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from fgssl.config.schema import ViewsConfig
from fgssl.rationale.fit import EPSILON, RationaleHead, normalize_map

GEM_EXPONENT = 3.0  # of the generalised mean, as in Radenovic et al. 2018
CENTRE_SIGMA = 0.25  # of the map's side
LEAST_SHARE = 0.4  # of the view's side: closer looks miss the object more often than they help


def attention_map(head: RationaleHead, feature_map: Tensor) -> Tensor:
    """The test-time map, per image: (N, C, H, W) -> (N, H, W), not negative, summing to 1.

    The distribution that was fitted: a softmax where the fit was one over the whole unnormalised map, otherwise the map
    itself, normalised per image (shifted to a least value of 0 where the fit was a divergence). A branch that is dead
    on an image gives uniform weights.
    """
    prediction, config = head(feature_map), head.config
    if config.fit == "kl" and config.normalization == "none" and config.axis == "all":
        return torch.softmax(prediction.flatten(1) / config.prediction_temperature, -1).view_as(prediction)
    own = config.fit == "regression" and config.normalization == "none"
    weights = (prediction if own else normalize_map(prediction, "image")).flatten(1)
    total = weights.sum(-1, keepdim=True)
    uniform = torch.full_like(weights, 1 / weights.shape[-1])
    return torch.where(total > EPSILON, weights / total.clamp(min=EPSILON), uniform).view_as(prediction)


def pool_places(feature_map: Tensor, attention: Tensor | None = None, *, pool: str = "mean") -> Tensor:
    """The places of the feature map (N, C, H, W), weighted by (N, H, W), as one feature (N, C) float32 of any length.

    `pool` is "mean", or generalised mean ("gem"), which takes negative features as 0: for maps that end in a ReLU.
    """
    features = feature_map.float()
    if pool == "mean":
        return features.mean((2, 3)) if attention is None else torch.einsum("nchw,nhw->nc", features, attention)
    flat = features.flatten(2)
    weights = torch.full_like(flat[:, :1], 1 / flat.shape[2]) if attention is None else attention.flatten(1)[:, None]
    # relative to the largest, so that no power overflows; the clamp, as at zero a root has an infinite slope
    peak = flat.detach().amax((1, 2), keepdim=True).clamp(min=EPSILON)
    powered = (weights * (flat / peak).clamp(min=0).pow(GEM_EXPONENT)).sum(2)
    root = torch.where(powered > 0, powered.clamp(min=1e-30).pow(1 / GEM_EXPONENT), 0.0)
    return peak[:, :, 0] * root


def window_share(views: ViewsConfig) -> float:
    """Side of the window relative to that of the view, in (0, 1]: of the smallest crop in training."""
    return max(LEAST_SHARE, math.sqrt(views.crop_min))


def centre_prior(height: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """A Gaussian around the middle, the same for every picture: (H, W), summing to 1."""
    rows, columns = ((torch.arange(size, device=device) + 0.5) / size - 0.5 for size in (height, width))
    weights = torch.exp(-(rows[:, None] ** 2 + columns**2) / (2 * CENTRE_SIGMA**2))
    return weights / weights.sum()


def window_centres(attention: Tensor, share: float) -> Tensor:
    """Middle of each picture's window, kept inside the picture: (N, 2) row and column, in (0, 1) over the picture.

    From the rationale's map (N, H, W), for windows whose side is that `share` of the picture's.
    """
    height, width = attention.shape[1:]
    weights = attention * centre_prior(height, width, device=attention.device)
    total = weights.sum((1, 2))
    rows, columns = ((torch.arange(size, device=attention.device) + 0.5) / size for size in (height, width))
    middle = torch.stack([(weights.sum(2) * rows).sum(1), (weights.sum(1) * columns).sum(1)], 1) / total[:, None]
    return torch.where(total[:, None] > 0, middle, 0.5).clamp(share / 2, 1 - share / 2)


def cut_windows(images: Tensor, centres: Tensor, size: int) -> Tensor:
    """Windows (N, 3, size, size) float32 around `window_centres`, cut from (N, 3, Z, Z) images between pixels."""
    side = images.shape[-1]
    offsets = torch.arange(size, device=images.device) + 0.5 - size / 2  # in pixels from the middle
    rows, columns = (2 * (centres[:, axis, None] + offsets / side) - 1 for axis in (0, 1))  # (N, size), -1 to 1
    shape = (len(images), size, size)
    grid = torch.stack([columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)], 3)  # x, y
    cut: Tensor = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return cut
