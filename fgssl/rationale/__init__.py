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
    Colocalizer      the same without a loss: what the places of all pictures share  (ours)
    find_peaks       several such places, and how large each is                      (ours)
    crop_windows     where crops of the training hold the object                     (ours)
    look_again       a window moved by the map of what it shows                      (ours)

Two rules hold for every option of `RationaleConfig`: the gradient in GradCAM is a constant (first order only), and at
test time an image's map never depends on the images beside it.
"""

from fgssl.rationale.branch import RationaleHead, attention_map, normalize_map
from fgssl.rationale.colocalization import Colocalizer, PlaceScatter
from fgssl.rationale.fit import RationaleOutput, fit_rationale, rationale_loss, target_distribution
from fgssl.rationale.gradcam import gradcam
from fgssl.rationale.looks import look_again, part_features
from fgssl.rationale.peaks import Peaks, find_peaks
from fgssl.rationale.pooling import pool_places, pool_stages
from fgssl.rationale.windows import (
    LEAST_SHARE,
    centre_prior,
    crop_windows,
    cut_windows,
    fullest_windows,
    window_centres,
    window_share,
)

__all__ = [
    "Colocalizer", "LEAST_SHARE", "Peaks", "PlaceScatter", "RationaleHead", "RationaleOutput", "attention_map",
    "centre_prior", "crop_windows", "cut_windows", "find_peaks", "fit_rationale", "fullest_windows", "gradcam",
    "look_again", "normalize_map", "part_features", "pool_places", "pool_stages", "rationale_loss",
    "target_distribution", "window_centres", "window_share",
]  # fmt: skip
