"""The branch made to agree with GradCAM (section 3.2): the one call of a training step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fgssl.config.schema import RationaleConfig
from fgssl.rationale.branch import EPSILON, RationaleHead, normalize_map
from fgssl.rationale.gradcam import gradcam


class RationaleOutput(NamedTuple):
    """The fit of one step."""

    loss: Tensor  # scalar, unweighted
    target_entropy: Tensor  # entropy of the target relative to uniform: 1 means that it says nothing


def fit_rationale(
    head: RationaleHead, loss: Tensor, feature_map: Tensor, finer: Sequence[Tensor] = ()
) -> RationaleOutput:
    """GradCAM of `loss` on `feature_map` (N, C, H, W), fitted by the branch; the one call of a training step.

    A branch that sees `finer` maps beside it is fitted to the GradCAM enlarged to the finest.
    """
    cam = gradcam(loss, feature_map, sign=head.config.sign)
    seen = [each.detach() if head.config.stop_gradient else each for each in (feature_map, *finer)]
    prediction = head(seen[0], seen[1:])
    if finer:
        cam = functional.interpolate(cam[:, None], prediction.shape[1:], mode="bilinear")[:, 0]
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


def _rows(maps: Tensor, axis: str) -> Tensor:
    """(N, H, W) -> (N, 1, H * W) for one distribution over all places, (N, H, W) for one a row."""
    return maps.flatten(1).unsqueeze(1) if axis == "all" else maps
