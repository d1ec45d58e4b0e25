"""The common rationale: GradCAM of the self-supervised loss, the branch that fits it, and pooling with its map.

Paper: Shu, van den Hengel, Liu, CVPR 2023, section 3. Every choice that the authors' code makes, and its alternative,
is an option of `RationaleConfig`. Two rules hold for all of them: the gradient in GradCAM is a constant (first order
only), and at test time an image's map never depends on the images beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgssl.config.schema import RationaleConfig
from fgssl.rationale.map_shape import shape_attention

EPSILON = 1e-12


class RationaleHead(nn.Module):
    """The branch of limited capacity: K shared 1x1 projections, norm, ReLU, and a max (or another sum) of the K maps.

    Args:
        channels: C of the feature map.
        config: Number of projections, norm, and how they are combined.
    """

    def __init__(self, channels: int, config: RationaleConfig) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Conv2d(channels, config.projections, 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(config.projections) if config.branch_norm == "batch" else nn.Identity()
        if config.combine == "linear":  # softplus of it is 1 / K: begins as the mean
            start = math.log(math.expm1(1 / config.projections))
            self.readout = nn.Parameter(torch.full((config.projections,), start))

    def projections(self, feature_map: Tensor) -> Tensor:
        """The K maps: (N, C, H, W) -> (N, K, H, W), with the ReLU none negative."""
        # outside autocast: a 1x1 convolution costs nothing, and small maps need their precision
        with torch.autocast(feature_map.device.type, enabled=False):
            out: Tensor = self.norm(self.project(feature_map.float()))
        return torch.relu(out) if self.config.activation == "relu" else out

    def forward(self, feature_map: Tensor) -> Tensor:
        """The branch's map a: (N, C, H, W) -> (N, H, W) float32."""
        maps = self.projections(feature_map)
        if self.config.combine == "softmax":
            return (torch.softmax(maps, 1) * maps).sum(1)
        if self.config.combine == "linear":
            return torch.einsum("nkhw,k->nhw", maps, functional.softplus(self.readout))
        return maps.amax(1) if self.config.combine == "max" else maps.mean(1)


class RationaleOutput(NamedTuple):
    """The fit of one step."""

    loss: Tensor  # scalar, unweighted
    target_entropy: Tensor  # entropy of the target relative to uniform: 1 means that it says nothing


def gradcam(loss: Tensor, feature_map: Tensor, *, sign: str = "raise") -> Tensor:
    """GradCAM of a loss (section 3.2): ReLU(+-sum_c F_c * dL/dF_c), or its absolute value, with dL/dF a constant.

    Args:
        loss: Scalar that depends on `feature_map`; its graph is kept.
        feature_map: F, (N, C, H, W).
        sign: "raise" takes +dL/dF (places whose growth raises the loss), "lower" takes -dL/dF, "either" both.

    Returns:
        (N, H, W) float32; gradient flows through F but not through dL/dF.
    """
    # The mean over images and places makes dL/dF tiny; a power of two keeps float16 from losing it and is exact.
    scale = 2.0 ** round(math.log2(feature_map.numel() / feature_map.shape[1]))
    (gradient,) = torch.autograd.grad(loss * scale, feature_map, retain_graph=True)
    raised = (feature_map.float() * gradient.detach().float()).sum(1) / scale
    return raised.abs() if sign == "either" else torch.relu(raised if sign == "raise" else -raised)


def normalize_map(maps: Tensor, mode: str) -> Tensor:
    """Shift the least value to 0 and scale the largest to 1, over the batch ("batch") or each image ("image")."""
    if mode == "none":
        return maps
    places = (0, 1, 2) if mode == "batch" else (1, 2)
    shifted = maps - maps.amin(places, keepdim=True)
    return shifted / shifted.amax(places, keepdim=True).clamp(min=EPSILON)


def target_distribution(cam: Tensor, config: RationaleConfig) -> Tensor:
    """The GradCAM map as distributions: (N, H, W) -> (N, P, Q), summing to 1 over the last axis.

    "softmax": of the raw map over the temperature. "probability": the map divided by its sum, to the power of one over
    the temperature. "standardized": softmax of the map at mean 0 and deviation 1 per image. "top": equal shares of the
    `top_fraction` largest places (equal ones all count, zeros never). A map of zeros is uniform.
    """
    if config.target == "standardized":
        deviation = cam.std((1, 2), correction=0, keepdim=True)
        cam = (cam - cam.mean((1, 2), keepdim=True)) / deviation.clamp(min=EPSILON)
    rows = _rows(cam, config.axis)
    if config.target == "top":
        return _top_places(rows, config.top_fraction)
    if config.target != "probability":
        return torch.softmax(rows / config.temperature, -1)
    # scaled to a maximum of 1 first, so that neither the power nor the sum underflows
    peak = rows.amax(-1, keepdim=True)
    relative = rows / peak.clamp(min=1e-30)
    positive = relative > 0  # 0 to a power below 1 has an infinite slope: an undetached target would give NaN
    powered = torch.where(positive, torch.where(positive, relative, 1.0).pow(1 / config.temperature), 0.0)
    share = powered / powered.sum(-1, keepdim=True).clamp(min=EPSILON)
    return torch.where(peak > 1e-30, share, torch.full_like(rows, 1 / rows.shape[-1]))


def _top_places(rows: Tensor, fraction: float) -> Tensor:
    """(N, P, Q) -> equal shares of each row's largest places."""
    count = max(1, round(fraction * rows.shape[-1]))
    least = rows.topk(count, -1).values[..., -1:]
    chosen = ((rows >= least) & (rows > 0)).to(rows.dtype)
    total = chosen.sum(-1, keepdim=True)
    return torch.where(total > 0, chosen / total.clamp(min=1), 1 / rows.shape[-1])


