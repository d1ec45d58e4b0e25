"""GradCAM of the self-supervised loss (section 3.2): which places of a feature map raise or lower it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gradcam(loss: Tensor, feature_map: Tensor, *, sign: str = "raise") -> Tensor:
    """ReLU(+-sum_c F_c * dL/dF_c), dL/dF a constant: the places of F (N, C, H, W) that raise (+) or lower (-) the loss.

    The loss is a scalar whose graph is kept. Gradient flows through F but not through dL/dF. (N, H, W) float32.
    """
    # The mean over images and places makes dL/dF tiny; a power of two keeps float16 from losing it and is exact.
    scale = 2.0 ** round(math.log2(feature_map.numel() / feature_map.shape[1]))
    (gradient,) = torch.autograd.grad(loss * scale, feature_map, retain_graph=True)
    raised = (feature_map.float() * gradient.detach().float()).sum(1) / scale
    return torch.relu(raised if sign == "raise" else -raised)
