"""The common rationale: where the loss says to look, learned by a small branch, and pooled by.

Paper: Shu, van den Hengel, Liu, "Learning Common Rationale to Improve Self-Supervised Representation for Fine-Grained
Visual Recognition Problems", CVPR 2023. A training step and a picture at test time go through these names, in order:

    gradcam          the places that raise or lower the loss, from its gradient      (section 3.2)
    RationaleHead    a branch too small to learn more than what images share         (section 3.2)
    fit_rationale    its map made to agree with GradCAM's                            (section 3.2)
    attention_map    the branch's map as weights of the places, without a loss       (section 3.3)
    pool_places      the embedding: the places of the feature map, weighted          (section 3.3)
    pool_stages      the same with the maps of earlier stages beside it              (ours)
    window_centres   where a picture is looked at again, enlarged                    (ours)

Two rules hold for every option of `RationaleConfig`: the gradient in GradCAM is a constant (first order only), and at
test time an image's map never depends on the images beside it.

The window of `--pool zoom` has the side of the smallest crop in training. Its middle is the mean place of the map times
a Gaussian around the picture's centre: objects stand there more often than not, and where the map says little, or there
is none, it stays in the middle. It is cut between pixels, so that rounding never moves it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgssl.config.schema import RationaleConfig, ViewsConfig

EPSILON = 1e-12
GEM_EXPONENT = 3.0  # of the generalised mean, as in Radenovic et al. 2018
CENTRE_SIGMA = 0.25  # of the map's side
LEAST_SHARE = 0.4  # of the view's side: closer looks miss the object more often than they help


def gradcam(loss: Tensor, feature_map: Tensor, *, sign: str = "raise") -> Tensor:
    """ReLU(+-sum_c F_c * dL/dF_c), dL/dF a constant: the places of F (N, C, H, W) that raise (+) or lower (-) the loss.

    The loss is a scalar whose graph is kept. Gradient flows through F but not through dL/dF. (N, H, W) float32.
    """
    # The mean over images and places makes dL/dF tiny; a power of two keeps float16 from losing it and is exact.
    scale = 2.0 ** round(math.log2(feature_map.numel() / feature_map.shape[1]))
    (gradient,) = torch.autograd.grad(loss * scale, feature_map, retain_graph=True)
    raised = (feature_map.float() * gradient.detach().float()).sum(1) / scale
    return torch.relu(raised if sign == "raise" else -raised)


class RationaleHead(nn.Module):
    """The branch, so small that only what images share fits into it: the maximum of K 1x1 projections, norm, ReLU."""

    def __init__(self, channels: int, config: RationaleConfig) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Conv2d(channels, config.projections, 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(config.projections) if config.branch_norm == "batch" else nn.Identity()
        if config.combine == "linear":  # softplus of it is 1 / K: begins as the mean
            start = math.log(math.expm1(1 / config.projections))
            self.readout = nn.Parameter(torch.full((config.projections,), start))

    def projections(self, feature_map: Tensor) -> Tensor:
        """The K maps: (N, C, H, W) -> (N, K, H, W), not negative."""
        # outside autocast: a 1x1 convolution costs nothing, and small maps need their precision
        with torch.autocast(feature_map.device.type, enabled=False):
            return torch.relu(self.norm(self.project(feature_map.float())))

    def forward(self, feature_map: Tensor) -> Tensor:
        """The branch's map a: (N, C, H, W) -> (N, H, W) float32, not negative."""
        maps = self.projections(feature_map)
        if self.config.combine == "linear":
            return torch.einsum("nkhw,k->nhw", maps, functional.softplus(self.readout))
        return maps.amax(1)


class RationaleOutput(NamedTuple):
    """The fit of one step."""

    loss: Tensor  # scalar, unweighted
    target_entropy: Tensor  # entropy of the target relative to uniform: 1 means that it says nothing


def fit_rationale(head: RationaleHead, loss: Tensor, feature_map: Tensor) -> RationaleOutput:
    """GradCAM of `loss` on `feature_map` (N, C, H, W), fitted by the branch; the one call of a training step."""
    cam = gradcam(loss, feature_map, sign=head.config.sign)
    prediction = head(feature_map.detach() if head.config.stop_gradient else feature_map)
    return rationale_loss(cam, prediction, head.config)


