"""The rationale in training (section 3.2): GradCAM of the loss, the branch that learns it, and the fit of its map."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgssl.config.schema import RationaleConfig

EPSILON = 1e-12


def gradcam(loss: Tensor, feature_map: Tensor, *, sign: str = "raise") -> Tensor:
    """ReLU(+-sum_c F_c * dL/dF_c), with dL/dF a constant: on which places of the feature map the loss depends.

    Args:
        loss: Scalar that depends on `feature_map`; its graph is kept.
        feature_map: F, (N, C, H, W).
        sign: "raise" takes +dL/dF (places whose growth raises the loss), "lower" takes -dL/dF.

    Returns:
        (N, H, W) float32; gradient flows through F but not through dL/dF.
    """
    # The mean over images and places makes dL/dF tiny; a power of two keeps float16 from losing it and is exact.
    scale = 2.0 ** round(math.log2(feature_map.numel() / feature_map.shape[1]))
    (gradient,) = torch.autograd.grad(loss * scale, feature_map, retain_graph=True)
    raised = (feature_map.float() * gradient.detach().float()).sum(1) / scale
    return torch.relu(raised if sign == "raise" else -raised)


class RationaleHead(nn.Module):
    """The branch, so small that only what images share fits into it: K 1x1 projections, norm, ReLU, and their maximum.

    Args:
        channels: C of the feature map.
        config: Of the branch (a learned sum instead of the maximum, say), of its fit, and of the pooling by its map.
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

    The fit "kl" is KL(target || softmax of the prediction) between distributions, the paper's. "regression" takes the
    prediction as it is: its mean squared distance to the target scaled to mean 1 over the places.
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
    """The GradCAM map as distributions: (N, H, W) -> (N, P, Q), summing to 1 over the last axis.

    "softmax": of the raw map over the temperature. "probability": the map divided by its sum, to the power of one over
    the temperature. A map of zeros is uniform.
    """
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