def rationale_loss(cam: Tensor, prediction: Tensor, config: RationaleConfig) -> RationaleOutput:
    """How far the branch's map is from GradCAM's: KL(target || prediction) between distributions (section 3.2).

    The other fits take the branch's map as it is, not its softmax. "cosine": 1 - cosine with the target.
    "regression": mean squared distance to the target scaled to mean 1 over the places.

    Args:
        cam: (N, H, W), from `gradcam`.
        prediction: (N, H, W), from `RationaleHead`.
        config: Target, axis, temperatures, normalisation, fit, detach and reduction.
    """
    if config.detach_target:
        cam = cam.detach()
    target = target_distribution(cam, config)
    logits = _rows(normalize_map(prediction, config.normalization), config.axis) / config.prediction_temperature
    log_target = target.clamp(min=EPSILON).log()  # the clamp keeps an undetached log from giving NaN at 0
    if config.fit == "kl":
        divergence = (target * (log_target - torch.log_softmax(logits, -1))).sum(-1)  # (N, P)
    elif config.fit == "cosine":
        divergence = 1 - functional.cosine_similarity(target, logits, dim=-1)
    else:
        divergence = (logits - target * target.shape[-1]).square().mean(-1)
    loss = divergence.sum() if config.reduction == "sum" else divergence.mean()
    uniform = math.log(target.shape[-1])
    # on a map of one place (or rows of one) every target is uniform
    entropy = -(target * log_target).sum(-1).mean() / uniform if uniform > 0 else torch.ones_like(loss)
    return RationaleOutput(loss, entropy.detach())


def fit_rationale(
    head: RationaleHead, loss: Tensor, feature_map: Tensor | Sequence[Tensor], config: RationaleConfig
) -> RationaleOutput:
    """GradCAM of `loss` on `feature_map`, fitted by the branch; the one call of a training step.

    Args:
        head: The branch.
        loss: Of the objective.
        feature_map: (N, C, H, W), or several on which the loss depends: fitted together, as one batch.
        config: Of the fit.
    """
    maps = (feature_map,) if isinstance(feature_map, Tensor) else tuple(feature_map)
    cams = [gradcam(loss, one, sign=config.sign) for one in maps]
    joined = maps[0] if len(maps) == 1 else torch.cat([*maps])
    prediction = head(joined.detach() if config.stop_gradient else joined)
    return rationale_loss(cams[0] if len(cams) == 1 else torch.cat(cams), prediction, config)


def attention_map(head: RationaleHead, feature_map: Tensor, config: RationaleConfig) -> Tensor:
    """The test-time map, per image: (N, C, H, W) -> (N, H, W), not negative, summing to 1.

    The distribution that was fitted: a softmax where the fit was one over the whole unnormalised map, otherwise the map
    itself, normalised per image (shifted to a least value of 0 where the fit was a divergence). A branch that is dead
    on an image gives uniform weights. Then sharpened, inverted or mixed with the uniform map, where `config` says so.
    """
    prediction = head(feature_map)
    if config.fit == "kl" and config.normalization == "none" and config.axis == "all":
        weights = torch.softmax(prediction.flatten(1) / config.prediction_temperature, -1)
    else:
        own = config.fit != "kl" and config.normalization == "none"
        weights = (prediction.relu() if own else normalize_map(prediction, "image")).flatten(1)
        total = weights.sum(-1, keepdim=True)
        uniform = torch.full_like(weights, 1 / weights.shape[-1])
        weights = torch.where(total > EPSILON, weights / total.clamp(min=EPSILON), uniform)
    return shape_attention(weights, config).view_as(prediction)


def pool_places(
    feature_map: Tensor, attention: Tensor | None = None, *, pool: str = "mean", exponent: float = 3.0
) -> Tensor:
    """The places of the feature map as one feature, weighted by the attention (section 3.3), of any length.

    Args:
        feature_map: (N, C, H, W).
        attention: (N, H, W), or None for equal weights.
        pool: "mean", the largest weighted place of each channel ("max"), or generalised mean ("gem", Radenovic et al.
            2018), which takes negative features as 0: for maps that end in a ReLU.
        exponent: Of gem.

    Returns:
        (N, C) float32.
    """
    features = feature_map.float()
    if pool == "mean":
        return features.mean((2, 3)) if attention is None else torch.einsum("nchw,nhw->nc", features, attention)
    flat = features.flatten(2)
    weights = torch.full_like(flat[:, :1], 1 / flat.shape[2]) if attention is None else attention.flatten(1)[:, None]
    if pool == "max":
        return (flat * weights).amax(2)
    # relative to the largest, so that no power overflows; the clamp, as at zero a root has an infinite slope
    peak = flat.detach().amax((1, 2), keepdim=True).clamp(min=EPSILON)
    powered = (weights * (flat / peak).clamp(min=0).pow(exponent)).sum(2)
    root = torch.where(powered > 0, powered.clamp(min=1e-30).pow(1 / exponent), 0.0)
    return peak[:, :, 0] * root


def attention_pool(
    feature_map: Tensor, attention: Tensor | None = None, *, pool: str = "mean", exponent: float = 3.0
) -> Tensor:
    """`pool_places`, l2-normalised: (N, C) float32 of unit length."""
    return functional.normalize(pool_places(feature_map, attention, pool=pool, exponent=exponent), dim=1)


def _rows(maps: Tensor, axis: str) -> Tensor:
    """(N, H, W) -> (N, 1, H * W) for one distribution over all places, (N, H, W) for one a row."""
    return maps.flatten(1).unsqueeze(1) if axis == "all" else maps