def rationale_loss(cam: Tensor, prediction: Tensor, config: RationaleConfig) -> RationaleOutput:
    """How far the branch's map is from GradCAM's, both (N, H, W).

    The fit "kl" is the paper's, KL(target || softmax of the prediction). "regression" is the mean squared distance of
    the prediction as it is to the target scaled to mean 1 over the places.
    """
    if config.detach_target:
        cam = cam.detach()
    target = target_distribution(cam, config)
    logits = _rows(normalize_map(prediction, config.normalization), config.axis) / config.prediction_temperature
    log_target = target.clamp(min=EPSILON).log()  # the clamp keeps an undetached log from giving NaN at 0
    if config.fit == "kl":
        divergence = (target * (log_target - torch.log_softmax(logits, -1))).sum(-1)  # (N, P)
    else:
        divergence = (logits - target * target.shape[-1]).square().mean(-1)
    loss = divergence.sum() if config.reduction == "sum" else divergence.mean()
    uniform = math.log(target.shape[-1])
    # on a map of one place (or rows of one) every target is uniform
    entropy = -(target * log_target).sum(-1).mean() / uniform if uniform > 0 else torch.ones_like(loss)
    return RationaleOutput(loss, entropy.detach())


def target_distribution(cam: Tensor, config: RationaleConfig) -> Tensor:
    """The GradCAM map as distributions: (N, H, W) -> (N, P, Q), summing to 1 over the last axis; of zeros uniform."""
    rows = _rows(cam, config.axis)
    if config.target == "softmax":
        return torch.softmax(rows / config.temperature, -1)
    # scaled to a maximum of 1 first, so that neither the power nor the sum underflows
    peak = rows.amax(-1, keepdim=True)
    relative = rows / peak.clamp(min=1e-30)
    positive = relative > 0  # 0 to a power below 1 has an infinite slope: an undetached target would give NaN
    powered = torch.where(positive, torch.where(positive, relative, 1.0).pow(1 / config.temperature), 0.0)
    share = powered / powered.sum(-1, keepdim=True).clamp(min=EPSILON)
    return torch.where(peak > 1e-30, share, torch.full_like(rows, 1 / rows.shape[-1]))


def normalize_map(maps: Tensor, mode: str) -> Tensor:
    """Shift the least value to 0 and scale the largest to 1, over the batch ("batch") or each image ("image")."""
    if mode == "none":
        return maps
    places = (0, 1, 2) if mode == "batch" else (1, 2)
    shifted = maps - maps.amin(places, keepdim=True)
    return shifted / shifted.amax(places, keepdim=True).clamp(min=EPSILON)


def _rows(maps: Tensor, axis: str) -> Tensor:
    """(N, H, W) -> (N, 1, H * W) for one distribution over all places, (N, H, W) for one a row."""
    return maps.flatten(1).unsqueeze(1) if axis == "all" else maps


def attention_map(head: RationaleHead, feature_map: Tensor) -> Tensor:
    """The test-time map, per image: (N, C, H, W) -> (N, H, W), not negative, summing to 1; uniform where it is dead.

    The distribution that was fitted: a softmax where the fit was one over the whole unnormalised map, otherwise the map
    itself, normalised per image (shifted to a least value of 0 where the fit was a divergence).
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


def pool_stages(maps: Sequence[Tensor], attention: Tensor | None = None, *, pool: str = "mean") -> Tensor:
    """`pool_places` of the last map, then mean and deviation of each earlier one: (N, C + 2 * their sum) float32."""
    pooled = [pool_places(maps[0], attention, pool=pool)]
    for earlier in maps[1:]:
        weights = None if attention is None else _spread(attention, earlier)
        mean = pool_places(earlier, weights)
        # about the mean: the difference of two squares would lose what small deviations are
        deviation = pool_places((earlier.float() - mean[:, :, None, None]).square(), weights).clamp(min=0).sqrt()
        pooled += [mean, deviation]
    return torch.cat(pooled, 1)


def _spread(attention: Tensor, feature_map: Tensor) -> Tensor:
    """(N, H, W) weights of a coarse map's places, over the places of a finer one, summing to 1 again."""
    finer = functional.interpolate(attention[:, None].float(), feature_map.shape[2:], mode="bilinear")[:, 0]
    return finer / finer.sum((1, 2), keepdim=True).clamp(min=EPSILON)


def window_share(views: ViewsConfig) -> float:
    """Side of the window relative to that of the view, in (0, 1]: of the smallest crop in training."""
    return max(LEAST_SHARE, math.sqrt(views.crop_min))


def centre_prior(height: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """A Gaussian around the middle, the same for every picture: (H, W), summing to 1."""
    rows, columns = ((torch.arange(size, device=device) + 0.5) / size - 0.5 for size in (height, width))
    weights = torch.exp(-(rows[:, None] ** 2 + columns**2) / (2 * CENTRE_SIGMA**2))
    return weights / weights.sum()


def window_centres(attention: Tensor, share: float) -> Tensor:
    """(N, H, W) -> (N, 2) row and column, in (0, 1) over the picture, of each window's middle; `share` is its side."""
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
