"""GradCAM of the self-supervised loss (section 3.2): which places of the feature map it depends on."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gradcam(loss: Tensor, feature_map: Tensor, *, sign: str = "raise") -> Tensor:
    """ReLU(+-sum_c F_c * dL/dF_c), with dL/dF a constant.

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
