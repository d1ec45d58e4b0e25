"""The common rationale: where the loss says to look, learned by a small branch, and pooled by.

Paper: Shu, van den Hengel, Liu, "Learning Common Rationale to Improve Self-Supervised Representation for Fine-Grained
Visual Recognition Problems", CVPR 2023. A training step and a picture at test time go through these names, in order:

    gradcam          the places that raise or lower the loss, from its gradient      (section 3.2)   fit.py
    RationaleHead    a branch too small to learn more than what images share         (section 3.2)   fit.py
    fit_rationale    its map made to agree with GradCAM's                            (section 3.2)   fit.py
    attention_map    the branch's map as weights of the places, without a loss       (section 3.3)   pooling.py
    pool_places      the embedding: the places of the feature map, weighted          (section 3.3)   pooling.py
    window_centres   where a picture is looked at again, enlarged                    (ours)          pooling.py

Two rules hold for every option of `RationaleConfig`: the gradient in GradCAM is a constant (first order only), and at
test time an image's map never depends on the images beside it.
"""

from __future__ import annotations

from fgssl.rationale.fit import RationaleHead, fit_rationale, gradcam, rationale_loss
from fgssl.rationale.pooling import attention_map, centre_prior, cut_windows, pool_places, window_centres, window_share

__all__ = [
    "RationaleHead",
    "attention_map",
    "centre_prior",
    "cut_windows",
    "fit_rationale",
    "gradcam",
    "pool_places",
    "rationale_loss",
    "window_centres",
    "window_share",
]
